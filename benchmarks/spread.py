"""Jobs spread over forked processes, so that no job leaves anything behind in this one."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")

_function: Callable[[Any], Any] | None = None


def _adopt(function: Callable[[Any], Any]) -> None:
    global _function
    _function = function


def _run(job: Any) -> Any:
    assert _function is not None
    return _function(job)


def spread(function: Callable[[Job], Result], jobs: Sequence[Job], workers: int) -> list[Result]:
    """Results of `function` for every job, in order.

    Args:
        function: anything callable; the processes inherit it, so it may hold a whole pipeline.
        workers: processes at once; 0 runs the jobs here, as one must where CUDA is in use.
    """
    if workers < 1:
        return [function(job) for job in jobs]
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, context, _adopt, (function,)) as pool:
        return list(pool.map(_run, jobs))
