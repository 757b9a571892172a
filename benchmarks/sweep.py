"""What is tried for every row of the fidelity table, and how the best is picked.

Every row is swept at each ratio on samples of its own, never those it is judged on: first where the
computed steps lie, then the forecaster at the best of these. A peer gets the same search as our row
of its kind, and whatever settings it has besides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from accel.caching import DeepCache, FirstBlockCache, TaylorSeer
from accel.method import Method
from benchmarks import peers, settings
from benchmarks.settings import Setting, plain

RATIOS = (2, 3, 4, 5)
STEPS = 50
SCHEDULES = ((1, True), (3, True), (5, True), (3, False))
"""First steps that are all computed, and whether the final one is."""
THRESHOLDS = (0.03, 0.06, 0.1, 0.16, 0.24, 0.36)


@dataclass(frozen=True)
class Tried:
    """A setting and what it gave: mean PSNR in dB, work as a fraction of the plain run's."""

    setting: Setting
    psnr: float
    work: float


def limit(ratio: float, steps: int = STEPS) -> float:
    """Most work at `ratio` times fewer computed steps: 1 / ratio and one step more."""
    return 1 / ratio + 1 / steps


def budget(ratio: float) -> int:
    """Most computed steps at `ratio`, of `STEPS`."""
    return int(limit(ratio) * STEPS + 1e-9)


def within(work: float, ratio: float) -> bool:
    """Whether `work` counts as `ratio` times fewer; 1 % of leeway for what skipped steps run."""
    return work <= limit(ratio) + 0.01


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
    """

    def __init__(
        self,
        attempt: Callable[[Setting], Tried],
        magnitudes: Callable[[], tuple[float, ...]],
        sampler: str = settings.OWN,
        spacings: tuple[str, ...] = ("",),
    ) -> None:
        self._attempt, self._magnitudes = attempt, magnitudes
        self._sampler, self._spacings = sampler, spacings

    def search(self, row: str, ratio: float) -> Tried | None:
        """The best of all that is tried for `row` at `ratio`.

        Raises:
            ValueError: there is no such row.
        """
        if row not in ROWS:
            raise ValueError(f"unknown row {row!r}; known: {', '.join(ROWS)}")
        return best(ROWS[row](self, row, ratio), ratio)

    def attempt(self, row: str, method: Method | peers.Peer | None, **fields: Any) -> Tried:
        return self._attempt(Setting(row, method, **{"sampler": self._sampler, **fields}))

    def output(self, row: str, ratio: float) -> list[Tried]:
        """Ours on the output: warm-ups with and without the last step, then orders and bases."""
        methods = [_ours(ratio, warmup=w, last=end) for w, end in SCHEDULES]
        tried = [self.attempt(row, m) for m in methods]
        schedule = _method(best(tried, ratio))
        for order, basis in ((0, "taylor"), (2, "taylor"), (2, "newton")):
            tried.append(self.attempt(row, replace(schedule, order=order, basis=basis)))
        return tried

    def inside(self, row: str, ratio: float) -> list[Tried]:
        """Ours inside the model, at the best schedule on the output."""
        schedule = _method(best(self.output("TaylorSeer output", ratio), ratio))
        carrier = row.split()[-1]
        forecasts = dict.fromkeys([(1, "taylor"), (schedule.order, schedule.basis), (2, "taylor")])
        methods = [replace(schedule, carrier=carrier, order=o, basis=b) for o, b in forecasts]
        return [self.attempt(row, method) for method in methods]

    def lite(self, row: str, ratio: float) -> list[Tried]:
        """diffusers' TaylorSeer on the output, searched like ours."""
        methods = [_theirs(ratio, warmup=w, last=end) for w, end in SCHEDULES]
        tried = [self.attempt(row, m) for m in methods]
        schedule = _method(best(tried, ratio))
        return tried + [self.attempt(row, replace(schedule, order=order)) for order in (0, 2)]

    def modules(self, row: str, ratio: float) -> list[Tried]:
        """diffusers' TaylorSeer on every module, at its best schedule on the output."""
        schedule = _method(best(self.lite("diffusers TaylorSeer lite", ratio), ratio))
        orders = dict.fromkeys([1, schedule.order, 2])
        return [
            self.attempt(row, replace(schedule, carrier="module", order=order)) for order in orders
        ]

    def thresholds(self, row: str, ratio: float) -> list[Tried]:
        kind = FirstBlockCache if row == "FirstBlockCache" else peers.FirstBlockCache
        return [self.attempt(row, kind(threshold=t)) for t in THRESHOLDS]

    def magcache(self, row: str, ratio: float) -> list[Tried]:
        """Its thresholds with the published longest skips and retentions."""
        ratios = self._magnitudes()
        return [
            self.attempt(row, peers.MagCache(ratios, threshold, skip, retention))
            for retention in (0.1, 0.2)
            for threshold, skip in ((0.06, 2), (0.12, 4), (0.5, 8))
        ]

    def dbcache(self, row: str, ratio: float) -> list[Tried]:
        """cache-dit's F1B0 with TaylorSeer, by threshold."""
        return [
            self.attempt(row, peers.CacheDiT(threshold=t, warmup=3, order=1))
            for t in (0.04, 0.08, 0.16, 0.24, 0.4, 0.8)
        ]

    def masks(self, row: str, ratio: float) -> list[Tried]:
        """cache-dit's own step masks, and ours, with its TaylorSeer."""
        import cache_dit

        found = [
            tuple(cache_dit.steps_mask(total_steps=STEPS, mask_policy=policy))
            for policy in ("slow", "medium", "fast", "ultra")
        ]
        ours = _ours(ratio, warmup=3, last=True).policy
        found.append(peers.mask([i for i in range(STEPS) if ours.computes(i, STEPS)], STEPS))
        return [self.attempt(row, peers.CacheDiT(order=1, mask=mask)) for mask in found]

    def deepcache(self, row: str, ratio: float) -> list[Tried]:
        """Branches and intervals; ours also with the last step computed."""
        package = row != "DeepCache"
        kind = peers.DeepCache if package else DeepCache
        tried = []
        for branch in (0, 1, 2, 3):
            for interval in (2, 3, 4, 5, 7, 10):
                tried.append(self.attempt(row, kind(interval=interval, branch=branch)))
                listed = tuple(sorted({*range(0, STEPS, interval), STEPS - 1}))
                if not package:
                    tried.append(self.attempt(row, DeepCache(branch=branch, steps=listed)))
        return tried

    def fewer(self, row: str, ratio: float) -> list[Tried]:
        """A plain solver with as few steps, its timesteps laid in each way it offers."""
        name = row.split(" with ")[0]
        kind = self._sampler if name == "own" else name
        return [
            self._attempt(replace(plain(kind + spacing, budget(ratio)), row=row))
            for spacing in self._spacings
        ]


