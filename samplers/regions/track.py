"""Where tokens that are left out were heading: as last computed, or along a line through two."""

from __future__ import annotations

import torch
from torch import Tensor


class Track:
    """The last computed direction of every token, and how it changed since the one before.

    Args:
        order: 0 holds a direction; 1 goes on along the line through a token's last two, over the
            steps between, as a Taylor forecast of first order does for whole steps.
    """

    def __init__(self, order: int) -> None:
        self._order = order
        self._last: Tensor | None = None
        self._slope: Tensor | None = None
        self._index: Tensor | None = None

    @property
    def known(self) -> bool:
        """Whether a step was noted."""
        return self._last is not None

    def bytes(self) -> int:
        kept = (self._last, self._slope, self._index)
        return sum(tensor.nbytes for tensor in kept if tensor is not None)

    def add(self, direction: Tensor, index: int, computed: Tensor | None) -> None:
        """Note the directions of step `index`.

        Args:
            direction: laid out like the latents.
            computed: a mask that broadcasts to it; None for all.
        """
        direction = direction.detach().clone()
        now = direction.new_full((1,) * direction.ndim, index, dtype=torch.float32)
        if self._last is None or self._index is None:
            self._last, self._index = direction, now
            return
        if self._order:
            slope = ((direction - self._last) / (index - self._index)).to(direction.dtype)
            before = torch.zeros_like(slope) if self._slope is None else self._slope
            self._slope = _where(computed, slope, before)
            self._index = _where(computed, now, self._index)
        self._last = _where(computed, direction, self._last)

    def at(self, index: int) -> Tensor:
        """The directions at step `index`, of all tokens."""
        assert self._last is not None and self._index is not None
        if self._slope is None:
            return self._last
        return (self._last + self._slope * (index - self._index)).to(self._last.dtype)


def _where(computed: Tensor | None, new: Tensor, old: Tensor) -> Tensor:
    return new if computed is None else torch.where(computed, new, old)
