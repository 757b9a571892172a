"""How fast is block-sparse attention on this card, beside the best dense attention there?

`python -m benchmarks.attention_gpu` needs a CUDA card and no attention; it stops after `--minutes`
with what it has, and goes on from there when run again. Writes results/attention_gpu.{json,md}.
With TRITON_INTERPRET=1, `--device cpu` and a small `--shape` it runs through on any machine, which
tests the script and measures nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from accel.load import first_line
from accel.sparse_attn.kernels import KERNELS
from accel.sparse_attn.kernels.triton_launch import block_sum, interpreted, tune
from accel.sparse_attn.layout import BlockLayout, uniform
from accel.sparse_attn.pattern import Routing
from benchmarks import page
from benchmarks.attention_ways import (
    SHAPES,
    Attention,
    Shape,
    builders,
    clock,
    dense,
    error,
    over,
    random_layout,
)
from benchmarks.cells import Cells

RESULTS = Path(__file__).parent / "results" / "attention_gpu.json"
DENSITIES = (1.0, 0.5, 0.25, 0.1, 0.05)
BLOCK = 128
GOALS = {0.5: 1.7, 0.25: 3.2, 0.1: 7.5}
"""Stretch goals: times faster than the best dense attention, by density."""


@dataclass
class Session:
    """One shape on one device, until a deadline."""

    name: str
    shape: Shape
    device: str
    cells: Cells
    deadline: float
    qkv: tuple[Tensor, ...] = field(init=False)

    def __post_init__(self) -> None:
        dtype = torch.bfloat16 if self.device == "cuda" else torch.float16
        self.qkv = self.shape.qkv(self.device, dtype)

    def cell(self, part: str, way: str, density: float, work: Callable[[], dict[str, Any]]) -> None:
        """Run and keep one measurement; what fails is kept with its reason, the rest goes on."""
        if time.monotonic() > self.deadline:
            return

        def attempt() -> dict[str, Any]:
            try:
                return work()
            except Exception as failure:  # a kernel that this card does not run may raise anything
                if self.device == "cuda":
                    torch.cuda.empty_cache()
                return {"failed": first_line(failure)}

        fields = {"shape": self.name, "part": part, "way": way, "density": density}
        self.cells.run(attempt, **fields, device=self.device)

    def timed(self, attention: Attention, layout: BlockLayout | None) -> dict[str, Any]:
        """Time, error, density by tokens and TFLOP/s of what is computed."""
        out = attention(*self.qkv)
        found: dict[str, Any] = clock(lambda: attention(*self.qkv), self.device)
        share = 1.0 if layout is None else float(layout.density())
        pairs = share * self.shape.heads * self.shape.tokens**2
        found["tflops"] = 4 * self.shape.head * pairs / found["ms"] / 1e9
        found["computed"] = share
        found["error"] = error(out, *self.qkv, layout)
        return found

    def run(self) -> None:
        """Dense ways, ours over random maps, the search kernel, then the builders of maps."""
        for name, attention in dense(self.device).items():
            self.cell("dense", name, 1.0, lambda a=attention: self.timed(a, None))
        if self.device == "cuda":
            self.cell("tuning", "triton", 1.0, self.tuned)
        for density in DENSITIES:
            for kernel in ("triton", "triton_int8", "triton_int8_fp8", "flex"):
                if density == 1.0 or kernel in ("triton", "flex") or density == 0.1:
                    work = self.at_density(kernel, density)
                    self.cell("sparse", kernel, density, work)
        self.cell("search", "block_sum", 1.0, self.searched)
        for name in builders(self.shape):
            self.cell("builder", name, 0.0, lambda n=name: self.built(n))

    def at_density(self, kernel: str, density: float) -> Callable[[], dict[str, Any]]:
        def work() -> dict[str, Any]:
            layout = random_layout(self.qkv[0], density, BLOCK)
            if kernel == "flex" and self.device == "cpu":
                from accel.sparse_attn.kernels.flex import Flex

                flex = Flex(compiled=False)
                scale = self.shape.head**-0.5
                return self.timed(lambda q, k, v: flex.attend(q, k, v, layout, scale)[0], layout)
            if reason := KERNELS[kernel].why_not(self.qkv[0], layout):
                return {"failed": reason}
            return self.timed(over(kernel, layout), layout)

        return work

    def tuned(self) -> dict[str, Any]:
        """Every entry of the table of tile sizes over the full map; the fastest is used after."""
        layout = random_layout(self.qkv[0], 1.0, BLOCK)
        attention = over("triton", layout)
        found = tune("forward", self.qkv[0], BLOCK, BLOCK, lambda: attention(*self.qkv))
        return {"ms": {str(tiles): ms for tiles, ms in found.items()}}

    def searched(self) -> dict[str, Any]:
        """AdaSpa's search given the log-sums: about half a dense attention."""
        q, k, _ = self.qkv
        starts, scale = uniform(self.shape.tokens, BLOCK, self.device), self.shape.head**-0.5
        layout = random_layout(q, 1.0, BLOCK)
        lse = KERNELS["triton"].attend(*self.qkv, layout, scale)[1]
        found: dict[str, Any] = clock(
            lambda: block_sum(q, k, lse, starts, starts, scale), self.device
        )
        sums = block_sum(q, k, lse, starts, starts, scale).sum(-1)
        found["error"] = float((sums / starts.diff() - 1).abs().max())
        return found

    def built(self, name: str) -> dict[str, Any]:
        """Milliseconds to build the map, and of the attention over it."""
        place, builder = self.shape.place(), builders(self.shape)[name]

        def route() -> Routing:
            routing = builder.route(*self.qkv, place)
            if routing is None:
                raise ValueError("it asks for dense attention here")
            return routing

        building = clock(route, self.device)
        layout = route().layout
        if reason := KERNELS["triton"].why_not(self.qkv[0], layout):
            return {"failed": reason}
        found = clock(lambda: over("triton", layout)(*self.qkv), self.device)
        share = float(layout.density())
        return {**found, "building_ms": building["ms"], "computed": share}


