"""Noise levels of a run: which sigma belongs to which denoising iteration."""

from __future__ import annotations

from typing import Any


def run_span(pipe: Any, scheduler: Any) -> tuple[int, int]:
    """Where the run that `pipe` is about to start lies in the scheduler's timesteps: cut, total.

    A pipeline may cut the scheduler's timesteps: image-to-image at the front, `denoising_end` at
    the end. Second-order schedulers list an inner evaluation as a timestep of its own.
    """
    timesteps = _listed(getattr(scheduler, "timesteps", None))
    total = getattr(pipe, "num_timesteps", None) or len(timesteps)
    if timesteps:
        total = min(total, len(timesteps))
    cut = len(timesteps) - total
    begin = getattr(scheduler, "begin_index", None)
    if cut > 0 and begin is not None:
        cut = min(begin, cut)
    elif cut > 0 and (end := getattr(pipe, "denoising_end", None)) is not None:
        trained = scheduler.config.num_train_timesteps
        cut = max(0, cut - sum(t < round(trained - end * trained) for t in timesteps))
    return cut, total


def noise_levels(pipe: Any, scheduler: Any) -> tuple[int, list[float | None]]:
    """Iterations of the run that `pipe` is about to start, and the noise level of each.

    Returns:
        Number of iterations, and as many sigmas: flow in [0, 1], 1 being noise also where the
        scheduler counts the other way (`invert_sigmas`), otherwise sqrt((1 - abar) / abar); None
        where the scheduler does not tell.
    """
    cut, total = run_span(pipe, scheduler)
    timesteps = _listed(getattr(scheduler, "timesteps", None))
    sigmas = _listed(getattr(scheduler, "sigmas", None))
    if len(sigmas) >= cut + total:
        if _inverted(scheduler, sigmas):
            sigmas = [1 - sigma for sigma in sigmas]
        return total, list(sigmas[cut : cut + total])
    alphas = _listed(getattr(scheduler, "alphas_cumprod", None))
    if not alphas or not timesteps:
        return total, [None] * total
    return total, [_variance_preserving(alphas, t) for t in timesteps[cut : cut + total]]


def level_at(scheduler: Any, fraction: float) -> float:
    """The noise level at which the model is told `fraction` of its training timesteps.

    Published windows are timesteps of 1000. A flow model is told its noise level itself, a
    variance-preserving one an index into the scheduler's alphas. Where there are neither, the flow
    level of the same signal-to-noise ratio counts as the fraction: sigma / (1 + sigma).

    Args:
        fraction: 0 (data) to 1 (noise).

    Returns:
        sigma as in `noise_levels`.
    """
    if is_flow(scheduler):
        return fraction
    alphas = _listed(getattr(scheduler, "alphas_cumprod", None))
    if alphas:
        return _variance_preserving(alphas, fraction * len(alphas))
    return fraction / (1 - fraction) if fraction < 1 else float("inf")


def is_flow(scheduler: Any) -> bool:
    """Whether the noise levels of `scheduler` are those of a flow, in [0, 1]."""
    config = getattr(scheduler, "config", {})
    return (
        any("FlowMatch" in kind.__name__ for kind in type(scheduler).__mro__)
        or bool(config.get("use_flow_sigmas"))
        or config.get("prediction_type") == "flow_prediction"
    )


def _inverted(scheduler: Any, sigmas: list[float]) -> bool:
    """Whether sigmas rise from noise to data. A config alone does not tell: schedulers keep the
    settings of the one they replaced, also those that they have no use for.
    """
    asked = getattr(scheduler, "config", {}).get("invert_sigmas", False)
    return asked and sigmas[:1] < sigmas[-1:]


def _listed(values: Any) -> list[float]:
    if values is None:
        return []
    return [float(v) for v in (values.tolist() if hasattr(values, "tolist") else values)]


def _variance_preserving(alphas: list[float], timestep: float) -> float:
    alpha = alphas[min(max(int(timestep), 0), len(alphas) - 1)]
    return float("inf") if alpha <= 0 else ((1 - alpha) / alpha) ** 0.5
