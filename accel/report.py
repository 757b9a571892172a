"""Report: what a run computed, forecast and reused, and what that can save."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .attention_record import AttentionRecord
from .regions import Regions

STRIP = 0.12
COLOURS = {"computed": "#1f4e79", "forecast": "#e0952b", "reused": "#7fb069"}


@dataclass(frozen=True)
class Row:
    """One evaluation of a denoiser.

    Attributes:
        action: "computed", "forecast" (extrapolated) or "reused" (held).
        work: FLOPs spent, as a fraction of a full evaluation.
    """

    index: int
    sigma: float | None
    branch: str
    denoiser: str
    action: str
    work: float


@dataclass(frozen=True)
class Report:
    """One run.

    Attributes:
        rows: one per evaluation of a denoiser, in order.
        computed_fraction: FLOPs spent over those of the plain run.
        basis: what the fraction was counted in ("flops", else "parameters").
        seconds_loop: wall time of the denoising loop, s.
        seconds_rest: wall time before it (text encoders) and after it (decoding), s.
        bytes_held: tensors kept between steps at the end of the loop.
        complete: False when the run was aborted.
        beside: of networks beside the denoisers (a ControlNet), calls computed and calls asked for;
            not part of the fraction.
        step_seconds: wall time of every step after the first, s.
        counts: what methods did beside their schedule, and how often.
        regions: which tokens each step computed, where a method chose them.
        attention: which pairs of tokens attention computed, where a method chose them.
    """

    methods: str
    rows: tuple[Row, ...]
    computed_fraction: float
    basis: str
    seconds_loop: float
    seconds_rest: float
    bytes_held: int
    complete: bool
    beside: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    step_seconds: tuple[float, ...] = field(default=(), compare=False, repr=False)
    regions: Regions | None = field(default=None, compare=False, repr=False)
    attention: AttentionRecord | None = field(default=None, compare=False, repr=False)

    @property
    def bound(self) -> float:
        """Speed-up of the denoising loop if its time went with its FLOPs and skipping were free."""
        return math.inf if not self.computed_fraction else 1 / self.computed_fraction

    @property
    def branches(self) -> list[str]:
        return list(dict.fromkeys(row.branch for row in self.rows))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; an infinite bound or noise level becomes None."""
        plain = dataclasses.asdict(dataclasses.replace(self, regions=None, attention=None))
        values = {**plain, "bound": self.bound}
        values["attention"] = None if self.attention is None else self.attention.to_dict()
        seconds = self.step_seconds
        values["regions"] = None if self.regions is None else self.regions.to_dict(seconds)
        if not math.isfinite(self.bound):
            values["bound"] = None
        for row in values["rows"]:
            if row["sigma"] is not None and not math.isfinite(row["sigma"]):
                row["sigma"] = None
        return values

    def save(self, path: str | Path) -> Path:
        """Write the report as JSON."""
        path = Path(path)
        path.write_text(json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n")
        return path

    def summary(self) -> str:
        """Two lines: what was done, what it means; and one for each network beside, and count."""
        count = {a: sum(r.action == a for r in self.rows) for a in COLOURS}
        done = ", ".join(f"{n} {a}" for a, n in count.items() if n)
        size, beside = self.bytes_held / 2**20, self.beside.items()
        return (
            f"{self.methods}: {len(self.rows)} evaluations, {done}"
            f"{'' if self.complete else ' (aborted)'}\n"
            f"computed {self.computed_fraction:.1%} of the {self.basis}, which alone is "
            f"{self.bound:.2f}x in the loop; loop {self.seconds_loop:.2f} s, "
            f"rest {self.seconds_rest:.2f} s, {size:.1f} MiB held"
            + "".join(f"\n{n}: {c} of {asked} calls computed" for n, (c, asked) in beside)
            + "".join(f"\n{count} {what}" for what, count in self.counts.items())
            + (f"\n{self._of_regions}" if self.regions else "")
            + (f"\n{self.attention.summary()}" if self.attention else "")
        )

    @property
    def _of_regions(self) -> str:
        assert self.regions is not None
        return self.regions.summary(self.computed_fraction, self.step_seconds)

    def table(self) -> Table:
        """One line a step, one column a branch."""
        table = Table(title=None, header_style="bold")
        table.add_column("step", justify="right")
        table.add_column("sigma", justify="right")
        for branch in self.branches:
            table.add_column(branch)
        steps: dict[int, dict[str, Row]] = {}
        for row in self.rows:
            steps.setdefault(row.index, {})[row.branch] = row
        for index, found in steps.items():
            sigma = next(iter(found.values())).sigma
            cells = [
                f"{found[b].action} {found[b].work:.0%}" if b in found else ""
                for b in self.branches
            ]
            table.add_row(str(index), "" if sigma is None else f"{sigma:.3f}", *cells)
        return table

    def __str__(self) -> str:
        console = Console(width=100, color_system=None, file=io.StringIO(), record=True)
        console.print(self.table())
        return console.export_text() + self.summary()

    def plot(self, path: str | Path) -> Path:
        """Draw work per step over a strip of what was done, a panel a branch."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator

        branches = self.branches
        figure = Figure(figsize=(9, 1.1 + 1.5 * len(branches)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(len(branches), 1, sharex=True, squeeze=False)[:, 0]
        for axis, branch in zip(axes, branches, strict=True):
            for action, colour in COLOURS.items():
                rows = [r for r in self.rows if r.branch == branch and r.action == action]
                steps = [r.index for r in rows]
                axis.bar(steps, [r.work for r in rows], color=colour, width=0.9)
                axis.bar(steps, [-STRIP] * len(rows), color=colour, width=1.0)
            axis.axhline(0, color="white", linewidth=1)
            axis.set_ylim(-STRIP, 1.05)
            axis.set_yticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])
            axis.set_ylabel(f"work\n({branch})")
        axes[-1].set_xlabel("step")
        axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        used = [a for a in COLOURS if any(r.action == a for r in self.rows)]
        handles = [axes[0].bar([0], [0], color=COLOURS[a]) for a in used]
        figure.legend(handles, used, loc="outside lower right", ncols=3, frameon=False)
        title = f"{self.methods}: {self.computed_fraction:.0%} of the {self.basis} computed"
        figure.suptitle("\n".join(textwrap.wrap(title, 110)), x=0.01, ha="left", fontsize=10)
        figure.savefig(path, dpi=120)
        return Path(path)

    def plot_regions(self, path: str | Path, picture: Any = None, sample: int = 0) -> Path:
        """Draw which regions each step computed: under a blue veil where it did not.

        Args:
            path: `.png` for a sheet, `.mp4` to play it.
            picture: what the run made, to draw over: a picture or the frames of a video, bytes or
                floats in [0, 1]; None draws over the latents.
            sample: which of the batch.

        Raises:
            ValueError: no method of this run chose regions, or one of the arguments is wrong.
        """
        if self.regions is None:
            raise ValueError(
                f"{self.methods} computes all tokens of every step it computes; regions are "
                f"drawn of runs with RegionAdaptive or RegionUpsampling"
            )
        from .region_picture import draw

        return draw(self.regions, path, picture, sample)

    def plot_attention(
        self, layer: int, head: int, path: str | Path, denoiser: str | None = None
    ) -> Path:
        """Draw the last map of one head, and its density and recall over the run.

        Raises:
            ValueError: attention of this run was dense, or there is no such layer or head.
        """
        if self.attention is None:
            raise ValueError(
                f"{self.methods} computes attention whole; maps are of SparseAttention"
            )
        return self.attention.plot(layer, head, path, denoiser)
