"""Scores a shapes model on held-out captions with the checker, and its autoencoder in dB.

    python -m accel.pipelines.tiny.evaluate shapes-t2v --out evaluation.json

Caption i is that of a held-out scene drawn with seed (FIRST_SEED, i), its noise has seed
FIRST_SEED + i whatever the batch size. Every finished batch is kept beside the result (`.jsonl`);
running the command again goes on from there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from diffusers import DiffusionPipeline
from torch import Tensor
from tqdm.auto import tqdm

from . import NAMES, call_defaults, load
from .checker import adherence
from .scenes import Scene, caption, parse, render, sample_scene

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
def autoencoder_psnr(pipe: DiffusionPipeline, moving: bool, count: int = 100) -> float:
    """Mean PSNR in dB, per clip or picture, of held-out scenes through the autoencoder."""
    values = []
    for scene in tqdm(heldout(count, moving), desc="autoencoder", mininterval=5):
        truth = torch.from_numpy(render(scene, FRAMES if moving else 1))
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


def main(
    model: str = typer.Argument(..., help=f"A shipped model ({', '.join(NAMES)}) or a folder."),
    out: Path = typer.Option(Path("evaluation.json"), help="Where the result goes."),
    n: int = typer.Option(500, min=1, help="Number of held-out captions."),
    steps: int = typer.Option(50, min=1),
    guidance: float | None = typer.Option(None, help="Guidance scale, if not the model's own."),
    batch_size: int = typer.Option(10, min=1),
) -> None:
    """Write attributes, all_right, n, autoencoder_psnr and the settings to OUT."""
    pipe = load(model) if model in NAMES else DiffusionPipeline.from_pretrained(model)
    moving = type(pipe).__name__ == "WanPipeline"
    options = call_defaults("shapes-t2v" if moving else "shapes-t2i")
    options |= {"num_inference_steps": steps}
    options |= {} if guidance is None else {"guidance_scale": guidance}
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    pipe.set_progress_bar_config(disable=True)
    done = out.with_suffix(".jsonl")
    rows = [json.loads(line) for line in done.read_text().splitlines()] if done.exists() else []
    if any(row["options"] != options for row in rows):
        raise typer.BadParameter(f"{done} holds samples made with other options; move it away")
    prompts = [caption(scene) for scene in heldout(n, moving)]
    bar = tqdm(total=n, initial=len(rows), unit="sample")
    while len(rows) < n:
        chosen = list(range(len(rows), min(n, len(rows) + batch_size)))
        texts = [prompts[i] for i in chosen]
        samples = generate(pipe, texts, [FIRST_SEED + i for i in chosen], **options)
        for text, frames in zip(texts, samples, strict=True):
            share, whole = adherence(frames if moving else frames[0], text)
            row = {"caption": text, "attributes": share, "all_right": whole, "options": options}
            rows.append(row)
            with done.open("a") as lines:
                lines.write(json.dumps(row) + "\n")
        bar.update(len(chosen))
        bar.set_postfix(summary(rows), refresh=False)
    psnr = round(autoencoder_psnr(pipe, moving), 2)
    result = {**summary(rows[:n]), "autoencoder_psnr": psnr, "options": options}
    out.write_text(json.dumps(result, indent=2) + "\n")
    typer.echo(json.dumps(result))


if __name__ == "__main__":
    typer.run(main)
