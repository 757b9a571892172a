"""A pipeline run for a plan: whole runs that are recorded, single steps from any state."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from accel.enable import accelerated
from accel.method import Method, Site
from accel.step import Run

from .branches import Split
from .gram import Gram
from .response import Response, check_arguments, response
from .sketch import GUIDANCE, Sketching

Caller = Callable[[int], Any]
"""Runs the pipeline on chunk c of the calibration samples, always from the same noise."""


class Reached(Exception):
    """The step asked for was evaluated; the rest of the run is not needed."""


@dataclass(frozen=True, eq=False)
class Recording(Method):
    """Changes nothing; keeps the states and guided outputs of a run, and its first outputs."""

    states: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    first: dict[Any, Any] = field(default_factory=dict)
    seen: list[tuple[Response, list[float | None]]] = field(default_factory=list)
    level: ClassVar[str] = "step"

    def expect(self, site: Site, steps: int) -> str:
        return "records"

    def install(self, site: Site) -> None:
        def begin(run: Run) -> None:
            self.seen.append((response(site.pipe.scheduler, run.total), run.sigmas))

        def step(call: Callable[..., Any], output: Tensor, t: Any, sample: Tensor, **rest: Any):
            check_arguments(site.pipe.scheduler, rest)
            self.states.append(sample.detach().float().cpu().clone())
            self.outputs.append(output.detach().float().cpu().clone())
            result = call(output, t, sample, **rest)
            assert site.clock.run is not None
            if site.clock.run.index == site.clock.run.total - 1:
                last = result[0] if isinstance(result, tuple) else result.prev_sample
                self.states.append(last.detach().float().cpu().clone())
            return result

        site.clock.on_begin.append(begin)
        site.clock.step_handlers.append(step)
        for name, module in site.denoisers.items():
            site.patches.call(module, self._keep(site, name), f"recording on {name}")

    def _keep(self, site: Site, name: str) -> Callable[..., Any]:
        def keep(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            value = call(*args, **kwargs)
            if (key := (name, site.clock.step.branch)) not in self.first:
                self.first[key] = torch.utils._pytree.tree_map(_copied, value)
            return value

        return keep


@dataclass(frozen=True, eq=False)
class Probing(Method):
    """Evaluates one step of a run at a state put in, and stops there.

    Attributes:
        index: the step.
        state: (m, …) what it is evaluated at; a leaf that wants a gradient gets one.
        stand_ins: what denoisers that do not matter return, by name and branch.
        guess: difference of the branches, where the conditional one is to be evaluated alone.
        found: the guided output (m, …).
        differences: by how much the branches differed, where both were evaluated.
    """

    index: int
    state: Tensor
    stand_ins: dict[Any, Any]
    guess: list[Tensor] | None = None
    found: list[Tensor] = field(default_factory=list)
    differences: list[Tensor] = field(default_factory=list)
    level: ClassVar[str] = "step"

    def expect(self, site: Site, steps: int) -> str:
        return "probes"

    def install(self, site: Site) -> None:
        def step(call: Callable[..., Any], output: Tensor, t: Any, sample: Tensor, **rest: Any):
            assert site.clock.run is not None
            if site.clock.run.index == self.index:
                self.found.append(output.float().cpu().clone())
                raise Reached
            result = call(output, t, sample, **rest)
            if site.clock.run.index == self.index - 1:
                if self.state.requires_grad:  # which the pipeline has switched off
                    torch.set_grad_enabled(True)
                return replaced(result, self.state.to(sample))
            return result

        site.clock.step_handlers.append(step)
        for name, module in site.denoisers.items():
            site.patches.call(module, self._pass(site, name), f"probing on {name}")
        alone = self.guess is not None
        Split(site, lambda: alone, self.differences.extend, lambda: self.guess or []).install()

    def _pass(self, site: Site, name: str) -> Callable[..., Any]:
        def evaluate(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            step = site.clock.step
            kept = self.stand_ins.get((name, step.branch))
            if step.index == self.index or kept is None:
                return call(*args, **kwargs)
            return torch.utils._pytree.tree_map(_copied, kept)

        return evaluate


def replaced(result: Any, state: Tensor) -> Any:
    """What a scheduler's step returned, with another next state."""
    if isinstance(result, tuple):
        return (state, *result[1:])
    result.prev_sample = state
    return result


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


