"""ControlNet at computed steps only: what it gave then is held, and a call is saved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from accel.method import Site
from accel.step import Run

from .forecasters import hold
from .policies import Policy
from .state import History


class ControlHold:
    """Hold the outputs of the pipeline's ControlNet, if it has one, at steps not computed.

    They are held as they are: a `control_guidance_end` within a group of steps takes effect at the
    next computed one.
    """

    def __init__(self, site: Site, policy: Policy, method: str) -> None:
        self._site, self._policy = site, policy
        self._kept: dict[Any, History] = {}
        self._seen: dict[Any, int] = {}
        self._index = -1
        network = getattr(site.pipe, "controlnet", None)
        if not isinstance(network, torch.nn.Module):
            return
        site.patches.call(network, self._control, f"{method} on controlnet")
        site.clock.on_begin.append(self._clear)
        site.clock.on_end.append(self._clear)
        site.report.holders.append(lambda: sum(h.bytes() for h in self._kept.values()))

    def _clear(self, run: Run) -> None:
        self._kept, self._seen, self._index = {}, {}, -1

    def _control(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        run = self._site.clock.run
        if run is None:
            return call(*args, **kwargs)
        if run.index != self._index:
            self._index, self._seen = run.index, {}
        tensors = [v for v in tree_leaves((args, kwargs)) if isinstance(v, torch.Tensor)]
        shapes = tuple((t.shape, t.dtype, t.device) for t in tensors)
        nth = self._seen[shapes] = self._seen.get(shapes, -1) + 1
        history = self._kept.get((shapes, nth))
        computed = history is None or self._policy.computes(run.index, run.total)
        self._site.report.beside("controlnet", computed)
        if history is not None and not computed:
            return history.forecast(run.index)
        value = call(*args, **kwargs)
        history = self._kept.setdefault((shapes, nth), History(hold, 1))
        history.keep(run.index, value)
        return value
