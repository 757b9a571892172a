"""What a person asks for, checked against the model before anything slow begins."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps

MAX_SEED = 2**63 - 1
SPATIAL = ("vae_scale_factor_spatial", "vae_spatial_compression_ratio", "vae_scale_factor")
TEMPORAL = ("vae_scale_factor_temporal", "vae_temporal_compression_ratio")


class BadInput(ValueError):
    """Something the user gave is wrong; the message is one line that says what would be right."""


@dataclass(frozen=True)
class Request:
    """One sample to make; None leaves a value to the model.

    Attributes:
        guidance: guidance scale; 1 is off.
        image: picture to start from.
        frames: length of a video.
        height, width: size in pixels.

    Raises:
        BadInput: a value that no model can serve.
    """

    prompt: str
    steps: int | None = None
    guidance: float | None = None
    seed: int = 0
    image: Path | None = None
    frames: int | None = None
    height: int | None = None
    width: int | None = None

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise BadInput("the prompt is empty; say in words what to make")
        for name in ("steps", "frames", "height", "width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BadInput(f"--{name} must be at least 1, got {value}")
        guidance = self.guidance
        if guidance is not None and not (math.isfinite(guidance) and guidance >= 0):
            raise BadInput(f"--guidance must be a number of 0 or more, got {guidance}")
        if not 0 <= self.seed <= MAX_SEED:
            raise BadInput(f"--seed must be from 0 to {MAX_SEED}, got {self.seed}")
        if self.image is not None:
            self.picture()

    def picture(self) -> Image.Image:
        """The image in RGB, upright.

        Raises:
            BadInput: there is none, or the file is not a picture.
        """
        assert self.image is not None
        try:
            with Image.open(self.image) as image:
                return ImageOps.exif_transpose(image).convert("RGB")
        except FileNotFoundError:
            raise BadInput(f"--image {self.image}: there is no such file") from None
        except OSError as error:
            why = error.strerror or "not a picture that Pillow can read"
            raise BadInput(f"--image {self.image}: {why}") from None


def arguments(pipe: Any, defaults: Mapping[str, Any], request: Request) -> dict[str, Any]:
    """Arguments of the pipeline's call for `request`, without the generator.

    Args:
        defaults: what this model wants where the user says nothing.

    Raises:
        BadInput: a value that this pipeline does not take, or a size its parts cannot make.
    """
    known = inspect.signature(type(pipe).__call__).parameters
    call = {**defaults, "prompt": request.prompt, "output_type": "np"}
    options = {
        "num_inference_steps": ("steps", request.steps),
        "guidance_scale": ("guidance", request.guidance),
        "num_frames": ("frames", request.frames),
        "height": ("height", request.height),
        "width": ("width", request.width),
    }
    given = {n: (option, value) for n, (option, value) in options.items() if value is not None}
    if request.image is not None and "height" not in known:
        call["image"] = _fitted(request, defaults, spatial_multiple(pipe))
        for name in ("height", "width"):  # the picture carries its size
            given.pop(name, None)
            call.pop(name, None)
    elif request.image is not None:
        call["image"] = _cropped(pipe, defaults, request)
    for name, (option, value) in given.items():
        if name not in known:
            why = " (it makes pictures)" if option == "frames" else ""
            raise BadInput(f"--{option}: {type(pipe).__name__} takes no {name}{why}")
        call[name] = value
    for name in ("height", "width"):
        if call.get(name) is not None:
            check_size(pipe, name, call[name])
    if call.get("num_frames") is not None:
        check_frames(pipe, call["num_frames"])
    steps, strength = call.get("num_inference_steps"), strength_of(pipe)
    if steps is not None and strength is not None and int(steps * strength) < 1:
        raise BadInput(
            f"--steps {steps}: from a picture this pipeline runs {strength:g} of the steps, "
            f"which is none; give at least {math.ceil(1 / strength)}"
        )
    return {name: value for name, value in call.items() if name in known}


def strength_of(pipe: Any) -> float | None:
    """Share of the steps that an image-to-image pipeline runs by default; None for others."""
    known = inspect.signature(type(pipe).__call__).parameters
    default = known["strength"].default if {"image", "strength"} <= set(known) else None
    return float(default) if isinstance(default, int | float) else None


def spatial_multiple(pipe: Any) -> int:
    """Pixels that height and width must be a multiple of: the autoencoder's scale × the patch."""
    scale = _first(pipe, SPATIAL) or 1
    patch: Any = getattr(pipe, "transformer_spatial_patch_size", None)
    if patch is None:
        denoiser = getattr(pipe, "transformer", None) or getattr(pipe, "transformer_2", None)
        patch = getattr(getattr(denoiser, "config", None), "patch_size", None) or 1
        if patch == 1 and hasattr(pipe, "_pack_latents"):
            patch = 2  # Flux packs 2×2 latents into a token outside of its transformer
    return int(scale) * int(patch[-1] if isinstance(patch, tuple | list) else patch)


