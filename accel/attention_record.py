"""AttentionRecord: what sparse attention computed in a run, per step, layer and head."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

GROUPS = ("index", "branch", "denoiser", "layer", "kernel", "head")


@dataclass(frozen=True)
class AttentionRow:
    """One attention of one layer.

    Attributes:
        index: denoising iterations before this one.
        layer: number of the self-attention module in its denoiser.
        kernel: what computed it; "dense" for the attention of the model.
        density: pairs of tokens attended over all pairs, for every head (mean over the batch).
        recall: attention mass of the pairs attended on sampled query rows, for every head; None
            where it was not measured.
    """

    index: int
    branch: str
    denoiser: str
    layer: int
    kernel: str
    density: tuple[float, ...]
    recall: tuple[float, ...] | None


@dataclass(frozen=True)
class AttentionRecord:
    """One run.

    Attributes:
        rows: one per sparse or dense attention, in the order they ran.
        kernels: kernels used, with the reason they were chosen.
        seconds_map: time spent to decide which blocks to compute.
        seconds_kernel: time spent in sparse kernels, reordering of tokens included.
        maps: (denoiser, layer) -> (H, rows, columns) share of pairs attended in every cell of the
            last map, in the order of tokens the kernel saw.
        seconds_report: time spent to measure density, recall and maps for this record.
    """

    rows: tuple[AttentionRow, ...]
    kernels: Mapping[str, str]
    seconds_map: float
    seconds_kernel: float
    maps: Mapping[tuple[str, int], Tensor]
    seconds_report: float = 0.0

    @property
    def density(self) -> float:
        """Mean over all attentions and heads."""
        return _mean([d for row in self.rows for d in row.density])

    @property
    def recall(self) -> float | None:
        """Mean over the measured ones; None where none was."""
        known = [r for row in self.rows for r in row.recall or ()]
        return _mean(known) if known else None

    def by(self, what: str) -> dict[Any, float]:
        """Mean density by "index", "branch", "denoiser", "layer", "kernel" or "head".

        Raises:
            ValueError: anything else.
        """
        if what not in GROUPS:
            raise ValueError(f"density is told by one of {', '.join(GROUPS)}, got {what!r}")
        groups: dict[Any, list[float]] = {}
        for row in self.rows:
            if what == "head":
                for head, density in enumerate(row.density):
                    groups.setdefault(head, []).append(density)
            else:
                groups.setdefault(getattr(row, what), []).extend(row.density)
        return {key: _mean(values) for key, values in groups.items()}

    def summary(self) -> str:
        """One line."""
        recall = "" if self.recall is None else f", recall {self.recall:.1%} on sampled rows"
        return (
            f"attention: {self.density:.1%} of pairs{recall}; maps {self.seconds_map:.2f} s, "
            f"kernels {self.seconds_kernel:.2f} s ({', '.join(self.kernels) or 'dense alone'}), "
            f"this report {self.seconds_report:.2f} s"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the maps."""
        return {
            "rows": [dataclasses.asdict(row) for row in self.rows],
            "kernels": dict(self.kernels),
            "seconds_map": self.seconds_map,
            "seconds_kernel": self.seconds_kernel,
            "seconds_report": self.seconds_report,
        }

    def plot(self, layer: int, head: int, path: str | Path, denoiser: str | None = None) -> Path:
        """Draw the last map of one head beside the density of every head over the steps.

        Raises:
            ValueError: no such layer or head was computed sparsely.
        """
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        found = {key: m for key, m in self.maps.items() if key[1] == layer}
        key = next((k for k in found if denoiser in (None, k[0])), None)
        if key is None or not 0 <= head < len(found[key]):
            heads = {n: len(m) for (_, n), m in self.maps.items()}
            raise ValueError(
                f"no sparse map of layer {layer}, head {head}; layers with maps, and their heads: "
                f"{heads or 'none'}"
            )
        rows = [r for r in self.rows if r.layer == layer and r.denoiser == key[0]]
        figure = Figure(figsize=(9, 4.2), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(1, 2, width_ratios=(1, 1.1))
        shown = axes[0].imshow(
            found[key][head].numpy(), cmap="Blues", vmin=0, vmax=1, interpolation="nearest"
        )
        figure.colorbar(shown, ax=axes[0], fraction=0.046, label="share of pairs computed")
        axes[0].set(xlabel="keys", ylabel="queries", xticks=[], yticks=[])
        axes[0].set_title(f"layer {layer}, head {head}: last map", fontsize=10)
        for branch in dict.fromkeys(row.branch for row in rows):
            own = [row for row in rows if row.branch == branch]
            steps, values = [r.index for r in own], [r.density[head] for r in own]
            axes[1].plot(steps, values, "o-", markersize=3, label=f"density ({branch})")
            known = [(r.index, r.recall[head]) for r in own if r.recall is not None]
            if known:
                axes[1].plot(*zip(*known, strict=True), "s", label=f"recall ({branch})")
        axes[1].set(xlabel="step", ylim=(0, 1.05))
        axes[1].xaxis.get_major_locator().set_params(integer=True)
        axes[1].legend(frameon=False, fontsize=8)
        axes[1].set_title("over the run", fontsize=10)
        figure.savefig(path, dpi=120)
        return Path(path)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 1.0
