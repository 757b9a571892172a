"""Scores a shapes model on held-out captions with the checker, and its autoencoder in dB.

    python -m accel.pipelines.tiny.evaluate shapes-t2v --out evaluation.json

Caption i is that of a held-out scene drawn with seed (FIRST_SEED, i), its noise has seed
FIRST_SEED + i whatever the batch size. Every finished sample is kept beside the result (`.jsonl`);
running the command again goes on from there, and several processes started with different `--first`
share the work. Sleeps while the file named by the environment variable `ACCEL_PAUSE_FILE` exists.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from diffusers import DiffusionPipeline
from torch import Tensor
from tqdm.auto import tqdm

from . import NAMES, absent, call_defaults, load, name_of
from .checker import adherence
from .scenes import CANVAS, Scene, caption, parse, render, sample_scene

FIRST_SEED = 1_000_000
FRAMES = 17


def heldout(count: int, moving: bool) -> list[Scene]:
    """The first `count` held-out scenes."""
    rngs = (np.random.default_rng((FIRST_SEED, i)) for i in range(count))
    return [sample_scene(rng, moving=moving, split="heldout") for rng in rngs]


def generate(
    pipe: DiffusionPipeline, prompts: list[str], seeds: list[int], **options: Any
) -> np.ndarray:
    """Samples as (N, F, 3, H, W) in [0, 1], F 1 for pictures; one noise seed per sample."""
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    out = pipe(prompts, generator=generators, output_type="np", **options)
    samples = out.frames if hasattr(out, "frames") else out.images[:, None]
    return np.moveaxis(np.asarray(samples), -1, 2)


@torch.no_grad()
def autoencoder_psnr(
    pipe: DiffusionPipeline,
    moving: bool,
    count: int = 100,
    size: int = CANVAS,
    frames: int = FRAMES,
) -> float:
    """Mean PSNR in dB, per clip or picture, of held-out scenes through the autoencoder."""
    values = []
    for scene in tqdm(heldout(count, moving), desc="autoencoder", mininterval=5):
        truth = torch.from_numpy(render(scene, frames if moving else 1, size))
        values.append(_psnr(_roundtrip(pipe, truth.to(pipe.vae.device), moving), truth))
    return float(np.mean(values))


def _roundtrip(pipe: DiffusionPipeline, truth: Tensor, moving: bool) -> Tensor:
    signal = truth.to(pipe.vae.dtype) * 2 - 1
    signal = signal.transpose(0, 1)[None] if moving else signal
    decoded = pipe.vae.decode(pipe.vae.encode(signal).latent_dist.mode()).sample
    return (decoded[0].transpose(0, 1) if moving else decoded) / 2 + 0.5


def _psnr(out: Tensor, truth: Tensor) -> float:
    error = (out.float().cpu().clamp(0, 1) - truth).square().mean()
    return float(-10 * torch.log10(error.clamp_min(1e-10)))


def summary(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Share of attributes right, share of samples wholly right; also by number of objects."""
    result: dict[str, float] = {}
    for suffix, count in (("", 0), ("_one_object", 1), ("_two_objects", 2)):
        chosen = [r for r in rows if count in (0, len(parse(r["caption"]).shapes))]
        if chosen:
            for key in ("attributes", "all_right"):
                result[key + suffix] = round(float(np.mean([r[key] for r in chosen])), 4)
    return {**result, "n": len(rows)}


def _read(kept: Path, options: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Finished samples by index."""
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    if any(row["options"] != options for row in rows):
        raise typer.BadParameter(f"{kept} holds samples made with other options; move it away")
    return {row["index"]: row for row in rows}


def _wait_while_paused() -> None:
    pause = os.environ.get("ACCEL_PAUSE_FILE")
    while pause and os.path.exists(pause):
        time.sleep(1)


def _opened(folder: Path) -> DiffusionPipeline:
    """In single precision: weights on disk are halves, which crash on a CPU."""
    options = {"torch_dtype": torch.float32, **absent(folder)}
    return DiffusionPipeline.from_pretrained(folder, **options)


def main(
    model: str = typer.Argument(..., help=f"A shipped model ({', '.join(NAMES)}) or a folder."),
    out: Path = typer.Option(Path("evaluation.json"), help="Where the result goes."),
    n: int = typer.Option(500, min=1, help="Number of held-out captions."),
    steps: int = typer.Option(50, min=1),
    guidance: float | None = typer.Option(None, help="Guidance scale, if not the model's own."),
    size: int | None = typer.Option(None, help="Side in pixels, if not the model's own."),
    frames: int | None = typer.Option(None, help="Frames of a video, if not the model's own."),
    batch_size: int = typer.Option(10, min=1),
    first: int = typer.Option(0, min=0, help="Index to begin with, going round."),
) -> None:
    """Write attributes, all_right, n, autoencoder_psnr and the settings to OUT."""
    pipe = load(model) if model in NAMES else _opened(Path(model))
    moving = type(pipe).__name__ == "WanPipeline"
    options = call_defaults(model if model in NAMES else name_of(pipe))
    options |= {"num_inference_steps": steps}
    options |= {} if size is None else {"height": size, "width": size}
    options |= {} if frames is None else {"num_frames": frames}
    options |= {} if guidance is None else {"guidance_scale": guidance}
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    pipe.set_progress_bar_config(disable=True)
    prompts = [caption(scene) for scene in heldout(n, moving)]
    order = [(first + i) % n for i in range(n)]
    kept = out.with_suffix(".jsonl")
    bar = tqdm(total=n, unit="sample")
    while chosen := [i for i in order if i not in _read(kept, options)][:batch_size]:
        _wait_while_paused()
        samples = generate(
            pipe, [prompts[i] for i in chosen], [FIRST_SEED + i for i in chosen], **options
        )
        for i, sample in zip(chosen, samples, strict=True):
            share, whole = adherence(sample if moving else sample[0], prompts[i])
            row = {"index": i, "caption": prompts[i], "attributes": share, "all_right": whole}
            with kept.open("a") as lines:
                lines.write(json.dumps(row | {"options": options}) + "\n")
        rows = [row for i, row in sorted(_read(kept, options).items()) if i < n]
        bar.update(len(rows) - bar.n)
        bar.set_postfix(summary(rows), refresh=False)
    rows = [row for i, row in sorted(_read(kept, options).items()) if i < n]
    shape = options["height"], options.get("num_frames", 1)
    psnr = round(autoencoder_psnr(pipe, moving, size=shape[0], frames=shape[1]), 2)
    result = {**summary(rows), "autoencoder_psnr": psnr, "options": options}
    out.write_text(json.dumps(result, indent=2) + "\n")
    typer.echo(json.dumps(result))


if __name__ == "__main__":
    typer.run(main)
