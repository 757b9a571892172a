"""Tiny tokenizers and text encoders with random weights, made without any file or hub."""

import string
from typing import Any

import torch
from diffusers import DiffusionPipeline
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

WIDTH = 16  # of every text encoder
SPECIAL = ("<pad>", "</s>", "<unk>", "<s>")
COLOURS = ("red", "green", "blue", "yellow", "white", "black")
SHAPES = ("circle", "square", "triangle", "cat", "dog")
REST = ("a", "moving", "left", "right", "up", "down", "on", "dark", "light", "background")
CHARACTERS = string.ascii_lowercase + string.digits + string.punctuation
VOCABULARY = {
    token: index
    for index, token in enumerate(
        dict.fromkeys(
            [*SPECIAL, *COLOURS, *SHAPES, *REST, *CHARACTERS, *("##" + c for c in CHARACTERS)]
        )
    )
}


def tokenizer(max_length: int, clip: bool = False) -> PreTrainedTokenizerFast:
    """Whole words where known, else characters, so that any two prompts differ.

    T5 style appends `</s>` and pads with `<pad>`; CLIP style puts `<s>` in front too and pads with
    `</s>`.
    """
    inner = Tokenizer(models.WordPiece(VOCABULARY, unk_token="<unk>"))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if clip else "$A </s>",
        special_tokens=[(token, VOCABULARY[token]) for token in ("<s>", "</s>")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>" if clip else "<pad>",
        model_max_length=max_length,
    )


def t5(width: int = WIDTH) -> T5EncoderModel:
    return T5EncoderModel(T5Config(**_t5_sizes(width)))


def umt5() -> UMT5EncoderModel:
    return UMT5EncoderModel(UMT5Config(**_t5_sizes(WIDTH)))


def llama(layers: int = 3) -> LlamaModel:
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=2,
        bos_token_id=VOCABULARY["<s>"],
        eos_token_id=VOCABULARY["</s>"],
        pad_token_id=VOCABULARY["<pad>"],
    )
    return LlamaModel(config)


def clip(projection: bool = False, layers: int = 2) -> CLIPTextModel | CLIPTextModelWithProjection:
    """A CLIP text encoder for 77 tokens; pooled at the first `</s>`."""
    config = CLIPTextConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=VOCABULARY["<s>"],
        eos_token_id=VOCABULARY["</s>"],
        pad_token_id=VOCABULARY["</s>"],
    )
    return CLIPTextModelWithProjection(config) if projection else CLIPTextModel(config)


@torch.no_grad()
def embeddings(
    pipe: DiffusionPipeline, prompts: list[str], negative: list[str] | None, mask: bool = False
) -> dict[str, Any]:
    """What to pass for the prompts to pipelines that clean or wrap strings in their own way.

    `mask` adds the masks, else what pads is zero.
    """
    arguments: dict[str, Any] = {}
    for key, texts in {
        "prompt": prompts,
        "negative_prompt": negative or [""] * len(prompts),
    }.items():
        tokens = pipe.tokenizer(
            texts, padding="max_length", max_length=16, truncation=True, return_tensors="pt"
        )
        hidden = pipe.text_encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
        arguments[key] = None
        if mask:
            arguments |= {f"{key}_embeds": hidden, f"{key}_embeds_mask": tokens.attention_mask}
        else:
            arguments[f"{key}_embeds"] = hidden * tokens.attention_mask[..., None]
    return arguments


def _t5_sizes(width: int) -> dict:
    return {
        "vocab_size": len(VOCABULARY),
        "d_model": width,
        "d_kv": width // 2,
        "d_ff": 2 * width,
        "num_layers": 1,
        "num_heads": 2,
        "pad_token_id": VOCABULARY["<pad>"],
        "eos_token_id": VOCABULARY["</s>"],
        "dropout_rate": 0.0,
        "is_encoder_decoder": False,
    }
