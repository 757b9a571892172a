"""ResolutionStages: low resolution first, then high (Bottleneck Sampling, LightX2V, Jenga)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from accel.family import Family
from accel.method import Method, Site, check_fields
from accel.step import Run

from .regions.canvas import fresh
from .regions.staging import FLOWS, PACKED, Staging, places, shifted


@dataclass(frozen=True)
class ResolutionStages(Method):
    """Run a part of the steps at a lower resolution.

    Where the resolution changes, the clean latents predicted at the last step, x0 = x - g v, are
    resized and noised again with fresh noise to the level of the next, x = (1 - g) x0 + g eps, and
    what a multi-step solver has kept is forgotten.

    Attributes:
        scales: resolution of each stage, of the one asked for; the last must be 1.
        until: fraction of the steps at which each stage but the last ends.
        shift: from stage to stage the remaining noise levels are shifted by this factor,
            g' = s g / (1 + (s - 1) g), since more pixels of one content need more noise (1.2 is
            LightX2V's 5 to 6, 9 / 7 Jenga's); 1 keeps them.

    LightX2V: scales (0.75, 1) until 0.5, or (1, 0.75, 1) until 0.2 and 0.7, which is the
    bottleneck. For flow models; pipelines that put a picture beside the latents are refused. A
    static schedule; keeps the noise the run began with.
    """

    scales: tuple[float, ...] = (0.75, 1.0)
    until: tuple[float, ...] = (0.5,)
    shift: float = 1.2

    level: ClassVar[str] = "sampler"
    kinds: ClassVar[tuple[str, ...]] = ("transformer",)
    claims: ClassVar[str] = "caching"

    def __post_init__(self) -> None:
        ends = list(self.until)
        check_fields(
            self,
            scales=(
                bool(self.scales) and all(0 < s <= 1 for s in self.scales) and self.scales[-1] == 1,
                "numbers above 0 and at most 1, the last of them 1",
            ),
            until=(
                len(ends) == len(self.scales) - 1
                and ends == sorted(set(ends))
                and all(0 < e < 1 for e in ends),
                f"{len(self.scales) - 1} rising fractions between 0 and 1, one less than scales",
            ),
            shift=(self.shift > 0, "above 0"),
        )

    def supports(self, family: Family) -> bool:
        return family.name in FLOWS

    def why_not(self, family: Family) -> str:
        return f"changing resolution is described for {', '.join(FLOWS)}"

    def stages(self, total: int) -> list[int]:
        """The stage of each of `total` steps."""
        ends = [round(end * total) for end in self.until]
        return [sum(index >= end for end in ends) for index in range(total)]

    def expect(self, site: Site, steps: int) -> str:
        stages = self.stages(steps)
        said = ", ".join(
            f"{stages.count(i)} at {scale:g}" for i, scale in enumerate(self.scales) if i in stages
        )
        return f"computes {steps} of {steps} steps, of the resolution: {said}"

    def install(self, site: Site) -> None:
        Switching(site, self).install()


class Switching(Staging):
    """Stages of one resolution each."""

    def __init__(self, site: Site, settings: ResolutionStages) -> None:
        super().__init__(site, type(settings).__name__)
        self.settings = settings

    def plan(self, run: Run, sigmas: list[float]) -> None:
        stages = self.settings.stages(run.total)
        self.stages = [self._distinct(stage) for stage in stages]
        factors = [self.settings.shift**stage for stage in self.stages]
        ends = [
            shifted(sigma, factor)
            for sigma, factor in zip(sigmas, [*factors, factors[-1]], strict=True)
        ]
        scheduler = self.site.pipe.scheduler
        if not self.plainly:
            scheduler.sigmas.copy_(torch.tensor(ends))
        self.levels = list(itertools.pairwise(ends))
        for i in range(run.total - 1):  # a stage ends on its own grid
            if self.stages[i + 1] != self.stages[i]:
                self.levels[i] = ends[i], shifted(sigmas[i + 1], factors[i])

    def _distinct(self, stage: int) -> int:
        """The stage with those of the same resolution before it."""
        scales = self.settings.scales
        while stage and scales[stage] == scales[stage - 1]:
            stage -= 1
        return stage

    def start(self, latents: Tensor) -> Tensor:
        assert self.canvas is not None
        self.size = self.canvas.size(self.settings.scales[self.stages[0]])
        return self.canvas.picked(latents, self.size)

    def switch(self, result: Tensor, clean: Tensor, stage: int, level: float) -> Tensor:
        assert self.canvas is not None and self.first is not None
        old, self.size = self.size, self.canvas.size(self.settings.scales[stage])
        clean = self.canvas.resized(clean, old, self.size)
        return torch.lerp(clean, fresh(self.first, clean.shape, stage).to(clean), level)

    def arguments(self, called: Mapping[str, Any]) -> dict[str, Any]:
        assert self.canvas is not None
        if self.site.family.name not in PACKED:
            return {}
        rows, columns = self.size
        new: dict[str, Any] = {}
        if "img_ids" in called:
            new["img_ids"] = places(called["img_ids"], rows, columns)
        if called.get("img_shapes"):
            shape = (self.canvas.grid[0], rows, columns)
            new["img_shapes"] = [[shape] for _ in called["img_shapes"]]
        if isinstance(called.get("height"), int):
            new |= {"height": rows, "width": columns}
        return new
