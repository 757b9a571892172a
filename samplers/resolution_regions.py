"""RegionUpsampling: edges get full resolution before the rest does (RALU, 2507.08422)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, conv2d, pad

from accel.family import Family
from accel.method import Method, Site, check_fields
from accel.regions import Regions
from accel.step import Run

from .regions.canvas import fresh
from .regions.staging import Staging
from .resolution_stages import places, shifted

SOBEL = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))


@dataclass(frozen=True)
class RegionUpsampling(Method):
    """Half the resolution first, then full resolution at edges, then everywhere.

    Latents are upsampled to the nearest, so that four share one noise; with x of data time t (x =
    t x0 + (1 - t) eps) at the end e of a stage, the next begins again at s = e / (Z (1 - e) + e):
    x' = x / (Z (1 - e) + e) + (1 - s) n, where n, of covariance I - 11^T / Z^2 on those four and
    1 - 1 / Z^2 elsewhere, makes all noise independent again.

    Attributes:
        steps: how the steps are divided among the three stages.
        ends: data time at which each stage ends; the last is 1.
        shifts: shift of the noise levels within each stage.
        strength: Z, at least 2; the released value matches the density of timesteps.
        upsampled: share of the low-resolution tokens that get full resolution in the second stage.
        edges: where to look for edges: in the decoded "picture", or in the "latents".

    Defaults are those released for about 4x on FLUX; for 7x: steps=(2, 3, 5), ends=(0.2, 0.3, 1),
    shifts=(8.141, 2.856, 2.193), strength=6.261, upsampled=0.1. Released code finds edges by
    Canny; here it is the mean gradient. Positions are one list for a batch, so that samples share
    their decisions. For models of FLUX's kind. A static schedule; keeps the noise the run began
    with.
    """

    steps: tuple[int, int, int] = (5, 6, 7)
    ends: tuple[float, float, float] = (0.3, 0.45, 1.0)
    shifts: tuple[float, float, float] = (5.019, 2.589, 2.226)
    strength: float = 6.317
    upsampled: float = 0.3
    edges: Literal["picture", "latents"] = "picture"

    level: ClassVar[str] = "sampler"
    kinds: ClassVar[tuple[str, ...]] = ("transformer",)
    claims: ClassVar[str] = "caching"

    def __post_init__(self) -> None:
        check_fields(
            self,
            steps=(
                len(self.steps) == 3 and all(n >= 0 for n in self.steps) and sum(self.steps) > 0,
                "three numbers, not all 0",
            ),
            ends=(
                len(self.ends) == 3 and 0 < self.ends[0] < self.ends[1] < self.ends[2] == 1,
                "three rising numbers above 0, the last of them 1",
            ),
            shifts=(len(self.shifts) == 3 and min(self.shifts) > 0, "three numbers above 0"),
            strength=(self.strength >= 2, "at least 2, below which there is no such noise"),
            upsampled=(0 < self.upsampled < 1, "above 0 and below 1"),
            edges=(self.edges in ("picture", "latents"), "'picture' or 'latents'"),
        )

    def supports(self, family: Family) -> bool:
        return family.name == "flux"

    def why_not(self, family: Family) -> str:
        return "tokens of two resolutions need positions token by token, as FLUX's are given"

    def divided(self, total: int) -> list[int]:
        """The stage (0, 1, 2) of each of `total` steps."""
        parts = [sum(self.steps[: i + 1]) / sum(self.steps) for i in range(2)]
        first, second = (round(part * total) for part in parts)
        return [int(i >= first) + int(i >= second) for i in range(total)]

    def restart(self, end: float) -> float:
        """Data time s at which a stage begins, the one before having ended at `end`."""
        return end / (self.strength * (1 - end) + end)

    def expect(self, site: Site, steps: int) -> str:
        counts = [self.divided(steps).count(i) for i in range(3)]
        return (
            f"computes {steps} of {steps} steps: {counts[0]} at half resolution, {counts[1]} with "
            f"{self.upsampled:.0%} of it at full, {counts[2]} at full"
        )

    def install(self, site: Site) -> None:
        Upsampling(site, self).install()


class Upsampling(Staging):
    """The three stages, on packed latents (N, S, C * 4)."""

    regions: Regions | None = None

    def __init__(self, site: Site, settings: RegionUpsampling) -> None:
        super().__init__(site, type(settings).__name__)
        self.settings = settings
        self.rest = self.chosen = torch.empty(0, dtype=torch.long)

    def plan(self, run: Run, sigmas: list[float]) -> None:
        settings = self.settings
        self.regions = self.site.report.regions = None
        self.stages = settings.divided(run.total)
        if 0 in self.stages and set(self.stages) != {0, 1, 2}:
            raise ValueError(
                f"{self.label} needs a step for each of its stages, and {run.total} steps divided "
                f"as {settings.steps} leave one out; use more steps"
            )
        begins = [0.0, *(settings.restart(end) for end in settings.ends[:2])]
        self.levels = []
        for stage, (begin, end, shift) in enumerate(
            zip(begins, settings.ends, settings.shifts, strict=True)
        ):
            count = self.stages.count(stage)
            first, last = (shifted(1 - time, 1 / shift) for time in (begin, end))
            way = [first + (last - first) * i / max(count, 1) for i in range(count + 1)]
            grid = [shifted(level, shift) for level in way]
            self.levels += list(itertools.pairwise(grid))

    def start(self, latents: Tensor) -> Tensor:
        assert self.canvas is not None
        _, rows, columns = self.canvas.grid
        if rows % 2 or columns % 2:
            raise ValueError(
                f"{self.label} halves {rows} by {columns} tokens, which must be even; use a height "
                f"and a width that are"
            )
        self.size = rows // 2, columns // 2
        if self.regions is None:
            low = {
                i: torch.empty(1, 0, dtype=torch.long) for i, s in enumerate(self.stages) if not s
            }
            self.regions = Regions(self.canvas.grid, len(self.stages), low, resolution=True)
            self.site.report.regions = self.regions
        return self.canvas.picked(latents, self.size)

    def arguments(self, called: Mapping[str, Any]) -> dict[str, Any]:
        ids, stage = called["img_ids"], self.stages[self._index]
        if stage == 2:
            return {}
        low = places(ids, *self.size)
        if stage == 0:
            return {"img_ids": low}
        fine = low[self.chosen][:, None].repeat(1, 4, 1).float()
        fine[:, 2:, 1] += 0.5
        fine[:, 1::2, 2] += 0.5
        mixed = torch.cat([low[self.rest].float(), fine.flatten(0, 1)])
        return {"img_ids": mixed.to(ids.dtype) if ids.is_floating_point() else mixed}

    @property
    def _index(self) -> int:
        run = self.site.clock.run
        assert run is not None
        return run.index

    def switch(self, result: Tensor, clean: Tensor, stage: int, level: float) -> Tensor:
        assert self.canvas is not None and self.first is not None
        z, end = self.settings.strength, self.settings.ends[stage - 1]
        result = result / (z * (1 - end) + end)
        if stage == 1:
            self._choose(clean)
            low, high = result[:, self.rest], result[:, self.chosen]
            old = self._with(low, level, alike=False, number=0)
            new = self._with(expanded(high), level, alike=True, number=1)
            return torch.cat([old, new], dim=1)
        count = len(self.rest)
        old = self._with(result[:, count:], level, alike=False, number=2)
        new = self._with(expanded(result[:, :count]), level, alike=True, number=3)
        whole = result.new_empty(len(result), math.prod(self.canvas.grid), result.shape[2])
        whole.index_copy_(1, self._fine(self.rest), new)
        return whole.index_copy_(1, self._fine(self.chosen), old)

    def _with(self, tokens: Tensor, level: float, alike: bool, number: int) -> Tensor:
        """Tokens (N, k, C * 4) with noise that makes theirs independent, and of `level`.

        Args:
            alike: whether the four latents of a token share one noise.
        """
        assert self.first is not None
        squared = self.settings.strength**-2
        noise = fresh(self.first, tokens.shape, number).to(tokens)
        if alike:
            blocks = noise.unflatten(2, (-1, 4))
            mean = blocks.mean(dim=-1, keepdim=True)
            noise = (blocks - (1 - math.sqrt(1 - 4 * squared)) * mean).flatten(2)
        else:
            noise = noise * math.sqrt(1 - squared)
        return tokens + level * noise

    def _fine(self, low: Tensor) -> Tensor:
        """Tokens of the whole that low-resolution tokens (k,) become: (4 k,)."""
        columns = self.size[1]
        row, column = low // columns * 2, low % columns * 2
        first = row * 2 * columns + column
        beside = torch.tensor([0, 1, 2 * columns, 2 * columns + 1], device=low.device)
        return (first[:, None] + beside).flatten()

    def _choose(self, clean: Tensor) -> None:
        """Choose the tokens with the strongest edges in `clean` (N, S, C * 4)."""
        assert self.canvas is not None
        picture = self.canvas.open(clean, self.size)[:, :, 0]
        if self.settings.edges == "picture":
            vae = self.site.pipe.vae
            scaled = picture / vae.config.scaling_factor + (vae.config.shift_factor or 0)
            with torch.no_grad():
                picture = vae.decode(scaled.to(vae.dtype), return_dict=False)[0]
        score = adaptive_avg_pool2d(gradient(picture.float()).mean(dim=0), self.size).flatten()
        count = min(max(round(self.settings.upsampled * len(score)), 1), len(score) - 1)
        order = score.argsort(descending=True, stable=True)
        self.chosen, self.rest = order[:count].sort().values, order[count:].sort().values
        if self.regions is not None:
            fine = self._fine(self.chosen)[None]
            self.regions.active |= {i: fine for i, s in enumerate(self.stages) if s == 1}

    def _step(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = super()._step(call, *args, **kwargs)
        if self.regions is not None and self._index + 1 >= self.regions.total:
            final = result[0] if isinstance(result, tuple) else result.prev_sample
            self.regions.latents = final.unflatten(2, (-1, 4)).mean(dim=3)
        return result


def expanded(tokens: Tensor) -> Tensor:
    """Tokens (N, k, C * 4) as (N, 4 k, C * 4): each latent becomes the four of a token."""
    pixels = tokens.unflatten(2, (-1, 4)).transpose(2, 3)
    return pixels.repeat_interleave(4, dim=3).flatten(1, 2)


def gradient(picture: Tensor) -> Tensor:
    """Length of the gradient (N, 1, H, W) of a picture's mean over channels, by Sobel's filter."""
    across = torch.tensor(SOBEL, device=picture.device)[None, None]
    grey = pad(picture.mean(dim=1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    return torch.hypot(conv2d(grey, across), conv2d(grey, across.transpose(2, 3)))
