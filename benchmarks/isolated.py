"""A function served by a process of its own, so that what it does to the process harms no other.

A kernel that reads where it may not leaves its process unable to use the card; one that never ends
holds it for good. Here such a process is ended, and the next question is asked of a fresh one.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

Answer = Callable[[Any], dict[str, Any]]
BROKEN = "broken"
"""A true value under this name in an answer says that the process is of no more use."""


class Lost(Exception):
    """The process ended without an answer; the message says how."""


class NotReady(Lost):
    """The process did not come up, so there is no use in asking it anything else."""


class TooLong(Lost):
    """The process was ended because its time was over."""


class Isolated:
    """Asks `start(*args)` in another process, which is begun when needed and again when lost.

    Args:
        start: makes the function that answers; importable, and called in the other process.
        args: what it is given, ready for pickle.
    """

    def __init__(self, start: Callable[..., Answer], *args: Any) -> None:
        self._start, self._args = start, args
        self._process: Any = None
        self._pipe: Connection | None = None

    def ready(self, limit_s: float) -> None:
        """Begin a process, if none is there, and wait until it can be asked.

        Raises:
            NotReady: it ended, or did not come up within `limit_s` seconds.
        """
        if self._pipe is not None:
            return
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, self._start, self._args))
        self._process.start()
        other.close()
        try:
            self._answer(limit_s)
        except Lost as lost:
            raise NotReady(f"its process did not come up: {lost}") from None

    def ask(self, question: Any, limit_s: float) -> dict[str, Any]:
        """The answer to one question of a process that is `ready`.

        Raises:
            TooLong: none within `limit_s` seconds; the process was ended.
            Lost: the process ended by itself.
        """
        if self._pipe is None:
            raise ValueError("call ready() before ask(): the last process was ended")
        with contextlib.suppress(BrokenPipeError):  # it is gone, which is found below
            self._pipe.send(question)
        answer = self._answer(limit_s)
        if answer.pop(BROKEN, False):
            self.close()
        return answer

    def close(self) -> None:
        """End the process and all that it began."""
        if self._pipe is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()  # in case it leads no group yet
        self._process.join(10)  # one stuck in its driver is left to the system
        self._pipe.close()
        self._pipe = None

    def _answer(self, limit_s: float) -> dict[str, Any]:
        assert self._pipe is not None
        if not wait([self._pipe, self._process.sentinel], max(0.0, limit_s)):
            self.close()
            raise TooLong(f"stopped after {limit_s:.0f} s")
        with contextlib.suppress(EOFError, ConnectionResetError):
            if self._pipe.poll():
                answer: dict[str, Any] = self._pipe.recv()
                return answer
        self._process.join(10)
        code = self._process.exitcode
        self.close()
        raise Lost(_ending(code))


def _ending(code: int | None) -> str:
    if code is None or code >= 0:
        return f"its process ended with code {code}"
    return f"its process was ended by {signal.Signals(-code).name}"


def _serve(pipe: Connection, start: Callable[..., Answer], args: tuple[Any, ...]) -> None:
    os.setsid()  # a group of its own, with which the processes that it begins are ended
    answer = start(*args)
    pipe.send({})
    with contextlib.suppress(EOFError):  # whoever asked is gone
        while True:
            pipe.send(answer(pipe.recv()))
