"""What region-adaptive sampling saves, and at what price, beside plain runs of as much work.

Runs of 28 steps of flow Euler; shares of the tokens computed per step 0.5, 0.35, 0.25, 0.125. Run
as `python benchmarks/regions.py --model shapes-t2v`; an interrupted run goes on where it was.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np  # noqa: E402
import torch  # noqa: E402
import typer  # noqa: E402
from rich.console import Console  # noqa: E402

from accel.pipelines import tiny  # noqa: E402
from accel.samplers import RegionAdaptive  # noqa: E402
from benchmarks import page  # noqa: E402
from benchmarks.cells import Cells  # noqa: E402
from benchmarks.fidelity import RESULTS, load  # noqa: E402
from benchmarks.green import green, sources  # noqa: E402
from benchmarks.judge import Judge  # noqa: E402
from benchmarks.options import CACHE, Folders, Minutes, References, Workers, places  # noqa: E402
from benchmarks.rounds import rounds  # noqa: E402
from benchmarks.settings import Setting, plain, ready  # noqa: E402
from benchmarks.shapes import Model  # noqa: E402

MODELS = ("shapes-mmdit", "shapes-t2v")
RATIOS = (0.5, 0.35, 0.25, 0.125)
STEPS, SAMPLER = 28, "euler"
GOAL = 0.85
TESTS = ("tests/samplers/test_region_adaptive.py", "tests/samplers/test_region_selection.py")
console = Console(width=170)


def ways(ratio: float, moving: bool) -> dict[str, RegionAdaptive]:
    """Settings at a share of the tokens, by the name of their row."""
    found = {
        "lowest scores, as published": RegionAdaptive(ratio),
        "highest scores": RegionAdaptive(ratio, high=0.0),
        "highest scores, in turn": RegionAdaptive(ratio, high=0.0, strength=5.0, end=0.9),
    }
    if moving:
        found["highest scores over time"] = RegionAdaptive(ratio, high=0.0, continuity=0.5)
    else:
        found["highest scores, tiles"] = RegionAdaptive(ratio, high=0.0, tile=(1, 2, 2))
    return found


def described(name: str, method: RegionAdaptive) -> Setting:
    """`method` as a setting the judge knows."""
    return Setting(name, method, SAMPLER, STEPS)


class Timer:
    """Processor seconds of one sample's run, without decoding, and what its report says."""

    def __init__(self, model: Model, setting: Setting) -> None:
        self.model, self.setting = model, setting
        self.work, self.share = 1.0, 1.0
        self._sample = model.samples("sweep", 1)

    def __call__(self) -> float:
        with ready(self.model.pipe, self.setting) as pipe:
            marks: list[float] = []

            def after(pipe: Any, index: int, timestep: Any, values: dict) -> dict:
                marks.append(time.process_time())
                return values

            options = {**self.model.options, "callback_on_step_end": after}
            timed = Model(self.model.name, pipe, self.model.folder, options)
            timed.call(pipe, self.setting.steps, self._sample, "latent")
            first = marks[1] - marks[0]  # in place of the first step, which begins unseen
            if self.setting.method is not None and self.work == 1.0:
                report = pipe.acceleration.report()
                assert report.regions is not None
                self.work, self.share = report.computed_fraction, report.regions.share
            return marks[-1] - marks[0] + first


def measure(model: Model, settings: Sequence[Setting], least: int) -> dict[str, Any]:
    """Speed-up over the plain run, work, and how much of the bound was realised, of each."""
    timers = {s.row: Timer(model, s) for s in settings}
    calls: dict[str, Callable[[], float]] = dict(timers)
    taken = rounds(Timer(model, plain(SAMPLER, STEPS)), calls, least=least)
    found = {}
    for name, seconds in taken.items():
        ratio, timer = seconds.interval(), timers[name]
        found[name] = {
            "work": timer.work,
            "tokens": timer.share,
            "bound": 1 / timer.work,
            "speedup": 1 / ratio.estimate,
            "speedup_low": 1 / ratio.high,
            "speedup_high": 1 / ratio.low,
            "realised": timer.work / ratio.estimate,
            "seconds": float(np.median(seconds.second_s)),
            "plain_seconds": float(np.median(seconds.first_s)),
            "turns": len(seconds.ratios),
        }
    return found


HEAD = (
    *("tokens a step", "row", "by", "n", "PSNR dB", "SSIM", "adherence", "change (95 % bound)"),
    *("all right", "tokens", "work", "bound", "speed-up (95 %)", "realised"),
)


def rows(cells: Cells, model: str) -> Iterator[list[str]]:
    """Of the table of one model, by ratio: ours, then the plain run of as much work."""
    for ratio in RATIOS:
        named = {"model": model, "ratio": ratio}
        mine = [c for c in cells.cells.values() if named.items() <= c["fields"].items()]
        times = [c["result"] for c in mine if c["fields"].get("set") == "timing"]
        judged = [c for c in mine if c["fields"].get("set") == "evaluation"]
        most: dict[str, Any] = {}
        for cell in judged:
            row = cell["fields"]["row"] + cell["fields"]["setting"]
            if row not in most or cell["fields"]["samples"] >= most[row]["fields"]["samples"]:
                most[row] = cell
        for cell in most.values():
            yield _row(ratio, cell, next((t for t in times if _key(cell) in t), {}))


def _key(cell: dict[str, Any]) -> str:
    fields = cell["fields"]
    return fields["setting"] if fields["by"] == "plain" else fields["row"]


