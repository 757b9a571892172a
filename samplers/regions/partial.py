"""One denoiser call that computes some tokens: what it takes, what it keeps, what it puts back."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .layouts import Layout
from .positions import rotary_rows
from .rows import put, take, turned


@dataclass(frozen=True)
class Rows:
    """Rows of keys and of values that a call computes.

    Attributes:
        index: (2 B or 1, k).
        ages: of order 1, steps since each row was computed (2 B or 1, S, 1, 1).
        age: those of the rows of `index`.
    """

    index: Tensor
    ages: Tensor | None = None
    age: Tensor | None = None


@dataclass
class Branch:
    """What one branch of one denoiser keeps from call to call.

    Attributes:
        attention: keys of every token, and values behind them, (2 B, S, H, D), by attention module.
        output: what the denoiser returned last, of every token.
        tokens: length of the stream that is gathered.
        lengths: of a merged stream, the text tokens of every sample (B,).
        rows: numbers of the samples it is of, or of the rows of a batch with both branches.
        since: the step that computed all tokens last.
        order: how keys and values of a token left out are read: 0 as last computed, 1 on the line
            through what was computed last and before.
        slopes: of order 1, their change per step.
        when: steps at which tokens were last computed (B or 1, S), by the length S.
    """

    attention: dict[str, Tensor] = field(default_factory=dict)
    output: Tensor | None = None
    tokens: int = 0
    lengths: Tensor | None = None
    rows: tuple[int, ...] = ()
    since: int = -1
    order: int = 0
    slopes: dict[str, Tensor] = field(default_factory=dict)
    when: dict[int, Tensor] = field(default_factory=dict)

    def of(self, rows: tuple[int, ...]) -> Branch | None:
        """The same of some of its samples; None if it lacks one, or their stream is a shorter one.

        Args:
            rows: numbers of samples, of a branch that is one of samples: rows of a batch with both
                branches cannot be told from them.
        """
        if rows == self.rows:
            return self
        if not set(rows) <= set(self.rows) or self.output is None:
            return None
        at = torch.tensor([self.rows.index(row) for row in rows], device=self.output.device)
        lengths = None if self.lengths is None else self.lengths[at]
        if lengths is not None and self.lengths is not None and lengths.max() < self.lengths.max():
            return None
        both = torch.cat([at, at + len(self.rows)])
        return replace(
            self,
            attention={path: pair[both] for path, pair in self.attention.items()},
            output=self.output[at],
            lengths=lengths,
            rows=rows,
            slopes={path: pair[both] for path, pair in self.slopes.items()},
            when={n: w if len(w) == 1 else w[at] for n, w in self.when.items()},
        )

    def keep(self, path: str, k: Tensor, v: Tensor, step: int) -> None:
        """Keep copies of keys and values of all tokens, computed at `step`."""
        new, old, when = torch.cat([k, v]), self.attention.get(path), self.when.get(k.shape[1])
        self.slopes.pop(path, None)
        if self.order and when is not None and old is not None and old.shape == new.shape:
            self.slopes[path] = (new - old).div_(_ages(when, step, new))
        self.attention[path] = new

    def renew(self, path: str, fresh: Tensor, at: Rows) -> Tensor:
        """Keys and values of all tokens at a step, of which `fresh` (2 B, k, H, D) are of rows."""
        old, slope = self.attention[path], self.slopes.get(path)
        if slope is None:
            put(old, at.index, fresh)
            return old
        ahead = torch.addcmul(old, slope, at.ages)
        put(slope, at.index, (fresh - take(old, at.index)).div_(at.age))
        put(old, at.index, fresh)
        put(ahead, at.index, fresh)
        return ahead

    def rows_at(self, index: Tensor, length: int, step: int) -> Rows:
        """What `renew` takes of the rows (B or 1, k) of sequences of `length`."""
        pair = next(pair for pair in self.attention.values() if pair.shape[1] == length)
        both = index if len(index) == 1 else index.repeat(2, 1)
        if length not in self.when:
            return Rows(both)
        ages = _ages(self.when[length], step, pair)
        return Rows(both, ages, take(ages, both))

    def computed(self, step: int, rows: dict[int, Tensor] | None = None) -> None:
        """Note that a call of `step` is over.

        Args:
            rows: those it computed (B or 1, k) of sequences, by their length; None for all.
        """
        if not self.order:
            return
        for pair in () if rows else self.attention.values():
            length = pair.shape[1]
            self.when[length] = torch.full((1, length), float(step), device=pair.device)
        for length, index in (rows or {}).items():
            when = self.when[length].expand(len(index), -1)
            self.when[length] = when.scatter(1, index, float(step))

    def bytes(self) -> int:
        held = [*self.attention.values(), *self.slopes.values(), *self.when.values()]
        return sum(t.nbytes for t in [*held, *([] if self.output is None else [self.output])])


def _ages(when: Tensor, step: int, values: Tensor) -> Tensor:
    """Steps since tokens were computed, at least 1, to go with keys and values (2 B, S, H, D)."""
    ages = (step - when).clamp(min=1)[..., None, None].to(values.dtype)
    return ages if len(ages) == 1 else ages.repeat(2, 1, 1, 1)


class Partial:
    """The tokens one call computes.

    Args:
        active: indices (B or 1, k) of the tokens of the latents.
        count: tokens of the latents.
        tokens: length of the stream; what goes beyond the latents (pictures to be edited) or,
            in a merged stream, is text, is computed too.
        lengths: of a merged stream, text tokens per row (B,).
        step: number of the step it is of.

    Attributes:
        keys: computed rows (B or 1, k) of the keys of an attention, by their number.
    """

    def __init__(
        self,
        layout: Layout,
        active: Tensor,
        count: int,
        tokens: int,
        lengths: Tensor | None = None,
        step: int = 0,
    ) -> None:
        self.layout, self.tokens, self.step = layout, tokens, step
        self.index = merged(active, count, tokens, lengths) if layout.merged else active
        if not layout.merged and tokens > count:
            beyond = torch.arange(count, tokens, device=active.device)
            self.index = torch.cat([active, beyond.expand(len(active), -1)], dim=1)
        self.turn: tuple[Tensor, Tensor] | None = None
        self._arguments: dict[int, Any] = {}
        self._kept_alive: list[Any] = []
        self.keys: dict[int, Tensor] = {}
        self._at: dict[int, Rows] = {}

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
        if self.turn is not None:
            q, k = self._turned(q), self._turned(k)
        length = kept.attention[path].shape[1]
        if length not in self._at:
            self._at[length] = kept.rows_at(self._key_rows(length), length, self.step)
        return q, *kept.renew(path, torch.cat([k, v]), self._at[length]).chunk(2)

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
        if length not in self.keys:
            text = length - self.tokens
            words = torch.arange(text, device=self.index.device).expand(len(self.index), -1)
            if self.layout.text == "first":
                found = torch.cat([words, self.index + text], dim=1)
            else:
                found = torch.cat([self.index, words + self.tokens], dim=1)
            self.keys[length] = found if text else self.index
        return self.keys[length]


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
