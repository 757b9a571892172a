"""Tables of the region benchmark: every row beside plain runs, and what became of the goals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from accel.metrics import lower_bound
from benchmarks import page
from benchmarks.cells import Cells

MODELS = ("shapes-mmdit", "shapes-t2v")
RATIOS = (0.5, 0.35, 0.25, 0.125)
STEPS = 28
GOAL = 0.85
WITHIN, AT, CAPTIONS = 0.01, 0.25, 1000
"""The change of adherence allowed, at which share of the tokens, on how many captions at least."""

HEAD = (
    *("tokens a step", "row", "by", "n", "PSNR dB", "SSIM", "adherence", "change (95 % bound)"),
    *("all right", "tokens", "work", "bound", "speed-up (95 %)", "realised"),
)
GOALS = ("tokens a step", "row", "goal", "found (90 % interval)", "n", "goal met")

Cell = dict[str, Any]


def label(cell: Cell) -> str:
    """What a judged cell is called in its row: plain runs by their steps."""
    fields = cell["fields"]
    return str(fields["setting"] if fields["by"] == "plain" else fields["row"])


def equal_work(timed: dict[str, Any]) -> int:
    """Plain steps of as much work."""
    return _fewer(STEPS * timed["work"])


def equal_time(timed: dict[str, Any]) -> int:
    """Plain steps that take as long, the time of a plain run going with its steps."""
    return _fewer(STEPS / timed["speedup"])


def _fewer(steps: float) -> int:
    """Rounded, and below the steps of the run that all are compared with."""
    return min(max(round(steps), 1), STEPS - 1)


def found(cells: Cells, model: str, ratio: float) -> tuple[dict[str, Cell], dict[str, Any]]:
    """By label: cells judged on the most samples; and times."""
    named = {"model": model, "ratio": ratio}
    mine = [c for c in cells.cells.values() if named.items() <= c["fields"].items()]
    judged: dict[str, Cell] = {}
    for cell in mine:
        if cell["fields"].get("set") != "evaluation":
            continue
        name = label(cell)
        if name not in judged or cell["fields"]["samples"] >= judged[name]["fields"]["samples"]:
            judged[name] = cell
    times: dict[str, Any] = {}
    for cell in mine:
        if cell["fields"].get("set") == "timing":
            times |= cell["result"]
    return judged, times


def rows(cells: Cells, model: str) -> Iterator[list[str]]:
    """Of the table of one model, by ratio: ours, then plain runs of as much work or time."""
    for ratio in RATIOS:
        judged, times = found(cells, model, ratio)
        for name, cell in judged.items():
            yield _row(ratio, name, cell, times.get(name))


def _row(ratio: float, name: str, cell: Cell, own: dict[str, Any] | None) -> list[str]:
    fields, m = cell["fields"], cell["result"]["means"]
    line = [
        f"{ratio:g}",
        name,
        fields["by"],
        str(fields["samples"]),
        f"{m['psnr']:.2f}",
        f"{m['ssim']:.4f}",
        f"{m['share']:.2%}",
        f"{100 * m['adherence_change']:+.2f} ({100 * m['adherence_change_low']:+.2f})",
        f"{m['all_right']:.1%}",
    ]
    if own is None and fields["by"] == "ours":
        return [*line, *["–"] * 5]  # the work of kept keys is known from the report of a timed run
    if own is None:
        return [*line, "–", f"{m['work']:.1%}", f"{1 / m['work']:.2f}", "–", "–"]
    spread = f"{own['speedup']:.2f} ({own['speedup_low']:.2f}–{own['speedup_high']:.2f})"
    realised = own["speedup"] * own["work"]
    work = f"{own['work']:.1%}"
    bound = f"{1 / own['work']:.2f}"
    return [*line, f"{own['tokens']:.1%}", work, bound, spread, f"{realised:.2f}"]


@dataclass(frozen=True)
class Paired:
    """A mean difference between two rows, pair by pair, and its 90 % interval."""

    estimate: float
    low: float
    high: float
    samples: int

    @classmethod
    def of(cls, plain: Sequence[float], own: Sequence[float]) -> Paired:
        """Of the samples that both have, the first ones of one list; own - plain."""
        n = min(len(plain), len(own))
        below = lower_bound(plain[:n], own[:n])
        above = lower_bound(own[:n], plain[:n])
        return cls(below.estimate, below.low, -above.low, n)


def verdict(low: float, high: float, goal: float, above: bool = False) -> str:
    """Whether the whole interval reaches the goal, or with `above` goes beyond it."""
    if low > goal or (low == goal and not above):
        return "yes"
    return "no" if high < goal or (high == goal and above) else "not clear"


def best(cells: Cells, model: str, ratio: float) -> tuple[str, int] | None:
    """Our row that is furthest above the plain run of equal time, in PSNR; and that run's steps.

    None before there is a pair of both.
    """
    judged, times = found(cells, model, ratio)
    ahead = {}
    for name, own in times.items():
        other = judged.get(f"{equal_time(own)} steps")
        if name in judged and other is not None:
            psnrs = (c["result"]["psnr"] for c in (other, judged[name]))
            ahead[name] = Paired.of(*psnrs).estimate
    if not ahead:
        return None
    name = max(ahead, key=lambda row: ahead[row])
    return name, equal_time(times[name])


def goals(cells: Cells, model: str) -> Iterator[list[str]]:
    """Of the table of goals, by ratio, of the best row."""
    for ratio in RATIOS:
        chosen = best(cells, model, ratio)
        if chosen is None:
            continue
        name, steps = chosen
        judged, times = found(cells, model, ratio)
        own, time = judged[name]["result"], times[name]
        other = judged[f"{steps} steps"]["result"]
        begin = [f"{ratio:g}", name]
        low, high = (time[f"speedup_{end}"] * time["work"] for end in ("low", "high"))
        yield [
            *begin,
            f"at least {GOAL} of the bound",
            f"{time['speedup'] * time['work']:.2f} ({low:.2f}–{high:.2f})",
            f"{time['turns']} turns",
            verdict(low, high, GOAL),
        ]
        for what, key, unit, scale in (
            ("PSNR", "psnr", "dB", 1.0),
            ("adherence", "share", "points", 100.0),
        ):
            ahead = Paired.of(other[key], own[key])
            yield _line(begin, f"better {what} than {steps} plain steps", ahead, 0.0, unit, scale)
        if ratio == AT:
            change = Paired.of(own["plain"]["share"], own["share"])
            line = _line(
                begin, f"adherence within 1 point of {STEPS} steps", change, -WITHIN, "points", 100
            )
            few = change.samples < CAPTIONS
            yield [*line[:-1], f"too few: {CAPTIONS} captions are asked"] if few else line


def _line(
    begin: list[str], what: str, value: Paired, goal: float, unit: str, scale: float
) -> list[str]:
    shown = [f"{scale * v + 0.0:+.2f}" for v in (value.estimate, value.low, value.high)]
    said = f"{shown[0]} {unit} ({shown[1]} to {shown[2]})"
    met = verdict(value.low, value.high, goal, above=what.startswith("better"))
    return [*begin, what, said, str(value.samples), met]


INTRODUCTION = f"""# Region-adaptive sampling

