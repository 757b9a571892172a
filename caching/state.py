"""Running state of a caching method: what was computed, kept per branch and shape."""

from __future__ import annotations

import functools
import itertools
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from accel.memory import Kept
from accel.method import Site
from accel.step import Run, Step

from .forecasters import Weights
from .host_memory import OnHost, got, put


class History:
    """The last computed values of one thing, and their combination.

    Args:
        weights: the forecaster.
        length: values kept.
        keep_on: "device", or "cpu" for host memory.

    Attributes:
        after: a weak reference to what a skipped step forecasts next, which is fetched while this
            one is combined.
    """

    def __init__(self, weights: Weights, length: int, keep_on: str = "device") -> None:
        self._weights, self._keep_on = weights, keep_on
        self.anchors: deque[int] = deque(maxlen=length)
        self._kept: deque[list[Any]] = deque(maxlen=length)
        self._build: Callable[[list[Any]], Any] | None = None
        self.after: Callable[[], History | None] = lambda: None

    @property
    def values(self) -> list[list[Any]]:
        """What was kept, newest first, on its device; for reading."""
        return [[got(leaf) for leaf in leaves] for leaves in self._kept]

    def keep(self, index: int, value: Any, own: bool = False) -> None:
        """Keep `value` (a tensor, or any structure that holds some) as computed at `index`.

        Args:
            own: nobody else holds it, so it need not be copied.
        """
        leaves, self._build = apart(value)
        self._kept.appendleft([put(leaf, self._keep_on, own) for leaf in leaves])
        self.anchors.appendleft(index)

    def forecast(self, index: int) -> Any:
        """The stand-in at step `index`, in the structure that was kept; never aliases it."""
        assert self._build is not None, "forecast from an empty history"
        weights = self._weights(self.anchors, index)
        columns = zip(*self.values, strict=True)
        following = self.after()
        if following is not None:
            following.prefetch()
        return self._build([combine(weights, column) for column in columns])

    def prefetch(self) -> None:
        """Begin to bring back what is in host memory."""
        for leaf in itertools.chain.from_iterable(self._kept):
            if isinstance(leaf, OnHost):
                leaf.prefetch()

    def bytes(self) -> int:
        leaves = itertools.chain.from_iterable(self._kept)
        return sum(v.nbytes for v in leaves if isinstance(v, torch.Tensor | OnHost))

    def full_bytes(self) -> int:
        """Bytes once as many values are kept as can be."""
        return self.bytes() * (self._kept.maxlen or 1) // max(len(self._kept), 1)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def apart(value: Any) -> tuple[list[Any], Callable[[list[Any]], Any]]:
    """The distinct leaves of `value` and what builds it of them; quick where models return it.

    A leaf that occurs twice is one leaf, and one again in what is built: adapters add in place to
    a U-Net block's hidden state, which is its last residual too.
    """
    if _is_tensor(value):
        return [value], itemgetter(0)
    if type(value) is tuple and all(map(_is_tensor, value)):
        return list(value), tuple
    leaves, spec = tree_flatten(value)
    order = {leaf: i for i, leaf in enumerate(dict.fromkeys(map(id, leaves)))}
    places = [order[id(leaf)] for leaf in leaves]

    def build(found: list[Any]) -> Any:
        return tree_unflatten([found[i] for i in places], spec)

    return list({id(leaf): leaf for leaf in leaves}.values()), build


def combine(weights: list[float], values: tuple[Any, ...]) -> Any:
    """sum_i w_i v_i for weights that sum to 1, exact when all values are equal.

    The newest of values that are no numbers to extrapolate: masks, None.
    """
    first = values[0]
    if not _is_tensor(first):
        return first
    if len(values) == 1 or not first.is_floating_point():
        return first.clone()
    if len(values) == 2:
        return torch.lerp(first, values[1], weights[1])
    wide = torch.promote_types(first.dtype, torch.float32)
    base = first.to(wide)
    total = base.clone()
    for weight, value in zip(weights[1:], values[1:], strict=True):
        total.add_(value.to(wide).sub_(base) if wide != value.dtype else value - base, alpha=weight)
    return total.to(first.dtype)


