"""Opens a pipeline by name, folder or hub id, on the device and in the precision that suit it."""

from __future__ import annotations

import importlib
import inspect
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from .inputs import BadInput
from .registry import nearest

TINY = "accel.pipelines.tiny"
DEFAULT = "shapes-t2v"
INDEX = "model_index.json"
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
NEEDS_IMAGE = re.compile("img2img|image2video|imagetovideo", re.IGNORECASE)


@dataclass(frozen=True)
class Model:
    """A pipeline that is ready to run.

    Attributes:
        name: as the user calls it.
        defaults: call arguments it wants where the user says nothing.
        shipped: whether it came with the package, so that the exact checker can judge it.
    """

    name: str
    pipe: Any
    defaults: Mapping[str, Any] = field(default_factory=dict)
    shipped: bool = False

    @property
    def place(self) -> str:
        """Device and precision."""
        return f"{self.pipe._execution_device.type} {str(self.pipe.dtype).removeprefix('torch.')}"


def shipped() -> tuple[str, ...]:
    """Names of the models that come with the package."""
    return tuple(importlib.import_module(TINY).NAMES)


def load(
    model: str | None = None,
    *,
    device: str | None = None,
    dtype: str | None = None,
    offload: bool = False,
    image: bool = False,
) -> Model:
    """Open a shipped model, a local folder or a hub id.

    Args:
        device: "cuda" where there is one, else "cpu".
        dtype: a key of `DTYPES`; by default bfloat16 on a GPU and float32 elsewhere. Shipped
            models, which gain nothing from it, stay in float32.
        offload: keep parts on the CPU while they do not run.
        image: a picture will be given to start from.

    Raises:
        BadInput: it cannot be had, or it takes no picture where one is given, or needs one.
    """
    name = model or DEFAULT
    place = _device(device)
    if dtype is not None and dtype not in DTYPES:
        raise BadInput(f"--dtype must be one of {', '.join(DTYPES)}, got {dtype}")
    if offload and place.type == "cpu":
        raise BadInput("--offload moves parts between a GPU and the CPU; there is no GPU in use")
    ours = name in shipped()
    small = place.type != "cuda" or ours
    precision = DTYPES[dtype] if dtype else (torch.float32 if small else torch.bfloat16)
    with _quiet():
        pipe, defaults = _shipped(name, precision) if ours else (_opened(name, precision), {})
        pipe = _for_image(pipe) if image else pipe
    if not image and _needs_image(type(pipe)):
        raise BadInput(f"{type(pipe).__name__} starts from a picture; give one with --image FILE")
    pipe.enable_model_cpu_offload(device=place) if offload else pipe.to(place)
    return Model(name, pipe, defaults, ours)


def _device(device: str | None) -> torch.device:
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(chosen)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise BadInput(f"--device {chosen} does not work here: {first_line(error)}") from None
    return place


def _shipped(name: str, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    tiny = importlib.import_module(TINY)
    try:
        return tiny.load(name, dtype=dtype), dict(tiny.call_defaults(name))
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot load the shipped {name}: {first_line(error)}") from None


def _opened(name: str, dtype: torch.dtype) -> Any:
    folder = Path(name).expanduser()
    if folder.exists():
        if not (folder / INDEX).is_file():
            what = "is a file" if folder.is_file() else f"has no {INDEX}"
            raise BadInput(f"{name} {what}; --model takes a folder written by save_pretrained")
        name = str(folder)
    elif name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise BadInput(f"--model {name}: there is no such folder; {nearest(name, shipped())}")
    try:
        return diffusers.DiffusionPipeline.from_pretrained(name, torch_dtype=dtype)
    except Exception as error:  # the hub, a config or a weight file: many libraries, many types
        if folder.exists():
            raise BadInput(f"cannot load {name}: {first_line(error)}") from error
        why = first_line(error.__cause__ or error)
        raise BadInput(
            f"cannot load {name}: there is no such folder, and the hub did not give it: {why}"
        ) from error


def _needs_image(kind: type) -> bool:
    taken: Any = inspect.signature(kind.__call__).parameters.get("image")
    return bool(NEEDS_IMAGE.search(kind.__name__)) or (
        taken is not None and taken.default is taken.empty
    )


def _for_image(pipe: Any) -> Any:
    """The pipeline that starts from a picture, with the same parts."""
    if "image" in inspect.signature(type(pipe).__call__).parameters:
        return pipe
    if type(pipe).__name__ == "LTXPipeline":
        return diffusers.LTXImageToVideoPipeline.from_pipe(pipe)
    try:
        return diffusers.AutoPipelineForImage2Image.from_pipe(pipe)
    except ValueError:
        raise BadInput(
            f"--image: {type(pipe).__name__} takes no picture; leave it out, or give a model that "
            f"starts from one"
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars and no warnings of the libraries while parts are read."""
    loggers = (diffusers_logging, transformers_logging)
    before = [(log, log.get_verbosity(), log.is_progress_bar_enabled()) for log in loggers]
    try:
        for log in loggers:
            log.set_verbosity_error()
            log.disable_progress_bar()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for log, level, bar in before:
            log.set_verbosity(level)
            if bar:
                log.enable_progress_bar()


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says something, else its type."""
    lines = (" ".join(line.split()) for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)
