"""Kept outputs in host memory: copied there and back while the device computes."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor


class OnHost:
    """A copy of a tensor in host memory, which comes back to its device when it is wanted.

    On CUDA the memory is pinned, and the copies either way run on a stream of their own; on a CPU
    there is nothing to move. The values are the same bits everywhere.
    """

    def __init__(self, value: Tensor) -> None:
        self.device = value.device
        self._ahead: tuple[Tensor, torch.cuda.Event] | None = None
        if self.device.type != "cuda":
            self._host = value.detach().to("cpu", copy=True)
            return
        own = value.detach().clone()  # the pipeline may go on to change what it was given in place
        stream = _copies(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            self._host = torch.empty_like(own, device="cpu", pin_memory=True)
            self._host.copy_(own, non_blocking=True)
        own.record_stream(stream)

    @property
    def nbytes(self) -> int:
        return self._host.nbytes

    def prefetch(self) -> None:
        """Begin to bring it back, if that costs the device no waiting."""
        if self.device.type == "cuda" and self._ahead is None:
            stream = _copies(self.device)
            with torch.cuda.stream(stream):
                ahead = self._host.to(self.device, non_blocking=True)
                arrived = torch.cuda.Event()
                arrived.record(stream)
            self._ahead = ahead, arrived

    def fetch(self) -> Tensor:
        """The tensor on its device, for reading; prefetched or not."""
        self.prefetch()
        if self._ahead is None:
            return self._host.to(self.device)
        (ahead, arrived), self._ahead = self._ahead, None
        current = torch.cuda.current_stream(self.device)
        current.wait_event(arrived)
        ahead.record_stream(current)
        return ahead


@cache
def _copies(device: Any) -> torch.cuda.Stream:
    """The stream on which copies of `device` run, in order."""
    return torch.cuda.Stream(device)


def put(value: Any, keep_on: str, own: bool = False) -> Any:
    """A copy of a tensor that nobody else changes; anything else as it is.

    Args:
        own: nobody else holds it, so on its device it is kept itself.
    """
    if not isinstance(value, Tensor):
        return value
    if keep_on == "cpu":
        return OnHost(value)
    # cloned: the pipeline may go on to change what it was given in place
    return value.detach() if own else value.detach().clone()


def got(value: Any) -> Any:
    """What was put, for reading."""
    return value.fetch() if isinstance(value, OnHost) else value
