"""A picture of a plan: every method that can draws its own part, below what the plan is."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from .plan import Plan

SIZE = (11.0, 6.0)  # inches, of one method's part
NAMED = ("model", "scheduler", "guidance", "lora")
"""Entries of a fingerprint that a heading has room for."""


@runtime_checkable
class Drawn(Protocol):
    """A method that draws itself."""

    def draw(self, figure: Any, measured: Mapping[str, Any]) -> None:
        """Fill an empty (sub)figure of matplotlib.

        Args:
            measured: what was found while the method was made, as far as it is known.
        """
        ...


def draw(plan: Plan, path: Path) -> Path:
    """Write the picture of `plan`; see `Plan.plot`."""
    parts = [method for method in plan.methods if isinstance(method, Drawn)]
    if not parts:
        raise ValueError(
            f"nothing of this plan ({plan}) can be drawn; plans that `accel calibrate --budget` "
            f"makes can"
        )
    figure = Figure(figsize=(SIZE[0], SIZE[1] * len(parts)), layout="constrained")
    FigureCanvasAgg(figure)
    known = figure.canvas.get_supported_filetypes()
    if path.suffix.removeprefix(".") not in known:
        raise ValueError(f"{path}: the ending must be one of {', '.join(sorted(known))}")
    figure.suptitle("\n".join(heading(plan)), x=0.01, ha="left", fontsize=10)
    for place, method in zip(
        figure.subfigures(len(parts), squeeze=False)[:, 0], parts, strict=True
    ):
        method.draw(place, plan.measured)
    figure.savefig(path, dpi=140)
    return path


def heading(plan: Plan) -> list[str]:
    """What the plan is for, and where it comes from."""
    made_for = plan.fingerprint
    told = [f"{k} {made_for[k]}" for k in NAMED if made_for.get(k, "none") != "none"]
    lines = [" · ".join(t for t in (plan.name, *told) if t), plan.note]
    return [part for line in lines if line for part in textwrap.wrap(line, 130)]
