"""One denoiser call that computes some tokens: what it takes, what it keeps, what it puts back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .layouts import Layout
from .positions import rotary_rows
from .rows import put, take, turned


@dataclass
class Branch:
    """What one branch of one denoiser keeps from call to call.

    Attributes:
        attention: keys and values (B, S, H, D) of every token, by attention module.
        output: what the denoiser returned last, of every token.
        tokens: length of the stream that is gathered.
        lengths: of a merged stream, the text tokens of every sample (B,).
        rows: numbers of the samples it is of, or of the rows of a batch with both branches.
        since: the step that computed all tokens last.
    """

    attention: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    output: Tensor | None = None
    tokens: int = 0
    lengths: Tensor | None = None
    rows: tuple[int, ...] = ()
    since: int = -1

    def of(self, rows: tuple[int, ...]) -> Branch | None:
        """The same of some of its rows; None if it lacks one, or their stream is a shorter one."""
        if rows == self.rows:
            return self
        if not set(rows) <= set(self.rows) or self.output is None:
            return None
        at = torch.tensor([self.rows.index(row) for row in rows], device=self.output.device)
        lengths = None if self.lengths is None else self.lengths[at]
        if lengths is not None and self.lengths is not None and lengths.max() < self.lengths.max():
            return None
        pairs = {path: (k[at], v[at]) for path, (k, v) in self.attention.items()}
        return Branch(pairs, self.output[at], self.tokens, lengths, rows, self.since)

    def keep(self, path: str, k: Tensor, v: Tensor) -> None:
        """Keep copies of keys and values of all tokens."""
        old = self.attention.get(path)
        if old is not None and old[0].shape == k.shape and old[0].dtype == k.dtype:
            old[0].copy_(k)
            old[1].copy_(v)
        else:
            form = torch.contiguous_format
            self.attention[path] = k.clone(memory_format=form), v.clone(memory_format=form)

    def bytes(self) -> int:
        held = [t for pair in self.attention.values() for t in pair]
        return sum(t.nbytes for t in [*held, *([] if self.output is None else [self.output])])


class Partial:
    """The tokens one call computes.

    Args:
        active: indices (B or 1, k) of the tokens of the latents.
        count: tokens of the latents.
        tokens: length of the stream; what goes beyond the latents (pictures to be edited) or,
            in a merged stream, is text, is computed too.
        lengths: of a merged stream, text tokens per row (B,).
    """

    def __init__(
        self,
        layout: Layout,
        active: Tensor,
        count: int,
        tokens: int,
        lengths: Tensor | None = None,
    ) -> None:
        self.layout, self.tokens = layout, tokens
        self.index = merged(active, count, tokens, lengths) if layout.merged else active
        if not layout.merged and tokens > count:
            beyond = torch.arange(count, tokens, device=active.device)
            self.index = torch.cat([active, beyond.expand(len(active), -1)], dim=1)
        self.turn: tuple[Tensor, Tensor] | None = None
        self._arguments: dict[int, Any] = {}
        self._kept_alive: list[Any] = []
        self._keys: dict[int, Tensor] = {}

    @property
    def computed(self) -> int:
        """Rows of the stream that are computed."""
        return self.index.shape[1]

    def rows(self, values: Tensor) -> Tensor:
        """Of a stream, or anything (B, S, ...) laid out like it, the rows that are computed."""
        return take(values, self.index)

    def whole(self, rows: Tensor) -> Tensor:
        """A stream of full length that holds `rows`, and zeros elsewhere."""
        full = rows.new_zeros(len(rows), self.tokens, *rows.shape[2:])
        put(full, self.index, rows)
        return full

    def rotary(self, value: Any, text: int) -> Any:
        """The rotary argument of a block for the rows that are computed, made once per call."""
        if id(value) not in self._arguments:
            self._kept_alive.append(value)  # so that no other object gets its id
            made, turn = rotary_rows(self.layout, value, self.index, text)
            self._arguments[id(value)] = made
            self.turn = turn if turn is not None else self.turn
        return self._arguments[id(value)]

    def attend(
        self, kept: Branch, path: str, q: Tensor, k: Tensor, v: Tensor
    ) -> tuple[Tensor, ...]:
        """Queries of computed tokens and text; keys and values of all, those computed renewed."""
        keys, values = kept.attention[path]
        if self.turn is not None:
            q, k = self._turned(q), self._turned(k)
        index = self._key_rows(keys.shape[1])
        put(keys, index, k)
        put(values, index, v)
        return q, keys, values

    def _turned(self, rows: Tensor) -> Tensor:
        assert self.turn is not None
        cos, sin = self.turn
        text = rows.shape[1] - self.computed
        if self.layout.text == "first":
            return torch.cat([rows[:, :text], turned(rows[:, text:], cos, sin)], dim=1)
        image, words = rows[:, : self.computed], rows[:, self.computed :]
        return torch.cat([turned(image, cos, sin), words], dim=1)

    def _key_rows(self, length: int) -> Tensor:
        """Where the computed rows of an attention over `length` keys belong."""
        if length not in self._keys:
            text = length - self.tokens
            words = torch.arange(text, device=self.index.device).expand(len(self.index), -1)
            if self.layout.text == "first":
                found = torch.cat([words, self.index + text], dim=1)
            else:
                found = torch.cat([self.index, words + self.tokens], dim=1)
            self._keys[length] = found if text else self.index
        return self._keys[length]


def merged(active: Tensor, count: int, tokens: int, lengths: Tensor | None) -> Tensor:
    """Rows (B, tokens - count + k) of a stream: text, then `active` image tokens, then padding.

    Args:
        active: (B or 1, k) of `count` image tokens.
        lengths: text tokens of every row, (B,).
    """
    assert lengths is not None
    batch, text = len(lengths), tokens - count
    words = torch.arange(text, device=active.device).expand(batch, -1)
    padding = torch.where(words < lengths[:, None], words, words + count)
    return torch.cat([padding, active + lengths[:, None]], dim=1).sort(dim=1).values
