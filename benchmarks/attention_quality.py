"""Which pattern keeps most of attention? Error and recall against density, for every pattern.

`python -m benchmarks.attention_quality` goes on where it stopped and writes
results/attention_quality.{json,md,png}; `--folder shapes-t2v-long=DIR` takes a model from a folder.
Nothing is timed here. Patterns that look at the sample see
an earlier call first and are judged on a later one, as in a run; "exact blocks" knows the attention
of the call itself and "random blocks" nothing.
"""

from __future__ import annotations

import functools
import math
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import Tensor

from accel.pipelines import tiny
from accel.plan import describe
from accel.sparse_attn import SparseVideoGen2
from accel.sparse_attn.kernels import KERNELS
from accel.sparse_attn.ordered import attend_routed
from accel.sparse_attn.ordered import in_order as ordered
from accel.sparse_attn.pattern import Pattern, Place
from benchmarks import options, page
from benchmarks.attention_data import QKV, Sample, recorded, synthetic
from benchmarks.attention_patterns import PATTERNS
from benchmarks.cells import Cells

RESULTS = Path(__file__).parent / "results"
KINDS = ("space", "time", "clusters")
MODELS = ("shapes-t2v", "shapes-t2v-long")
CONTROL = "(control)"
console = Console(stderr=True)

INTRODUCTION = """# How much of attention patterns keep

Made by `python -m benchmarks.attention_quality`; every number is in the JSON file beside this page.

Density is the share of query-key pairs computed, recall the share of attention mass on them (mean
over queries), error the distance of the output to that of dense attention over its norm. Means over
heads, and over layers of a recorded model. Blocks are of 64 tokens. Synthetic heads have one
structure each, unlike those of models, so a pattern made for that structure looks better here, and
others worse, than they would. On the 320 tokens of shapes-t2v a map has 5 rows: it shows that
patterns work on a trained model, and cannot rank them. What patterns spend on looking is not in the
density, but for the means that fill in for clusters (EAR). "exact blocks" is the best any choice of
blocks in raster order with the same number per row could recall; patterns that order tokens anew
can pass it. SparseVideoGen2 has 20 and 64 clusters, of 2,048 tokens the published
shares. VSA is the choice of its untrained coarse scores; the trained module is more than that.
Nothing is timed. *On the front*: no setting of any pattern, controls aside, has both a lower or the
same density and a smaller error (or a higher recall); the wide grey lines of the picture.
"""


def measure(pattern: Pattern, sample: Sample) -> dict[str, float | None]:
    """Density, relative error of the output and recall of attention mass on `sample.now`.

    The pairs of queries with means that fill in for clusters (EAR) count as others do. All None
    where the pattern leaves attention dense.
    """
    state: dict[Any, Any] = {}
    kernel = KERNELS["gather"]
    found = None
    for fraction, (q, k, v) in ((0.24, sample.before), (0.4, sample.now)):
        place = Place(sample.layer, 1, fraction, None, None, sample.grid, state)
        found = pattern.route(q, k, v, place)
        if found is not None and found.compensate is not None and fraction < 0.4:
            attend_routed(kernel, found, q, k, v)  # AdaSpa searches after its dense call
    if found is None:
        return dict.fromkeys(("density", "error", "recall"))
    q, k, v = sample.now
    exact, total = dense(sample.now)
    out = attend_routed(kernel, found, q, k, v)
    args = ordered(q, found.order_q), *(ordered(x, found.order_k) for x in (k, v))
    lse = kernel.attend(*args, found.layout, q.shape[-1] ** -0.5)[1]
    if found.order_q is not None:
        total = total.gather(-1, found.order_q.expand(*total.shape))
    density = float(found.layout.density())
    if isinstance(pattern, SparseVideoGen2) and pattern.compensate:
        density += pattern.key_clusters / sample.grid.tokens
    return {
        "density": round(density, 5),
        "error": round(float((out - exact).norm() / exact.norm()), 6),
        "recall": round(float((lse - total).exp().mean()), 5),
    }


