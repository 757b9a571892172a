"""What is tried for every row of the fidelity table, and how the best is picked.

Every row is swept at each ratio on samples of its own, never those it is judged on: first where the
computed steps lie, then the forecaster at the best of these. A peer gets the same search as our row
of its kind, and whatever settings it has besides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from accel.caching import DeepCache, FirstBlockCache, TaylorSeer
from accel.method import Method
from benchmarks import peers, settings
from benchmarks.grids import ESTIMATES, GRIDS, GRIDS_OF_PICTURES, GRIDS_OF_VIDEO, MAGNITUDES
from benchmarks.settings import Setting, plain

RATIOS = (2, 3, 4, 5, 6)
STEPS = 50
SCHEDULES = ((1, True), (2, True), (3, True), (5, True), (8, True), (1, False))
"""First steps that are all computed, and whether the final one is."""
FIRST_BLOCK = 1 / 12
"""Share of the first block in the work of a step of shapes-t2v."""
SKIPPED = 0.005
"""Most that the skipped steps of a schedule add to the work of a run; no whole step."""
THRESHOLDS = (0.04, 0.08, 0.14, 0.22, 0.35)


@dataclass(frozen=True)
class Tried:
    """A setting and what it gave: mean PSNR in dB, work as a fraction of the plain run's."""

    setting: Setting
    psnr: float
    work: float


def limit(ratio: float) -> float:
    """Most work at `ratio` times fewer computed steps, as a fraction of the plain run's.

    Three hundredths above 1 / ratio, for schedules that do not divide the run evenly and for what
    skipped steps still run.
    """
    return 1 / ratio + 0.03


def budget(ratio: float, steps: int = STEPS) -> int:
    """Most computed steps at `ratio`, of `steps`."""
    return int(limit(ratio) * steps + 1e-9)


def ratio_of(computed: int, steps: int = STEPS) -> float:
    """The ratio whose limit is `computed` of `steps`, and what skipped steps still run."""
    return 1 / (computed / steps + SKIPPED - (limit(1) - 1))


def within(work: float, ratio: float) -> bool:
    """Whether `work` counts as `ratio` times fewer computed steps."""
    return work <= limit(ratio) + 1e-9


def best(tried: Iterable[Tried], ratio: float) -> Tried | None:
    """The one with the highest PSNR among those within the limit, None if there is none."""
    return max((t for t in tried if within(t.work, ratio)), key=lambda t: t.psnr, default=None)


