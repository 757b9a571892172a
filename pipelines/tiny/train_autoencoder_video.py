"""Trains the video autoencoder of ``shapes-t2v``: 17×64×64 pixels to 16×5×8×8 latents.

    python -m accel.pipelines.tiny.train_autoencoder_video --folder runs/t2v-autoencoder

Short clips first (5 frames), then whole ones; resumable at any moment by running it again. Ends by
measuring the mean and deviation of every latent channel and writing ``folder/vae`` in the format
of ``AutoencoderKLWan.from_pretrained``.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import typer
from diffusers import AutoencoderKLWan
from safetensors.torch import load_model
from torch import Tensor

from .loop import fit
from .scenes import render, sample_scene

FRAMES = 17
KL_WEIGHT = 5e-4
CONFIG = {
    "base_dim": 16,
    "decoder_base_dim": 24,
    "z_dim": 16,
    "dim_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [True, True],
    "is_residual": True,
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
    "scale_factor_temporal": 4,
    "scale_factor_spatial": 8,
    "latents_mean": [0.0] * 16,
    "latents_std": [1.0] * 16,
}


def clips(seed: int, batch_size: int, frames: int) -> Iterator[Tensor]:
    """Endless batches of training clips, (batch_size, 3, frames, 64, 64) in [-1, 1]."""
    rng = np.random.default_rng(seed)
    while True:
        batch = []
        for _ in range(batch_size):
            start = int(rng.integers(0, FRAMES - frames + 1))
            batch.append(render(sample_scene(rng), FRAMES)[start : start + frames])
        yield torch.from_numpy(np.stack(batch)).transpose(1, 2) * 2 - 1


def reconstruction_loss(vae: AutoencoderKLWan, clip: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """L1 + L2 + a little KL of one batch of clips in [-1, 1]; logs the PSNR in dB as well."""
    posterior = vae.encode(clip).latent_dist
    out = vae.decode(posterior.sample()).sample.float()
    squared = F.mse_loss(out, clip)
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    loss = F.l1_loss(out, clip) + squared + KL_WEIGHT * kl
    psnr = -10 * torch.log10(squared.detach().clamp_min(1e-10) / 4)
    return loss, {"psnr": psnr, "kl": kl.detach()}


@torch.no_grad()
def latent_statistics(vae: AutoencoderKLWan, scenes: int = 256) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per latent channel over training scenes."""
    stream = clips(seed=2**20, batch_size=16, frames=FRAMES)
    modes = [vae.encode(next(stream)).latent_dist.mode() for _ in range(scenes // 16)]
    latents = torch.cat(modes).transpose(0, 1).flatten(1)
    return latents.mean(1).tolist(), latents.std(1).tolist()


def main(
    folder: Path = typer.Option(..., help="Where state, log and result go."),
    short: int = typer.Option(12_000, help="Samples of 5 frames to begin with."),
    samples: int = typer.Option(27_000, help="Samples in all; the last 40 % anneal."),
    batch_size: int = 8,
    lr: float = 2e-3,
    bf16: bool = True,
) -> None:
    """Train, or go on training, and write the finished autoencoder to FOLDER/vae."""
    torch.manual_seed(0)
    vae = AutoencoderKLWan(**CONFIG)
    run = partial(
        fit,
        {"vae": vae},
        partial(reconstruction_loss, vae),
        folder=folder,
        batch_size=batch_size,
        lr=lr,
        ema=0.998,
        bf16=bf16,
    )
    run(partial(clips, batch_size=batch_size, frames=5), samples=short, anneal=False)
    run(partial(clips, batch_size=batch_size, frames=FRAMES), samples=samples, anneal=True)
    final = AutoencoderKLWan(**CONFIG)
    load_model(final, str(folder / "ema-vae.safetensors"))
    mean, std = latent_statistics(final)
    final.register_to_config(latents_mean=mean, latents_std=std)
    final.save_pretrained(folder / "vae")


if __name__ == "__main__":
    typer.run(main)