Made by `python benchmarks/regions.py`; every number is in the JSON file beside this page.

Runs of {STEPS} steps of flow Euler. *Tokens a step*: share of the image's tokens that a partial
step computes. *Tokens*: share computed over the whole run, dense steps and all. *Work*: FLOPs of
the denoiser over those of the plain run, text and what runs outside of the blocks included; for
plain runs, steps over {STEPS}. *Bound*: its inverse. *Speed-up*: processor time of the denoising
loop of one sample on one thread, plain over accelerated, turn about in one process; median with its
95 % interval. *Realised*: speed-up over bound. PSNR and SSIM compare decoded frames with the plain
run of {STEPS} steps; adherence is the share of the caption's attributes that an exact checker finds
right, its change paired by sample, with the one-sided 95 % bound. Beside ours stand plain runs of
as much work ({STEPS} × work steps) and of as much time ({STEPS} / speed-up steps).

*Goals* are those of the row that is furthest above the plain run of equal time in PSNR: "yes" or
"no" where the whole interval says so. Differences are paired by sample.

"""


def text(cells: Cells) -> tuple[str, list[Any]]:
    """The page, and its tables for the terminal."""
    said, tables = INTRODUCTION, []
    for model in MODELS:
        lines, reached = list(rows(cells, model)), list(goals(cells, model))
        if lines:
            tables.append(page.terminal(model, HEAD, lines))
            said += f"## {model}\n\n{page.markdown(HEAD, lines)}"
        if reached:
            tables.append(page.terminal(f"{model}: goals", GOALS, reached))
            said += f"### Goals on {model}\n\n{page.markdown(GOALS, reached)}"
    return said + (page.provenance(cells) if cells.path.exists() else ""), tables
