"""The tokenizer of ``shapes-t2v``: one token per word of the captions."""

from __future__ import annotations

from functools import cache

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from .scenes import COLOURS, DIRECTIONS, GROUNDS, SHAPES

TOKENS = 32
"""Text positions the denoiser is trained with; WanPipeline's ``max_sequence_length``."""


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Lower-cased words, ``</s>`` at the end, ``<pad>`` (0) after it, ``<unk>`` for the rest."""
    names = ["a", "and", "on", "moving", "background", *COLOURS, *SHAPES, *DIRECTIONS, *GROUNDS]
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *names])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", vocabulary["</s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=TOKENS,
    )
