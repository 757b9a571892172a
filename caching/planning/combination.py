"""The state after a step as one linear combination, in one pass over what is kept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .rule import Rule


class Combination:
    """Runs a rule for some samples; keeps as many outputs as it ever weighs at once, in a ring.

    Attributes:
        rule: its nodes are the steps whose outputs are kept.
        rows: which of the batch's samples; None for all.
        length: outputs kept.
    """

    def __init__(self, rule: Rule, rows: Sequence[int] | None = None) -> None:
        self.rule, self.rows = rule, rows
        newest = np.searchsorted(rule.nodes, np.arange(len(rule.decay)), side="right") - 1
        oldest = [
            int(np.flatnonzero(row)[0]) if row.any() else j
            for row, j in zip(rule.weights, newest, strict=True)
        ]
        self.length = max(2, int((newest - oldest).max()) + 1)
        placed = np.zeros((len(newest), self.length))
        for i, j in enumerate(newest):
            for m in range(max(0, j - self.length + 1), j + 1):
                placed[i, m % self.length] = rule.weights[i, m]
        self._decay = [float(d) for d in rule.decay]
        table = np.concatenate([placed, np.asarray(rule.decay)[:, None]], axis=1)
        self._host = torch.from_numpy(table).float()
        self._table: Tensor | None = None  # (N, length + 1): weights of the ring, and the decay
        self._kept: Tensor | None = None
        self._chosen: Tensor | None = None

    def own(self, batch: Tensor) -> Tensor:
        """The samples of this rule among (B, …)."""
        return batch if self.rows is None else batch.index_select(0, self._rows_on(batch))

    def put(self, part: Tensor, batch: Tensor) -> None:
        """Write the samples of this rule (own, …) into (B, …)."""
        batch.index_copy_(0, self._rows_on(batch), part)

    def _rows_on(self, batch: Tensor) -> Tensor:
        if self._chosen is None:
            self._chosen = torch.tensor(self.rows, device=batch.device)
        return self._chosen

    def keep(self, step: int, outputs: Tensor) -> None:
        """Keep the outputs (B, …) of the node `step`."""
        own = self.own(outputs.detach())
        if self._kept is None:
            self._kept = own.new_zeros(self.length, *own.shape, dtype=torch.float32)
            self._table = self._host.to(own.device)
        self._kept[self._slot(self.rule.nodes.index(step))].copy_(own)

    def kept(self, number: int) -> Tensor:
        """The output (own, …) of node `number`, one of the last `length`."""
        assert self._kept is not None
        return self._kept[self._slot(number)]

    def advance(self, step: int | Tensor, sample: Tensor) -> Tensor:
        """The states after `step` from those before it (own, …), in their dtype.

        What it reads stays where it is in memory from the first `keep` on.

        Args:
            step: its number, or that as a tensor of one integer on the device of the samples. With
                a tensor nothing depends on its value but what is computed: one compiled function
                or one captured graph serves every step.
        """
        assert self._kept is not None and self._table is not None
        flat, outputs = sample.flatten().float(), self._kept.flatten(1)
        if isinstance(step, Tensor):
            row = self._table.index_select(0, step.reshape(1))[0]
        else:
            row = self._table[step]
        if torch.compiler.is_compiling():  # term by term, which becomes one kernel
            found = flat * row[-1]
            for weight, output in zip(row[:-1].unbind(), outputs.unbind(), strict=True):
                found = found + weight * output
        elif isinstance(step, Tensor):
            found = torch.addmv(flat * row[-1], outputs.T, row[:-1])
        else:  # one kernel, which is told on the host what the state counts for
            found = torch.addmv(flat, outputs.T, row[:-1], beta=self._decay[step])
        return found.reshape(sample.shape).to(sample.dtype)

    def split(self, rule: Rule, rows: Sequence[int], number: int) -> Combination:
        """The same for fewer samples under another rule that agrees up to node `number`."""
        new = Combination(rule, rows)
        assert self._kept is not None
        all_rows = list(range(self._kept.shape[1])) if self.rows is None else list(self.rows)
        own = self._kept[:, [all_rows.index(row) for row in rows]]
        new._kept = own.new_zeros(new.length, *own.shape[1:])
        new._table = new._host.to(own.device)
        for m in range(max(0, number - min(self.length, new.length) + 1), number + 1):
            new._kept[new._slot(m)] = own[self._slot(m)]
        return new

    def bytes(self) -> int:
        return 0 if self._kept is None else self._kept.nbytes

    def _slot(self, number: int) -> int:
        return number % self.length
