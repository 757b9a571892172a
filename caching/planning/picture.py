"""A plan drawn: where its steps lie, what it weighs, how far off it was expected and found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

COLOUR, SECOND, QUIET = "#1f4e79", "#c0504d", "#b8b8b8"
NUMBERED = 14
"""Most computed steps for which the entries of the map are written into it."""

BLANK = 1e-3
"""Shares of a segment up to this are left blank."""


def draw(
    figure: Any,
    nodes: Sequence[int],
    steps: int,
    sigmas: Sequence[float],
    weights: Sequence[Sequence[float]],
    measured: Mapping[str, Any],
) -> None:
    """Fill a figure with three parts: computed steps, errors below them, weights beside.

    Args:
        nodes: computed steps of `steps`.
        sigmas: (steps,) noise levels; empty if they are not known.
        weights: of every node, what a fit added to the newest outputs, newest first.
        measured: "predicted" and "error", a number a node, and "rule", whole weights of every
            segment, oldest output first; each is drawn where it is there.
    """
    grid = figure.add_gridspec(2, 2, width_ratios=(1.25, 1), height_ratios=(1, 2.6))
    axis = Axis(sigmas if len(sigmas) == steps else (), steps)
    top, below = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[1, 0])
    _computed(top, axis, nodes)
    _errors(below, axis, nodes, measured)
    _weights(figure, figure.add_subplot(grid[:, 1]), nodes, weights, measured.get("rule", ()))


class Axis:
    """The noise level, or the number of the step where levels are not known."""

    def __init__(self, sigmas: Sequence[float], steps: int) -> None:
        self.steps, self._sigmas = steps, [float(s) for s in sigmas]

    def at(self, index: int) -> float:
        """Of step `index`; `steps` is the end."""
        if not self._sigmas:
            return float(index)
        end = 0.0 if not self._wide else 0.6 * self._sigmas[-1]  # a logarithm has no zero
        return self._sigmas[index] if index < self.steps else end

    @property
    def _wide(self) -> bool:
        return bool(self._sigmas) and self._sigmas[0] > 1.5

    def apply(self, plot: Any) -> None:
        """Noise on the left, data on the right."""
        first, last = self.at(0), self.at(self.steps)
        if self._wide:
            plot.set_xscale("log")
            margin = (first / last) ** 0.04
            plot.set_xlim(first * margin, last / margin)
        else:
            margin = 0.04 * (first - last)
            plot.set_xlim(first + margin, last - margin)
        plot.set_xlabel("noise level σ" if self._sigmas else "step", fontsize=9)
        plot.tick_params(labelsize=8, which="both")


def _computed(plot: Any, axis: Axis, nodes: Sequence[int]) -> None:
    every = [axis.at(i) for i in range(axis.steps)]
    plot.vlines(every, 0.0, 0.35, color=QUIET, linewidth=1)
    places = [axis.at(node) for node in nodes]
    plot.vlines(places, 0.0, 0.8, color=COLOUR, linewidth=2)
    plot.plot(places, [0.8] * len(places), "o", color=COLOUR, markersize=4)
    for i, (node, place) in enumerate(zip(nodes, places, strict=True)):
        plot.annotate(
            str(node),
            (place, 0.8),
            xytext=(0, 5 + 9 * (i % 2)),  # neighbours may be too near for one line
            textcoords="offset points",
            ha="center",
            fontsize=7,
        )
    axis.apply(plot)
    plot.set_ylim(0, 1.25)
    plot.set_yticks([])
    for side in ("left", "right", "top"):
        plot.spines[side].set_visible(False)
    plot.set_title(f"computed: {len(nodes)} of {axis.steps} steps", loc="left", fontsize=10)


def _errors(plot: Any, axis: Axis, nodes: Sequence[int], measured: Mapping[str, Any]) -> None:
    ends = [axis.at(end) for end in (*nodes[1:], axis.steps)]
    rows = {
        "predicted, added up": (np.cumsum(measured.get("predicted", ())), SECOND, "--"),
        "measured": (np.array(measured.get("error", ()), dtype=float), COLOUR, "-"),
    }
    drawn = False
    for label, (values, colour, line) in rows.items():
        if len(values) == len(ends) and (values > 0).any():
            shown = np.where(values > 0, values, np.nan)
            plot.plot(ends, shown, line, marker="o", markersize=4, color=colour, label=label)
            drawn = True
    axis.apply(plot)
    plot.set_title("RMS distance from the full run", loc="left", fontsize=10)
    if not drawn:
        plot.set_yticks([])
        plot.text(0.5, 0.5, "not kept in this plan", transform=plot.transAxes, ha="center")
        return
    plot.set_yscale("log")
    plot.grid(alpha=0.3, which="both")
    plot.legend(frameon=False, fontsize=8, loc="best")
    found = measured.get("held_out_db")
    if isinstance(found, int | float):
        whose = "its own" if measured.get("held_out") == 0 else "held-out"
        title = f"{whose} samples: {found:.1f} dB"
        plot.set_title(title, loc="right", fontsize=10, color=COLOUR)


def _weights(
    figure: Any,
    plot: Any,
    nodes: Sequence[int],
    changes: Sequence[Sequence[float]],
    rule: Sequence[Sequence[float]],
) -> None:
    count = len(nodes)
    table, shares = np.full((count, count), np.nan), len(rule) == count
    for j in range(count):
        if shares:
            row = np.array(rule[j], dtype=float)[: j + 1]
            row = row / (row.sum() or 1.0)
            table[j, : len(row)] = np.where(np.abs(row) > BLANK, row, np.nan)
        elif len(changes) == count:
            for back, weight in enumerate(changes[j]):
                table[j, j - back] = weight
    title = "weights of outputs, as shares of the segment" if shares else "what the fit adds"
    plot.set_title(title, loc="left", fontsize=10)
    if not shares and len(changes) > count:
        _kept(figure, plot, changes)
        return
    if not np.isfinite(table).any():
        plot.set_axis_off()
        plot.text(0.5, 0.5, "not fitted", transform=plot.transAxes, ha="center")
        return
    reach = float(np.nanmax(np.abs(table))) or 1.0
    image = plot.imshow(table, cmap="RdBu_r", vmin=-reach, vmax=reach)
    if count <= NUMBERED:
        for (j, m), value in np.ndenumerate(table):
            if np.isfinite(value) and abs(value) > 0.005 * reach:
                colour = "white" if abs(value) > 0.6 * reach else "black"
                plot.text(m, j, f"{value:.2f}", ha="center", va="center", fontsize=6, color=colour)
    labels = [str(node) for node in nodes]
    plot.set_xticks(range(count), labels, fontsize=7)
    plot.set_yticks(range(count), labels, fontsize=7)
    plot.set_xlabel("output of step")
    plot.set_facecolor("#fafafa")
    plot.set_ylabel("segment that begins at step")
    figure.colorbar(image, ax=plot, shrink=0.6, pad=0.02).ax.tick_params(labelsize=7)


def _kept(figure: Any, plot: Any, changes: Sequence[Sequence[float]]) -> None:
    """Of carriers inside the model: for every step, the weights of what is kept, newest first."""
    longest = max(len(row) for row in changes)
    table = np.full((len(changes), max(longest, 1)), np.nan)
    for i, row in enumerate(changes):
        table[i, : len(row)] = row
    plot.set_title("weights of what is kept, at every step", loc="left", fontsize=10)
    reach = float(np.nanmax(np.abs(table))) if np.isfinite(table).any() else 1.0
    image = plot.imshow(table, cmap="RdBu_r", vmin=-reach, vmax=reach, aspect="auto")
    plot.set_xticks(range(table.shape[1]), ["newest", "before", *"…" * 9][: table.shape[1]])
    plot.set_ylabel("step (blank where computed)")
    plot.tick_params(labelsize=7)
    figure.colorbar(image, ax=plot, shrink=0.6, pad=0.02).ax.tick_params(labelsize=7)