class Sweep:
    """The searches of one model with one solver.

    Args:
        attempt: runs a setting on the sweep's samples, or recalls what it gave.
        magnitudes: runs MagCache's calibration, or recalls it.
        sampler: the solver that methods are used with.
        spacings: ways in which the model's solvers place timesteps, as `settings.solver` names
            them; one only in flow matching, which places noise levels.
        recipes: rows and the methods they stand for.
        steps: of the plain run.
        fitted: calibrates a method of ours by its name, or recalls it.
        first_block: share of the first block in the work of a step.
    """

    def __init__(
        self,
        attempt: Callable[[Setting], Tried],
        magnitudes: Callable[[], tuple[float, ...]],
        sampler: str = settings.OWN,
        spacings: tuple[str, ...] = ("",),
        recipes: Mapping[str, Method] | None = None,
        steps: int = STEPS,
        fitted: Callable[[str], Method] | None = None,
        first_block: float = FIRST_BLOCK,
    ) -> None:
        self._attempt, self._magnitudes, self._recipes = attempt, magnitudes, recipes or {}
        self._fitted, self._first_block = fitted, first_block
        self._sampler, self._spacings, self._steps = sampler, spacings, steps

    def choose(self, row: str, ratio: float) -> Setting | None:
        """The best of all that is tried for `row` at `ratio`, None if none is within the limit.

        Raises:
            ValueError: there is no such row.
        """
        if row not in ROWS:
            raise ValueError(f"unknown row {row!r}; known: {', '.join(ROWS)}")
        candidates = ROWS[row](self, row, ratio)
        if len(candidates) == 1:
            return candidates[0]
        found = best([self._attempt(setting) for setting in candidates], ratio)
        return None if found is None else found.setting

    def output(self, row: str, ratio: float) -> list[Setting]:
        """Ours on the output: schedules at order 1, then other forecasters at the best."""
        tried = [
            self._of(row, method)
            for warmup, last in SCHEDULES
            for settle in ((True, False) if warmup > 1 else (False,))
            for method in self._ours(ratio, warmup=warmup, last=last, settle=settle)
        ]
        schedule = self._best(tried, ratio)
        others = ((0, "taylor"), (2, "taylor"), (2, "newton"))
        return tried + [self._of(row, replace(schedule, order=o, basis=b)) for o, b in others]

    def inside(self, row: str, ratio: float) -> list[Setting]:
        """Ours inside the model, at what is best on the output."""
        method = self._best(self.output("TaylorSeer output", ratio), ratio)
        return [self._of(row, replace(method, carrier=row.split()[-1]))]

    def lite(self, row: str, ratio: float) -> list[Setting]:
        """diffusers' TaylorSeer on the output, searched like ours."""
        tried = [
            self._of(row, method)
            for warmup, last in SCHEDULES
            for method in self._theirs(ratio, warmup=warmup, last=last)
        ]
        schedule = self._best(tried, ratio)
        return tried + [self._of(row, replace(schedule, order=order)) for order in (0, 2)]

    def modules(self, row: str, ratio: float) -> list[Setting]:
        """diffusers' TaylorSeer on every module, at what is best on the output."""
        method = self._best(self.lite("diffusers TaylorSeer lite", ratio), ratio)
        return [self._of(row, replace(method, carrier="module"))]

    def thresholds(self, row: str, ratio: float) -> list[Setting]:
        kind = FirstBlockCache if row == "FirstBlockCache" else peers.FirstBlockCache
        return [self._of(row, kind(threshold=t)) for t in THRESHOLDS]

    def magcache(self, row: str, ratio: float) -> list[Setting]:
        """Thresholds, longest skips and shares of first steps that are kept, as published."""
        ratios = self._magnitudes()
        return [self._of(row, peers.MagCache(ratios, *fields)) for fields in MAGNITUDES]

    def calibrated(self, row: str, ratio: float) -> list[Setting]:
        """Our MagCache at the settings of diffusers', our TeaCache by threshold; both fitted."""
        if self._fitted is None:
            raise ValueError(f"{row} needs calibration, and nothing that does it was given")
        method: Any = self._fitted(row)
        names = ("threshold", "longest", "retention") if row == "MagCache" else ("threshold",)
        tried = MAGNITUDES if row == "MagCache" else [(t,) for t in ESTIMATES]
        return [self._of(row, replace(method, **dict(zip(names, t, strict=True)))) for t in tried]

    def dbcache(self, row: str, ratio: float) -> list[Setting]:
        """cache-dit's F1B0 with TaylorSeer, by threshold."""
        tried = (0.04, 0.08, 0.16, 0.3, 0.6)
        return [self._of(row, peers.CacheDiT(threshold=t, warmup=3, order=1)) for t in tried]

    def masks(self, row: str, ratio: float) -> list[Setting]:
        """cache-dit's own step masks, and an evenly spaced one, with its TaylorSeer."""
        import cache_dit

        presets = ("slow", "medium", "fast", "ultra")
        steps = self._steps
        masks = [tuple(cache_dit.steps_mask(total_steps=steps, mask_policy=p)) for p in presets]
        masks += [
            peers.mask([*range(0, steps, interval), steps - 1], steps) for interval in range(2, 12)
        ]
        # its first block runs on every step: that much less is left for whole steps
        first = self._first_block
        work = [first + (1 - first) * sum(mask) / steps for mask in masks]
        fitting = [m for m, w in zip(masks, work, strict=True) if within(w, ratio)]
        slow_to_fast = sorted(fitting, key=sum, reverse=True)
        return [self._of(row, peers.CacheDiT(order=1, mask=mask)) for mask in slow_to_fast[:2]]

    def deepcache(self, row: str, ratio: float) -> list[Setting]:
        """Branches and intervals; ours also with full steps that lie denser early."""
        found = []
        for branch in (0, 1):
            for n in (2, 3, 4, 5, 7, 10):
                if row != "DeepCache":
                    found.append(self._of(row, peers.DeepCache(interval=n, branch=branch)))
                    continue
                for power in (1.0, 1.5):
                    found.append(self._of(row, DeepCache(n, branch, power)))
        return found

    def fewer(self, row: str, ratio: float) -> list[Setting]:
        """A plain solver with as few steps, its timesteps laid in each way it offers."""
        name = row.split(" with ")[0]
        kind = self._sampler if name == settings.OWN else name
        computed = budget(ratio, self._steps)
        return [replace(plain(kind + s, computed), row=row) for s in self._spacings]

    def recipe(self, row: str, ratio: float) -> list[Setting]:
        """A recipe, at the largest ratio that it is within."""
        if row not in self._recipes:
            return []
        tried = self._attempt(self._of(row, self._recipes[row]))
        fits = [r for r in RATIOS if within(tried.work, r)]
        return [tried.setting] if fits and fits[-1] == ratio else []

    def grid(self, row: str, ratio: float) -> list[Setting]:
        """Settings that are the same for all ratios: what they skip depends on the sample."""
        return [self._of(row, method) for method in GRIDS[row]]

    def _ours(self, ratio: float, **fields: Any) -> list[TaylorSeer]:
        """TaylorSeer at the smallest interval that computes few enough steps; none if none does."""
        steps = self._steps
        for interval in range(1, steps):
            method = TaylorSeer(interval=interval, **fields)
            computed = sum(method.policy.computes(i, steps) for i in range(steps))
            if computed <= budget(ratio, steps):
                return [method]
        return []

    def _theirs(self, ratio: float, **fields: Any) -> list[settings.TaylorSeer]:
        """diffusers' TaylorSeer, likewise."""
        for interval in range(1, self._steps):
            method = settings.TaylorSeer(interval=interval, **fields)
            if len(method.computed(self._steps)) <= budget(ratio, self._steps):
                return [method]
        return []

    def _of(self, row: str, method: Method | peers.Peer) -> Setting:
        return Setting(row, method, self._sampler, self._steps)

    def _best(self, tried: list[Setting], ratio: float) -> Any:
        found = best([self._attempt(setting) for setting in tried], ratio)
        assert found is not None, "a schedule made for this ratio was not within its limit"
        return found.setting.method


