"""Bar: the progress bar of a pipeline, which begins a run and ends it however it is left."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .step import StepClock


class Bar:
    """A pipeline's progress bar that begins a run, and ends it however the bar is left."""

    def __init__(self, bar: Any, clock: StepClock) -> None:
        self._inner, self._clock = bar, clock
        try:
            self._run = clock.begin()
        except BaseException:
            bar.close()  # it was drawn when it was made
            raise
        weakref.finalize(self, clock.end, self._run)

    def __enter__(self) -> Any:
        self._inner.__enter__()
        return self

    def __exit__(self, *exception: Any) -> Any:
        self._run.failed = exception[0] is not None
        self._clock.end(self._run)
        return self._inner.__exit__(*exception)

    def __iter__(self) -> Iterator:
        try:
            yield from self._inner
        finally:
            self._clock.end(self._run)

    def __len__(self) -> int:
        return len(self._inner)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def shows_bar(pipeline: type) -> bool:
    """Whether the pipeline's own code draws a progress bar."""
    for owner in pipeline.__mro__:
        if owner.__name__ == "DiffusionPipeline":  # defines the bar, draws none
            continue
        for member in vars(owner).values():
            code = getattr(inspect.unwrap(member), "__code__", None) if callable(member) else None
            if code is not None and "progress_bar" in code.co_names:
                return True
    return False


def loops(blocks: Any) -> Iterator[Any]:
    """The blocks of a modular pipeline that loop over steps; each draws a bar of its own."""
    if hasattr(type(blocks), "progress_bar"):
        yield blocks
    for block in getattr(blocks, "sub_blocks", {}).values():
        yield from loops(block)
