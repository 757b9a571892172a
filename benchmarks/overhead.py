"""What does a computed step cost beside a plain one, and what does a skipped step cost at all?

`python -m benchmarks.overhead` goes on where it stopped and writes results/overhead.{json,md}.
Steps of the plain pipeline and of every method take turns in one process, one step at a time.
"""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from benchmarks.cells import Cells
from benchmarks.green import green, sources
from benchmarks.models import SIZES, Subject, shipped
from benchmarks.options import ReportOnly, Tests
from benchmarks.overhead_report import HALF_WIDTH, NULL, console, key, newest, timed, write
from benchmarks.paired import Timings
from benchmarks.rounds import rounds
from benchmarks.stepping import Stepper, keep_memory
from benchmarks.ways import SETTLE, STEPS, Way, fitting, ready, without_denoiser
from benchmarks.work import WorkCounter

RESULTS = Path(__file__).parent / "results"
TESTS = ("tests/caching", "tests/test_contract.py", "tests/benchmarks/test_peers.py")
CHECKED = 10  # steps of the runs whose work is counted before


def check(subject: Subject, ways: Sequence[Way], steps: int = STEPS) -> None:
    """Every way computes, or skips, all that it should, by FLOPs counted at the leaf layers.

    Raises:
        AssertionError: one of them does not, and so would be timed doing something else.
    """
    plain = flops(subject, ready(subject.pipe, None), steps)
    for way in ways:
        computed = flops(subject, ready(subject.pipe, way.compute, steps), steps)
        assert plain <= computed <= (1 + way.extra) * plain, (
            f"{way.by} {way.name} computes {computed / plain:.3f} of it"
        )
        skipped = flops(subject, ready(subject.pipe, way.skip, steps), steps)
        most = SETTLE / steps + (1 - SETTLE / steps) * way.rest
        assert skipped <= most * plain, f"{way.by} {way.name} skips too little: {skipped / plain}"


def flops(subject: Subject, pipe: Any, steps: int) -> int:
    """FLOPs of the denoiser in one run of `pipe`, a twin of the subject's."""
    with WorkCounter(getattr(pipe, subject.denoiser)) as work:
        subject.run(pipe, steps)
    return work.flops


def measure(
    subject: Subject,
    ways: Sequence[Way],
    *,
    limit_s: float,
    together: bool = False,
    least: int = 30,
    steps: int = STEPS,
) -> dict[str, Any]:
    """Computed steps against plain ones until sure or `limit_s` is over; skipped steps.

    Args:
        limit_s: seconds for each way, or for all of them if they take turns together.
        together: all ways in one round, which is quicker; but each cools the others' caches.
    """
    pipe, load = subject.pipe, os.getloadavg()[0]
    computing = {NULL: None} | {key(w): w.compute for w in ways}
    options = {"least": least, "most": 40 * least, "half_width": HALF_WIDTH, "limit_s": limit_s}
    plain, found = [], {}
    groups = [list(computing)] if together else [[name] for name in computing]
    for group in groups:
        others = {name: ready(pipe, computing[name], steps) for name in group}
        seconds, compared = turns(subject, ready(pipe, None), others, steps, **options)
        plain.append(seconds)
        found |= compared
    skipping = {key(w): ready(pipe, w.skip, steps) for w in ways}
    floor = without_denoiser(pipe, subject.denoiser)
    loop, skipped = turns(subject, floor, skipping, steps, least=least)
    for name, way in skipped.items():
        found[name]["skipped_s"] = way["cpu_s"]
    medians = {k: float(np.median([s[k] for s in plain])) for k in plain[0]}
    return {"plain": medians, "loop": loop, "load": load, "ways": found}


def turns(
    subject: Subject, baseline: Any, others: dict[str, Any], steps: int, **options: Any
) -> tuple[dict[str, float], dict[str, dict[str, Any]]]:
    """Single steps of pipelines in turn, each in its own run: of the baseline, and of each other.

    Seconds are medians; ratios are medians over pairs with their 95 % intervals. `ratio` is of
    processor time, which decides when it is enough.
    """
    with contextlib.ExitStack() as stack:

        def stepper(pipe: Any) -> Stepper:
            def run(callback: Any) -> object:
                return subject.run(pipe, steps, callback_on_step_end=callback)

            return stack.enter_context(Stepper(run, SETTLE))

        first = stepper(baseline)
        rest = {name: stepper(pipe) for name, pipe in others.items()}
        timed = rounds(first.step, {n: s.step for n, s in rest.items()}, warmup=1, **options)
    found = {}
    for name, cpu in timed.items():
        count = slice(1, 1 + len(cpu.ratios))  # without the warm-up
        wall = Timings(tuple(first.wall_s[count]), tuple(rest[name].wall_s[count]))
        kept, also = cpu.as_dict(), wall.interval()
        found[name] = {
            **{k: kept[k] for k in ("pairs", "ratio", "ratio_low", "ratio_high", "half_width")},
            "wall_ratio": also.estimate,
            "wall_ratio_low": also.low,
            "wall_ratio_high": also.high,
            "cpu_s": kept["second_s"],
            "wall_s": float(np.median(wall.second_s)),
        }
    return {
        k: float(np.median(v)) for k, v in (("cpu_s", first.cpu_s), ("wall_s", first.wall_s))
    }, found


