"""How much of the speed-up that the counted work allows does a whole denoising loop realise?

`python -m benchmarks.realised` goes on where it stopped and writes results/realised.{json,md}.
`--prepare` only chooses settings and counts work, which needs no quiet machine.
"""

from __future__ import annotations

import os
import time
import warnings
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console

from accel.method import Method
from accel.plan import describe
from benchmarks import page, peers
from benchmarks.budget import TARGETS, others, residuals, threshold, unet, ways
from benchmarks.cells import Cells
from benchmarks.green import green, sources
from benchmarks.models import Subject
from benchmarks.options import ReportOnly, Tests
from benchmarks.overhead import RESULTS, TESTS, flops, load
from benchmarks.overhead_report import timed
from benchmarks.paired import Timings
from benchmarks.rounds import rounds
from benchmarks.ways import STEPS, ready

MODELS = ("wan 200 ms", "flux 200 ms", "sd 200 ms")
PAIRS = 5
ALL_AT = 12
"""Computed steps at which every method is timed; elsewhere those that the others build on."""
GOAL = 0.97
console = Console(width=150)


class Loop:
    """A pipeline whose denoising loop is timed, from the progress bar on to the end of the call.

    Attributes:
        wall_s, cpu_s: seconds of every loop so far.
    """

    def __init__(self, subject: Subject, setting: Method | peers.Peer | None) -> None:
        self.wall_s: list[float] = []
        self.cpu_s: list[float] = []
        self._subject, self._begin = subject, (0.0, 0.0)
        self.pipe = ready(subject.pipe, setting)
        kind, loop = type(self.pipe), self  # the twin's own class
        bar, free = kind.progress_bar, kind.maybe_free_model_hooks

        def begin(self: Any, *args: Any, **kwargs: Any) -> Any:
            loop._begin = time.perf_counter(), time.process_time()
            return bar(self, *args, **kwargs)

        def end(self: Any) -> None:
            free(self)
            loop.wall_s.append(time.perf_counter() - loop._begin[0])
            loop.cpu_s.append(time.process_time() - loop._begin[1])

        kind.progress_bar, kind.maybe_free_model_hooks = begin, end

    def __call__(self) -> float:
        self._subject.run(self.pipe, STEPS)
        return self.cpu_s[-1]


def measure(
    subject: Subject, settings: dict[str, Method | peers.Peer], work: dict[str, float]
) -> dict[str, Any]:
    """Loops of every setting against plain ones, in turn; `work` is each one's counted share."""
    load_before = os.getloadavg()[0]
    plain, loops = Loop(subject, None), {n: Loop(subject, s) for n, s in settings.items()}
    taken = rounds(plain, loops, least=PAIRS, warmup=0)
    found = {}
    for name, cpu in taken.items():
        wall = Timings(tuple(plain.wall_s), tuple(loops[name].wall_s))
        faster, walls, share = cpu.interval(), wall.interval(), work[name]
        setting = settings[name]
        found[name] = {
            "setting": describe(setting) if isinstance(setting, Method) else setting.describe(),
            "work": share,
            "bound": 1 / share,
            "speedup": 1 / faster.estimate,
            "speedup_low": 1 / faster.high,
            "speedup_high": 1 / faster.low,
            "realised": share / faster.estimate,
            "wall_speedup": 1 / walls.estimate,
            "wall_realised": share / walls.estimate,
            "pairs": len(cpu.ratios),
        }
    medians = {"plain_cpu_s": plain.cpu_s, "plain_wall_s": plain.wall_s}
    return {k: float(np.median(v)) for k, v in medians.items()} | {
        "load": load_before,
        "ways": found,
    }


HEAD = ("model", "computed", "by", "method", "bound", "speed-up", "95 %", "realised", "by the wall")


def rows(cells: Cells) -> list[list[str]]:
    """Of the table."""
    found = []
    for cell in timed(cells):
        for name, way in cell["result"]["ways"].items():
            by, _, method = name.rpartition(": ")
            found.append(
                [
                    cell["fields"]["model"],
                    f"{cell['fields']['target']} of {STEPS}",
                    by,
                    method,
                    f"{way['bound']:.3f}",
                    f"{way['speedup']:.3f}",
                    f"{way['speedup_low']:.3f}–{way['speedup_high']:.3f}",
                    f"{way['realised']:.3f}",
                    f"{way['wall_realised']:.3f}",
                ]
            )
    return found


