"""The machine of `RegionUpsampling`: three stages, of which the second has two resolutions."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from accel.method import Site
from accel.regions import Regions
from accel.step import Run

from .canvas import fresh
from .edges import decoded, edges
from .halves import TOLD, given
from .layouts import Grid, patch_of
from .staging import Staging, places, shifted

if TYPE_CHECKING:
    from ..resolution_regions import RegionUpsampling


class Upsampling(Staging):
    """The three stages, on packed latents (N, S, C * 4) or on frames."""

    regions: Regions | None = None
    mixed: tuple[int, int] = (0, 0)
    """Rows and columns of the second stage's tokens, in no order that a picture has."""

    def __init__(self, site: Site, settings: RegionUpsampling) -> None:
        super().__init__(site, type(settings).__name__)
        self.settings = settings
        self.rest = self.chosen = self.places = torch.empty(0, dtype=torch.long)

    def check(self) -> None:
        super().check()
        if self.settings.edges == "picture" and getattr(self.site.pipe, "vae", None) is None:
            raise ValueError(
                f"{self.label} looks for edges in the decoded picture, and this pipeline has no "
                f'vae; set edges="latents"'
            )
        for name, denoiser in self.site.denoisers.items():
            if (deep := patch_of(denoiser)[0]) != 1:
                raise ValueError(
                    f"{self.label} chooses tokens of single frames, and those of {name} are of "
                    f"{deep} frames"
                )

    def install(self) -> None:
        super().install()
        family = self.site.family.name
        if family not in TOLD:
            return
        for name, denoiser in self.site.denoisers.items():
            counts = getattr(getattr(denoiser, "_orig_mod", denoiser), TOLD[family])
            told = functools.partial(self._told_places, counts)
            self.site.patches.call(counts, told, f"{self.label} on {name}.{TOLD[family]}")

    def _told_places(
        self, module: torch.nn.Module, call: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        run = self.site.clock.run
        if run is None or not self.stages or self.stages[run.index] != 1:
            return call(*args, **kwargs)
        (latents,) = (*args, *kwargs.values())
        return given(self.site.family.name, module, latents, self.places, self.size)

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
        # solvers in the log of signal to noise begin just below 1
        self.levels[0] = min(self.levels[0][0], sigmas[0]), self.levels[0][1]

    def start(self, latents: Tensor) -> Tensor:
        assert self.canvas is not None
        _, rows, columns = self.canvas.grid
        if rows % 2 or columns % 2 or columns < 4:
            raise ValueError(
                f"{self.label} halves {rows} by {columns} tokens, which must be even, and 4 or "
                f"more in a row; use a height and a width that are"
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
        ids, stage = called.get("img_ids"), self.stages[self._index]
        if stage == 2 or ids is None:
            return {}
        if stage == 0:
            return {"img_ids": places(ids, *self.size)}
        mixed = self.places.to(ids.device)
        return {"img_ids": mixed.to(ids.dtype) if ids.is_floating_point() else mixed}

    @property
    def _index(self) -> int:
        run = self.site.clock.run
        assert run is not None
        return run.index

    def switch(self, result: Tensor, clean: Tensor, stage: int, level: float) -> Tensor:
        assert self.canvas is not None
        z, end = self.settings.strength, self.settings.ends[stage - 1]
        result = result / (z * (1 - end) + end)
        if stage == 1:
            self._choose(clean)
            tokens = self.canvas.tokens(result, self.size)
            old = self._renewed(tokens[:, self.rest], level, number=0)
            new = self._upsampled(tokens[:, self.chosen], level, number=1)
            return self.canvas.laid(torch.cat([old, new], dim=1), self.mixed)
        tokens, count = self.canvas.tokens(result, self.mixed), len(self.rest)
        old = self._renewed(tokens[:, count:], level, number=2)
        new = self._upsampled(tokens[:, :count], level, number=3)
        whole = tokens.new_empty(len(tokens), math.prod(self.canvas.grid), tokens.shape[2])
        whole.index_copy_(1, self._fine(self.rest), new)
        whole.index_copy_(1, self._fine(self.chosen), old)
        return self.canvas.laid(whole, self.canvas.grid[1:])

    def _renewed(self, tokens: Tensor, level: float, number: int) -> Tensor:
        """Tokens (N, k, C) with as much more noise as the upsampled get."""
        assert self.first is not None
        noise = fresh(self.first, tokens.shape, number).to(tokens)
        return tokens + level * math.sqrt(1 - self.settings.strength**-2) * noise

    def _upsampled(self, tokens: Tensor, level: float, number: int) -> Tensor:
        """Tokens (N, 4 k, C) in place of (N, k, C), with noise that makes theirs independent."""
        assert self.first is not None and self.canvas is not None
        plane = doubled(tokens, self.canvas.patch)
        noise = fresh(self.first, plane.shape, number).to(plane)
        blocks = noise.unflatten(4, (-1, 2)).unflatten(3, (-1, 2))
        mean = blocks.mean(dim=(4, 6), keepdim=True)
        noise = blocks - (1 - math.sqrt(1 - 4 * self.settings.strength**-2)) * mean
        return cut(plane + level * noise.flatten(5, 6).flatten(3, 4), self.canvas.patch)

    def _fine(self, low: Tensor) -> Tensor:
        """Tokens of the whole that low-resolution tokens (k,) become: (4 k,)."""
        columns = self.size[1]
        row, column = low // columns * 2, low % columns * 2  # rows of all frames on end
        first = row * 2 * columns + column
        beside = torch.tensor([0, 1, 2 * columns, 2 * columns + 1], device=low.device)
        return (first[:, None] + beside).flatten()

    def _choose(self, clean: Tensor) -> None:
        """Choose the tokens with the strongest edges in the latents `clean`."""
        assert self.canvas is not None
        frames, (rows, columns) = self.canvas.open(clean, self.size), self.size
        count = frames.shape[2]
        if self.settings.edges == "picture":
            still = self.canvas.packed or self.canvas.flat
            frames = decoded(self.site.pipe.vae, frames, still)
        score = edges(frames, (count, rows, columns)).flatten()
        unit = 1 if self.canvas.packed else count * rows  # by which whole columns are filled
        wanted = round(self.settings.upsampled * len(score) / unit) * unit
        wanted = min(max(wanted, unit), len(score) - unit)
        self.mixed = rows, columns + 3 * wanted // (count * rows)
        order = score.argsort(descending=True, stable=True)
        self.chosen, self.rest = order[:wanted].sort().values, order[wanted:].sort().values
        self.places = self._placed((count, rows, columns))
        if self.regions is not None:
            fine = self._fine(self.chosen)[None]
            self.regions.active |= {i: fine for i, s in enumerate(self.stages) if s == 1}

    def _placed(self, grid: Grid) -> Tensor:
        """Frame, row and column (k, 3) of the second stage's tokens, on the grid of the first."""
        axes = [torch.arange(float(n), device=self.chosen.device) for n in grid]
        low = torch.cartesian_prod(*axes)
        fine = low[self.chosen][:, None].repeat(1, 4, 1)
        fine[:, 2:, 1] += 0.5
        fine[:, 1::2, 2] += 0.5
        return torch.cat([low[self.rest], fine.flatten(0, 1)])

    def _step(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = super()._step(call, *args, **kwargs)
        if self.regions is not None and self._index + 1 >= self.regions.total and self.canvas:
            final = result[0] if isinstance(result, tuple) else result.prev_sample
            tokens = self.canvas.tokens(final, self.canvas.grid[1:])
            self.regions.latents = tokens.unflatten(2, (-1, math.prod(self.canvas.patch))).mean(3)
        return result


def doubled(tokens: Tensor, patch: tuple[int, int]) -> Tensor:
    """Tokens (N, k, C * a * b) as planes (N, k, C, 2 a, 2 b), every latent four times."""
    plane = tokens.unflatten(2, (-1, *patch))
    return plane.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)


def cut(plane: Tensor, patch: tuple[int, int]) -> Tensor:
    """Planes (N, k, C, 2 a, 2 b) as their tokens (N, 4 k, C * a * b), row by row."""
    parts = plane.unflatten(4, (2, patch[1])).unflatten(3, (2, patch[0]))
    return parts.permute(0, 1, 3, 5, 2, 4, 6).flatten(4, 6).flatten(1, 3)
