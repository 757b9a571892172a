"""The architecture of `shapes-t2i`: a Stable Diffusion pipeline small enough to ship."""

from __future__ import annotations

import json

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from accel.pipelines.tiny.scenes import COLOURS, GROUNDS, SHAPES

SIZE = 64
"""Side of a picture in pixels."""
TOKENS = 32
"""Tokens of a caption, padding included."""


def build_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer (lower case, byte-level BPE) in which every caption word is one token and
    any other word falls apart into letters."""
    words = " ".join(("a", "and", "on", "background", *COLOURS, *SHAPES, *GROUNDS))
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        min_frequency=0,
        show_progress=False,
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        end_of_word_suffix="</w>",
    )
    bpe.train_from_iterator([words], trainer)
    vocabulary = bpe.get_vocab()
    # the trainer numbers these in another order each time; the shipped weights know this one
    final = [token for token in vocabulary if len(token) == len("x</w>") and token[1:] == "</w>"]
    numbers = sorted(vocabulary[token] for token in final)
    vocabulary |= dict(zip(sorted(final, reverse=True), numbers, strict=True))
    for letter in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary.setdefault(letter + "</w>", len(vocabulary))
    return CLIPTokenizer(vocab=vocabulary, merges=_merges(bpe), model_max_length=TOKENS)


def _merges(bpe: Tokenizer) -> list[tuple[str, str]]:
    pairs = json.loads(bpe.to_str())["model"]["merges"]
    return [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in pairs]


def build_autoencoder() -> AutoencoderKL:
    """Pictures (B, 3, 64, 64) in [-1, 1] to latents (B, 4, 16, 16) and back."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIZE,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Token numbers (B, 32) to states (B, 32, 128)."""
    model = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            projection_dim=128,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    # the usual 0.02 drowns words in what attention adds to them, and colours are never told apart
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=0.5)
    return model


def build_unet() -> UNet2DConditionModel:
    """Latents (B, 4, 16, 16), times (B,) and text (B, 32, 128) to velocities (B, 4, 16, 16).

    As in SDXL the widest level has no attention: half the time of a step on a CPU.
    """
    return UNet2DConditionModel(
        sample_size=SIZE // 4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(64, 96, 112),
        layers_per_block=2,
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def build_scheduler() -> DDIMScheduler:
    """DDIM with the betas of Stable Diffusion, for a model that predicts velocities."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        steps_offset=1,
        clip_sample=False,
        set_alpha_to_one=False,
    )


def assemble(
    autoencoder: AutoencoderKL,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
) -> StableDiffusionPipeline:
    """The pipeline around its trained parts."""
    return StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@torch.no_grad()
def standardise_latents(autoencoder: AutoencoderKL, pictures: Tensor) -> None:
    """Moves and scales each latent channel to mean 0 and deviation 1 over `pictures` (B, 3, H, W),
    by folding the change into the two 1×1 convolutions around the latents: same pictures out."""
    moments = torch.cat([autoencoder.encode(part).latent_dist.mean for part in pictures.split(64)])
    mean, deviation = moments.mean((0, 2, 3)), moments.std((0, 2, 3))
    into, out = autoencoder.quant_conv, autoencoder.post_quant_conv
    channels = len(mean)
    out.bias += out.weight[:, :, 0, 0] @ mean
    out.weight *= deviation[None, :, None, None]
    into.weight[:channels] /= deviation[:, None, None, None]
    into.bias[:channels] = (into.bias[:channels] - mean) / deviation
    into.bias[channels:] -= 2 * deviation.log()