@dataclass
class Tally:
    """What a threshold counted: the change so far, skips in a row, skips in the run."""

    change: float = 0.0
    streak: int = 0
    skipped: int = 0


class State:
    """One branch at one shape in one run, or a part of its batch that decides for itself.

    Attributes:
        first: step index at which the denoiser was first called in this way.
        last: step index of the newest such call.
        compute: the decision for the call going on.
        rows: the rows of the batch this part has, (R,); None for all.
        parts: what decides apart, if anything does.
    """

    def __init__(
        self,
        first: int,
        weights: Weights,
        length: int,
        rows: torch.Tensor | None = None,
        history: type[History] = History,
        keep_on: str = "device",
    ) -> None:
        self.first, self.compute, self.rows = first, True, rows
        self.last = first
        self._weights, self._length, self._history = weights, length, history
        self._keep_on = keep_on
        self.histories: dict[str, History] = {}
        self.extra: dict[str, Any] = {}
        self.parts: list[State] = []
        self.tally = Tally()

    def part(self, rows: torch.Tensor | None) -> State:
        """A new state for some rows of this one's batch."""
        return State(self.first, self._weights, self._length, rows, self._history, self._keep_on)

    def keep(self, name: str, index: int, value: Any, own: bool = False) -> None:
        if name not in self.histories:
            new = self._history(self._weights, self._length, self._keep_on)
            known = [*self.histories.values(), new]
            known[-2:][0].after, new.after = weakref.ref(new), weakref.ref(known[0])
            self.histories[name] = new
        self.histories[name].keep(index, value, own)

    @property
    def empty(self) -> bool:
        return not self.histories

    def prefetch(self) -> None:
        """Begin to bring back what the first forecast needs."""
        for history in itertools.islice(self.histories.values(), 1):
            history.prefetch()
        for part in self.parts:
            part.prefetch()

    def bytes(self, full: bool = False) -> int:
        """Bytes kept now, or `full` once every history is as long as it gets."""
        extra = sum(v.nbytes for v in self.extra.values() if _is_tensor(v))
        kept = (h.full_bytes() if full else h.bytes() for h in self.histories.values())
        return extra + sum(kept) + sum(part.bytes(full) for part in self.parts)


class Cache:
    """The states of one installed method. They live for one run and are unreachable after it.

    Args:
        history: the class that keeps outputs, `length` of them, and combines them.
    """

    def __init__(
        self, site: Site, weights: Weights, length: int, history: type[History] = History
    ) -> None:
        self._clock, self._weights, self._length = site.clock, weights, length
        self._history, self._report, self._keep_on = history, site.report, site.keep_on
        self._states: dict[Any, State] = {}
        self.current: State | None = None
        site.clock.on_begin.append(self._clear)
        site.clock.on_end.append(self._clear)
        site.report.holders.append(self.bytes)
        site.report.holders_when_full.append(functools.partial(self.bytes, full=True))

    def _clear(self, run: Run) -> None:
        self._states, self.current = {}, None

    def enter(
        self, denoiser: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[State, Step]:
        """The state for the denoiser call that begins, made if there is none.

        What was kept before the branch was left out for a step or more is too old to go on from.
        """
        step = self._clock.step
        tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)]
        shapes = tuple((t.shape, t.dtype, t.device) for t in tensors)
        key = (step.run, denoiser, step.branch, shapes)
        state = self._states.get(key)
        if state is None or step.index > state.last + 1:
            state = State(
                step.index, self._weights, self._length, None, self._history, self._keep_on
            )
            self._states[key] = state
        state.last = step.index
        self.current = state
        state.prefetch()
        return state, step

    def will_keep(
        self, denoiser: str, outputs: Iterable[Kept], beside: Iterable[Kept] = ()
    ) -> None:
        """Declare what is kept of `denoiser` per branch.

        Args:
            outputs: of which histories are kept.
            beside: others, that a rule keeps to compare with.
        """
        histories = (replace(kept, copies=kept.copies * self._length) for kept in outputs)
        self._report.kept.setdefault(denoiser, []).extend([*histories, *beside])

    def bytes(self, full: bool = False) -> int:
        return sum(state.bytes(full) for state in self._states.values())
