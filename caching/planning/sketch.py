"""Sketches: what lies inside the model at every step of a full run, in a few random projections."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from accel.batch_parts import tensors_in
from accel.caching.blocks import Streams
from accel.caching.carriers import supported
from accel.family import Family
from accel.method import Method, Site

from .branches import Split

PROJECTIONS = 256
INSIDE = ("residual", "module")
"""Carriers inside the model: what all blocks but the first add, and every module's output."""
GUIDANCE = "guidance"
"""By how much the branches of guidance differ."""


def inside(family: Family) -> list[str]:
    """Those of `INSIDE` that a model of `family` has."""
    blocks, modules = bool(family.blocks), supported("module", family)
    return [name for name, has in zip(INSIDE, (blocks, modules), strict=True) if has]


@dataclass(frozen=True, eq=False)
class Sketching(Method):
    """Changes nothing; keeps, of every step, random projections of what carriers would keep.

    Attributes:
        found: carrier -> (what, branch) -> step -> (projections,), all samples of the run in one.
    """

    found: dict[str, dict[tuple[str, str], dict[int, Tensor]]] = field(default_factory=dict)
    level: ClassVar[str] = "blocks"

    def expect(self, site: Site, steps: int) -> str:
        return "records"

    def install(self, site: Site) -> None:
        if len(site.denoisers) > 1:
            return
        ((name, denoiser),) = site.denoisers.items()
        split = Split(site, lambda: False, functools.partial(self._guidance, site), list)
        split.install()
        kinds = inside(site.family)
        blocks = site.family.flat_blocks(denoiser) if kinds else []
        if "residual" in kinds and len(blocks) > 1:
            entered: list[Tensor] = []
            for path, block, spec in (blocks[0], blocks[-1]):
                handler = functools.partial(
                    self._block, site, Streams(block, spec), path == blocks[-1][0], entered
                )
                site.patches.call(block, handler, f"sketching on {name}.{path}")
        for path, block, spec in blocks if "module" in kinds else ():
            for part in spec.modules:
                handler = functools.partial(self._module, site, f"{path}.{part}")
                site.patches.call(
                    block.get_submodule(part), handler, f"sketching on {name}.{path}.{part}"
                )

    def _block(
        self,
        site: Site,
        streams: Streams,
        last: bool,
        entered: list[Tensor],
        call: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        value = call(*args, **kwargs)
        hidden = streams.pick(value, site.family.stream)
        if not last:
            entered[:] = [hidden.detach().clone()]
        elif entered and entered[0].shape == hidden.shape:
            self._keep(site, "residual", "", hidden - entered[0])
        return value

    def _module(
        self, site: Site, path: str, call: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        value = call(*args, **kwargs)
        whole = torch.cat([t.detach().flatten() for t in tensors_in(value)])
        self._keep(site, "module", path, whole)
        return value

    def _guidance(self, site: Site, differences: list[Tensor]) -> None:
        self._keep(site, GUIDANCE, "", torch.cat([d.flatten() for d in differences]))

    def _keep(self, site: Site, carrier: str, path: str, value: Tensor) -> None:
        step = site.clock.step
        branch = "" if carrier == GUIDANCE else step.branch
        known = self.found.setdefault(carrier, {}).setdefault((path, branch), {})
        known[step.index] = sketch(value)

    def grams(self, steps: int) -> dict[str, np.ndarray]:
        """(N, N) inner products across steps for every carrier seen at every step.

        Of what differs in size, such as modules, each counts by its share.
        """
        grams = {}
        for carrier, kinds in self.found.items():
            if all(len(by_step) == steps for by_step in kinds.values()):
                total = np.zeros((steps, steps))
                for by_step in kinds.values():
                    rows = torch.stack([by_step[i] for i in range(steps)]).double()
                    gram = (rows @ rows.T).numpy()
                    total += gram / max(gram.diagonal().mean(), 1e-300)
                grams[carrier] = total
        return grams


def sketch(value: Tensor) -> Tensor:
    """At most `PROJECTIONS` projections whose inner products are those of values, on average.

    Entries with random signs, always the same for a size, summed in as many heaps.
    """
    flat = value.detach().flatten().float()
    heaps = min(PROJECTIONS, len(flat))
    padded = torch.nn.functional.pad(flat * _signs(len(flat), flat.device), (0, -len(flat) % heaps))
    return padded.reshape(heaps, -1).sum(1).cpu()


@functools.lru_cache(maxsize=8)
def _signs(count: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    signs = torch.randint(0, 2, (count,), generator=generator, dtype=torch.int8)
    return (signs * 2 - 1).to(device)
