"""Small trained pipelines that ship with the package, and the code that made them.

`shapes-t2v` turns "a red circle moving left on a dark background" into 17 frames of 64×64 pixels,
`shapes-t2v-long` into frames of 128×128 (1,280 video tokens, for sparse attention). `shapes-t2i`
turns the same sentences without motion into pictures, and so does `shapes-mmdit`, as Stable
Diffusion 3 does it.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .scenes import caption, sample_scene

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

_CALLS: dict[str, dict[str, Any]] = {
    "shapes-t2v": {
        "height": 64,
        "width": 64,
        "num_frames": 17,
        "guidance_scale": 2.0,
        "max_sequence_length": 32,
    },
    "shapes-t2i": {"height": 64, "width": 64, "guidance_scale": 2.0},
    "shapes-t2v-long": {
        "height": 128,
        "width": 128,
        "num_frames": 17,
        "guidance_scale": 2.0,
        "max_sequence_length": 32,
    },
    "shapes-mmdit": {
        "height": 128,
        "width": 128,
        "guidance_scale": 2.0,
        "max_sequence_length": 32,
    },
}
_CLASSES = {
    "shapes-t2v": "WanPipeline",
    "shapes-t2i": "StableDiffusionPipeline",
    "shapes-t2v-long": "WanPipeline",
    "shapes-mmdit": "StableDiffusion3Pipeline",
}
MANIFEST = "sha256.json"
_HOME = Path(__file__).parent
NAMES = tuple(name for name in _CALLS if (_HOME / name).is_dir())


def _known(name: str) -> str:
    if name not in _CALLS:
        raise ValueError(f"no shipped model {name!r}; the shipped models are {', '.join(NAMES)}")
    return name


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file `from_pretrained` reads below `folder`, by relative path."""
    index = json.loads((folder / "model_index.json").read_text())
    parts = [folder / part for part in sorted(index) if (folder / part).is_dir()]
    files = [folder / "model_index.json", *(f for part in parts for f in sorted(part.iterdir()))]
    return {f.relative_to(folder).as_posix(): _digest(f) for f in files}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_manifest(folder: Path) -> None:
    """Writes the digests of a pipeline's files beside them, for :func:`verify`."""
    text = json.dumps(digests(folder), indent=2, sort_keys=True)
    (folder / MANIFEST).write_text(text + "\n")


def save(pipe: DiffusionPipeline, folder: Path) -> None:
    """Writes `pipe` as it ships: in half precision, readable by all, with its manifest, and
    without the places on this machine that parts were loaded from."""
    pipe.to(torch.float16).save_pretrained(folder, safe_serialization=True)
    for file in folder.glob("*/config.json"):
        config = json.loads(file.read_text())
        config.pop("_name_or_path", None)
        file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    for file in folder.rglob("*.safetensors"):
        file.chmod(0o644)
    write_manifest(folder)


def verify(folder: Path) -> None:
    """Compares the files of a shipped pipeline with its manifest.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is not the one that shipped.
    """
    remedy = (
        f"; get it back with `git checkout -- pipelines/tiny/{folder.name}` in a clone, or "
        "reinstall the package with `pip install --force-reinstall --no-deps`, or train the model "
        "again as pipelines/tiny/README.md tells"
    )
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise FileNotFoundError(f"{manifest} is missing{remedy}")
    try:
        wanted = dict(json.loads(manifest.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{manifest} is damaged (no JSON object){remedy}") from error
    for relative, digest in wanted.items():
        path = folder / relative
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing{remedy}")
        if _digest(path) != digest:
            raise ValueError(f"{path} is damaged: its SHA-256 is not {digest}{remedy}")


def path(name: str) -> Path:
    """Folder of the shipped model `name`, its files verified; errors as of :func:`verify`."""
    folder = _HOME / _known(name)
    verify(folder)
    return folder


def load(name: str, dtype: torch.dtype = torch.float32) -> DiffusionPipeline:
    """The shipped model `name` as the diffusers pipeline it is, in `dtype` throughout.

    Raises:
        ValueError: an unknown name (known: :data:`NAMES`) or a damaged file.
        FileNotFoundError: a file is missing.
    """
    folder = path(name)
    pipeline = getattr(importlib.import_module("diffusers"), _CLASSES[name])
    options = {"torch_dtype": dtype, "local_files_only": True, **absent(folder)}
    return pipeline.from_pretrained(folder, **options)


def absent(folder: Path) -> dict[str, None]:
    """Parts that the pipeline in `folder` goes without, which `from_pretrained` must be told."""
    index = json.loads((folder / "model_index.json").read_text())
    return {part: None for part, kind in index.items() if kind == [None, None]}


def call_defaults(name: str) -> dict[str, Any]:
    """Keyword arguments to call the shipped model `name` with: size, guidance, text length."""
    return dict(_CALLS[_known(name)])


def name_of(pipe: Any) -> str:
    """The shipped model that `pipe` is made like.

    Raises:
        ValueError: a pipeline of another class than all of them.
    """
    kind = type(pipe).__name__
    for name, known in _CLASSES.items():
        if known == kind:
            return name
    raise ValueError(f"a {kind} is like no shipped model; they are {', '.join(_CLASSES.values())}")


def captions(name: str, count: int, seed: int = 0) -> list[str]:
    """Captions such as the shipped model `name` was trained on; always the same for a seed."""
    rng, moving = np.random.default_rng(seed), _CLASSES[_known(name)] == "WanPipeline"
    return [caption(sample_scene(rng, moving)) for _ in range(count)]
