"""The architecture of `shapes-mmdit`: a Stable Diffusion 3 pipeline small enough to ship."""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from .picture import TOKENS

SHIFT = 3.0
"""Of the noise levels, in training and in the sampler that ships; that of Stable Diffusion 3."""
TEXT_WIDTH = 64
"""Of each of the two text encoders."""
TRANSFORMER = {
    "sample_size": 16,
    "patch_size": 1,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 8,
    "attention_head_dim": 32,
    "num_attention_heads": 4,
    "joint_attention_dim": 2 * TEXT_WIDTH,
    "caption_projection_dim": 128,
    "pooled_projection_dim": 2 * TEXT_WIDTH,
    "pos_embed_max_size": 32,
    "qk_norm": "rms_norm",
}


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """Token numbers (B, 32) to states (B, 32, 64), of which the pipeline takes those before the
    last layer, and a pooled vector (B, 64)."""
    model = CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=2,
            max_position_embeddings=TOKENS,
            projection_dim=TEXT_WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    # as for shapes-t2i: the usual 0.02 drowns words in what attention adds to them
    nn.init.normal_(model.get_input_embeddings().weight, std=0.5)
    return model


def build_transformer(**changes: int) -> SD3Transformer2DModel:
    """Latents (B, 4, h, w), h and w up to 32, times (B,), text (B, 64, 128) and pooled text
    (B, 128) to velocities (B, 4, h, w); `changes` are entries of :data:`TRANSFORMER`.

    Every block begins as the identity, and the output as zero (Peebles and Xie 2023,
    arXiv:2212.09748, section 3.2).
    """
    model = SD3Transformer2DModel(**(TRANSFORMER | changes))
    gates = [m.linear for b in model.transformer_blocks for m in (b.norm1, b.norm1_context)]
    for layer in (*gates, model.norm_out.linear, model.proj_out):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return model


def embed(encoders: nn.ModuleList, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Token numbers (B, 32) to text (B, 64, 128) and pooled text (B, 128), as the pipeline does
    without its third encoder, whose 32 tokens are zeros."""
    told = [encoder(tokens, output_hidden_states=True) for encoder in encoders]
    states = torch.cat([one.hidden_states[-2] for one in told], dim=-1)
    pooled = torch.cat([one.text_embeds for one in told], dim=-1)
    return pad(states, (0, 0, 0, TOKENS)), pooled


def assemble(
    autoencoder: AutoencoderKL,
    transformer: SD3Transformer2DModel,
    encoders: nn.ModuleList,
    tokenizer: CLIPTokenizer,
) -> StableDiffusion3Pipeline:
    """The pipeline around its trained parts: flow Euler with shift 3."""
    autoencoder.register_to_config(shift_factor=0.0)
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        vae=autoencoder,
        text_encoder=encoders[0],
        tokenizer=tokenizer,
        text_encoder_2=encoders[1],
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )
