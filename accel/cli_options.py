"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ModelName = Annotated[
    str | None,
    typer.Option(help="shapes-t2v, shapes-t2i, a folder, or a hub id.", show_default="shapes-t2v"),
]
Guidance = Annotated[float | None, typer.Option(help="Guidance scale; 1 is off.")]
StartImage = Annotated[
    Path | None,
    typer.Option(
        "--image",
        help="Picture to start from, cropped to the height and width that are made.",
        show_default=False,
    ),
]
Frames = Annotated[int | None, typer.Option(help="Frames of a video.")]
Height = Annotated[int | None, typer.Option(help="Height in pixels.")]
Width = Annotated[int | None, typer.Option(help="Width in pixels.")]
Device = Annotated[str | None, typer.Option(help="cuda, cpu, …", show_default="auto")]
Dtype = Annotated[
    str | None, typer.Option(help="float32, bfloat16 or float16.", show_default="auto")
]
Offload = Annotated[
    bool, typer.Option("--offload", help="Keep parts on the CPU while they do not run.")
]
