"""enable, disable, accelerated: what a user calls."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

from . import plan_beside
from .budget import Budget
from .family import Family
from .fingerprint import Watch
from .memory import sized
from .method import LEVELS, Method, Site
from .patch import PatchStack
from .plan import Plan, describe
from .recorder import Recorder
from .registry import find_family, methods, nearest, recipe, recognise
from .report import Report
from .step import StepClock

STATE = "_acceleration"


class Acceleration:
    """What is enabled on one pipeline: `pipe.acceleration`."""

    def __init__(self, pipe: Any, plan: Plan, site: Site) -> None:
        self.plan, self._pipe, self._site = plan, pipe, site

    def __bool__(self) -> bool:
        return True

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()  # a copy of a pipeline, or a pickled one, runs plain

    @property
    def family(self) -> Family:
        return self._site.family

    def report(self) -> Report:
        """What the last run computed, forecast and reused."""
        return self._site.report.report(str(self.plan))

    def explain(self, steps: int = 50) -> str:
        """What a run of `steps` steps will do, before running it."""
        site, plan = self._site, self.plan
        lines = [f"{type(self._pipe).__name__} (family {site.family.name})"]
        if plan.name:
            lines[0] += f", recipe {plan.name}"
        lines += [f"  {describe(m)}: {m.expect(site, steps)}" for m in plan.methods]
        if len(site.denoisers) > 1:
            lines.append(
                f"  {' and '.join(site.denoisers)} take turns, each with a warm-up of its own: "
                f"a method that has one computes more steps than this says"
            )
        lines += self._memory()
        if plan.note:
            lines.append(f"  settings: {plan.note}")
        return "\n".join(lines)

    def _memory(self) -> list[str]:
        """Lines on what is kept, as far as it is known."""
        plan, expected = self.plan, self._site.report.expected()
        told = []
        if expected is not None:
            told.append(f"at most {sized(expected)} at the size of the last run")
        if plan.keep_on == "cpu":
            told.append("in host memory")
        if plan.max_bytes is not None:
            told.append(f"max_bytes {sized(plan.max_bytes)}")
        return [f"  keeps: {', '.join(told)}"] if told else []


class NotEnabled:
    """`pipe.acceleration` of a plain pipeline: false, and clear about why it has no report."""

    def __init__(self, pipe: Any) -> None:
        self._name = type(pipe).__name__

    def __bool__(self) -> bool:
        return False

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(
            f"acceleration is not enabled on this {self._name}; call "
            f"pipe.enable_acceleration(...) first"
        )

    report = explain = _refuse


def enable(
    obj: Any,
    *what: str | Method | Plan,
    family: str | None = None,
    max_bytes: int | None = None,
    keep_on: Literal["device", "cpu"] | None = None,
) -> Acceleration:
    """Accelerate a diffusers pipeline. What was enabled before is replaced.

    Args:
        obj: a pipeline.
        what: one recipe name or one plan, or any number of methods; nothing means "balanced". A
            recipe is looked for in the model's folder (acceleration.json), then in its family.
        family: name of the model family, where it cannot be recognised.
        max_bytes: most bytes that methods may keep between steps; by default the plan's.
        keep_on: "device", or "cpu" to keep them in host memory; by default the plan's.

    Raises:
        ValueError: unknown recipe or family, methods that cannot be combined or do not work on
            this model, or a plan made for another architecture or kind of prediction. Nothing is
            changed then, and what was enabled before stays enabled.
    """
    if isinstance(obj, torch.nn.Module):
        raise ValueError(
            f"{type(obj).__name__} is a bare denoiser, which has no clock to tell steps apart; "
            f"enable acceleration on the pipeline that holds it"
        )
    recognised, denoisers = recognise(obj)
    if family is not None:
        chosen = find_family(family)
        wrong = {n: type(m).__name__ for n, m in denoisers.items() if not chosen.matches(m)}
        if wrong:
            raise ValueError(
                f"family {family} describes {', '.join(chosen.classes)}, but this pipeline holds "
                f"{', '.join(f'{n}: {c}' for n, c in wrong.items())} ({recognised.name})"
            )
        recognised = chosen
    plan = _resolve(obj, what or ("balanced",), recognised)
    given: dict[str, Any] = {"max_bytes": max_bytes, "keep_on": keep_on}
    plan = dataclasses.replace(plan, **{k: v for k, v in given.items() if v is not None})
    for method in plan.methods:
        if not method.supports(recognised):
            reason = method.why_not(recognised)
            raise ValueError(
                f"{type(method).__name__} works on {' and '.join(method.kinds)} models, as set; "
                f"{recognised.name} is a {recognised.kind} it cannot serve"
                + (f": {reason}" if reason else "")
            )
    previous = vars(obj).get(STATE)
    disable(obj)
    try:
        return _install(obj, plan, recognised, denoisers)
    except BaseException:
        if previous is not None:
            _install(obj, previous.plan, previous.family, dict(previous._site.denoisers))
        raise


def _resolve(pipe: Any, what: tuple[str | Method | Plan, ...], family: Family) -> Plan:
    if len(what) == 1 and isinstance(what[0], Plan):
        return what[0]
    if len(what) == 1 and isinstance(what[0], str):
        if (beside := plan_beside.find(pipe, what[0])) is not None:
            return beside
        named = {m.lower(): m for m in methods()}.get(what[0].lower())
        if what[0] not in family.recipes and named is not None:
            raise ValueError(f"{named!r} is a method: give an instance, {named}(...)")
        return recipe(what[0], family)
    for one in what:
        if not isinstance(one, Method):
            raise ValueError(
                f"expected one recipe name, one Plan or methods, got {one!r}; "
                f"{nearest(str(one), [*family.recipes, *methods()])}"
            )
    return Plan(tuple(m for m in what if isinstance(m, Method)))


def _install(
    pipe: Any, plan: Plan, family: Family, denoisers: dict[str, torch.nn.Module]
) -> Acceleration:
    key = object()
    patches = PatchStack(key)
    clock = StepClock(pipe, key, patches, denoisers, family.branches)
    recorder = Recorder(denoisers)
    site = Site(pipe, family, denoisers, clock, patches, recorder, plan.keep_on)
    watch = Watch(pipe, plan.fingerprint)
    watch.refuse()
    try:
        clock.install()
        recorder.install(pipe, clock, patches)
        if plan.max_bytes is not None:
            Budget(pipe, plan, family, clock, recorder).install(patches)
        for method in sorted(plan.methods, key=lambda m: LEVELS.index(m.level)):
            method.install(site)  # outermost first
        if plan.fingerprint:
            clock.on_begin.append(watch)
        for name, module in denoisers.items():
            inside = patches.bypassed(module)
            if inside:
                raise ValueError(
                    f"{name} is compiled, and a method of this plan must wrap {inside[0]} inside "
                    f"the compiled code, where it would do nothing; use carrier='output', or "
                    f"compile_repeated_blocks() and a carrier that works between blocks"
                )
        state = Acceleration(pipe, plan, site)
        patches.set(pipe, STATE, state)
    except BaseException:
        patches.undo()
        raise
    return state


def disable(obj: Any) -> None:
    """Give the pipeline back exactly as it was. Harmless when nothing is enabled."""
    state = vars(obj).get(STATE)
    if isinstance(state, Acceleration) and state._pipe is obj:
        state._site.patches.undo()
        state._site.clock.end(state._site.clock.run)


@contextmanager
def accelerated(obj: Any, *what: str | Method | Plan, **how: Any) -> Iterator[Acceleration]:
    """Accelerate within a `with` block; what was enabled before comes back on leaving it.

    Args:
        how: keywords of `enable`.
    """
    previous = vars(obj).get(STATE)
    state = enable(obj, *what, **how)
    try:
        yield state
    finally:
        disable(obj)
        if previous is not None:
            _install(obj, previous.plan, previous.family, recognise(obj)[1])


def acceleration(pipe: Any) -> Acceleration | NotEnabled:
    """What is enabled on `pipe`; false when nothing is."""
    state = vars(pipe).get(STATE)
    return state if isinstance(state, Acceleration) and state._pipe is pipe else NotEnabled(pipe)