def _row(ratio: float, cell: dict[str, Any], times: dict[str, Any]) -> list[str]:
    fields, m = cell["fields"], cell["result"]["means"]
    own = times.get(_key(cell))
    label = fields["setting"] if fields["by"] == "plain" else fields["row"]
    line = [
        f"{ratio:g}",
        label,
        fields["by"],
        str(fields["samples"]),
        f"{m['psnr']:.2f}",
        f"{m['ssim']:.4f}",
        f"{m['share']:.2%}",
        f"{100 * m['adherence_change']:+.2f} ({100 * m['adherence_change_low']:+.2f})",
        f"{m['all_right']:.1%}",
    ]
    if own is None:
        return [*line, "–", f"{m['work']:.1%}", f"{1 / m['work']:.2f}", "–", "–"]
    spread = f"{own['speedup']:.2f} ({own['speedup_low']:.2f}–{own['speedup_high']:.2f})"
    tokens = "–" if fields["by"] == "plain" else f"{own['tokens']:.1%}"
    work = m["work"] if fields["by"] == "plain" else own["work"]
    realised = own["speedup"] * work
    return [*line, tokens, f"{work:.1%}", f"{1 / work:.2f}", spread, f"{realised:.2f}"]


INTRODUCTION = f"""# Region-adaptive sampling

Made by `python benchmarks/regions.py`; every number is in the JSON file beside this page.

Runs of {STEPS} steps of flow Euler. *Tokens a step*: share of the image's tokens that a partial
step computes. *Tokens*: share computed over the whole run, dense steps and all. *Work*: FLOPs of
the denoiser over those of the plain run, text and what runs outside of the blocks included; for
plain runs, steps over {STEPS}. *Bound*: its inverse. *Speed-up*: processor time of the denoising
loop of one sample on one thread, plain over accelerated, turn about in one process; median with its
95 % interval. *Realised*: speed-up over bound; goal: at least {GOAL}. PSNR and SSIM compare decoded
frames with the plain run of {STEPS} steps; adherence is the share of the caption's attributes that
an exact checker finds right, its change paired by sample, with the one-sided 95 % bound.

"""


def write(cells: Cells, out: Path) -> None:
    """The table on the terminal, and the page beside `out`."""
    text = INTRODUCTION
    for model in MODELS:
        lines = list(rows(cells, model))
        if lines:
            console.print(page.terminal(model, HEAD, lines))
            text += f"## {model}\n\n{page.markdown(HEAD, lines)}"
    if cells.path.exists():
        out.with_suffix(".md").write_text(text + page.provenance(cells))


def main(
    models: Annotated[
        list[str] | None, typer.Option("--model", help="Which; those that are there if none.")
    ] = None,
    folder: Folders = None,
    ratio: Annotated[list[float] | None, typer.Option(help="Share of the tokens a step.")] = None,
    row: Annotated[list[str] | None, typer.Option(help="Rows; all if none.")] = None,
    samples: Annotated[int, typer.Option(help="Samples judged.")] = 64,
    many: Annotated[int, typer.Option(help="Captions of the best row at 0.25; 0: none.")] = 0,
    turns: Annotated[int, typer.Option(min=1, help="Times that everything is timed.")] = 7,
    workers: Workers = 2,
    batch: Annotated[int, typer.Option(help="Samples made in one go.")] = 4,
    minutes: Minutes = 1e9,
    tests: Annotated[bool, typer.Option("--tests/--skip-tests", help="While developing.")] = True,
    report_only: Annotated[bool, typer.Option(help="Only write the table.")] = False,
    references: References = CACHE,
    out: Annotated[Path, typer.Option(help="Results; .md goes beside.")] = (
        RESULTS / "regions.json"
    ),
) -> None:
    """Measure what is missing, then write the table."""
    torch.set_num_threads(1)
    elsewhere = places(folder)
    until, cells = time.monotonic() + 60 * minutes, Cells(out)
    there = [name for name in MODELS if name in tiny.NAMES or name in elsewhere]
    passed = "skipped" if report_only or not tests else green(TESTS, out.parent)
    for name in () if report_only else models or there:
        model = load(name, elsewhere.get(name))
        judge = Judge(
            model, cells, references, sampler=SAMPLER, workers=workers, batch=batch, steps=STEPS
        )
        for share in ratio or RATIOS:
            settings = [
                described(label, method)
                for label, method in ways(share, model.moving).items()
                if label in (row or [label])
            ]
            if time.monotonic() > until:
                break
            console.log(f"{name}: {share:g} of the tokens, work and times")
            of = {
                "model": name,
                "checkpoint": model.checkpoint[:12],
                "set": "timing",
                "ratio": share,
                "rows": len(settings),
            }
            known = [c for c in cells.cells.values() if of.items() <= c["fields"].items()]
            code = {"sources": sources(), "tests": passed}  # what was timed stays timed
            found = (
                known[-1]["result"]
                if known
                else cells.run(lambda s=settings, m=model: measure(m, s, turns), **of, **code)
            )
            equal = {max(round(STEPS * way["work"]), 1) for way in found.values()}
            for setting in [*settings, *(plain(SAMPLER, n) for n in sorted(equal))]:
                if time.monotonic() > until:
                    break
                console.log(f"{name}: {share:g}: {setting.row}: {setting}")
                judge.evaluate(setting, share, samples)
        if many and time.monotonic() < until:
            label, best = "highest scores", ways(0.25, model.moving)["highest scores"]
            judge.evaluate(described(label, best), 0.25, many)
    write(cells, out)


if __name__ == "__main__":
    typer.run(main)
