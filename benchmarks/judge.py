"""Runs settings on a model and keeps what they gave: chosen by a sweep, judged, timed."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

import accel
from accel.method import Method
from accel.metrics import psnr_each, ratio_interval, ssim_each
from accel.plan import Plan
from benchmarks import peers
from benchmarks.adherence import Adherence, adherence, change
from benchmarks.cells import Cells
from benchmarks.references import References
from benchmarks.settings import OWN, Setting, plain, ready
from benchmarks.shapes import Made, Model, Sample
from benchmarks.spread import spread
from benchmarks.sweep import STEPS, Tried

CALIBRATED_ON = 2
"""Captions from which TeaCache's and MagCache's curves are fitted."""


class Judge:
    """One model under test with one solver.

    Args:
        cells: where results are kept.
        folder: where plain samples are kept.
        workers: processes that make samples at once; 0 makes them in this one.
        batch: samples a process makes in one go where the method allows it.
        sweep_samples: samples on which settings are compared to choose among them.
        steps: of the plain run that samples are compared with.
        under: in what the model or its call differs from how it ships, for the names of cells.
    """

    def __init__(
        self,
        model: Model,
        cells: Cells,
        folder: Path,
        *,
        sampler: str = OWN,
        workers: int = 2,
        batch: int = 4,
        sweep_samples: int = 4,
        steps: int = STEPS,
        under: str = "",
    ) -> None:
        self.model, self.cells, self.sampler, self.steps = model, cells, sampler, steps
        of = "" if steps == STEPS else f"{steps} steps"
        self.under = ", ".join(t for t in (of, under) if t)
        self._kept = {"under": self.under} if self.under else {}
        name = re.sub("[^a-z0-9.]+", "-", f"{sampler} {self.under}".lower()).strip("-")
        self._workers, self._batch, self._sweep_samples = workers, batch, sweep_samples
        self._references = References(
            folder,
            model,
            name,
            lambda samples: self._make(plain(sampler, steps), samples).frames,
            chunk=batch * max(workers, 1),
        )

    def attempt(self, setting: Setting) -> Tried:
        """The setting on the sweep's samples."""

        def compute() -> dict[str, Any]:
            samples = self.model.samples("sweep", self._sweep_samples)
            reference = self._references.frames(samples)
            made = self._make(setting, samples)
            each = psnr_each(reference, made.frames)
            return {
                "psnr": float(np.mean(each)),
                "psnr_each": each,
                "work": self._work(made),
            }

        found = self.cells.run(
            compute,
            model=self.model.name,
            checkpoint=self.model.checkpoint[:12],
            set="sweep",
            solver=setting.sampler,
            samples=self._sweep_samples,
            row=setting.row,
            setting=str(setting),
            **self._kept,
        )
        return Tried(setting, found["psnr"], found["work"])

    def magnitudes(self) -> tuple[float, ...]:
        """MagCache's ratios, calibrated on the sweep's samples; a cell of its own."""

        def calibrate(samples: Sequence[Sample]) -> tuple[float, ...]:
            steps = self.steps
            with ready(self.model.pipe, plain(self.sampler, steps)) as pipe:
                return peers.magnitudes(
                    pipe, lambda other: self.model.call(other, steps, samples, "latent"), steps
                )

        def compute() -> dict[str, Any]:
            samples = self.model.samples("sweep", self._sweep_samples)
            found = spread(calibrate, [samples], min(self._workers, 1))
            return {"ratios": list(found[0])}

        fields = {
            "model": self.model.name,
            "checkpoint": self.model.checkpoint[:12],
            "set": "calibration",
            "solver": self.sampler,
            **self._kept,
        }
        return tuple(self.cells.run(compute, **fields, of="MagCache")["ratios"])

    def fitted(self, name: str) -> Method:
        """A method of ours that needs calibration, fitted to runs of two captions of their own."""

        def compute() -> dict[str, Any]:
            samples = self.model.samples("calibration", CALIBRATED_ON)
            with ready(self.model.pipe, plain(self.sampler, self.steps)) as pipe:
                plan = accel.calibrate(
                    pipe,
                    [s.caption for s in samples],
                    name,
                    steps=self.steps,
                    seed=samples[0].seed,
                    progress=False,
                    **self.model.options,
                )
            return {"plan": json.loads(plan.to_json())}

        fields = {
            "model": self.model.name,
            "checkpoint": self.model.checkpoint[:12],
            "set": "calibration",
            "solver": self.sampler,
            **self._kept,
        }
        found = self.cells.run(compute, **fields, of=f"our {name}")
        return Plan.from_json(json.dumps(found["plan"])).methods[0]

    def evaluate(self, setting: Setting, ratio: float, count: int) -> dict[str, Any]:
        """The setting on the first `count` samples of the evaluation set."""
        fields = {
            "model": self.model.name,
            "checkpoint": self.model.checkpoint[:12],
            "set": "evaluation",
            "compared": self.sampler,
            "solver": setting.sampler,
            "samples": count,
            "by": setting.by,
            "row": setting.row,
            "setting": str(setting),
            **self._kept,
        }
        known = self._known(fields, count)
        done = max((n for n in known if n <= count), default=0)
        return self.cells.run(
            lambda: self._evaluated(setting, count, known.get(done)), ratio=ratio, **fields
        )

    def _known(self, fields: dict[str, Any], count: int) -> dict[int, dict[str, Any]]:
        """Results of the same setting by number of samples, whatever ratio it was chosen for."""
        found = {}
        for cell in self.cells.finished():
            rest = {k: v for k, v in cell["fields"].items() if k != "ratio"}
            if {**rest, "samples": count} == fields:
                found[rest["samples"]] = cell["result"]
        return found

    def _evaluated(
        self, setting: Setting, count: int, begun: dict[str, Any] | None
    ) -> dict[str, Any]:
        result: dict[str, Any] = {"plain": {"share": [], "all_right": []}}
        result |= {"share": [], "all_right": [], "psnr": [], "ssim": [], "work": []}
        if begun is not None:
            result = {k: begun[k] for k in result}
        done = len(result["psnr"])
        samples = self.model.samples("evaluation", count)[done:]
        if samples:
            reference = self._references.frames(samples)
            made = self._make(setting, samples)
            captions = [s.caption for s in samples]
            before, after = adherence(reference, captions), adherence(made.frames, captions)
            result = {
                "plain": {k: result["plain"][k] + v for k, v in before.as_dict().items()},
                **{k: result[k] + v for k, v in after.as_dict().items()},
                "psnr": result["psnr"] + psnr_each(reference, made.frames),
                "ssim": result["ssim"] + ssim_each(reference, made.frames),
                "work": result["work"] + [f / self._plain_flops for f in made.flops],
            }
        both = [
            Adherence(tuple(r["share"]), tuple(r["all_right"])) for r in (result["plain"], result)
        ]
        means = {
            k: float(np.mean(result[k])) for k in ("psnr", "ssim", "work", "share", "all_right")
        }
        means |= {f"plain_{k}": float(np.mean(v)) for k, v in result["plain"].items()}
        return {**result, "means": {**means, **change(*both)}}

    def time(self, settings: Sequence[Setting], ratio: float, rounds: int = 4) -> None:
        """Seconds of a call without decoding, all settings and the plain sampler turn about.

        Every round runs each once, the next in the opposite order; speed-ups are taken round by
        round. The rounds are shared among the workers, one sample at a time. Settings that were
        timed at this ratio before are left out.
        """
        fields = {
            "model": self.model.name,
            "checkpoint": self.model.checkpoint[:12],
            "set": "timing",
            "compared": self.sampler,
            "ratio": ratio,
            **self._kept,
        }
        known = {
            name
            for cell in self.cells.cells.values()
            if fields.items() <= cell["fields"].items()
            for name in cell["result"]
        }
        todo = {f"{s.row}: {s}": s for s in settings if f"{s.row}: {s}" not in known}
        if not todo:
            return
        everyone = [plain(self.sampler, self.steps), *todo.values()]

        def once(number: int) -> list[float]:
            sample = self.model.samples("evaluation", number + 1)[number : number + 1]
            seconds = [0.0] * len(everyone)
            turns = list(enumerate(everyone))
            for i, setting in turns if number % 2 else reversed(turns):
                with ready(self.model.pipe, setting) as pipe:
                    start = time.perf_counter()
                    self.model.call(pipe, setting.steps, sample, "latent")
                    seconds[i] = time.perf_counter() - start
            return seconds

        def compute() -> dict[str, Any]:
            found = list(zip(*spread(once, range(rounds), self._workers), strict=True))
            return {
                name: {
                    "seconds": list(own),
                    "seconds_plain": list(found[0]),
                    **_speedup(found[0], own),
                }
                for name, own in zip(todo, found[1:], strict=True)
            }

        digest = hashlib.sha256(" ".join(sorted(todo)).encode()).hexdigest()[:8]
        self.cells.run(compute, **fields, settings=digest)

    def _make(self, setting: Setting, samples: Sequence[Sample]) -> Made:
        size = 1 if setting.alone else max(1, min(self._batch, -(-len(samples) // 2)))
        parts = [samples[i : i + size] for i in range(0, len(samples), size)]
        made = spread(lambda part: self.model.make(setting, part), parts, self._workers)
        flops = tuple(f for m in made for f in m.flops)
        return Made(np.concatenate([m.frames for m in made]), flops)

    @cached_property
    def _plain_flops(self) -> float:
        """Of the plain run, from one step of it."""
        one = self.model.samples("sweep", 1)
        made = spread(
            lambda part: self.model.make(plain(self.sampler, 1), part),
            [one],
            min(self._workers, 1),
        )
        return self.steps * made[0].flops[0]

    def _work(self, made: Made) -> float:
        return float(np.mean(made.flops)) / self._plain_flops


def _speedup(plain_s: Sequence[float], own_s: Sequence[float]) -> dict[str, float]:
    found = ratio_interval(list(zip(plain_s, own_s, strict=True)))
    return {"speedup": found.estimate, "low": found.low, "high": found.high}
