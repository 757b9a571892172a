"""The command `accel plan`: what a saved plan holds, in the terminal and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from . import plan_beside, plan_summary
from .files import writable_file
from .inputs import BadInput
from .load import first_line
from .plan import Plan

Picture = Annotated[
    Path | None, typer.Option(help="Draw the plan into this file (.png, .svg, .pdf, …).")
]


def plan_command(
    file: Annotated[Path, typer.Argument(help="A plan, such as plan.json.", show_default=False)],
    picture: Picture = None,
) -> None:
    """Show a saved plan, or a model's acceleration.json: what it computes, measured and is for."""
    try:
        plans = plan_beside.read(file)
    except ValueError as error:
        raise BadInput(first_line(error)) from None
    console, alone = Console(), len(plans) == 1
    for name, plan in plans.items():
        plan_summary.show(console, plan, str(file) if alone else f"{file}: {name}")
        if picture is not None:
            own = picture if alone else picture.with_stem(f"{picture.stem}-{name}")
            draw(console, plan, own)


def draw(console: Console, plan: Plan, picture: Path) -> None:
    """Write the picture and say where it is."""
    try:
        writable_file(picture)
        plan.plot(picture)
    except ValueError as error:
        raise BadInput(f"--picture {first_line(error)}") from None
    except OSError as error:
        raise BadInput(f"--picture {picture}: cannot write there: {error.strerror}") from None
    console.print(f"  picture {picture}", soft_wrap=True, highlight=False)