def main(
    model: Annotated[list[str] | None, typer.Option(help="Which; all if none.")] = None,
    video: Annotated[str | None, typer.Option(help="Folder of a shapes-t2v model.")] = None,
    picture: Annotated[str | None, typer.Option(help="Folder of a shapes-t2i model.")] = None,
    limit: Annotated[float, typer.Option(help="Seconds a method, or a round of all.")] = 15,
    together: Annotated[bool, typer.Option(help="All methods in one round.")] = False,
    tests: Tests = True,
    prepare: Annotated[bool, typer.Option(help="Only run the tests; time nothing.")] = False,
    again: Annotated[bool, typer.Option(help="Time anew what is not sure yet.")] = False,
    minutes: Annotated[float, typer.Option(help="Begin none anew after this long.")] = 1e9,
    report_only: ReportOnly = False,
    out: Annotated[Path, typer.Option(help="Results; .md goes beside.")] = (
        RESULTS / "overhead.json"
    ),
) -> None:
    """Measure what is missing, then write the table."""
    torch.set_num_threads(1)
    keep_memory()
    warnings.filterwarnings("ignore", message=".*skipped nothing in this run.*")
    cells, code, until = Cells(out), sources(), time.monotonic() + 60 * minutes
    chosen = model or ["wan 30 ms", "flux 30 ms", "wan 10 ms", "flux 10 ms", "shapes-t2v"]
    chosen += [] if model else ["wan 200 ms", "flux 200 ms", "shapes-t2i"]
    todo = [m for m in chosen if not any(c["fields"]["model"] == m for c in timed(cells))]
    if todo and not report_only:
        passed = "skipped"
        if tests:
            passed = green(TESTS, out.parent)
        for name in () if prepare else todo:
            subject = load(name, {"shapes-t2v": video, "shapes-t2i": picture})
            unet = subject.denoiser == "unet"
            check(subject, fitting(unet, CHECKED), CHECKED)
            ways = fitting(unet)
            console.log(f"{name}: all compute and skip as they should; timing")
            cells.run(
                lambda s=subject, w=ways: measure(s, w, limit_s=limit, together=together),
                kind="timed",
                model=name,
                steps=STEPS,
                limit_s=limit,
                together=together,
                sources=code,
                tests=passed,
            )
    for cell in [*timed(cells)] if again else ():
        name = cell["fields"]["model"]
        unsure = {k for k, w in newest(cells, cell).items() if w["half_width"] > HALF_WIDTH}
        if name not in chosen or not unsure:
            continue
        subject = load(name, {"shapes-t2v": video, "shapes-t2i": picture})
        ways = {key(w): w for w in fitting(subject.denoiser == "unet")}
        for way in (w for w in (NULL, *ways) if w in unsure):
            if time.monotonic() > until:
                break
            console.log(f"{name}: {way} again")
            other = ways.get(way, next(iter(ways.values())))  # plain again has one beside it
            cells.run(
                lambda s=subject, w=other: measure(s, [w], limit_s=limit),
                kind="again",
                model=name,
                way=way,
                limit_s=limit,
                sources=code,
            )
    write(cells)


def load(name: str, folders: dict[str, str | None]) -> Subject:
    """A random model of a size, or a shipped one, from its own folder or another."""
    if name in SIZES:
        return SIZES[name]()
    if name not in folders:
        known = ", ".join([*SIZES, *folders])
        raise SystemExit(f"unknown model {name!r}; known: {known}")
    from diffusers import DiffusionPipeline

    from accel.pipelines import tiny

    folder = folders[name]
    if folder is None:
        return shipped(tiny.load(name), name)
    return shipped(DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32), name)


if __name__ == "__main__":
    typer.run(main)
