"""ToCa, DuCa and ClusCa transcribed: all of a plain pipeline is computed, then overwritten."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.caching.transcribed import Counted


def share(settings: Any, layer: int, layers: int, index: int, total: int) -> float:
    """Released factors: of the layer, of the step counted down, and of feed-forwards."""
    w, v, left = settings.layer_weight, settings.step_weight, total - 1 - index
    factors = (1 + w - 2 * w * layer / (layers - 1)) * (1 + v - 2 * v * left / total)
    return min(max(settings.ratio * settings.boost * factors, 0), 1)


def favoured(score: Tensor, grid: tuple[int, int, int], bonus: float) -> Tensor:
    """One 2 by 2 cell after another: its best token gains."""
    frames, rows, columns = grid
    found = score.clone()
    for row in range(len(score)):
        for f in range(frames):
            for i in range(0, rows, 2):
                for j in range(0, columns, 2):
                    cell = [
                        f * rows * columns + y * columns + x
                        for y in range(i, min(i + 2, rows))
                        for x in range(j, min(j + 2, columns))
                    ]
                    best = max(cell, key=lambda t, r=row: float(score[r, t]))
                    found[row, best] += bonus * abs(score[row, best])
    return found


class Tokens:
    """Attention held, feed-forwards computed token by token; no block runs on `bare` steps."""

    def __init__(
        self,
        counted: Counted,
        blocks: list[torch.nn.Module],
        names: tuple[str, str],
        full: set[int],
        bare: set[int] | None = None,
    ) -> None:
        self.counted, self.blocks, self.names = counted, blocks, names
        self.full, self.bare = full, bare or set()
        self.norms: dict[tuple[int, int], Tensor] = {}
        self.ages: dict[tuple[int, int], Tensor] = {}
        self.held: dict[tuple[int, int], Tensor] = {}

    def toca(self, settings: Any, grid: tuple[int, int, int], total: int) -> None:
        attention, feed = self.names
        for layer, block in enumerate(self.blocks):
            attend, ff = block.get_submodule(attention), block.get_submodule(feed)
            heads = attend.heads

            def value(module: Any, args: Any, output: Tensor, i=layer, heads=heads) -> None:
                if self.counted.step in self.full:
                    norms = output.unflatten(-1, (heads, -1)).norm(dim=-1)
                    score = (1 - norms).sum(-1)
                    self.norms[i, self.counted.branch] = score / score.norm(dim=1, keepdim=True)

            def renew(module: Any, args: Any, output: Tensor, i=layer) -> Any:
                key, step = (i, self.counted.branch), self.counted.step
                if step in self.full:
                    self.held[key] = output.clone()
                    self.ages[key] = torch.zeros(output.shape[:2])
                    return None
                if step in self.bare:
                    return None
                score = self.norms[key] + settings.age_weight * self.ages[key] / settings.interval
                score = favoured(score, grid, settings.bonus)
                part = share(settings, i, len(self.blocks), step, total)
                count = int(part * output.shape[1] + 1e-6)
                self.ages[key] += 1
                for row in range(len(output)):
                    for t in score[row].argsort(descending=True)[:count].tolist():
                        self.held[key][row, t] = output[row, t]
                        self.ages[key][row, t] = 0
                return self.held[key].clone()

            self.counted.hooks.append(attend.to_v.register_forward_hook(value))
            self.counted.hooks.append(ff.register_forward_hook(renew))

    def hold(self, modules: list[torch.nn.Module]) -> None:
        """Reuse whatever these modules gave at the last full step."""
        kept: dict[tuple[int, int], Any] = {}

        def hook(module: torch.nn.Module, args: Any, output: Any) -> Any:
            key = (id(module), self.counted.branch)
            if self.counted.step in self.full:
                kept[key] = output
                return None
            return kept[key]

        self.counted.hooks += [module.register_forward_hook(hook) for module in modules]

    def pass_by(self, block: torch.nn.Module) -> None:
        """Let the last block give on bare steps what it gave the step before."""
        kept: dict[int, Tensor] = {}

        def hook(module: torch.nn.Module, args: Any, output: Any) -> Any:
            branch = self.counted.branch
            if self.counted.step in self.bare:
                return kept[branch]
            kept[branch] = output
            return None

        self.counted.hooks.append(block.register_forward_hook(hook))