INTRODUCTION = f"""# How much of the bound is realised

Denoising loops of {STEPS} steps, guidance and scheduler included: the plain pipeline and every
method take turns in one process, {PAIRS} times each, in shuffled order. *Bound*: FLOPs of the plain
loop over those of the accelerated one, counted at the leaf layers in a run that is not timed.
*Speed-up*: median over pairs of processor time of the one thread, with its 95 % interval.
*Realised*: speed-up over bound; *by the wall*: the same of wall time, which shows what else was
running. Goal: at least {GOAL}. Methods compute the same number of steps; those timed at {ALL_AT}
of {STEPS} alone some more or less. Where a method decides by threshold, the threshold is searched
for that number; on U-Nets every second, third, fourth and fifth step is computed. The transformers
have 16 random blocks, the U-Net the four levels of Stable Diffusion. What runs on skipped steps
(the first block, some tokens, a decoder) lowers the bound.

"""


def write(cells: Cells) -> None:
    """The table on the terminal and beside the results, if there are any."""
    if not timed(cells):
        return
    shown = rows(cells)
    console.print(page.terminal("realised", HEAD, shown))
    found = [cell["result"] for cell in timed(cells)]
    plain = ", ".join(f"{1e3 * r['plain_cpu_s'] / STEPS:.0f}" for r in found)
    text = INTRODUCTION + page.markdown(HEAD, shown) + page.provenance(cells)
    text += f"- plain milliseconds a step, by group: {plain}\n"
    loads = ", ".join(f"{r['load']:.1f}" for r in found)
    text += f"- load average before each group: {loads}\n"
    cells.path.with_suffix(".md").write_text(text)


def main(
    model: Annotated[list[str] | None, typer.Option(help="Which; wan and flux if none.")] = None,
    target: Annotated[list[int] | None, typer.Option(help="Computed steps.")] = None,
    video: Annotated[str | None, typer.Option(help="Folder of a shapes-t2v model.")] = None,
    prepare: Annotated[bool, typer.Option(help="Settings and work only; time nothing.")] = False,
    minutes: Annotated[float, typer.Option(help="Begin no group after this long.")] = 1e9,
    tests: Tests = True,
    report_only: ReportOnly = False,
    out: Annotated[Path, typer.Option(help="Results; .md goes beside.")] = (
        RESULTS / "realised.json"
    ),
) -> None:
    """Measure what is missing, then write the table."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*skipped nothing in this run.*")
    cells, until = Cells(out), time.monotonic() + 60 * minutes
    passed = "skipped"
    if tests and not (prepare or report_only):
        passed = green(TESTS, out.parent)
    subjects: dict[str, Subject] = {}
    for count in () if report_only else target or TARGETS:
        for name in model or MODELS:
            done = any(
                (c["fields"]["model"], c["fields"]["target"]) == (name, count) for c in timed(cells)
            )
            if done or time.monotonic() > until:
                continue
            subject = subjects.setdefault(name, load(name, {"shapes-t2v": video}))
            settings, work = prepared(subject, count, cells)
            console.log(f"{name}, {count} of {STEPS}: settings and work known")
            if not prepare:
                cells.run(
                    lambda s=subject, w=settings, k=work: measure(s, w, k),
                    kind="timed",
                    model=name,
                    target=count,
                    sources=sources(),
                    tests=passed,
                )
    write(cells)


def prepared(
    subject: Subject, target: int, cells: Cells
) -> tuple[dict[str, Method | peers.Peer], dict[str, float]]:
    """Settings for `target` computed steps, and the share of the plain work that each does."""

    def search() -> dict[str, float]:
        branches = residuals(subject)
        return {str(t): threshold(branches, t) for t in TARGETS}

    if subject.denoiser == "unet":
        settings = unet(target)
    else:
        limits = cells.run(search, kind="thresholds", model=subject.name)
        settings = ways(target, limits[str(target)])
        if target == ALL_AT:
            settings |= others(target)

    def count() -> dict[str, float]:
        plain = STEPS * flops(subject, ready(subject.pipe, None), 2) / 2
        return {
            n: flops(subject, ready(subject.pipe, s), STEPS) / plain for n, s in settings.items()
        }

    return settings, cells.run(count, kind="work", model=subject.name, target=target)


if __name__ == "__main__":
    typer.run(main)
