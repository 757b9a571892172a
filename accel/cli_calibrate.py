"""The command `accel calibrate`: full runs on some prompts, and a plan fitted to them."""

from __future__ import annotations

import importlib
import inspect
import shlex
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from . import plan_beside, plan_summary
from .calibration import EFFORTS, Searched, calibrate
from .cli_options import (
    Device,
    Dtype,
    Frames,
    Guidance,
    Height,
    ModelName,
    Offload,
    StartImage,
    Width,
)
from .cli_plan import Picture, draw
from .files import writable_file
from .inputs import BadInput, Request, arguments
from .load import TINY, Model, first_line, load
from .parse import parse_method
from .plan import Plan
from .prompts import GENERIC, SAMPLES, drawn
from .run_errors import told


def calibrate_command(
    for_: Annotated[
        str,
        typer.Option(
            "--for", help="The method to fit: planned, teacache or magcache, or Name:field=value,…"
        ),
    ] = "planned",
    budget: Annotated[
        int | None, typer.Option(min=1, help="For planned: steps that are computed.")
    ] = None,
    speedup: Annotated[
        float | None, typer.Option(help="For planned, instead of --budget: times fewer steps.")
    ] = None,
    effort: Annotated[
        str,
        typer.Option(
            help="For planned: normal, high (changes of the plan are tried too), or gradient "
            "(then all weights are fitted by descent through the sampler)."
        ),
    ] = "normal",
    model: ModelName = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Text file, a prompt a line.",
            show_default="a list of ours, or captions of the shipped model",
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=1, help="Prompts drawn and run in full.", show_default="8, or all of fewer"
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 50,
    guidance: Guidance = None,
    seed: Annotated[int, typer.Option(help="Seed of the first run's noise.")] = 0,
    image: StartImage = None,
    frames: Frames = None,
    height: Height = None,
    width: Width = None,
    out: Annotated[Path, typer.Option(help="File for the plan.")] = Path("plan.json"),
    recipe: Annotated[
        str | None,
        typer.Option(help="Instead of --out: keep it in the model's folder, as this recipe."),
    ] = None,
    picture: Picture = None,
    device: Device = None,
    dtype: Dtype = None,
    offload: Offload = False,
) -> None:
    """Fit a method to a model: record full runs, and write a plan for `generate --plan`."""
    try:
        method = parse_method(for_)
    except ValueError as error:
        raise BadInput(f"--for {first_line(error)}") from None
    _check(method, steps, budget, speedup, effort)
    for option, path in (("--out", None if recipe else out), ("--picture", picture)):
        try:
            writable_file(path) if path is not None else None
        except OSError as error:
            raise BadInput(f"{option} {path}: cannot write there: {error.strerror}") from None
    listed = None if prompts is None else _read(prompts)
    with Console(stderr=True).status(f"loading {model or 'shapes-t2v'}"):
        opened = load(model, device=device, dtype=dtype, offload=offload, image=image is not None)
    kind = type(opened.pipe)
    if "prompt" not in inspect.signature(kind.__call__).parameters:
        raise BadInput(f"{kind.__name__} takes no prompt, and calibrate runs prompts")
    if recipe is not None:
        _beside(opened, recipe)
    texts = drawn(listed or _prompts(opened, samples or SAMPLES), samples, seed)
    request = Request(texts[0], steps, guidance, seed, image, frames, height, width)
    call: dict[str, Any] = arguments(opened.pipe, opened.defaults, request)
    for name in ("prompt", "output_type", "num_inference_steps"):
        call.pop(name, None)
    wanted: dict[str, Any] = {"steps": steps, "budget": budget, "speedup": speedup}
    wanted |= {"samples": len(texts), "seed": seed, "effort": effort}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            with told(opened.pipe):
                plan = calibrate(opened.pipe, texts, method, **wanted, **call)
        except BadInput as error:
            raise BadInput(f"--for {for_}: {error}") from error
    use: dict[str, Any] = {"--plan": out} if recipe is None else {"--recipe": recipe}
    path = _save(plan, recipe, out, opened)
    console = Console()
    plan_summary.show(console, plan, str(path))
    if picture is not None:
        draw(console, plan, picture)
    given: dict[str, Any] = {"--model": model}
    (fitted,) = plan.methods
    own = fitted.level == "sampler"  # which has fewer steps than the full runs
    given |= {"--steps": getattr(fitted, "steps", steps) if own else steps}
    given |= {"--guidance": guidance, "--image": image}
    given |= {"--frames": frames, "--height": height, "--width": width, **use}
    options = " ".join(f"{k} {shlex.quote(str(v))}" for k, v in given.items() if v is not None)
    line = f"  use it  accel generate {shlex.quote(texts[0])} {options}"
    console.print(line, soft_wrap=True, highlight=False, markup=False)


def _beside(model: Model, recipe: str) -> None:
    """Refuse a folder of the model that a recipe cannot be kept in."""
    if plan_beside.folder(model.pipe) is None:
        raise BadInput(f"--recipe {recipe}: {model.name} is no folder here; give --out instead")
    try:
        plan_beside.target(model.pipe)
    except ValueError as error:
        raise BadInput(
            f"--recipe {recipe}: {first_line(error)}; move that file away, or give --out instead"
        ) from None
    except OSError as error:
        raise BadInput(
            f"--recipe {recipe}: cannot write to {model.name}: {error.strerror}; give --out instead"
        ) from None


def _save(plan: Plan, recipe: str | None, out: Path, model: Model) -> Path:
    """Keep the plan where it was asked for; where that fails after all, it is printed."""
    try:
        return plan.save(out) if recipe is None else plan_beside.keep(model.pipe, recipe, plan)
    except (OSError, ValueError) as error:
        print(plan.to_json())
        where = f"--out {out}" if recipe is None else f"--recipe {recipe}"
        why = getattr(error, "strerror", None) or first_line(error)
        raise BadInput(f"{where}: {why}; the plan is printed, put it into a file") from error


def _check(method: Any, steps: int, budget: int | None, speedup: float | None, effort: str) -> None:
    """Refuse what cannot be before a model is loaded."""
    searched = isinstance(method, Searched)
    if searched and (budget is None) == (speedup is None):
        raise BadInput(
            "give either --budget N (steps computed, such as 12) or --speedup R (such as 4)"
        )
    if budget is not None and budget > steps:
        raise BadInput(f"--budget must be at most the {steps} steps of a run, got {budget}")
    if speedup is not None and not speedup > 1:
        raise BadInput(f"--speedup must be above 1, got {speedup:g}")
    if effort not in EFFORTS:
        raise BadInput(f"--effort must be one of {', '.join(EFFORTS)}, got {effort}")


def _read(path: Path) -> list[str]:
    try:
        texts = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"--prompts {path}: {getattr(error, 'strerror', 'is not text')}") from None
    if not texts:
        raise BadInput(f"--prompts {path}: there is no prompt in it; write one a line")
    return texts


def _prompts(model: Model, count: int) -> list[str]:
    """Prompts for who gives none; the shipped models know their captions only."""
    if not model.shipped:
        return list(GENERIC)
    return list(importlib.import_module(TINY).captions(model.name, count))
