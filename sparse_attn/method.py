"""SparseAttention: self-attention over the blocks that a pattern chooses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from accel.family import Family
from accel.method import Method, Site, check_fields

from .asking import ask
from .attending import Attending
from .kernels import KERNELS
from .kernels.choice import check_name
from .pattern import Pattern
from .patterns.sliding_tile import SlidingTile

TILES = SlidingTile()


@dataclass(frozen=True)
class SparseAttention(Method):
    """Compute only the blocks of self-attention that a pattern chooses; leave the rest out.

    Attributes:
        pattern: which blocks: `SlidingTile(...)`, `Radial(...)` and others.
        kernel: what computes them; "auto" picks by device, dtype, head size and density, and a
            kernel given by name is used or refused, never replaced.
        dense_until: share of the run, from its start, in which attention stays dense: outlines form
            there.
        dense_layers: numbers of self-attention modules that stay dense; negative ones count from
            the end.
        shortest: tokens below which attention stays dense, since it would gain nothing.
        recall_rows: query rows on which attention mass is measured, one layer per step in turn; 0
            measures none.

    Where the pattern leaves nothing out the attention of the model itself is called.
    Cross-attention is never touched. Maps of the last run are drawn by `report.plot_attention`.
    """

    pattern: Pattern = TILES
    kernel: str = "auto"
    dense_until: float = 0.2
    dense_layers: tuple[int, ...] = ()
    shortest: int = 512
    recall_rows: int = 16

    level: ClassVar[str] = "attention"
    claims: ClassVar[str] = "sparse attention"

    def __post_init__(self) -> None:
        check_name(self.kernel, KERNELS)
        check_fields(
            self,
            pattern=(
                isinstance(self.pattern, Pattern) and not isinstance(self.pattern, type),
                "a pattern, such as SlidingTile(window=(3, 3, 3))",
            ),
            dense_until=(0 <= self.dense_until <= 1, "a share from 0 to 1"),
            shortest=(self.shortest >= 0, "at least 0"),
            recall_rows=(self.recall_rows >= 0, "at least 0"),
        )

    def supports(self, family: Family) -> bool:
        kinds = {kind for blocks in family.blocks for kind in blocks.attention.values()}
        return family.kind == "unet" or bool(kinds - {"cross"})

    def install(self, site: Site) -> None:
        ask(self, site)
        Attending(site, self).install()

    def expect(self, site: Site, steps: int) -> str:
        dense = math.ceil(self.dense_until * steps - 1e-9)
        first = f"the first {dense} with dense attention; " if dense else ""
        name, why = ask(self, site)
        layers = f"; layers {self.dense_layers} dense" if self.dense_layers else ""
        return f"computes {steps} of {steps} steps, {first}kernel {name}: {why}{layers}"
