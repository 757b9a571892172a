"""Trains the video autoencoder of ``shapes-t2v``: 17×64×64 pixels to 16×5×8×8 latents.

    python -m accel.pipelines.tiny.train_autoencoder_video --folder runs/t2v-autoencoder

Encoder and decoder learn together on clips of 5, 9 and 17 frames. Then the encoder is frozen, the
mean and deviation of every latent channel are measured and ``folder/vae`` is written, in the format
of ``AutoencoderKLWan.from_pretrained``: a denoiser can train on these latents from here on. The
decoder goes on alone, on whole clips, and ``folder/vae`` is written again. Resumable at any moment
by running it again.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from diffusers import AutoencoderKLWan
from safetensors.torch import load_model
from torch import Tensor, nn
from torch.nn.functional import max_pool3d

from .loop import fit
from .muon import Muon, hidden_matrices
from .scenes import render, sample_scene

FRAMES = 17
KL_WEIGHT = 5e-4
LATENT_NOISE = 0.05
OBJECT_WEIGHT = 4.0
OUTLINE_WEIGHT = 8.0
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


def _distance(out: Tensor, clip: Tensor) -> tuple[Tensor, Tensor]:
    """L1 + L2; and the PSNR in dB.

    Objects are weighted up as they fill a tenth of the picture, and so are the pixels within two of
    an outline, since they are few and a shape is told by them.
    """
    objects = ((clip - clip[..., :1, :1]).abs().amax(1, keepdim=True) > 0.1).float()
    near = [max_pool3d(side, (1, 5, 5), 1, (0, 2, 2)) for side in (objects, 1 - objects)]
    error = out.float() - clip
    weight = 1 + OBJECT_WEIGHT * objects + OUTLINE_WEIGHT * near[0] * near[1]
    psnr = -10 * torch.log10(error.detach().square().mean().clamp_min(1e-10) / 4)
    return (weight * (error.abs() + error.square())).mean(), psnr


def reconstruction_loss(vae: AutoencoderKLWan, clip: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Reconstruction and a little KL of one batch of clips in [-1, 1]."""
    posterior = vae.encode(clip).latent_dist
    distance, psnr = _distance(vae.decode(posterior.sample()).sample, clip)
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    return distance + KL_WEIGHT * kl, {"psnr": psnr, "kl": kl.detach()}


def decoder_loss(vae: AutoencoderKLWan, clip: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Reconstruction of clips in [-1, 1] from frozen latents with a little noise added."""
    with torch.no_grad():
        latents = vae.encode(clip).latent_dist.sample()
        spread = torch.tensor(vae.config.latents_std, device=latents.device).view(1, -1, 1, 1, 1)
        latents = latents + LATENT_NOISE * spread * torch.randn_like(latents)
    distance, psnr = _distance(vae.decode(latents).sample, clip)
    return distance, {"psnr": psnr}


@torch.no_grad()
def latent_statistics(vae: AutoencoderKLWan, scenes: int = 256) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per latent channel over training scenes."""
    stream = clips(seed=2**20, batch_size=16, frames=FRAMES)
    modes = [vae.encode(next(stream)).latent_dist.mode() for _ in range(scenes // 16)]
    latents = torch.cat(modes).transpose(0, 1).flatten(1)
    return latents.mean(1).tolist(), latents.std(1).tolist()


def latest(folder: Path) -> AutoencoderKLWan:
    """The autoencoder of the run in `folder`, with the averaged decoder if that has begun."""
    vae = AutoencoderKLWan.from_pretrained(folder / "vae")
    weights = folder / "decoder" / "ema-decoder.safetensors"
    if weights.exists():
        load_model(_decoder(vae), str(weights))
    return vae.eval()


def _decoder(vae: AutoencoderKLWan) -> nn.ModuleDict:
    return nn.ModuleDict({"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv})


def main(
    folder: Path = typer.Option(..., help="Where state, logs and result go."),
    short: int = typer.Option(5_600, help="Samples of 5 frames to begin with."),
    middle: int = typer.Option(7_600, help="Samples up to the end of the 9-frame clips."),
    samples: int = typer.Option(10_800, help="Samples of encoder and decoder in all."),
    whole: int = typer.Option(8_000, help="Samples for the decoder alone."),
    batch_size: int = 4,
    lr: float = 1.5e-3,
    muon: float = typer.Option(2.0, help="Rate of the decoder's matrices, in units of lr."),
    bf16: bool = True,
) -> None:
    """Train, or go on training; the autoencoder is written to FOLDER/vae."""
    torch.manual_seed(0)
    vae = AutoencoderKLWan(**CONFIG)
    options: dict[str, Any] = {"batch_size": batch_size, "ema": 0.998, "bf16": bf16}
    result = folder / "vae"
    if not result.exists():
        loss = partial(reconstruction_loss, vae)
        for frames, budget in ((5, short), (9, middle), (FRAMES, samples)):
            stream = partial(clips, batch_size=batch_size, frames=frames)
            fit(
                {"vae": vae},
                loss,
                stream,
                folder=folder,
                samples=budget,
                lr=lr,
                anneal=False,
                **options,
            )
        vae = AutoencoderKLWan(**CONFIG)
        load_model(vae, str(folder / "ema-vae.safetensors"))
        mean, std = latent_statistics(vae)
        vae.register_to_config(latents_mean=mean, latents_std=std)
        vae.save_pretrained(result)
    vae = AutoencoderKLWan.from_pretrained(result)
    vae.encoder.requires_grad_(False)
    stream = partial(clips, batch_size=batch_size, frames=FRAMES)
    with Muon(hidden_matrices(vae.decoder), ratio=muon):
        fit(
            {"decoder": _decoder(vae)},
            partial(decoder_loss, vae),
            stream,
            folder=folder / "decoder",
            samples=whole,
            lr=lr,
            **options,
        )
    latest(folder).save_pretrained(result)


if __name__ == "__main__":
    typer.run(main)