class Walker:
    """The calibration samples of one pipeline: recorded in full, then evaluated step by step.

    True states and outputs lie on disk.

    Attributes:
        first: (M, …) guided outputs of step 0.
        inside: carrier -> (chunks, N, N) inner products across steps of what it keeps.
        guidance: (chunks, N, N) the same of the difference of the branches, None if there is none.
        evaluations: denoising steps computed for all samples together, in steps of one sample.
    """

    def __init__(self, pipe: Any, call: Caller, chunks: int) -> None:
        self.pipe, self.call, self.chunks = pipe, call, chunks
        self.evaluations = 0.0
        self._folder = tempfile.TemporaryDirectory(prefix="accel-plan-")
        self._first: list[dict[Any, Any]] = []
        self._sizes: list[int] = []

    def __enter__(self) -> Walker:
        return self

    def __exit__(self, *exception: Any) -> None:
        self._folder.cleanup()

    def record(self, progress: Callable[[], None] = lambda: None, inside: bool = False) -> None:
        """Run every chunk in full; with `inside`, sketch what lies inside the model too."""
        kept: list[list[np.ndarray]] = []
        firsts, grams = [], []
        for chunk in range(self.chunks):
            recording, sketching = Recording(), Sketching()
            with accelerated(self.pipe, recording, *[sketching] * inside):
                self.call(chunk)
            states, outputs = torch.stack(recording.states), torch.stack(recording.outputs)
            if chunk == 0:
                self.response, self.sigmas = recording.seen[-1]
                self.gram = Gram(len(outputs))
            if len(states) != self.response.steps + 1:
                raise RuntimeError(f"a run had {len(states) - 1} steps, the first had another")
            for i in range(outputs.shape[1]):
                self.gram.add(outputs[:, i])
            kept.append([self._spilled(f"{chunk} states", states)])
            kept[-1].append(self._spilled(f"{chunk} outputs", outputs))
            firsts.append(outputs[0])
            grams.append(sketching.grams(len(outputs)))
            self._first.append(recording.first)
            self._sizes.append(outputs.shape[1])
            self.evaluations += outputs.shape[0] * outputs.shape[1]
            progress()
        self._kept, self.first = kept, torch.cat(firsts)
        common = set.intersection(*map(set, grams))
        self.inside = {name: np.stack([gram[name] for gram in grams]) for name in sorted(common)}
        self.guidance = self.inside.pop(GUIDANCE, None)

    def _spilled(self, name: str, values: Tensor) -> np.ndarray:
        path = Path(self._folder.name) / f"{name}.npy"
        np.save(path, values.numpy())
        return np.load(path, mmap_mode="r")

    def state(self, index: int, chunks: Sequence[int] | None = None) -> Tensor:
        """True states (m, …) of some chunks, or of all, before step `index`; N is the end."""
        return self._read(0, index, chunks)

    def output(self, index: int, chunks: Sequence[int] | None = None) -> Tensor:
        """True guided outputs (m, …) of step `index`."""
        return self._read(1, index, chunks)

    def _read(self, which: int, index: int, chunks: Sequence[int] | None) -> Tensor:
        wanted = range(self.chunks) if chunks is None else chunks
        return torch.cat([torch.from_numpy(np.array(self._kept[c][which][index])) for c in wanted])

    def rows(self, chunks: Sequence[int] | None = None) -> list[int]:
        """Which of the samples are those of some chunks; all if None."""
        ends = np.cumsum([0, *self._sizes])
        wanted = range(self.chunks) if chunks is None else chunks
        return [row for chunk in wanted for row in range(ends[chunk], ends[chunk + 1])]

    def evaluate(self, index: int, states: Tensor, chunks: Sequence[int] | None = None) -> Tensor:
        """Guided outputs (m, …) of step `index` at the states (m, …) of some chunks, or of all.

        Those of step 0, where every run begins alike, are the recorded ones.
        """
        if index == 0:
            return self.first[self.rows(chunks)]
        parts = self.parts(states, chunks)
        return torch.cat([self.probed(index, part, chunk)[0].detach() for chunk, part in parts])

    def pulled(
        self, index: int, states: Tensor, pull: Tensor, chunks: Sequence[int] | None = None
    ) -> Tensor:
        """Gradient (m, …) of <pull, outputs of step `index`> for the states (m, …)."""
        found = []
        pulls = [part for _, part in self.parts(pull, chunks)]
        for (chunk, part), own in zip(self.parts(states, chunks), pulls, strict=True):
            leaf = part.detach().clone().requires_grad_()
            output, _ = self.probed(index, leaf, chunk)
            found.append(torch.autograd.grad(output, leaf, own.to(output))[0])
            self._freed()
            self.evaluations += 2 * self._sizes[chunk]  # a backward pass is twice a forward one
        return torch.cat(found)

    def whole(self, method: Method, chunk: int) -> tuple[Tensor, float]:
        """The last states (m, …) of a run of one chunk with `method`, and the share it computed."""
        recording = Recording()
        with accelerated(self.pipe, recording, method) as acceleration:
            self.call(chunk)
            share = acceleration.report().computed_fraction
        self.evaluations += math.ceil(share * self.response.steps * self._sizes[chunk])
        return recording.states[-1], share

    def parts(
        self, states: Tensor, chunks: Sequence[int] | None = None
    ) -> list[tuple[int, Tensor]]:
        """Some chunks, or all, each with its part of (m, …)."""
        wanted = list(range(self.chunks) if chunks is None else chunks)
        sizes = [self._sizes[chunk] for chunk in wanted]
        return list(zip(wanted, states.split(sizes), strict=True))

    def probed(
        self, index: int, states: Tensor, chunk: int, guess: list[Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Guided outputs of one chunk, and by how much the branches of guidance differ.

        Args:
            guess: their difference, to evaluate the conditional one alone.
        """
        probing = Probing(index, states, self._first[chunk], guess)
        before = torch.is_grad_enabled()
        try:
            with accelerated(self.pipe, probing), contextlib.suppress(Reached):
                self.call(chunk)
        finally:
            torch.set_grad_enabled(before)
        if not states.requires_grad:  # the graph still needs its weights where they are
            self._freed()
        self.evaluations += self._sizes[chunk] * (1.0 if guess is None else 0.5)
        return probing.found[0], probing.differences

    def _freed(self) -> None:
        """Take offloaded models from the device, as the pipeline does at the end of a whole run."""
        free = getattr(self.pipe, "maybe_free_model_hooks", None)
        if free is not None:
            free()
