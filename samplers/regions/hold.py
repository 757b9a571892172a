"""The step seam of region-adaptive sampling: predictions are held, and regions chosen."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from accel.method import Site
from accel.regions import Regions
from accel.step import Run

from .layouts import LAYOUTS, Grid, patch_of, to_mask, to_patches
from .rows import across
from .schedule import Schedule
from .selection import Misses, Selection, over_time, scores
from .solvers import Direction, check_scheduler
from .tiles import Tiles
from .track import Track

if TYPE_CHECKING:
    from ..region_adaptive import RegionAdaptive


class Hold:
    """What a run knows about its regions.

    Attributes:
        active: tokens (N or 1, k) that the step going on computes; None for all.
        partial: whether a call of the step going on left tokens out.
    """

    def __init__(self, site: Site, settings: RegionAdaptive, label: str) -> None:
        self.site, self.settings, self.label = site, settings, label
        self.layout = LAYOUTS[site.family.name]
        self.schedule: Schedule | None = None
        self.grid: Grid | None = None
        self.active: Tensor | None = None
        self.partial = False
        self._given = 0  # tokens of first frames that are not stepped: computed at every step
        self._patch: Grid = (1, 1, 1)
        self._track: Track | None = None
        self._mask: Tensor | None = None
        self._selection: Selection | None = None
        self._misses: Misses | None = None
        self._tiles: Tiles | None = None
        self._direction: Direction | None = None
        self._regions: Regions | None = None
        site.clock.on_begin.append(self._begin)
        site.clock.on_end.append(self._end)
        site.clock.step_handlers.append(self.step)

    @property
    def tokens(self) -> int:
        return math.prod(self.grid or (0,))

    def bytes(self) -> int:
        return 0 if self._track is None else self._track.bytes()

    def _begin(self, run: Run) -> None:
        scheduler, settings = self.site.pipe.scheduler, self.settings
        check_scheduler(scheduler, self.label)
        self._end(run)
        self.schedule = settings.schedule(run.total)
        self._selection = Selection(settings.high, settings.strength, settings.starvation)
        self._direction = Direction(scheduler)
        self._track = Track(settings.order)
        self._misses = Misses(settings.order) if settings.metric == "error" else None
        self.site.report.regions = None

    def _end(self, run: Run) -> None:
        self.schedule = self.grid = self.active = self._track = self._mask = None
        self._selection = self._tiles = self._direction = self._regions = self._misses = None
        self.partial, self._given = False, 0

    def begin(self, denoiser: torch.nn.Module, grid: Grid) -> None:
        """At the first call of a run: note how its tokens lie."""
        assert self.schedule is not None
        self.grid, self._patch = grid, patch_of(denoiser)
        self._regions = Regions(grid, self.schedule.total)
        self.site.report.regions = self._regions

    def mask_over(self, values: Tensor, samples: tuple[int, ...] | None = None) -> Tensor:
        """The tokens being computed as a mask over `values`, laid out like the latents.

        Args:
            samples: those `values` are of; None for all.
        """
        assert self._mask is not None
        mask = across(self._mask, len(values), samples)
        if self._count(values) == self.tokens - self._given:
            mask = mask[:, self._given :]
        if values.ndim == 3:
            beyond = values.shape[1] - mask.shape[1]
            if beyond:  # pictures to be edited, always computed
                mask = torch.cat([mask, mask.new_ones(len(mask), beyond)], dim=1)
        return to_mask(mask, values, self.site.family.channels, self._patch)

    def step(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Handle a scheduler step: hold what was left out, then choose for the next step."""
        run, schedule = self.site.clock.run, self.schedule
        if run is None or schedule is None or self.grid is None:
            return call(*args, **kwargs)
        given = dict(zip(("model_output", "timestep", "sample"), args, strict=False)) | kwargs
        output, sample, timestep = given["model_output"], given["sample"], given["timestep"]
        if kwargs.get("eta"):
            raise ValueError(
                f"{self.label} holds predictions between steps, and eta={kwargs['eta']} adds new "
                f"noise at each; call the pipeline with eta=0"
            )
        self._given = self._not_stepped(output)
        assert self._direction is not None and self._track is not None
        computed = None
        if not self.partial and self._regions is not None:
            self._regions.active.pop(run.index, None)  # no branch could be computed in part
        if self.partial:
            computed = self.mask_over(output)
            ahead = self._direction.back(self._track.at(run.index), sample, timestep)
            output = torch.where(computed, output, ahead)
        if any(schedule.partial(later) for later in range(run.index + 1, run.total)):
            direction = self._direction.of(output, sample, timestep)
            if self._misses is not None and self._track.known:
                missed = self._patches(direction - self._track.at(run.index))
                stepped = (
                    None if self.active is None else self.active[:, self._given :] - self._given
                )
                self._misses.note(scores(missed, "l2"), stepped if self.partial else None)
            self._track.add(direction, run.index, computed)
        self._choose(output, run.index + 1)  # before the scheduler, which may write into it
        args, kwargs = _with(output, args, kwargs)
        result = call(*args, **kwargs)
        if run.index + 1 >= run.total and self._regions is not None:
            final = result[0] if isinstance(result, tuple) else result.prev_sample
            means = self._patches(final).mean(dim=2)
            before = means[:, :1].expand(-1, self._given, -1)  # of given frames it is not told
            self._regions.latents = torch.cat([before, means], dim=1)
        return result

    def _count(self, latents: Tensor) -> int:
        sizes = latents.shape[0] * latents.shape[self._axis(latents)]
        return latents.numel() // max(sizes * math.prod(self._pack(latents)), 1)

    def _not_stepped(self, output: Tensor) -> int:
        """Tokens of the frames before those of `output`, where the first are given."""
        count, frame = self._count(output), math.prod((self.grid or (0,))[1:])
        given = self.tokens - count
        if given and (output.ndim != 5 or given < 0 or given % frame):
            raise RuntimeError(
                f"{self.label}: this pipeline steps {count} tokens of {self.tokens} the model "
                f"computes, so tokens cannot be told apart; it is not supported"
            )
        return given

    def _axis(self, latents: Tensor) -> int:
        return 2 if latents.ndim == 3 else self.site.family.channels

    def _pack(self, latents: Tensor) -> Grid:
        return (1, 1, 1) if latents.ndim == 3 else self._patch

    def _patches(self, latents: Tensor) -> Tensor:
        return to_patches(latents, self.site.family.channels, self._patch, self.layout.pixels)

    def _choose(self, output: Tensor, index: int) -> None:
        """Choose the tokens of step `index` from the guided prediction before it."""
        assert self.schedule is not None and self.grid is not None
        assert self._selection is not None and self._regions is not None
        self.partial, self.active, self._mask = False, None, None
        if not self.schedule.partial(index):
            return
        _, rows, columns = self.grid
        stepped = self.tokens - self._given
        grid = stepped // (rows * columns), rows, columns
        if self._tiles is None:
            self._tiles = Tiles(grid, self.settings.tile, output.device)
        left_out = self._tiles.left_out(self.schedule.left_out(index, stepped))
        if not left_out:
            return
        score = None if self._misses is None else self._misses.expected()
        if score is None:
            score = scores(self._patches(output), self.settings.metric)
        score = over_time(score, grid, self.settings.continuity)
        if not self.settings.per_sample:
            score = score.mean(dim=0, keepdim=True)
        chosen = self._selection.choose(self._tiles.means(score), left_out)
        tokens = self._tiles.tokens(chosen) + self._given
        given = torch.arange(self._given, device=tokens.device).expand(len(tokens), -1)
        self.active = torch.cat([given, tokens], dim=1)
        mask = self.active.new_zeros(len(score), self.tokens, dtype=torch.bool)
        self._mask = mask.scatter_(1, self.active, True)
        self._regions.active[index] = self.active


def _with(
    output: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a scheduler step with another model output."""
    if args:
        return (output, *args[1:]), kwargs
    return args, {**kwargs, "model_output": output}
