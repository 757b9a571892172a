"""Runs of real pipelines that stop after every step, so that steps of several can take turns.

Each pipeline runs in a thread of its own and waits in its `callback_on_step_end`; only one of them
moves at a time. What is timed is one whole iteration of the pipeline's own loop, without the wait:
by the wall, and in processor time of its thread, which other load does not lengthen.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch

Callback = Callable[[Any, int, Any, dict], dict]


def keep_memory() -> bool:
    """Tell glibc to keep freed memory, in one arena for all threads; False where there is none.

    Each thread's own arena would give memory back to the system and fault it in again in the midst
    of some steps and not of others.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    arena_max, trim_threshold, mmap_threshold = -8, -1, -3  # <malloc.h>
    settings = ((arena_max, 1), (trim_threshold, 2**30), (mmap_threshold, 2**25))
    return all([mallopt(parameter, value) for parameter, value in settings])


class Stopped(Exception):
    """Raised inside a pipeline to end a run that is no longer wanted."""


class Stepper:
    """One pipeline, step by step; when a run ends, the next begins, its first steps not timed.

    with Stepper(lambda callback: pipe(…, callback_on_step_end=callback), settle=3) as stepper:
        seconds = stepper.step()

    Attributes:
        wall_s, cpu_s: seconds of every timed step so far.
    """

    def __init__(self, run: Callable[[Callback], object], settle: int) -> None:
        """`run(callback)` makes one run, of more than `settle` steps; those are not timed."""
        if settle < 1:
            raise ValueError(f"settle must be at least 1 (a run's preparation), got {settle}")
        self._run, self._settle = run, settle
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._closing, self._error = False, None
        self.wall_s: list[float] = []
        self.cpu_s: list[float] = []
        self._resumed = (0.0, 0.0)
        self._threads = torch.get_num_threads()
        self._thread = threading.Thread(target=self._work, daemon=True, name="stepper")

    def __enter__(self) -> Stepper:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing = True
        self._go.release()
        self._thread.join()

    def step(self) -> float:
        """Make one step; its processor seconds."""
        if not self._thread.is_alive():
            raise RuntimeError("the stepper is not running; use it in a `with` block")
        self._go.release()
        self._done.acquire()
        if self._error is not None:
            raise self._error
        return self.cpu_s[-1]

    def _work(self) -> None:
        torch.set_num_threads(self._threads)
        try:
            self._pause()
            while True:
                before = len(self.wall_s)
                self._run(self._after)
                if len(self.wall_s) == before:
                    raise ValueError(f"a run must have more than {self._settle} steps")
        except Stopped:
            pass
        except BaseException as error:
            self._error = error
            self._done.release()

    def _pause(self) -> None:
        self._go.acquire()
        if self._closing:
            raise Stopped

    def _after(self, pipe: Any, index: int, timestep: Any, values: dict) -> dict:
        if index >= self._settle:
            wall, cpu = time.perf_counter(), time.thread_time()
            self.wall_s.append(wall - self._resumed[0])
            self.cpu_s.append(cpu - self._resumed[1])
            self._done.release()
            self._pause()
        self._resumed = time.perf_counter(), time.thread_time()
        return values
