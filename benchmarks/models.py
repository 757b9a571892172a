"""What speed is measured on: Wan- and Flux-shaped pipelines of 16 random blocks, a random Stable
Diffusion of four levels, and the shipped models.

Text is given as embeddings and latents are the output, so a call is its denoising loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)

SEED = 0
WIDTH, TOKENS, CHANNELS = 32, 16, 8  # of the text, and of the latents


@dataclass(frozen=True)
class Subject:
    """A pipeline and how to call it.

    Attributes:
        name: family and nominal milliseconds a step on one thread.
        blocks: of each denoiser call.
        calls: denoiser calls in a step (2 where guidance is a call of its own).
        arguments: of a call of the pipeline, without the number of steps and the noise.
    """

    name: str
    pipe: Any
    blocks: int
    calls: int
    arguments: Mapping[str, Any]

    @property
    def denoiser(self) -> str:
        return "unet" if getattr(self.pipe, "unet", None) is not None else "transformer"

    def run(self, pipe: Any, steps: int, **more: Any) -> Any:
        """Latents of a call of `pipe` (this one or a twin of it), always from the same noise."""
        return pipe(
            **self.arguments,
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(SEED),
            output_type="latent",
            **more,
        )[0]


def wan(
    name: str, heads: int, size: int, inner: int, frames: int, side: int, blocks: int = 16
) -> Subject:
    """Guided text to video as Wan 2.1 ships: two calls a step, flow UniPC with shift 3.

    Args:
        heads, size: attention heads and their width.
        inner: width of the feed-forward layers.
        frames, side: of the latents.
    """
    torch.manual_seed(SEED)
    transformer = WanTransformer3DModel(
        num_attention_heads=heads,
        attention_head_dim=size,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        text_dim=WIDTH,
        freq_dim=64,
        ffn_dim=inner,
        num_layers=blocks,
        rope_max_seq_len=64,
    )
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    pipe = WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        transformer=transformer.eval(),
        scheduler=scheduler,
    )
    arguments = {
        "prompt_embeds": torch.randn(1, TOKENS, WIDTH),
        "negative_prompt_embeds": torch.randn(1, TOKENS, WIDTH),
        "latents": torch.randn(1, CHANNELS, frames, side, side),
        "height": 8 * side,
        "width": 8 * side,
        "num_frames": 4 * (frames - 1) + 1,
        "guidance_scale": 5.0,
    }
    return _quiet(Subject(name, pipe, blocks, 2, arguments))


def flux(name: str, heads: int, size: int, side: int, blocks: int = 16) -> Subject:
    """Text to image as FLUX.1-dev: one call a step, half of the blocks single, flow Euler.

    Args:
        heads, size: attention heads and their width.
        side: of the packed latents, in tokens.
    """
    torch.manual_seed(SEED)
    transformer = FluxTransformer2DModel(
        in_channels=4 * CHANNELS,
        num_layers=blocks // 2,
        num_single_layers=blocks - blocks // 2,
        attention_head_dim=size,
        num_attention_heads=heads,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(size // 2, size // 4, size // 4),
    )
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=transformer.eval(),
    )
    arguments = {
        "prompt_embeds": torch.randn(1, TOKENS, WIDTH),
        "pooled_prompt_embeds": torch.randn(1, WIDTH),
        "latents": torch.randn(1, side * side, 4 * CHANNELS),
        "height": 16 * side,
        "width": 16 * side,
        "guidance_scale": 3.5,
    }
    return _quiet(Subject(name, pipe, blocks, 1, arguments))


def sd(name: str, width: int, side: int) -> Subject:
    """Guided text to image as Stable Diffusion 1.5: four levels, both halves of guidance at once.

    Args:
        width: channels of the first level; the others have twice and four times as many.
        side: of the latents.
    """
    torch.manual_seed(SEED)
    unet = UNet2DConditionModel(
        sample_size=side,
        block_out_channels=(width, 2 * width, 4 * width, 4 * width),
        cross_attention_dim=WIDTH,
        norm_num_groups=width // 2,
    )
    pipe = StableDiffusionPipeline(
        vae=None,
        text_encoder=None,
        tokenizer=None,
        unet=unet.eval(),
        scheduler=DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    arguments = {
        "prompt_embeds": torch.randn(1, TOKENS, WIDTH),
        "negative_prompt_embeds": torch.randn(1, TOKENS, WIDTH),
        "height": 8 * side,
        "width": 8 * side,
        "guidance_scale": 7.5,
    }
    return _quiet(Subject(name, pipe, 9, 1, arguments))


def shipped(pipe: Any, name: str, side: int = 64, frames: int = 17) -> Subject:
    """One of the models that come with the package (or another version of it), guided."""
    moving = hasattr(pipe, "transformer")
    with torch.no_grad():
        length = {"max_sequence_length": 32} if moving else {}
        text, empty = pipe.encode_prompt(
            "a red circle moving left on a dark background" if moving else "a red circle",
            *(() if moving else ("cpu", 1)),
            do_classifier_free_guidance=True,
            **length,
        )
    arguments = {
        "prompt_embeds": text,
        "negative_prompt_embeds": empty,
        "height": side,
        "width": side,
        "guidance_scale": 4.0,
        **({"num_frames": frames} if moving else {}),
    }
    denoiser = pipe.transformer if moving else pipe.unet
    blocks = len(denoiser.blocks) if moving else len(denoiser.down_blocks) * 2 + 1
    return _quiet(Subject(name, pipe, blocks, 2 if moving else 1, arguments))


# sized on one core of an AMD EPYC (Zen 5), which other work slows down by up to a third
SIZES: dict[str, Callable[[], Subject]] = {
    "wan 10 ms": partial(wan, "wan 10 ms", 2, 12, 48, 1, 4),
    "wan 30 ms": partial(wan, "wan 30 ms", 4, 32, 512, 5, 8),
    "wan 200 ms": partial(wan, "wan 200 ms", 6, 32, 512, 5, 16),
    "flux 10 ms": partial(flux, "flux 10 ms", 4, 32, 4),
    "flux 30 ms": partial(flux, "flux 30 ms", 7, 32, 8),
    "flux 200 ms": partial(flux, "flux 200 ms", 8, 48, 14),
    "sd 200 ms": partial(sd, "sd 200 ms", 80, 24),
}


def _quiet(subject: Subject) -> Subject:
    subject.pipe.set_progress_bar_config(disable=True)
    return subject
