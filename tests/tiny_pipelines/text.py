"""Tiny tokenizers and text encoders with random weights, made without any file or hub."""

import string

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
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


def t5() -> T5EncoderModel:
    return T5EncoderModel(T5Config(**_t5_sizes()))


def umt5() -> UMT5EncoderModel:
    return UMT5EncoderModel(UMT5Config(**_t5_sizes()))


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


def _t5_sizes() -> dict:
    return {
        "vocab_size": len(VOCABULARY),
        "d_model": WIDTH,
        "d_kv": WIDTH // 2,
        "d_ff": 2 * WIDTH,
        "num_layers": 1,
        "num_heads": 2,
        "pad_token_id": VOCABULARY["<pad>"],
        "eos_token_id": VOCABULARY["</s>"],
        "dropout_rate": 0.0,
        "is_encoder_decoder": False,
    }
