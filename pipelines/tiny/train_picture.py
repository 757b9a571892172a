"""Trains `shapes-t2i`: first the autoencoder, then the U-Net with its text encoder.

python -m accel.pipelines.tiny.train_picture autoencoder --folder runs/t2i
python -m accel.pipelines.tiny.train_picture denoiser --folder runs/t2i
python -m accel.pipelines.tiny.train_picture export --folder runs/t2i --to shapes-t2i
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import load_file, load_model, save_file
from torch import Tensor
from torch.nn.functional import l1_loss, mse_loss
from tqdm.auto import tqdm

from accel.pipelines.tiny import picture, save
from accel.pipelines.tiny.loop import fit
from accel.pipelines.tiny.muon import Muon, hidden_matrices
from accel.pipelines.tiny.picture_loss import VelocityLoss
from accel.pipelines.tiny.scenes import caption, render, sample_scenes

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__.split("\n")[0])
Folder = Annotated[Path, typer.Option(help="Where checkpoints, logs and latents are kept.")]


def pictures_of(
    rng: np.random.Generator,
    count: int,
    split: str = "train",
    pairs: bool = False,
    size: int = picture.SIZE,
):
    """`count` fresh pictures (count, 3, size, size) in [-1, 1] and their captions."""
    scenes = sample_scenes(rng, count, moving=False, split=split, pairs=pairs)
    pixels = np.concatenate([render(scene, frames=1, size=size) for scene in scenes])
    return torch.from_numpy(pixels) * 2 - 1, [caption(scene) for scene in scenes]


@torch.no_grad()
def autoencoder_psnr(autoencoder: AutoencoderKL, count: int = 256, seed: int = 1) -> float:
    """Mean PSNR in dB over `count` held-out pictures, values in [0, 1]."""
    pixels, _ = pictures_of(np.random.default_rng(seed), count, "heldout")
    pixels = pixels.to(autoencoder.device)
    out = torch.cat([autoencoder(part).sample for part in pixels.split(32)]).clamp(-1, 1)
    errors = ((out - pixels) / 2).square().mean((1, 2, 3))
    return float((-10 * errors.log10()).mean())


@app.command()
def autoencoder(
    folder: Folder,
    samples: Annotated[int, typer.Option(help="Pictures to train on.")] = 120_000,
    batch: Annotated[int, typer.Option(help="Pictures in a batch.")] = 16,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 2e-3,
    bf16: Annotated[bool, typer.Option(help="Compute in bfloat16.")] = True,
) -> None:
    """Trains the autoencoder on fresh pictures: L1 + MSE and a little KL (goes on if stopped)."""
    torch.manual_seed(0)
    model = picture.build_autoencoder()

    def loss(pixels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        posterior = model.encode(pixels).latent_dist
        out = model.decode(posterior.sample()).sample.float()
        mse, mae = mse_loss(out, pixels), l1_loss(out, pixels)
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        return mae + 2 * mse + 2e-4 * kl, {"psnr": -10 * (mse / 4).log10(), "kl": kl}

    def batches(seed: int) -> Iterator[Tensor]:
        rng = np.random.default_rng(seed)
        while True:
            yield pictures_of(rng, batch)[0]

    fit(
        {"autoencoder": model},
        loss,
        batches,
        folder=folder / "autoencoder",
        samples=samples,
        batch_size=batch,
        lr=lr,
        bf16=bf16,
    )


def load_autoencoder(folder: Path) -> AutoencoderKL:
    """The averaged autoencoder of a run, its latents standardised."""
    model = picture.build_autoencoder()
    load_model(model, folder / "autoencoder" / "ema-autoencoder.safetensors")
    pixels, _ = pictures_of(np.random.default_rng(0), 2048)
    picture.standardise_latents(model, pixels)
    return model.eval()


def encoded_pictures(
    folder: Path,
    count: int,
    pairs: bool = False,
    size: int = picture.SIZE,
    model: AutoencoderKL | None = None,
) -> dict[str, Tensor]:
    """`latents` (count, 4, size / 4, size / 4) and `tokens` (count, 32), made once and kept.

    `model` is the autoencoder; without one, that of the run in the folder.
    """
    name = f"{'pairs' if pairs else 'latents'}{'' if size == picture.SIZE else f'-{size}px'}"
    path = folder / f"{name}-{count}.safetensors"
    if path.exists():
        return load_file(path)
    model, tokenizer = model or load_autoencoder(folder), picture.build_tokenizer()
    latents, tokens, rng = [], [], np.random.default_rng(8 if pairs else 7)
    for _ in tqdm(range(0, count, 64), desc="encoding", mininterval=2.0):
        pixels, captions = pictures_of(rng, 64, pairs=pairs, size=size)
        with torch.no_grad():
            latents.append(model.encode(pixels).latent_dist.mean.half())
        tokens.append(_tokens(tokenizer, captions))
    data = {"latents": torch.cat(latents)[:count], "tokens": torch.cat(tokens)[:count]}
    partial = path.with_suffix(".partial")
    save_file(data, partial)
    partial.replace(path)
    return data


def _tokens(tokenizer, captions: list[str]) -> Tensor:
    return tokenizer(captions, padding="max_length", return_tensors="pt").input_ids


@app.command()
def denoiser(
    folder: Folder,
    samples: Annotated[int, typer.Option(help="Latents to train on, repeats counted.")] = 270_000,
    pictures: Annotated[int, typer.Option(help="Different pictures among them.")] = 24_576,
    pairs: Annotated[int, typer.Option(help="More pictures, of two objects each.")] = 0,
    batch: Annotated[int, typer.Option(help="Latents in a batch.")] = 16,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 1e-3,
    bf16: Annotated[bool, typer.Option(help="Compute in bfloat16.")] = True,
    shift: Annotated[float, typer.Option(help="Above 1, times lean towards noise.")] = 2.0,
    emphasis: Annotated[float, typer.Option(help="Weight of shapes and their edges.")] = 1.0,
    ema: Annotated[float, typer.Option(help="Decay of the averaged weights.")] = 0.998,
    muon: Annotated[float, typer.Option(help="Rate of hidden matrices, in units of lr.")] = 4.0,
    anneal: Annotated[bool, typer.Option(help="Let the rate fall over the last 40 %.")] = True,
    start: Annotated[Path | None, typer.Option(help="Pipeline to begin with.")] = None,
) -> None:
    """Trains U-Net and text encoder to predict velocities, a tenth of the captions emptied."""
    data = encoded_pictures(folder, pictures)
    if pairs:
        more = encoded_pictures(folder, pairs, pairs=True)
        data = {name: torch.cat([data[name], more[name]]) for name in data}
    torch.manual_seed(0)
    tokenizer, scheduler = picture.build_tokenizer(), picture.build_scheduler()
    unet, text_encoder = picture.build_unet(), picture.build_text_encoder(tokenizer)
    if start is not None:
        load_model(unet, start / "unet" / "diffusion_pytorch_model.safetensors")
        load_model(text_encoder, start / "text_encoder" / "model.safetensors")
    unet.set_attn_processor(AttnProcessor())  # on a CPU the fused backward takes twice as long
    loss = VelocityLoss(
        unet,
        text_encoder,
        tokenizer,
        scheduler,
        shift=shift,
        emphasis=emphasis,
    )

    def batches(seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        rng = np.random.default_rng(seed)
        while True:
            rows = torch.from_numpy(rng.integers(len(data["latents"]), size=batch))
            yield data["latents"][rows].float(), data["tokens"][rows].long()

    hidden = hidden_matrices(unet.down_blocks, unet.mid_block, unet.up_blocks)
    with Muon(hidden, ratio=muon):
        fit(
            {"unet": unet, "text_encoder": text_encoder},
            loss,
            batches,
            folder=folder / "denoiser",
            samples=samples,
            batch_size=batch,
            lr=lr,
            ema=ema,
            anneal=anneal,
            bf16=bf16,
            rates={"text_encoder": 0.1},
        )


@app.command()
def export(
    folder: Folder,
    to: Annotated[Path, typer.Option(help="Folder of the pipeline to write.")],
) -> None:
    """Writes the averaged weights as a half-precision pipeline for `from_pretrained`."""
    tokenizer = picture.build_tokenizer()
    unet, text_encoder = picture.build_unet(), picture.build_text_encoder(tokenizer)
    load_model(unet, folder / "denoiser" / "ema-unet.safetensors")
    load_model(text_encoder, folder / "denoiser" / "ema-text_encoder.safetensors")
    model = load_autoencoder(folder)
    typer.echo(f"autoencoder: {autoencoder_psnr(copy.deepcopy(model).half().float()):.2f} dB")
    pipe = picture.assemble(model, unet, text_encoder, tokenizer)
    save(pipe, to)


if __name__ == "__main__":
    app()