def best_dense(cells: Cells, shape: str) -> dict[str, Any] | None:
    """The fastest dense attention of that shape that is right: the bar for every ratio."""
    known = [
        {**cell["result"], "way": cell["fields"]["way"]}
        for cell in cells.cells.values()
        if cell["fields"]["shape"] == shape and cell["fields"]["part"] == "dense"
    ]
    right = [r for r in known if "ms" in r and r["error"] < 0.02]
    return min(right, key=lambda r: r["ms"]) if right else None


def rows(cells: Cells, shape: str) -> Iterator[list[str]]:
    """Of the table of a shape; ratios are to the best dense attention."""
    best = best_dense(cells, shape)
    for cell in cells.cells.values():
        fields, result = cell["fields"], cell["result"]
        if fields["shape"] != shape or fields["part"] == "tuning":
            continue
        name = f"{fields['part']}: {fields['way']}"
        if "failed" in result:
            yield [name, "", "", "", "", "", f"not run: {result['failed']}"]
            continue
        share, note = result.get("computed", 1.0), ""
        ratio = best["ms"] / result["ms"] if best else 0.0
        if "building_ms" in result:
            note = f"map {result['building_ms']:.2f} ms"
            if best and best["ms"] > result["ms"]:
                saved = result["building_ms"] / (best["ms"] - result["ms"])
                note += f", {100 * saved:.1f} % of what it saves (goal: 5 %)"
        elif fields["way"] == "triton" and fields["density"] in GOALS:
            note = f"stretch goal {GOALS[fields['density']]}x"
        yield [
            name,
            f"{100 * share:.1f} %",
            f"{result['ms']:.3f} ({result['ms_low']:.3f}–{result['ms_high']:.3f})",
            f"{result['tflops']:.0f}" if "tflops" in result else "",
            f"{ratio:.2f}x" if best else "",
            f"{result['error']:.1e}" if "error" in result else "",
            note,
        ]


HEAD = ("way", "computed", "ms (quartiles)", "TFLOP/s computed", "of best dense", "error", "")


def write(cells: Cells) -> None:
    """A table for each shape beside the results."""
    text = "# Block-sparse attention on a card\n\n"
    if any(cell["fields"]["device"] == "cpu" for cell in cells.cells.values()):
        text += (
            "**Triton's interpreter on a CPU: a test of the script. No number here counts.**\n\n"
        )
    text += (
        "Random q, k, v; random blocks of 128, as many in every row. Error: relative L2 of sampled "
        "rows against float32 with the same mask. Ratios are to the fastest dense attention of the "
        "same run.\n\n"
    )
    for shape in dict.fromkeys(cell["fields"]["shape"] for cell in cells.cells.values()):
        best = best_dense(cells, shape)
        text += f"## {shape}\n\n"
        text += f"Best dense: {best['way']}, {best['ms']:.3f} ms.\n\n" if best else ""
        text += page.markdown(HEAD, list(rows(cells, shape)))
    cells.path.with_suffix(".md").write_text(text + page.provenance(cells))


def parse(text: str) -> Shape:
    """A named shape, or frames x height x width x heads x head size such as `2x8x8x2x64`."""
    if text in SHAPES:
        return SHAPES[text]
    try:
        frames, height, width, heads, head = map(int, text.split("x"))
    except ValueError:
        known = ", ".join(SHAPES)
        raise SystemExit(f"unknown shape {text!r}; known: {known}; or 2x8x8x2x64") from None
    return Shape(frames, height, width, 0, heads, head)


def main(
    shape: Annotated[list[str] | None, typer.Option(help="Which; all if none.")] = None,
    device: Annotated[str, typer.Option(help="cuda, or cpu in Triton's interpreter.")] = "cuda",
    minutes: Annotated[float, typer.Option(help="Begin nothing later than that.")] = 7,
    out: Annotated[Path, typer.Option(help="Results; .md goes beside.")] = RESULTS,
) -> None:
    """Measure what is missing, then write the tables."""
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA card is visible; --device cpu tests the script")
    if device == "cpu" and not interpreted():
        raise SystemExit("set TRITON_INTERPRET=1 for --device cpu")
    cells = Cells(out)
    end = time.monotonic() + 60 * minutes
    names = shape or list(SHAPES)
    for i, name in enumerate(names):
        left = end - time.monotonic()
        share = time.monotonic() + left / (len(names) - i)
        Session(name, parse(name), device, cells, share).run()
        write(cells)


if __name__ == "__main__":
    typer.run(main)
