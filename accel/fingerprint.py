"""Fingerprint: what a plan was made for; a run that differs warns, or is refused."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from .identity import adapters, architecture, weights
from .noise import is_flow
from .registry import recognise
from .step import Run

Fingerprint = Mapping[str, str | int | float]

REFUSED = ("architecture", "prediction")
"""Where these differ a plan says nothing about the run, whatever it says."""
SETTINGS = (
    "shift",
    "flow_shift",
    "use_dynamic_shifting",
    "timestep_spacing",
    "beta_schedule",
    "solver_order",
    "algorithm_type",
    "use_karras_sigmas",
)
"""Settings of a scheduler that move its noise levels or change its rule."""
GUIDANCE = {
    "guidance_scale": "guidance",
    "guidance_scale_2": "guidance_scale_2",
    "guidance_rescale": "guidance_rescale",
    "true_cfg_scale": "true_cfg_scale",
    "image_guidance_scale": "image_guidance_scale",
}
"""Arguments of pipelines that say how branches are mixed, and what a fingerprint calls them."""


def fingerprint(
    pipe: Any, run: Run, called: Mapping[str, Any] | None = None
) -> dict[str, str | int | float]:
    """What a run that begins has of: model, weights, adapters, scheduler, steps, guidance.

    The model is the last part of its path or hub id, or the pipeline's class where it has neither.

    Args:
        called: arguments of the pipeline's call; of the call going on if None.
    """
    name = PurePath(str(getattr(pipe, "name_or_path", "") or "")).name
    found: dict[str, str | int | float] = {"model": name or type(pipe).__name__, **kind(pipe)}
    denoisers = recognise(pipe)[1]
    found |= weights(denoisers)
    found["lora"] = adapters(denoisers) or "none"
    scheduler = getattr(pipe, "scheduler", None)
    if scheduler is not None:
        found["scheduler"] = type(scheduler).__name__
        config = getattr(scheduler, "config", {})
        shown = [f"{k}={config[k]}" for k in SETTINGS if config.get(k) not in (None, False)]
        found["scheduler settings"] = ", ".join(shown)
    found["steps"] = run.total
    return found | _guidance(pipe, called)


def _guidance(pipe: Any, called: Mapping[str, Any] | None) -> dict[str, float]:
    """How branches of guidance are mixed, as far as the pipeline, its guider or the call tell."""
    owners, found = (pipe, getattr(pipe, "guider", None)), {}
    for name, label in GUIDANCE.items():
        told = [getattr(o, n) for o in owners for n in (name, f"_{name}") if hasattr(o, n)]
        if not told:
            called = _call_of(pipe) if called is None else called
            told = [called.get(name)]
        if isinstance(told[0], int | float):
            found[label] = float(told[0])
    return found


def _call_of(pipe: Any) -> dict[str, Any]:
    """Arguments of guidance in the call of `pipe` that is going on; some are kept nowhere else."""
    function = inspect.unwrap(type(pipe).__call__)
    names = GUIDANCE.keys() & inspect.signature(function).parameters
    frame = inspect.currentframe() if names else None
    while frame is not None:
        if frame.f_code is function.__code__ and frame.f_locals.get("self") is pipe:
            return {name: frame.f_locals.get(name) for name in names}
        frame = frame.f_back
    return {}


def kind(pipe: Any) -> dict[str, str]:
    """The part of the fingerprint that decides whether a plan can mean anything at all."""
    found = {"architecture": architecture(recognise(pipe)[1])}
    scheduler = getattr(pipe, "scheduler", None)
    if scheduler is not None:
        predicted = getattr(scheduler, "config", {}).get("prediction_type")
        found["prediction"] = (
            "flow_prediction" if is_flow(scheduler) else str(predicted or "epsilon")
        )
    return found


def differences(made_for: Fingerprint, found: Fingerprint) -> list[str]:
    """Every entry that both have and that differs, in words.

    A model of another name with the very same weights is the same model.
    """
    alike = any(n.startswith("weights") and found.get(n) == v for n, v in made_for.items())
    moved = {"model"} if alike else set()
    other = "scheduler" in found and made_for.get("scheduler") != found["scheduler"]
    moved |= {"scheduler settings"} if other else set()  # said by its name already
    return [
        f"{name} {made_for[name]}, this run has {found[name]}"
        for name in made_for
        if name in found and name not in moved and not _same(made_for[name], found[name])
    ]


def _same(one: str | int | float, other: str | int | float) -> bool:
    if isinstance(one, str) or isinstance(other, str):
        return one == other
    return math.isclose(one, other, rel_tol=1e-6)


class Watch:
    """Warns, once, when a run begins that differs from what a plan was made for."""

    def __init__(self, pipe: Any, made_for: Fingerprint) -> None:
        self._pipe, self._made_for, self._told = pipe, made_for, False

    def refuse(self) -> None:
        """Raises `ValueError` where the architecture or what it predicts is another."""
        made_for = {name: self._made_for[name] for name in REFUSED if name in self._made_for}
        found = differences(made_for, kind(self._pipe)) if made_for else []
        if found:
            raise ValueError(
                f"this plan was made for {'; '.join(found).replace('this run', 'this pipeline')}: "
                f"its settings mean nothing there; calibrate or tune a plan for this pipeline"
            )

    def __call__(self, run: Run) -> None:
        self.refuse()
        if self._told:
            return
        found = differences(self._made_for, fingerprint(self._pipe, run))
        if found:
            self._told = True
            warnings.warn(
                f"this plan was made for {'; '.join(found)}: its settings may not suit; calibrate "
                f"or tune it for this run",
                stacklevel=2,
            )
