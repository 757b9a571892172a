"""Clips of training scenes as latents and token ids, encoded once and kept on disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerFast

from .binding import places
from .loop import SEGMENT
from .scenes import CANVAS, Scene, caption, render, sample_scenes
from .train_autoencoder_video import FRAMES, latest
from .words import TOKENS, tokenizer

SHARD = 512
DROPPED = 0.1
"""Share of captions replaced by the empty one, for guidance."""


class Latents:
    """Normalised latents and token ids of training scenes, encoded once and kept on disk."""

    def __init__(
        self,
        folder: Path,
        autoencoder: Path,
        scenes: int,
        pairs: int = 0,
        size: int = CANVAS,
        length: int = FRAMES,
    ) -> None:
        """Clips of `length` frames of `size` pixels; of `pairs` more scenes each holds two."""
        usual = (size, length) == (CANVAS, FRAMES)
        folder = folder if usual else folder / f"{size}px-{length}frames"
        shards = [folder / f"{index:04d}.safetensors" for index in range(scenes // SHARD)]
        shards += [folder / f"pairs-{index:04d}.safetensors" for index in range(pairs // SHARD)]
        missing = [path for path in shards if not path.exists()]
        if missing:
            folder.mkdir(parents=True, exist_ok=True)
            vae = latest(autoencoder)
            vae.to("cuda" if torch.cuda.is_available() else "cpu")
            for path in tqdm(missing, unit="shard"):
                partly = path.with_suffix(".partial")
                kind, _, index = path.stem.rpartition("-")
                clips = {"pairs": kind == "pairs", "size": size, "length": length}
                made = encode(vae, tokenizer(), int(index), SHARD, **clips)
                save_file(made, str(partly))
                partly.replace(path)
        held = [load_file(path) for path in shards]
        self.latents = torch.cat([shard["latents"] for shard in held])
        self.tokens = torch.cat([shard["tokens"] for shard in held]).long()
        self.places = torch.stack(
            [
                places(scene, self.latents.shape[2], size)
                for path in shards
                for scene in drawn(int(path.stem[-4:]), SHARD, path.stem.startswith("pairs"))
            ]
        )

    def batches(
        self, seed: int, batch_size: int, frames: int, emphasised: tuple[float, int, int]
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Endless (latents (B, C, frames, h, w), token ids (B, TOKENS), emphasis (B,), places).

        `emphasised` holds the emphasis and the numbers of samples between which it is in force;
        `fit` tells by the seed how many samples were seen.
        """
        emphasis, begin, end = emphasised
        seen = seed * SEGMENT * batch_size
        weight = torch.full((batch_size,), emphasis if begin <= seen < end else 1.0)
        rng = np.random.default_rng(seed)
        empty = torch.tensor(tokenizer()("", padding="max_length", max_length=TOKENS).input_ids)
        while True:
            rows = torch.from_numpy(rng.integers(0, len(self.latents), batch_size))
            dropped = torch.from_numpy(rng.random(batch_size) < DROPPED)
            tokens = torch.where(dropped[:, None], empty, self.tokens[rows])
            latents, labels = self.latents[rows, :, :frames].float(), self.places[rows, :, :frames]
            yield latents, tokens, weight, labels


def drawn(seed: int, count: int, pairs: bool) -> list[Scene]:
    """The `count` training scenes of a shard."""
    rng = np.random.default_rng((seed, 18 if pairs else 17))
    return sample_scenes(rng, count, pairs=pairs)


@torch.no_grad()
def encode(
    vae: AutoencoderKLWan,
    words: PreTrainedTokenizerFast,
    seed: int,
    count: int,
    pairs: bool = False,
    size: int = CANVAS,
    length: int = FRAMES,
) -> dict[str, Tensor]:
    """Half-precision latents and token ids of `count` training scenes drawn with `seed`."""
    shape = (1, -1, 1, 1, 1)
    mean = torch.tensor(vae.config.latents_mean, device=vae.device).view(shape)
    std = torch.tensor(vae.config.latents_std, device=vae.device).view(shape)
    at_once = max(1, 16 * CANVAS**2 * FRAMES // (size**2 * length))
    latents, scenes = [], drawn(seed, count, pairs)
    for part in (scenes[i : i + at_once] for i in range(0, count, at_once)):
        frames = np.stack([render(scene, length, size) for scene in part])
        clip = torch.from_numpy(frames).transpose(1, 2).to(vae.device) * 2 - 1
        with torch.autocast(vae.device.type, torch.bfloat16):
            mode = vae.encode(clip).latent_dist.mode().float()
        latents.append(((mode - mean) / std).half().cpu())
    captions = [caption(scene) for scene in scenes]
    tokens = words(captions, padding="max_length", max_length=TOKENS, return_tensors="pt")
    return {"latents": torch.cat(latents), "tokens": tokens.input_ids.short()}