def check_size(pipe: Any, name: str, value: int) -> None:
    """Raise `BadInput` if the pipeline cannot make `value` pixels of `name`."""
    multiple = spatial_multiple(pipe)
    if value % multiple:
        near = sorted({max(value // multiple, 1) * multiple, (value // multiple + 1) * multiple})
        raise BadInput(
            f"--{name} must be a multiple of {multiple} for this model, got {value}; "
            f"try {' or '.join(map(str, near))}"
        )
    _check_positions(pipe, name, value // multiple, multiple)


def check_frames(pipe: Any, frames: int) -> None:
    """Raise `BadInput` if the pipeline cannot make a video of `frames` frames."""
    scale = int(_first(pipe, TEMPORAL) or 1)
    if (frames - 1) % scale:
        below = (frames - 1) // scale * scale + 1
        raise BadInput(
            f"--frames must be {scale}k+1 for this model, got {frames}; "
            f"try {below} or {below + scale}"
        )
    _check_positions(pipe, "frames", (frames - 1) // scale + 1, scale)


def _check_positions(pipe: Any, name: str, count: int, pixels: int) -> None:
    config = getattr(getattr(pipe, "transformer", None), "config", None)
    limit = getattr(config, "rope_max_seq_len", None)
    if limit is not None and count > limit:
        most = (limit - 1) * pixels + 1 if name == "frames" else limit * pixels
        raise BadInput(f"--{name} is at most {most} for this model (it has {limit} positions)")


def _fitted(request: Request, defaults: Mapping[str, Any], multiple: int) -> Image.Image:
    """The picture cropped and scaled to the size asked for, else to one the model can make."""
    image = request.picture()
    multiple = math.lcm(multiple, 8)  # what U-Net pipelines check
    size = []
    for name, own in (("width", image.width), ("height", image.height)):
        asked = getattr(request, name)
        if asked is not None and asked % multiple:
            raise BadInput(f"--{name} must be a multiple of {multiple} here, got {asked}")
        size.append(asked or defaults.get(name) or max(own // multiple, 1) * multiple)
    return ImageOps.fit(image, (size[0], size[1]), Image.Resampling.LANCZOS)


def _cropped(pipe: Any, defaults: Mapping[str, Any], request: Request) -> Image.Image:
    """The picture cropped to what a pipeline of a size of its own would squash it to."""
    width, height = (
        getattr(request, name) or defaults.get(name) or _own_size(pipe, name)
        for name in ("width", "height")
    )
    image = request.picture()
    if width is None or height is None:
        return image
    return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)


def _own_size(pipe: Any, name: str) -> int | None:
    """Pixels of height or width that `pipe` makes unasked; None where it follows the picture."""
    known = inspect.signature(type(pipe).__call__).parameters
    if isinstance(known[name].default, int):
        return known[name].default
    config = getattr(getattr(pipe, "transformer", None), "config", None)
    sample = getattr(config, f"sample_{name}", None)
    if sample is None and "strength" in known:  # pipelines that edit have a sample size, unused
        sample = getattr(pipe, "default_sample_size", None)
    return None if sample is None else int(sample) * int(_first(pipe, SPATIAL) or 1)


def _first(pipe: Any, names: tuple[str, ...]) -> int | None:
    return next((getattr(pipe, n) for n in names if getattr(pipe, n, None) is not None), None)


def generator(seed: int) -> torch.Generator:
    """Noise from the CPU, so that a seed gives the same sample on every device."""
    return torch.Generator("cpu").manual_seed(seed)
