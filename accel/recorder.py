"""Recorder: keeps, during a run, what a report is made of afterwards."""

from __future__ import annotations

import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from .attention_record import AttentionRecord
from .memory import Kept
from .patch import PatchStack
from .regions import Regions
from .report import Report, Row
from .step import Call, Run, StepClock
from .step_times import StepTimes
from .work import Work, count_flops, shapes_of


class Recorder:
    """Rows of the last run, its times, and the bytes that methods held.

    Attributes:
        skips: named skip sets: name -> denoiser -> paths of the modules that do not run.
        holders: functions that return the bytes a method holds now.
        holders_when_full: the same once it holds as many outputs as it can.
        kept: outputs that methods keep per branch: denoiser -> what.
        ahead: functions that tell, from a denoiser's arguments and its work, the bytes a method
            will hold once a run, whatever its branches.
        regions: which tokens each step of the run computed, where a method chooses them.
        before_report: what methods still have to find out about their calls.
        attention: what says which pairs of tokens it computed, where a method chooses them.
    """

    def __init__(self, denoisers: Mapping[str, torch.nn.Module]) -> None:
        self._denoisers = {n: weakref.ref(m) for n, m in denoisers.items()}
        self.skips: dict[str, dict[str, list[str]]] = {}
        self.holders: list[Callable[[], int]] = []
        self.holders_when_full: list[Callable[[], int]] = []
        self.kept: dict[str, list[Kept]] = {}
        self.ahead: list[Callable[[Any, Any, Work], int]] = []
        self.owners: dict[str, list[str]] = {}
        self.regions: Regions | None = None
        self.before_report: list[Callable[[], None]] = []
        self.attention: Callable[[], AttentionRecord] | None = None
        self._calls: list[Call] = []
        self._shapes: dict[tuple[str, str], tuple[Any, Any]] = {}
        self._work: dict[tuple[str, str], Work] = {}
        self._counted: dict[tuple[str, ...], Work] = {}
        self._called: float | None = None
        self._marks: dict[str, float] = {}
        self._beside: dict[str, tuple[int, int]] = {}
        self._counts: dict[str, int] = {}
        self._bytes = self._once = 0
        self._full: list[Callable[[], int]] = []
        self._complete = False
        self._times = StepTimes()

    def skip_set(self, method: str, name: str, modules: Mapping[str, Iterable[str]]) -> str:
        """Declare what `method` leaves out in a skipped call; returns the name for `Call`."""
        self.skips[name] = {d: list(paths) for d, paths in modules.items()}
        self.owners.setdefault(method, []).append(name)
        return name

    def keep_once(
        self,
        now: Callable[[], int],
        full: Callable[[], int],
        ahead: Callable[[Any, Any, Work], int],
    ) -> None:
        """Declare bytes that are held once a run, whatever its branches.

        Args:
            now: those held now.
            full: those held once as much is held as can be.
            ahead: what `full` will be, told before the first step is over from the arguments of a
                denoiser's call, (args, kwargs), and its work.
        """
        self.holders.append(now)
        self.holders_when_full.append(full)
        self._full.append(full)
        self.ahead.append(ahead)

    def beside(self, name: str, computed: bool) -> None:
        """Count a call of a network beside the denoisers (a ControlNet), computed or held."""
        done, asked = self._beside.get(name, (0, 0))
        self._beside[name] = done + computed, asked + 1

    def count(self, what: str) -> None:
        """Count something a method did in this run that its schedule does not tell."""
        self._counts[what] = self._counts.get(what, 0) + 1

    def install(self, pipe: Any, clock: StepClock, patches: PatchStack) -> None:
        for name, module in clock.denoisers.items():
            patches.call(module, self._observer(name, clock), f"recorder on {name}")
        if hasattr(type(pipe), "check_inputs"):
            patches.method(pipe, "check_inputs", self._entered, "recorder", always=True)
        if hasattr(type(pipe), "maybe_free_model_hooks"):
            patches.method(pipe, "maybe_free_model_hooks", self._done, "recorder", always=True)
        clock.on_begin.append(self._begin)
        clock.step_handlers.append(self._times.step)
        clock.on_call.append(self._calls_append)
        clock.on_end.append(self._end)

    def _observer(self, name: str, clock: StepClock) -> Callable[..., Any]:
        def observe(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            if clock.call is not None and (key := _key(clock.call)) not in self._shapes:
                self._shapes[key] = shapes_of((args, kwargs))
            return call(*args, **kwargs)

        return observe

    def _entered(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._called = self._now()
        return call(*args, **kwargs)

    def _done(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._marks.setdefault("done", self._now())
        return call(*args, **kwargs)

    def _now(self) -> float:
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return time.perf_counter()

    def _begin(self, run: Run) -> None:
        now = self._now()
        self._marks = {"call": now if self._called is None else self._called, "begin": now}
        self._called = None
        self._calls, self._shapes, self._work = [], {}, {}
        self._bytes = self._once = 0
        self._beside, self._counts = {}, {}
        self._complete = False
        self._times.clear()

    def _calls_append(self, call: Call) -> None:
        self._calls.append(call)

    def _end(self, run: Run) -> None:
        self._marks["end"] = self._now()
        self._bytes = sum(held() for held in self.holders)
        self._once = sum(held() for held in self._full)
        self._complete = run.index >= run.total > 0 and not run.failed
        if not self._complete:
            return
        used = {name for call in self._calls for name in call.skipped}
        for method, names in self.owners.items():
            if not used & set(names):
                warnings.warn(
                    f"{method} skipped nothing in this run of {run.total} steps: it cost memory "
                    f"and saved no work; loosen its setting or give it more steps",
                    stacklevel=2,
                )

    def report(self, methods: str) -> Report:
        """The report of the last run.

        Raises:
            RuntimeError: there was no run since acceleration was enabled.
        """
        if not self._calls:
            raise RuntimeError("nothing to report: run the pipeline first")
        for finish in self.before_report:
            finish()
        for key, shapes in self._shapes.items():
            self._work[key] = self.work_of(key[0], *shapes)
        rows = [self._row(call) for call in self._calls]
        weights = [self._work[_key(call)].total for call in self._calls]
        marks, begin, end = self._marks, self._marks["begin"], self._marks.get("end")
        loop = (end or self._now()) - begin
        before = begin - marks["call"]
        after = marks.get("done", end or begin) - (end or begin)
        return Report(
            methods=methods,
            rows=tuple(rows),
            computed_fraction=sum(r.work * w for r, w in zip(rows, weights, strict=True))
            / max(sum(weights), 1),
            basis=" and ".join(sorted({w.basis for w in self._work.values()})),
            seconds_loop=loop,
            seconds_rest=before + max(after, 0.0),
            bytes_held=self._bytes,
            complete=self._complete,
            beside=dict(self._beside),
            counts=dict(self._counts),
            step_seconds=self._times.seconds(),
            regions=self.regions,
            attention=None if self.attention is None else self.attention(),
        )

    def work_of(self, name: str, args: Any, kwargs: Any) -> Work:
        """What an evaluation of denoiser `name` costs on arguments from `shapes_of`."""
        key = (name, *map(str, tree_leaves((args, kwargs))))
        module = self._denoisers[name]()
        if key not in self._counted and module is not None:
            self._counted[key] = count_flops(module, args, kwargs)
        return self._counted[key]

    def expected_bytes(self, name: str, work: Work) -> int | None:
        """Bytes that methods keep per branch of denoiser `name`; None where that is not known."""
        kept = self.kept.get(name)
        return sum(k.bytes(work.outputs) for k in kept) if kept and work.outputs else None

    def expected(self) -> int | None:
        """Bytes that methods keep in a run like the last one; None before any."""
        found = [
            self.expected_bytes(key[0], self.work_of(key[0], *self._shapes[key]))
            for key in {_key(call) for call in self._calls}
        ]
        known = [count for count in found if count is not None]
        return sum(known) + self._once if known and len(known) == len(found) else None

    def _row(self, call: Call) -> Row:
        step = call.step
        work, counted = 1.0, self._work[_key(call)]
        for name, share in call.skipped.items():
            work -= float(share) * counted.share(self.skips[name][call.denoiser])
        work *= call.rows
        return Row(step.index, step.sigma, step.branch, call.denoiser, call.action, work)


def _key(call: Call) -> tuple[str, str]:
    """What is counted apart: branches may differ in shape, as captions do in length."""
    return call.denoiser, call.step.branch
