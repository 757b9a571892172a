"""Evaluating the unconditional branch of guidance only where a rule asks for it.

Where it is left out, something stands in for it: the conditional prediction c itself, so that
u + w (c - u) is c, or what the rule guesses. The pipeline sees outputs of the usual shape.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from accel.batch_parts import cloned, is_tensor, joined, part_of, stream_of
from accel.branches import guided, may_hold_both, rows_of_branch, same_samples
from accel.family import select_rows
from accel.method import Method, Site
from accel.step import Call, Run, Step


class Rule:
    """Decides in one run; there is one for each call that a step makes of a branch."""

    action = "reused"
    """What the report says of an evaluation that left something out."""

    def sized(self, shape: torch.Size) -> None:
        """Told first of every call: `shape` of the latents it is given."""

    def evaluates(self, step: Step, samples: int) -> Sequence[int]:
        """Which of the `samples` have their unconditional branch evaluated at `step`."""
        return range(samples)

    def seen(self, step: Step, samples: Sequence[int], cond: Any, uncond: Any) -> None:
        """Both predictions of `samples` are there."""

    def guess(self, step: Step, cond: Any) -> Any:
        """What stands in for the unconditional predictions, given the conditional ones."""
        return cond

    def bytes(self) -> int:
        """What is kept from step to step."""
        return 0


@dataclass(frozen=True)
class Guidance(Method):
    """A method that leaves out the unconditional branch of some evaluations."""

    level: ClassVar[str] = "guidance"
    claims: ClassVar[str] = "guidance"

    def rule(self, site: Site) -> Rule:
        """A fresh rule."""
        raise TypeError(f"{type(self).__name__} has no rule")

    def install(self, site: Site) -> None:
        Unconditional(site, functools.partial(self.rule, site), type(self).__name__).install()


class Unconditional:
    """Runs the denoisers of a site, with the unconditional branch where the rule asks for it.

    A batch that holds both branches is evaluated whole while all samples need both; otherwise, and
    always beside methods that forecast, its branches are evaluated apart, as those methods know
    them: a forecast must not mix what has another meaning.
    """

    def __init__(self, site: Site, rule: Callable[[], Rule], method: str) -> None:
        self.site, self.rule, self.method = site, rule, method
        self.label = f"{method}:unconditional"
        self._rules: dict[str, Rule] = {}
        self._cond: dict[tuple[str, str], tuple[int, Any]] = {}
        self._same: dict[str, bool | None] = {}
        site.clock.on_begin.append(self._clear)
        site.clock.on_end.append(self._clear)
        site.report.holders.append(self._bytes)
        site.report.holders_when_full.append(self._bytes)

    def attach(self) -> None:
        """Wrap the denoisers."""
        for name, denoiser in self.site.denoisers.items():
            handler = functools.partial(self._denoise, name)
            self.site.patches.call(denoiser, handler, f"{self.method} on {name}")

    def install(self) -> None:
        """Wrap the denoisers, and tell the report."""
        self.attach()
        whole = {name: [""] for name in self.site.denoisers}
        self.site.report.skip_set(self.method, self.label, whole)

    def _clear(self, run: Run) -> None:
        for kept in (self._rules, self._cond, self._same):
            kept.clear()

    def _bytes(self) -> int:
        return sum(rule.bytes() for rule in self._rules.values())

    def _denoise(self, name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        step = self.site.clock.step
        branch, _, number = step.branch.partition("#")
        if may_hold_both(self.site, args, kwargs) and self._is_guided(name, args, kwargs):
            return self._fused(name, call, args, kwargs)
        if branch == "uncond":
            return self._apart(name, number, call, args, kwargs)
        value = call(*args, **kwargs)
        if branch == "cond":
            self._cond[name, number] = (step.index, cloned(value))
        return value

    def _is_guided(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Whether the halves of the batch are branches; where the pipeline hides it, the first
        evaluation is left as it is and the second one is looked at."""
        known = self._same.get(name)
        if known is None:
            first = name not in self._same
            sure = guided(self.site.pipe) is not None
            known = same_samples(self.site, args, kwargs) if sure or not first else None
            self._same[name] = known
        return bool(known)

    def _rule(self, number: str) -> Rule:
        return self._rules.setdefault(number, self.rule())

    @property
    def _told(self) -> Call:
        told = self.site.clock.call
        assert told is not None
        return told

    def _beside_others(self) -> bool:
        """Whether other methods of the plan leave work out."""
        return len(self.site.report.owners) > 1

    def _fused(
        self, name: str, call: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        step, rule, order = self.site.clock.step, self._rule(""), self.site.family.fused
        shape = stream_of(self.site.family.stream, args, kwargs).shape
        count = shape[0] // 2
        rule.sized(shape)
        chosen = list(rule.evaluates(step, count))
        if len(chosen) == count and not self._beside_others():
            value = call(*args, **kwargs)
            halves = {branch: part_of(value, i, 2) for i, branch in enumerate(order)}
            rule.seen(step, chosen, halves["cond"], halves["uncond"])
            return value
        rows = functools.partial(rows_of_branch, self.site, name, args=args, kwargs=kwargs)
        evaluated = count + len(chosen)
        if len(chosen) < count:
            self._told.keep_rows(self.label, rule.action, evaluated / (2 * count))
        cond = self._inside(call, "cond", count / evaluated, rows("cond"))
        both = {"cond": cond, "uncond": cond}
        if len(chosen) < count:
            both["uncond"] = rule.guess(step, cond)
        if chosen:
            arguments = rows("uncond", samples=chosen)
            value = self._inside(call, "uncond", len(chosen) / evaluated, arguments, chosen)
            rule.seen(step, chosen, entries(cond, chosen, count), value)
            both["uncond"] = merged(both["uncond"], value, chosen, count)
        return joined([both[branch] for branch in order])

    def _apart(
        self,
        name: str,
        number: str,
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        step, rule, family = self.site.clock.step, self._rule(number), self.site.family
        index, cond = self._cond.pop((name, number), (-1, None))
        if index != step.index:
            raise ValueError(
                f"{type(self.site.pipe).__name__} evaluates the unconditional branch before the "
                f"conditional one, which would stand in for it; {self.method} cannot serve it"
            )
        latents = stream_of(family.stream, args, kwargs)
        count = len(latents)
        rule.sized(latents.shape)
        chosen = list(rule.evaluates(step, count))
        if len(chosen) == count:
            value = call(*args, **kwargs)
            rule.seen(step, chosen, cond, value)
            return value
        self._told.keep_rows(self.label, rule.action, len(chosen) / count)
        guess = rule.guess(step, cond)
        if not chosen:
            return guess
        rows = torch.tensor(chosen, device=latents.device)
        arguments = select_rows(family, self.site.denoisers[name], args, kwargs, rows)
        value = self._inside(call, "uncond", 1.0, arguments, chosen)
        rule.seen(step, chosen, entries(cond, chosen, count), value)
        return merged(guess, value, chosen, count)

    def _inside(
        self,
        call: Callable[..., Any],
        branch: str,
        share: float,
        arguments: dict[str, Any],
        samples: Sequence[int] | None = None,
    ) -> Any:
        """Evaluate one branch, a `share` of the rows evaluated, as a call of that branch.

        Args:
            samples: those that `arguments` are of; None for all.
        """
        told = self._told
        step, before, told.skipped = told.step, told.skipped, {}
        told.step = replace(step, branch=branch)
        told.samples = None if samples is None else tuple(samples)
        try:
            value = call(**arguments)
        finally:
            told.step, told.samples = step, None
        for label, part in told.skipped.items():
            before[label] = before.get(label, 0.0) + part * share
        told.skipped = before
        return value


def entries(value: Any, samples: Sequence[int], count: int) -> Any:
    """The entries of some of `count` samples in every tensor of `value`."""
    return tree_map(lambda v: v[_rows(v, samples, count)] if is_tensor(v) else v, value)


def merged(into: Any, value: Any, samples: Sequence[int], count: int) -> Any:
    """`into`, with `value` for those of its `count` samples."""
    new = iter(tree_leaves(value))

    def merge(old: Any) -> Any:
        given = next(new)
        if not is_tensor(old):
            return old
        return old.index_copy(0, _rows(old, samples, count), given.to(old.dtype))

    return tree_map(merge, into)


def _rows(value: Tensor, samples: Sequence[int], count: int) -> Tensor:
    each = len(value) // count
    first = torch.tensor(list(samples), device=value.device) * each
    return (first[:, None] + torch.arange(each, device=value.device)).flatten()