RECIPES = ("recipe balanced", "recipe fast", "family recipe balanced", "family recipe fast")
"""Of the model, where a plan lies beside it, and of its family."""
Search = Callable[[Sweep, str, float], list[Setting]]
ROWS: dict[str, Search] = {
    "TaylorSeer output": Sweep.output,
    "DeepCache": Sweep.deepcache,
    "own with as few steps": Sweep.fewer,
    "diffusers TaylorSeer lite": Sweep.lite,
    "DeepCache package": Sweep.deepcache,
    "cache-dit masks + TaylorSeer": Sweep.masks,
    "cache-dit DBCache F1 + TaylorSeer": Sweep.dbcache,
    "diffusers MagCache": Sweep.magcache,
    "diffusers FirstBlockCache": Sweep.thresholds,
    "diffusers TaylorSeer module": Sweep.modules,
    "FirstBlockCache": Sweep.thresholds,
    "TaylorSeer hidden": Sweep.inside,
    "TaylorSeer module": Sweep.inside,
    **dict.fromkeys(RECIPES, Sweep.recipe),
    "MagCache": Sweep.calibrated,
    "TeaCache": Sweep.calibrated,
    **dict.fromkeys(GRIDS, Sweep.grid),
    "dpm++ with as few steps": Sweep.fewer,
    "unipc with as few steps": Sweep.fewer,
    "euler with as few steps": Sweep.fewer,
}
VIDEO = (
    "TaylorSeer output",
    *RECIPES,
    "own with as few steps",
    "diffusers TaylorSeer lite",
    "cache-dit masks + TaylorSeer",
    "cache-dit DBCache F1 + TaylorSeer",
    "diffusers MagCache",
    "diffusers FirstBlockCache",
    "FirstBlockCache",
    "MagCache",
    "TeaCache",
    "TaylorSeer hidden",
    "TaylorSeer module",
    "diffusers TaylorSeer module",
    *GRIDS_OF_VIDEO,
    "dpm++ with as few steps",
    "euler with as few steps",
)
"""Rows of a transformer with flow matching, in order of importance."""
PICTURE = (
    "DeepCache",
    "TaylorSeer output",
    *RECIPES,
    "own with as few steps",
    "DeepCache package",
    "dpm++ with as few steps",
    "unipc with as few steps",
    *GRIDS_OF_PICTURES,
)
"""Rows of a U-Net with a variance-preserving schedule."""
EULER = ("TaylorSeer output", "own with as few steps", "diffusers TaylorSeer lite")
"""Rows of the video model that are repeated with flow Euler."""
