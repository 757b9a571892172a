"""Branches of guidance planned apart: nodes at which the conditional one is evaluated alone."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map

from accel.batch_parts import cloned, is_tensor, joined, part_of, tensors_in
from accel.branches import may_hold_both, rows_of_branch
from accel.caching.forecasters import newton
from accel.caching.state import combine
from accel.method import Site

LABEL = "Planned:guidance"


class Differences:
    """By how much the branches differed at the last two steps that evaluated both."""

    def __init__(self) -> None:
        self._kept: deque[tuple[int, list[Tensor]]] = deque(maxlen=2)

    def keep(self, step: int, values: list[Tensor]) -> None:
        self._kept.appendleft((step, values))

    def guess(self, step: int) -> list[Tensor]:
        """The difference at `step`, on the line through those kept."""
        anchors, values = zip(*self._kept, strict=True)
        weights = newton(anchors, step)
        return [combine(weights, column) for column in zip(*values, strict=True)]

    def clear(self) -> None:
        self._kept.clear()

    def bytes(self) -> int:
        return sum(value.nbytes for _, values in self._kept for value in values)

    def full_bytes(self) -> int:
        """Bytes once two are kept."""
        return self.bytes() * 2 // max(len(self._kept), 1)


class Split:
    """Evaluates both branches of guidance, or the conditional one alone.

    Of a batch that holds both, the conditional rows are evaluated alone; of branches evaluated one
    after the other, the unconditional call is left out. What stands in for the unconditional output
    is the conditional one less a guess of their difference.

    Args:
        alone: whether the step going on evaluates the conditional branch alone.
        keep: takes conditional less unconditional, tensor by tensor, where both are evaluated.
        guess: what stands in for it.
    """

    def __init__(
        self,
        site: Site,
        alone: Callable[[], bool],
        keep: Callable[[list[Tensor]], None],
        guess: Callable[[], list[Tensor]],
    ) -> None:
        self.site, self.alone, self.keep, self.guess = site, alone, keep, guess
        self._cond: dict[tuple[str, str], tuple[int, Any]] = {}
        site.clock.on_begin.append(lambda run: self._cond.clear())
        site.clock.on_end.append(lambda run: self._cond.clear())

    def install(self) -> None:
        for name, denoiser in self.site.denoisers.items():
            handler = functools.partial(self._denoise, name)
            self.site.patches.call(denoiser, handler, f"{LABEL} on {name}")

    def _denoise(self, name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        step = self.site.clock.step
        branch, _, number = step.branch.partition("#")
        if may_hold_both(self.site, args, kwargs):
            return self._both(name, call, args, kwargs)
        if branch == "uncond":
            index, cond = self._cond.pop((name, number), (-1, None))
            first = index != step.index
            if first and self.alone():
                raise ValueError(
                    f"{type(self.site.pipe).__name__} evaluates the unconditional branch before "
                    f"the conditional one, so that its branches cannot be planned apart"
                )
            if self.alone():
                self._leave_out(1.0)
                return self._without(cond)
            value = call(*args, **kwargs)
            if not first:
                self.keep(_difference(cond, value))
            return value
        value = call(*args, **kwargs)
        if branch == "cond":
            self._cond[name, number] = step.index, cloned(value)
        return value

    def _both(self, name: str, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        order = self.site.family.fused
        if self.alone():
            self._leave_out(0.5)
            cond = call(**rows_of_branch(self.site, name, "cond", args, kwargs))
            both = {"cond": cond, "uncond": self._without(cond)}
            return joined([both[branch] for branch in order])
        value = call(*args, **kwargs)
        halves = {branch: part_of(value, i, 2) for i, branch in enumerate(order)}
        self.keep(_difference(halves["cond"], halves["uncond"]))
        return value

    def _without(self, cond: Any) -> Any:
        """The unconditional output guessed from the conditional one."""
        guessed = iter(self.guess())
        return tree_map(lambda v: v - next(guessed).to(v) if is_tensor(v) else v, cond)

    def _leave_out(self, share: float) -> None:
        told = self.site.clock.call
        assert told is not None
        told.leave_out(LABEL, "forecast", share)


def _difference(cond: Any, uncond: Any) -> list[Tensor]:
    pairs: Sequence[tuple[Tensor, Tensor]] = list(
        zip(tensors_in(cond), tensors_in(uncond), strict=True)
    )
    return [(c - u).detach() for c, u in pairs]