@functools.lru_cache(maxsize=1)
def dense(call: QKV) -> tuple[Tensor, Tensor]:
    """Output (B, S, H, D) and log-sum-exp (B, H, S) of attention in full."""
    q, k, v = (x.transpose(1, 2) for x in call)
    scores = [a @ b.mT * q.shape[-1] ** -0.5 for a, b in zip(q[0], k[0], strict=True)]
    out = torch.stack([s.softmax(-1) @ c for s, c in zip(scores, v[0], strict=True)], 1)
    return out[None], torch.stack([s.logsumexp(-1) for s in scores])[None]


def samples(
    models: Sequence[str], kinds: Sequence[str], folders: Mapping[str, str], until: float
) -> Iterator[Sample]:
    """All there is to judge on: made data, then models that ship or have a folder.

    Nothing is made or recorded later than `until` on the monotonic clock.
    """
    yield from (synthetic(kind) for kind in kinds if time.monotonic() <= until)
    for model in models:
        if time.monotonic() <= until:
            yield from recorded(model, folder=folders.get(model))


def present(models: Sequence[str] | None, folders: Mapping[str, str]) -> list[str]:
    """Those to record: of all known ones those that are there, or just those asked for.

    Raises:
        SystemExit: one that is asked for is unknown, or neither ships nor has a folder.
    """
    there = [model for model in MODELS if model in tiny.NAMES or model in folders]
    for model in (*(models or ()), *folders):
        if model not in MODELS:
            raise SystemExit(f"unknown model {model!r}; known: {', '.join(MODELS)}")
        if model not in there:
            raise SystemExit(f"{model} does not ship here; give --folder {model}=DIR")
    return there if models is None else [*models]


Curves = dict[str, dict[str, list[tuple[float, float, float]]]]


def curves(cells: Cells) -> Curves:
    """Data -> pattern -> (density, error, recall), means over layers, by rising density."""
    found: dict[tuple[str, str, str], list[dict[str, float]]] = defaultdict(list)
    for cell in cells.finished():
        fields, result = cell["fields"], cell["result"]
        if result["density"] is not None:
            what = f"{fields['data']} ({fields['made']})\n{fields['grid']} tokens"
            found[what, fields["pattern"], fields["setting"]].append(result)
    result: Curves = defaultdict(lambda: defaultdict(list))
    for (data, pattern, _), many in found.items():
        means = (sum(one[n] for one in many) / len(many) for n in ("density", "error", "recall"))
        result[data][pattern].append(tuple(means))  # type: ignore[arg-type]
    for patterns in result.values():
        for points in patterns.values():
            points.sort()
    return result


Point = tuple[float, float]


def front(points: Iterable[Point]) -> list[Point]:
    """Those of (density, loss) that no other undercuts in one and matches in the other."""
    kept: list[Point] = []
    for point in sorted(points):
        if not kept or point[1] < kept[-1][1]:
            kept.append(point)
    return kept


def fronts(patterns: Mapping[str, list[tuple[float, float, float]]]) -> tuple[list[Point], ...]:
    """(density, error) and (density, 1 - recall) of the best settings of all patterns."""
    found = [p for name, many in patterns.items() if not name.endswith(CONTROL) for p in many]
    return front((d, e) for d, e, _ in found), front((d, 1 - r) for d, _, r in found)


