"""A plan in a terminal: what it computes, how near that came, what it cost, what it is for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console, Group
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from .plan import Plan, describe

WIDE = 60
"""Most steps that the strip of computed steps has room for."""


def show(console: Console, plan: Plan, title: str) -> None:
    """Print everything a plan holds, long lists apart."""
    parts: list[Any] = []
    for method in plan.methods:
        nodes, steps = getattr(method, "nodes", ()), getattr(method, "steps", 0)
        if nodes and isinstance(steps, int):
            parts += [Text(type(method).__name__, "bold"), strip(nodes, steps)]
            if guidance := getattr(method, "guidance", ()):
                shown = " ".join(map(str, guidance))
                parts.append(Text(f"  both branches of guidance at {shown}", "dim"))
        else:
            parts.append(Text(describe(method)))
    rows = found(plan.measured)
    if rows:
        parts += ["", _table(rows, "bold green")]
    if plan.fingerprint:
        parts += ["", _table({k: str(v) for k, v in plan.fingerprint.items() if v != ""}, "")]
    if plan.note:
        parts += ["", Text(plan.note, "dim")]
    console.print(Panel(Group(*parts), title=title, title_align="left", padding=(0, 1)))


def strip(nodes: tuple[int, ...], steps: int) -> Padding:
    """A mark a step, and the numbers of computed ones."""
    line = Text()
    for i in range(min(steps, WIDE)):
        line.append("█" if i in nodes else "░", "cyan" if i in nodes else "yellow")
    if steps > WIDE:
        line.append(f" +{steps - WIDE}", "dim")
    return Padding(Group(line, Text(f"steps {' '.join(map(str, nodes))}", "dim")), (0, 0, 0, 2))


def found(measured: Mapping[str, Any]) -> dict[str, str]:
    """What was measured, a line each, in words; lists of numbers are for the picture."""
    told = {
        name: say(measured) for name, (key, say) in SAID.items() if measured.get(key) is not None
    }
    known = {key for key, _ in SAID.values()} | KNOWN
    others = {
        key.replace("_", " "): f"{value:g}" if isinstance(value, float) else str(value)
        for key, value in measured.items()
        if key not in known and isinstance(value, str | int | float)
    }
    return told | others


def _budget(measured: Mapping[str, Any]) -> str:
    budget, steps = measured["budget"], measured.get("steps")
    return f"{budget} of {steps} steps, {steps / budget:.2f}x fewer" if steps else str(budget)


def _held_out(measured: Mapping[str, Any]) -> str:
    said = f"{measured['held_out_db']:.1f} dB PSNR to the full run, in latent space"
    count, tried = measured.get("held_out"), measured.get("tried", 1)
    if count == 0:
        return f"{said}, on the one sample it was fitted to: nothing was held out"
    said += f", {count} samples, each fitted on the others" if count else ""
    return said + (f"; the best of {tried} tried, so expect less" if tried > 1 else "")


def _cost(measured: Mapping[str, Any]) -> str:
    runs = f"{measured['cost']:.1f} full runs of one sample"
    if measured.get("samples"):
        runs += f", {measured['samples']} of them to record"
    return runs


def _carriers(measured: Mapping[str, Any]) -> str:
    known = [(name, measured[key]) for name, key in WAYS.items() if key in measured]
    return ", ".join(f"{name} {decibels:.1f} dB" for name, decibels in known)


def _gradient(measured: Mapping[str, Any]) -> str:
    rounds = measured.get("gradient_rounds", 0)
    unit = "of the given loss" if measured.get("gradient_loss") == "given" else "dB"
    return f"{measured['gradient_gain']:+.2f} {unit} after {rounds} rounds"


WAYS = {
    "whole outputs": "output_db",
    "branches apart": "guidance_db",
    "residual of blocks": "residual_db",
    "modules": "module_db",
}
"""Ways of planning that calibration may compare."""
KNOWN = {
    "steps",
    "samples",
    "held_out",
    "gradient_rounds",
    "gradient_loss",
    *WAYS.values(),
}
"""Measurements that are part of a line made of another."""
SAID: dict[str, tuple[str, Callable[[Mapping[str, Any]], str]]] = {
    "computes": ("budget", _budget),
    "held out": ("held_out_db", _held_out),
    "cost": ("cost", _cost),
    "compared": ("output_db", _carriers),
    "gradient fit": ("gradient_gain", _gradient),
    "plans measured": ("tried", lambda measured: str(measured["tried"])),
}
"""How a line is called -> what of the measurements it is made of, and how it is said."""


def _table(rows: Mapping[str, str], style: str) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(style=style, overflow="fold")
    for name, text in rows.items():
        table.add_row(name, Text(text))
    return table
