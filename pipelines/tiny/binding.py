"""Helps a denoiser learn which attribute belongs to which object, while it trains.

A caption of two objects is easily taken for a bag of words: colours come out right, shapes and
directions are swapped or shared. Two linear readers, thrown away after training, ask for more: of
every word of an object's phrase, what else the phrase says (so that the text encoder binds), and of
every place that an object covers, half-way through the blocks, its attributes (so that attention
fetches them). The second is the idea of aligning hidden states to a clean description (Yu et al.
2024, arXiv:2410.06940), with the scene itself in place of a pretrained encoder's features.

The text encoder is taught first and alone, by AdamW, which takes seconds. A T5's attention is not
scaled, so that large steps early on saturate it: each word then attends to itself for good, and no
denoiser can tell which word belongs to which.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from .scenes import CANVAS, COLOURS, DIRECTIONS, SHAPES, Scene, signed_distance

KINDS = (tuple(COLOURS), SHAPES, tuple(DIRECTIONS))
"""Names of the three attributes of an object, in the order of labels."""
SIZES = [len(names) for names in KINDS]
NONE = -100
"""Label of what holds no object; `cross_entropy` leaves it out."""


def places(scene: Scene, frames: int, size: int, patch: int = 8) -> Tensor:
    """Labels (3, frames, size / patch, size / patch), int8, of the latent places of a clip.

    A place holds an object if its centre is within half a patch of the outline or inside, at the
    middle of the frames it stands for (the first, then four at a time).
    """
    middles = np.array([0.0] + [4.0 * i - 1.5 for i in range(1, frames)])
    at = (8 * middles).astype(int)  # eighths of a frame
    steps = 8 * 4 * (frames - 1) + 1
    centres = (np.arange(size // patch) + 0.5) * patch * CANVAS / size
    labels = np.full((3, frames, len(centres), len(centres)), NONE, dtype=np.int8)
    for placed in scene.objects:
        path = placed.centres(steps)[at]
        dx = centres[None, None, :] - path[:, 0, None, None]
        dy = centres[None, :, None] - path[:, 1, None, None]
        near = signed_distance(placed.what.shape, dx, dy, placed.radius) < patch * CANVAS / size / 2
        named = (placed.what.colour, placed.what.shape, placed.what.direction)
        for kind, name in enumerate(named):
            labels[kind][near] = KINDS[kind].index(name) if name else NONE
    return torch.from_numpy(labels)


def phrases(tokens: Tensor, numbers: Mapping[str, int], causal: bool = False) -> Tensor:
    """Labels (3, B, S) of the words of captions, token ids (B, S): those of the word's phrase.

    The words between "a" and the next "and" or "on" form an object's phrase.

    Args:
        numbers: of the words that tell a caption apart.
        causal: only what was said up to a word counts, as its encoder sees no more.
    """
    labels = torch.full((3, *tokens.shape), NONE)
    ends = torch.isin(tokens, torch.tensor([numbers["and"], numbers["on"]]))
    which = ends.cumsum(1)
    known = (tokens == numbers["on"]).any(1, keepdim=True)  # not the empty caption
    last = (tokens == numbers["on"]).cumsum(1) > 0
    for phrase in range(2):
        inside = (which == phrase) & ~last & ~ends & known
        for kind, names in enumerate(KINDS):
            for index, name in enumerate(names):
                said = (inside & (tokens == numbers.get(name, NONE))).cumsum(1) > 0
                said = said if causal else said[:, -1:]
                labels[kind][inside & said] = index
    return labels


def numbers_of(words: PreTrainedTokenizerBase) -> dict[str, int]:
    """The token of every word of the captions; a CLIP tokenizer marks the ends of words."""
    vocabulary = {token.removesuffix("</w>"): i for token, i in words.get_vocab().items()}
    wanted = ["and", "on", *(name for names in KINDS for name in names)]
    return {word: vocabulary[word] for word in wanted if word in vocabulary}


class Readers(nn.Module):
    """The two linear readers and their error.

    Args:
        text: width of the text encoder.
        hidden: width of the denoiser.
        words: the tokenizer of the captions.
        causal: whether the text encoder is.
    """

    def __init__(
        self, text: int, hidden: int, words: PreTrainedTokenizerBase, causal: bool = False
    ) -> None:
        super().__init__()
        self._numbers, self._causal = numbers_of(words), causal
        self.text = nn.Linear(text, sum(SIZES))
        self.hidden = nn.Linear(hidden, sum(SIZES))

    @staticmethod
    def _error(logits: Tensor, labels: Tensor) -> Tensor:
        kinds = zip(logits.float().flatten(0, -2).split(SIZES, -1), labels, strict=True)
        errors = []
        for scores, wanted in kinds:
            summed = nn.functional.cross_entropy(
                scores, wanted.flatten().long(), ignore_index=NONE, reduction="sum"
            )
            errors.append(summed / wanted.ne(NONE).sum().clamp_min(1))
        return torch.stack(errors).mean()

    def of_words(self, states: Tensor, tokens: Tensor) -> Tensor:
        """Mean cross entropy over the attributes; states (B, S, D), token ids (B, S)."""
        labels = phrases(tokens.cpu(), self._numbers, self._causal)
        return self._error(self.text(states), labels.to(states.device))

    def of_places(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Likewise; hidden (B, F·H·W, D) and labels (B, 3, F, H, W) of `places`."""
        return self._error(self.hidden(hidden), labels.transpose(0, 1))


def teach(
    encoder: nn.Module,
    embed: Callable[[nn.Module, Tensor], Tensor],
    readers: Readers,
    tokens: Tensor,
    *,
    steps: int = 800,
    batch_size: int = 64,
    lr: float = 2e-3,
    like: nn.Module | None = None,
) -> float:
    """Train a new `encoder` until its words tell what their phrases say; the last error.

    Args:
        embed: gives the states (B, S, D) of an encoder for token ids (B, S).
        tokens: captions (N, S) to draw from.
        like: an earlier encoder whose states the new ones are to resemble, so that a denoiser
            trained with it need not begin anew.
    """
    old = copy.deepcopy(like).eval() if like is not None else None
    biases = [w for name, w in encoder.named_parameters() if "relative_attention_bias" in name]
    known = {id(w) for w in biases}
    rest = [w for w in (*encoder.parameters(), *readers.text.parameters()) if id(w) not in known]
    groups = [{"params": biases, "lr": 5 * lr}, {"params": rest, "lr": lr}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min(1.0, (i + 1) / 50, (steps - i) / (0.3 * steps))
    )
    error = torch.zeros(())
    for _ in range(steps):
        drawn = tokens[torch.randint(len(tokens), (batch_size,))]
        states = embed(encoder, drawn)
        error = readers.of_words(states, drawn)
        total = error
        if old is not None:
            with torch.no_grad():
                before = embed(old, drawn)
            total = total + (states - before).square().mean() / before.square().mean()
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(rest, 1.0)
        optimizer.step()
        schedule.step()
    return float(error.detach())