def draw(found: Curves, path: Path) -> None:
    """Error (above) and recall (below) against density, a column a kind of data."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(found) + 2.4, 8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(found), sharex=True, sharey="row", squeeze=False)
    looks = {name: _look(n, name) for n, name in enumerate(PATTERNS)}
    for column, (data, patterns) in enumerate(found.items()):
        for name in (p for p in PATTERNS if p in patterns):
            density, error, recall = zip(*patterns[name], strict=True)
            label = name if column == 0 else None
            # nothing left out has no error, for which a logarithm has no place
            axes[0][column].plot(
                density, [e or math.nan for e in error], label=label, **looks[name]
            )
            axes[1][column].plot(density, recall, **looks[name])
        errors, losses = fronts(patterns)
        band = {"color": "0.5", "alpha": 0.3, "linewidth": 7, "drawstyle": "steps-post"}
        for axis, line in (
            (axes[0][column], [(d, e or math.nan) for d, e in errors]),
            (axes[1][column], [(d, 1 - loss) for d, loss in losses]),
        ):
            label = "Pareto front" if axis is axes[0][0] else None
            axis.plot(*zip(*line, strict=True), label=label, zorder=1, **band)
        axes[0][column].set_title(data, fontsize=9)
        axes[1][column].set_xlabel("density: share of query-key pairs computed")
    axes[0][0].set_yscale("log")
    axes[0][0].set_ylabel("relative error of the output")
    axes[1][0].set_ylabel("recall: share of attention mass kept")
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    axes[0][0].set_ylim(bottom=2e-3)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


def _look(number: int, name: str) -> dict[str, Any]:
    """Line and markers; settings that are no scale of one another are not joined."""
    if name.endswith(CONTROL):
        return {"color": "0.3", "linestyle": "-." if name.startswith("exact") else ":"}
    blue_to_red = ("navy", "tab:blue", "tab:cyan", "tab:green", "tab:olive", "gold", "tab:orange")
    colours = (*blue_to_red, "tab:red", "darkred", "tab:purple", "tab:pink", "tab:brown")
    joined = "" if name in ("SlidingTile", "Radial") else "-"
    return {
        "color": colours[number % len(colours)],
        "marker": "osD^vP*X<>hd"[number % 12],
        "markersize": 5,
        "linestyle": joined,
    }


def markdown(found: Curves, cells: Cells) -> str:
    """The page of the results: a row a setting."""
    rows = []
    for data, patterns in found.items():
        best = dict(zip(("error", "recall"), map(set, fronts(patterns)), strict=True))
        for name in (p for p in PATTERNS if p in patterns):
            for density, error, recall in patterns[name]:
                loss = {"error": (density, error), "recall": (density, 1 - recall)}
                on = [of for of in loss if loss[of] in best[of] and not name.endswith(CONTROL)]
                numbers = [f"{density:.3f}", f"{recall:.3f}", f"{error:.4f}"]
                rows.append([data.split("\n")[0], name, *numbers, " and ".join(on)])
    head = ["data", "pattern", "density", "recall", "error", "on the front of"]
    return f"{INTRODUCTION}\n{page.markdown(head, rows)}{page.provenance(cells)}"


def main(
    models: Annotated[list[str] | None, typer.Option("--model")] = None,
    kinds: Annotated[list[str] | None, typer.Option("--kind")] = None,
    only: Annotated[list[str] | None, typer.Option("--pattern")] = None,
    folder: options.Folders = None,
    minutes: options.Minutes = 1e9,
    report_only: Annotated[bool, typer.Option(help="Only write table and picture.")] = False,
    out: Annotated[Path, typer.Option(help="Results; .md and .png go beside.")] = (
        RESULTS / "attention_quality.json"
    ),
) -> None:
    """Measure what is missing, then write the table and the picture."""
    torch.set_num_threads(1)
    cells, until, folders = Cells(out), time.monotonic() + 60 * minutes, options.places(folder)
    chosen = [] if report_only else present(models, folders)
    for sample in samples(chosen, [] if report_only else kinds or KINDS, folders, until):
        grid = sample.grid
        for name, pattern in ((n, p) for n in only or PATTERNS for p in PATTERNS[n]):
            if time.monotonic() > until:
                break
            console.log(f"{sample.data} layer {sample.layer}: {pattern}", highlight=False)
            cells.run(
                functools.partial(measure, pattern, sample),
                data=sample.data,
                made="recorded" if sample.data in MODELS else "synthetic",
                grid=f"{grid.frames} x {grid.height} x {grid.width}",
                layer=sample.layer,
                pattern=name,
                setting=describe(pattern),
            )
    if not (found := curves(cells)):
        raise SystemExit(f"{out} has no results to show; give more --minutes")
    draw(found, out.with_suffix(".png"))
    out.with_suffix(".md").write_text(markdown(found, cells))


if __name__ == "__main__":
    typer.run(main)
