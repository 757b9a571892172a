"""The module-mask carrier: which module outputs are held at which step is known beforehand."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from accel.memory import Kept
from accel.method import Site

from .carriers import Carrier
from .policies import Policy
from .state import Cache


@dataclass(frozen=True)
class Part:
    """One wrapped module of a denoiser.

    Attributes:
        path: where it is in the denoiser.
        units: columns of the mask; the module is left out when all of them are held.
        read: whether others than modules left out with it read its output.
    """

    path: str
    units: tuple[int, ...]
    read: bool = True


class Rows(Policy, Protocol):
    """A static mask; `computes` says whether a step holds nothing."""

    def row(self, index: int, total: int) -> str:
        """One character per unit at step `index` of `total`: "1" computed, "0" held."""
        ...


class ModuleMask(Carrier):
    """mask[step][unit] over module outputs, as HarmoniCa and A-SDM have it.

    The first step of every branch and shape is computed whole, and so is what is not held yet. An
    output is kept only when the next step holds it.

    Args:
        parts: lists what is wrapped in a denoiser.
        rows: the mask.
    """

    def __init__(
        self,
        site: Site,
        cache: Cache,
        method: str,
        parts: Callable[[torch.nn.Module], list[Part]],
        rows: Rows,
    ) -> None:
        super().__init__(site, cache, rows, method)
        self.rows = rows
        self.parts = {name: parts(module) for name, module in site.denoisers.items()}
        self._row = self._next = ""
        self._labels: dict[str, str] = {}

    def attach(self, name: str, denoiser: torch.nn.Module) -> list[str]:
        root = getattr(denoiser, "_orig_mod", denoiser)
        self.gate(name, denoiser)
        for part in self.parts[name]:
            handler = functools.partial(self._part, part)
            label = f"{self.label} on {name}.{part.path}"
            self.site.patches.call(root.get_submodule(part.path), handler, label)
        return [part.path for part in self.parts[name]]

    def outputs(self, denoiser: torch.nn.Module, skipped: list[str]) -> list[Kept]:
        name = next(n for n, module in self.site.denoisers.items() if module is denoiser)
        return [Kept(part.path) for part in self.parts[name] if part.read]

    def decide(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        state, step = self.cache.enter(name, args, kwargs)
        parts, index = self.parts[name], step.index
        row = self.rows.row(index, step.total)
        everything = "1" * len(row)
        missing = {u for p in parts if p.read and p.path not in state.histories for u in p.units}
        if index == state.first:
            row = everything
        elif missing:
            row = "".join("1" if u in missing else c for u, c in enumerate(row))
        self._row = row
        self._next = everything if index + 1 >= step.total else self.rows.row(index + 1, step.total)
        if any(_held(part, self._row) for part in parts):
            call = self.site.clock.call
            assert call is not None
            call.leave_out(self._label(self._row), "reused")

    def _part(self, part: Part, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        state = self.cache.current
        assert state is not None
        state.compute = not _held(part, self._row)
        if state.compute and not _held(part, self._next):
            return call(*args, **kwargs)
        handler = self.stand_in if part.read else self.idle
        return handler(part.path, call, *args, **kwargs)

    def _label(self, row: str) -> str:
        """The name of the skip set of `row`, declared when it first occurs."""
        if row not in self._labels:
            skips = {n: [p.path for p in ps if _held(p, row)] for n, ps in self.parts.items()}
            name = f"{self.label}:{len(self._labels)}"
            self._labels[row] = self.site.report.skip_set(self.method, name, skips)
        return self._labels[row]


def _held(part: Part, row: str) -> bool:
    return all(row[unit] == "0" for unit in part.units)
