"""The page of `attention_gpu`: a table and the goals for each device and shape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks import page
from benchmarks.attention_gpu_cells import DENSITIES, RUN, Job, jobs
from benchmarks.attention_ways import LOSSY, parse
from benchmarks.cells import Cells, name

STRETCH = {0.5: 1.7, 0.25: 3.2, 0.1: 7.5}
"""Times faster than the best dense attention, by density."""
DENSE_LIST = 0.75
OF_IDEAL = 0.9
BUILDING = 0.05
WRONG = 0.02
"""Relative error from which on a kernel is not right, whatever its speed."""
HEAD = ("way", "computed", "ms (quartiles)", "TFLOP/s computed", "of best dense", "error", "")
GOALS = ("goal", "wanted", "found", "")
LATE = "not begun: no time was left"

Told = dict[str, str]
"""Why measurements of this run have no result, by the key of their cell."""


def fields(device: str, shape: str, job: Job) -> dict[str, Any]:
    """What a cell is known by; `device` is the name of the card."""
    return {"device": device, "shape": shape, **job._asdict()}


def of(cells: Cells, device: str, shape: str) -> dict[Job, dict[str, Any]]:
    """Results of a shape on a device, by what was measured."""
    return {
        Job(*(at[field] for field in Job._fields)): cell["result"]
        for cell in cells.cells.values()
        if (at := cell["fields"])["device"] == device and at["shape"] == shape
    }


def best_dense(found: dict[Job, dict[str, Any]]) -> tuple[str, float] | None:
    """Name and milliseconds of the fastest exact dense attention that is right: every bar."""
    right = [
        (result["ms"], job.way)
        for job, result in found.items()
        if job.part == "dense" and job.way not in LOSSY and result["error"] < WRONG
    ]
    return min(right)[::-1] if right else None


def title(job: Job) -> str:
    """What was measured, for people."""
    density = f" at {100 * job.density:.0f} %" if job.part == "sparse" else ""
    return f"{job.part}: {job.way}{density}{' (lossy)' if job.way in LOSSY else ''}"


def rows(found: dict[Job, dict[str, Any]]) -> Iterator[list[str]]:
    """Of the table of what was measured."""
    best = best_dense(found)
    for job, result in found.items():
        if job.part == "tuning":
            continue
        note = ""
        if "building_ms" in result:
            note = (
                f"map {result['building_ms']:.2f} ms "
                f"(first {result['first_ms']:.2f}, later {result['later_ms']:.2f})"
            )
        elif result["error"] >= WRONG:
            note = "lossy" if job.way in LOSSY or "int8" in job.way else "wrong"
        yield [
            title(job),
            f"{100 * result.get('computed', 1.0):.1f} %",
            f"{result['ms']:.3f} ({result['ms_low']:.3f}–{result['ms_high']:.3f})",
            f"{result['tflops']:.0f}" if "tflops" in result else "",
            f"{best[1] / result['ms']:.2f}x" if best else "",
            f"{result['error']:.1e}" if "error" in result else "",
            note,
        ]


def goals(found: dict[Job, dict[str, Any]], builders: Sequence[str]) -> list[list[str]]:
    """Name, what is wanted, what was found, and `met`, `missed` or `not measured`, by medians."""
    best, full = best_dense(found), found.get(Job("sparse", "triton", 1.0))
    rate = best[1] / full["ms"] if best and full else None
    result = [_goal("dense list: of the rate of the best dense", DENSE_LIST, rate, full)]
    for density in DENSITIES[1:]:
        one = found.get(Job("sparse", "triton", density))
        faster = best[1] / one["ms"] if best and one else None
        wanted = OF_IDEAL * rate / one["computed"] if rate and one else None
        what = f"at {100 * density:.0f} %: times faster than the best dense"
        result.append(_goal(what, wanted, faster, one))
        if density in STRETCH:
            result.append(_goal(f"{what} (stretch)", STRETCH[density], faster, one))
    for builder in builders:
        one = found.get(Job("builder", builder, 0.0))
        row = [
            f"map of {builder}: of the time saved",
            f"≤ {100 * BUILDING:.0f} %",
            "",
            "not measured",
        ]
        if best and one:
            saved = best[1] - one["ms"]
            share = one["building_ms"] / saved if saved > 0 else float("inf")
            row[2] = f"{one['building_ms']:.2f} of {saved:.2f} ms"
            row[2] += f", {100 * share:.1f} %" if saved > 0 else ": attention itself saves nothing"
            row[3] = "met" if share <= BUILDING else "missed"
        result.append(row)
    return result


def _goal(
    what: str, wanted: float | None, value: float | None, result: dict[str, Any] | None
) -> list[str]:
    """At least `wanted`, by a kernel that is right."""
    bar = "" if wanted is None else f"≥ {wanted:.2f}"
    if wanted is None or value is None or result is None:
        return [what, bar, "", "not measured"]
    if result["error"] >= WRONG:
        return [what, bar, f"{value:.2f}, but wrong by {result['error']:.1e}", "missed"]
    return [what, bar, f"{value:.2f}", "met" if value >= wanted else "missed"]


def count(verdicts: Sequence[str]) -> str:
    """How many goals were met, missed and not measured."""
    counted = Counter(verdicts)
    return ", ".join(f"{counted[word]} {word}" for word in ("met", "missed", "not measured"))


def write(cells: Cells, device: str, shapes: Sequence[str], told: Told) -> str:
    """Tables for every device and shape beside the results; how the goals stand on `device`.

    Args:
        shapes: those of this run, whose measurements without a result are named with the reason.
    """
    known = [(c["fields"]["device"], c["fields"]["shape"]) for c in cells.cells.values()]
    text, verdicts = "", []
    for where, shape in dict.fromkeys([*known, *((device, shape) for shape in shapes)]):
        found, planned = of(cells, where, shape), jobs(parse(shape), kind(where))
        text += f"## {where}: {shape}\n\n"
        if best := best_dense(found):
            text += f"Best dense: {best[0]}, {best[1]:.3f} ms.\n\n"
        builders = [job.way for job in planned if job.part == "builder"]
        stand = goals(found, builders)
        if where == device and shape in shapes:
            verdicts += [row[-1] for row in stand]
        text += page.markdown(HEAD, list(rows(found))) + page.markdown(GOALS, stand)
        missing = [job for job in planned if job not in found]
        if missing and where == device and shape in shapes:
            keys = ((title(job), name(**fields(where, shape, job))) for job in missing)
            text += "Not measured; the next run tries again:\n\n"
            text += "".join(f"- {what}: {told.get(key, LATE)}\n" for what, key in keys) + "\n"
    stand_of = f"Goals on {device}: {count(verdicts)}."
    begin = "# Block-sparse attention on a card\n\n"
    begin += WARNING if device == "cpu" or any(where == "cpu" for where, _ in known) else ""
    ending = page.provenance(cells) if cells.path.exists() else ""
    cells.path.parent.mkdir(parents=True, exist_ok=True)
    whole = f"{begin}{INTRODUCTION}**{stand_of}**\n\n{text}{ending}"
    cells.path.with_suffix(".md").write_text(whole)
    return stand_of


def kind(device: str) -> str:
    """`cpu`, or `cuda` for the name of a card."""
    return "cpu" if device == "cpu" else "cuda"


WARNING = "**Triton's interpreter on a CPU: a test of the script. No number here counts.**\n\n"
INTRODUCTION = f"""\
Random q, k, v; random blocks of 128, as many in every row. Error: relative L2 of sampled rows
against float32 with the same mask. Ratios are to the fastest dense attention of the same card and
shape that quantises nothing.

A map's time is the mean over {RUN} sparse steps of a run; the first map is dearer for most
patterns, and AdaSpa searches twice. Maps that do not look at the sample are built once per size and
kept, which is not counted. The attention over a map includes putting the tokens in its order and
filling in what it leaves out.

Goals were set for an H200 and are judged by medians: the dense list at {100 * DENSE_LIST:.0f} % of
the best dense rate or above; sparse at {100 * OF_IDEAL:.0f} % of that rate over the density; maps
for at most {100 * BUILDING:.0f} % of the time they save.

"""
