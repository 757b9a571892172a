"""Budget: refuse a run whose methods would keep more bytes than allowed, before it begins."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from .family import Family
from .memory import Kept, sized
from .method import Method
from .patch import PatchStack
from .plan import Plan, describe
from .recorder import Recorder
from .step import Call, Run, StepClock
from .work import Work, shapes_of

CHEAPER = ("output", "hidden", "module")


class OverBudget(ValueError):
    """A run would keep more bytes than allowed."""


class Budget:
    """Holds the methods of one acceleration to `plan.max_bytes`.

    Before the denoiser runs for a branch, what will be kept of it is counted from shapes. Methods
    that do not say beforehand what they keep are measured after the first evaluation, as if every
    history were as long as it gets.
    """

    def __init__(
        self, pipe: Any, plan: Plan, family: Family, clock: StepClock, recorder: Recorder
    ) -> None:
        assert plan.max_bytes is not None
        self._pipe, self._family, self._clock, self._recorder = pipe, family, clock, recorder
        self._limit, self._methods = plan.max_bytes, plan.methods
        self._branches: dict[tuple[str, str], int] = {}

    def install(self, patches: PatchStack) -> None:
        for name, module in self._clock.denoisers.items():
            patches.call(module, functools.partial(self._enter, name), f"max_bytes on {name}")
        self._clock.on_begin.append(self._begin)
        self._clock.on_call.append(self._measured)

    def _begin(self, run: Run) -> None:
        self._branches = {}

    def _enter(self, name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        branch = self._clock.step.branch
        if (name, branch) not in self._branches:
            work = self._recorder.work_of(name, *shapes_of((args, kwargs)))
            count = self._recorder.expected_bytes(name, work) or 0
            self._branches[name, branch] = count
            total = max(sum(self._branches.values()), self._ahead(branch, count))
            once = sum(ahead(args, kwargs, work) for ahead in self._recorder.ahead)
            if total + once > self._limit:
                cheaper = self._granularity(name, work, total / max(count, 1))
                raise OverBudget(self._refusal(total + once, cheaper))
        return call(*args, **kwargs)

    def _ahead(self, branch: str, count: int) -> int:
        """Bytes of all branches and denoisers still to come, as far as the pipeline says."""
        apart = branch in ("cond", "uncond") or not self._family.fused
        guided = getattr(self._pipe, "do_classifier_free_guidance", None) is True
        return count * (2 if apart and guided else 1) * len(self._clock.denoisers)

    def _measured(self, call: Call) -> None:
        total = sum(held() for held in self._recorder.holders_when_full)
        if total > self._limit:
            raise OverBudget(self._refusal(total, ""))

    def _refusal(self, total: int, cheaper: str) -> str:
        names = " + ".join(describe(method) for method in self._methods)
        least = any(getattr(method, "carrier", "") == "output" for method in self._methods)
        instead = cheaper or (
            "these are outputs of the denoiser alone, the least there is to keep"
            if least
            else "a carrier='output', as TaylorSeer has it, keeps least"
        )
        return (
            f"{names} would keep {total} bytes ({sized(total)}) in this run, and max_bytes is "
            f"{self._limit} ({sized(self._limit)}); {instead}, or raise max_bytes"
        )

    def _granularity(self, name: str, work: Work, times: float) -> str:
        """What coarser carriers of the same method would keep."""
        coarse = next(map(_coarser, self._methods), ())
        copies = max((kept.copies for kept in self._recorder.kept.get(name, [])), default=1)
        found = []
        for carrier in coarse:
            kept = self._coarse(carrier, name, copies)
            found.append(
                f"carrier={carrier!r} keeps {sized(int(kept.bytes(work.outputs) * times))}"
            )
        return " and ".join(found)

    def _coarse(self, carrier: str, name: str, copies: int) -> Kept:
        if carrier == "output":
            return Kept("", copies=copies)
        path, _, spec = self._family.flat_blocks(self._clock.denoisers[name])[-1]
        return Kept(path, spec.returns.index(self._family.stream), copies)


def _coarser(method: Method) -> tuple[str, ...]:
    """The carriers that a method may be set to and that keep less than its own."""
    now = getattr(method, "carrier", None)
    known = getattr(method, "carriers", CHEAPER)
    return tuple(c for c in CHEAPER[: CHEAPER.index(now)] if c in known) if now in CHEAPER else ()
