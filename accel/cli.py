"""The command line: `accel generate | calibrate | plan | methods | doctor`."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from typer.core import TyperGroup

from . import catalogue, doctor, plan_beside, summary
from .cli_calibrate import calibrate_command
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
from .cli_plan import plan_command
from .files import writable
from .generate import generate
from .inputs import BadInput, Request
from .load import first_line, load
from .memory import parse_size
from .method import Method
from .outcome import Sample, write_plain
from .parse import parse_method
from .plan import FILE, Plan
from .run_errors import RunFailed
from .versions import __version__

UsageError: Any = typer.BadParameter.__base__


class OneLine(TyperGroup):
    """Ends bad input with one line on stderr and exit code 2, an interrupt with 130."""

    def main(self, args: Any = None, *rest: Any, standalone_mode: bool = True, **more: Any) -> Any:
        more["standalone_mode"] = False
        try:
            code = super().main(args, *rest, **more)
        except (UsageError, BadInput) as error:
            code = _say(error.format_message() if isinstance(error, UsageError) else error, 2)
        except RunFailed as error:
            code = _say(error, 1)
        if standalone_mode:
            sys.exit(code)
        return code

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            return _say("interrupted; files that were not finished are not left behind", 130)


def _say(message: Any, code: int) -> int:
    line = " ".join(str(message).split())
    if line:  # typer has printed the help already where it says nothing
        print(f"accel: {line}", file=sys.stderr)
    return code


app = typer.Typer(
    cls=OneLine,
    help="Speeds up diffusers pipelines, and shows what it cost.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(shown: bool) -> None:
    if shown:
        print(f"accel {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Speeds up diffusers pipelines, and shows what it cost."""


@app.command("generate")
def generate_command(
    prompt: Annotated[str, typer.Argument(help="What to make, in words.", show_default=False)],
    model: ModelName = None,
    recipe: Annotated[
        str | None, typer.Option(help="Recipe of the model's family.", show_default="balanced")
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="Instead of a recipe: Name:field=value,… (repeatable); see accel methods."
        ),
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(help="Instead of a recipe: a saved plan (accel calibrate).")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    guidance: Guidance = None,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    image: StartImage = None,
    frames: Frames = None,
    height: Height = None,
    width: Width = None,
    fps: Annotated[float | None, typer.Option(help="Frames a second of the files.")] = None,
    out: Annotated[
        Path,
        typer.Option(help="Folder for the files; those of an earlier run are replaced or removed."),
    ] = Path("out"),
    max_bytes: Annotated[
        str | None,
        typer.Option(help="Most that methods may keep between steps: 800MB, 1.5GB."),
    ] = None,
    keep_on: Annotated[
        Literal["device", "cpu"] | None,
        typer.Option(help="Where they keep it.", show_default="device"),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also run plain, and show both side by side.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object and nothing else.")
    ] = False,
    device: Device = None,
    dtype: Dtype = None,
    offload: Offload = False,
) -> None:
    """Make a video or a picture, accelerated; with --compare also plain, side by side."""
    request = Request(prompt, steps, guidance, seed, image, frames, height, width)
    if fps is not None and not 0 < fps <= 240:
        raise BadInput(f"--fps must be above 0 and at most 240, got {fps:g}")
    try:
        limit = None if max_bytes is None else parse_size(max_bytes)
    except ValueError as error:
        raise BadInput(f"--max-bytes: {error}") from None
    what = _what(recipe, method or [], plan)
    try:
        writable(out)
    except OSError as error:
        raise BadInput(f"--out {out}: cannot write there: {error.strerror}") from None
    errors = Console(stderr=True)
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("default")
        with errors.status(f"loading {model or 'shapes-t2v'}"):
            opened = load(
                model, device=device, dtype=dtype, offload=offload, image=image is not None
            )

        def keep_plain(sample: Sample) -> None:
            path = write_plain(opened, sample, out, fps)
            print(f"accel: the plain run was finished, and is in {path}", file=sys.stderr)

        how: dict[str, Any] = {"compare": compare, "max_bytes": limit, "keep_on": keep_on}
        outcome = generate(opened, request, *what, **how, keep_plain=keep_plain)
        files = outcome.write(out, fps)
    for text in dict.fromkeys(str(n.message) for n in notes if n.category is UserWarning):
        errors.print(f"[yellow]note:[/] {text}")
    if as_json:
        print(json.dumps(outcome.to_dict(files), allow_nan=False))
    else:
        summary.show(Console(), outcome, prompt, files)


def _what(recipe: str | None, methods: list[str], plan: Path | None) -> list[str | Method | Plan]:
    if sum((recipe is not None, bool(methods), plan is not None)) > 1:
        raise BadInput("--recipe, --method and --plan exclude one another; give one of them")
    if plan is not None:
        return [_plan(plan)]
    try:
        given: list[str | Method | Plan] = [parse_method(text) for text in methods]
        return given or [recipe or "balanced"]
    except ValueError as error:
        raise BadInput(f"--method {first_line(error)}") from None


def _plan(file: Path) -> Plan:
    """The one plan of a file, which may be a model's acceleration.json."""
    try:
        plans = plan_beside.read(file)
    except ValueError as error:
        raise BadInput(f"--plan {first_line(error)}") from None
    if not plans:
        raise BadInput(f"--plan {file}: not a plan: there is none in it")
    if len(plans) > 1:
        raise BadInput(
            f"--plan {file} holds several plans ({', '.join(plans)}): give --recipe NAME instead, "
            f"and --model with the folder that has them as {FILE}"
        )
    return next(iter(plans.values()))


app.command("calibrate")(calibrate_command)
app.command("plan")(plan_command)


@app.command("methods")
def methods_command(
    name: Annotated[
        str | None, typer.Argument(help="One method, with its fields.", show_default=False)
    ] = None,
    family: Annotated[
        str | None, typer.Option(help="Only what works on this model family.")
    ] = None,
) -> None:
    """List the methods, or show one with its fields and their defaults."""
    console = Console()
    try:
        shown = catalogue.detail(name) if name else catalogue.table(family)
    except ValueError as error:
        raise BadInput(first_line(error)) from None
    console.print(shown)


@app.command("doctor")
def doctor_command() -> None:
    """Say what works here, and why the rest does not; exit code 1 if something needed is broken."""
    findings = doctor.examine()
    Console().print(doctor.table(findings))
    if any(finding.state == "broken" for finding in findings):
        raise typer.Exit(1)


def main() -> None:
    """The console entry point; being asked to end is an interrupt too, so that files are whole."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    app()