Search = Callable[[Sweep, str, float], list[Tried]]
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
    "dpm++ with as few steps": Sweep.fewer,
    "unipc with as few steps": Sweep.fewer,
    "euler with as few steps": Sweep.fewer,
}
VIDEO = (
    "TaylorSeer output",
    "own with as few steps",
    "diffusers TaylorSeer lite",
    "cache-dit masks + TaylorSeer",
    "cache-dit DBCache F1 + TaylorSeer",
    "diffusers MagCache",
    "diffusers FirstBlockCache",
    "FirstBlockCache",
    "TaylorSeer hidden",
    "TaylorSeer module",
    "diffusers TaylorSeer module",
    "dpm++ with as few steps",
    "euler with as few steps",
)
"""Rows of a transformer with flow matching, in order of importance."""
PICTURE = (
    "DeepCache",
    "TaylorSeer output",
    "own with as few steps",
    "DeepCache package",
    "dpm++ with as few steps",
    "unipc with as few steps",
)
"""Rows of a U-Net with a variance-preserving schedule."""
EULER = ("TaylorSeer output", "own with as few steps", "diffusers TaylorSeer lite")
"""Rows of the video model that are repeated with flow Euler."""


def _ours(ratio: float, **fields: Any) -> TaylorSeer:
    """TaylorSeer at the smallest interval that computes few enough steps."""
    for interval in range(1, STEPS):
        method = TaylorSeer(interval=interval, **fields)
        if sum(method.policy.computes(i, STEPS) for i in range(STEPS)) <= budget(ratio):
            return method
    raise ValueError(f"no interval computes {ratio} times fewer of {STEPS} steps")


def _theirs(ratio: float, **fields: Any) -> settings.TaylorSeer:
    """diffusers' TaylorSeer, likewise."""
    for interval in range(1, STEPS):
        method = settings.TaylorSeer(interval=interval, **fields)
        if len(method.computed(STEPS)) <= budget(ratio):
            return method
    raise ValueError(f"no interval computes {ratio} times fewer of {STEPS} steps")


def _method(found: Tried | None) -> Any:
    assert found is not None, "a schedule made for this ratio was not within its limit"
    return found.setting.method
