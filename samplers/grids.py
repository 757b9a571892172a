"""Where the steps lie: one table of noise levels that every sampler, ours or diffusers', can use.

A level is g in [0, 1], the share of noise in x = (1 - g) x0 + g eps. A variance-preserving x is one
of these times signal + noise, so that its level is noise / (signal + noise).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from diffusers.schedulers import AysSchedules

EPSS = {
    5: (0, 2, 4, 8, 16, 32),
    6: (0, 2, 4, 6, 8, 16, 32),
    7: (0, 2, 4, 6, 8, 16, 24, 32),
    10: (0, 2, 4, 6, 8, 12, 16, 20, 24, 28, 32),
    12: (0, 2, 4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32),
    16: (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32),
}
"""Empirically pruned steps of F5-TTS, in 32nds of its time from noise to data, before the sway."""
AYS = {
    "ays-sd": "StableDiffusionTimesteps",
    "ays-sdxl": "StableDiffusionXLTimesteps",
    "ays-svd": "StableDiffusionVideoSigmas",
}
"""Align Your Steps: lists for ten steps, of models that preserve variance."""
FROM_NOISE = ("uniform", "sway", "epss")
"""Grids of levels from 1, pure noise, which few models that preserve variance know."""
POLICIES = ("model", "uniform", "sway", "epss", "log-snr", "fitted", *AYS)


def sway(time: np.ndarray, coefficient: float = -1.0) -> np.ndarray:
    """t + c (cos(pi t / 2) - 1 + t): F5-TTS, equation 5; time 0 is noise, 1 is data.

    Raises:
        ValueError: outside of [-1, 2 / (pi - 2)] it would not rise all the way.
    """
    if not -1 <= coefficient <= 2 / (math.pi - 2):
        raise ValueError(
            f"the sway coefficient must lie in [-1, {2 / (math.pi - 2):.3f}], got {coefficient}"
        )
    return time + coefficient * (np.cos(np.pi / 2 * time) - 1 + time)


def levels(
    policy: str,
    steps: int,
    coefficient: float = -1.0,
    alphas: np.ndarray | None = None,
    fitted: Sequence[float] = (),
) -> np.ndarray:
    """(steps + 1,) levels from noise to 0, for a policy other than "model".

    Args:
        coefficient: of the sway.
        alphas: (T,) cumulative alphas of a variance-preserving model; None for a flow.
        fitted: levels of the policy "fitted".

    Raises:
        ValueError: an unknown policy, or one that has no list for `steps` or this kind of model.
    """
    if steps < 1:
        raise ValueError(f"a run needs at least 1 step, got {steps}")
    found = _levels(policy, steps, coefficient, alphas, fitted)
    found[-1] = 0.0
    return found


def _levels(
    policy: str,
    steps: int,
    coefficient: float,
    alphas: np.ndarray | None,
    fitted: Sequence[float],
) -> np.ndarray:
    even = np.linspace(0.0, 1.0, steps + 1)
    if policy == "uniform":
        return 1.0 - even
    if policy == "fitted":
        return resampled(fitted, steps)
    if policy == "sway":
        return 1.0 - sway(even, coefficient)
    if policy == "epss":
        if steps not in EPSS:
            raise ValueError(
                f"epss has lists for {', '.join(map(str, EPSS))} steps, not for {steps}; use sway"
            )
        return 1.0 - sway(np.array(EPSS[steps]) / 32, coefficient)
    if policy == "log-snr":
        top, low = (0.999, 0.01) if alphas is None else (_level(alphas[-1]), _level(alphas[0]))
        logs = np.linspace(math.log(top / (1 - top)), math.log(low / (1 - low)), steps)
        return np.append(1 / (1 + np.exp(-logs)), 0.0)
    if policy in AYS:
        if alphas is None:
            raise ValueError(
                f"{policy} is a list for a model that preserves variance; there is none for flow "
                f"models: use sway, or calibrate a Schedule"
            )
        return _aligned(policy, steps, alphas)
    raise ValueError(f"unknown grid {policy!r}; known: {', '.join(POLICIES)}")


def _aligned(policy: str, steps: int, alphas: np.ndarray) -> np.ndarray:
    """An AYS list; for other than ten steps log-linear in sigma between its entries."""
    listed = np.array([v for v in AysSchedules[AYS[policy]] if v > 0], dtype=float)
    if policy != "ays-svd":
        listed = sigmas_of(alphas)[listed.astype(int)]
    places = np.linspace(0, len(listed) - 1, steps)
    sigmas = np.exp(np.interp(places, range(len(listed)), np.log(listed)))
    return np.append(sigmas / (1 + sigmas), 0.0)


def within(wanted: np.ndarray, top: float, policy: str) -> np.ndarray:
    """Sigmas of levels, none above the highest, `top`, that a variance-preserving model knows.

    Grids that begin at pure noise are drawn together to begin there.

    Raises:
        ValueError: a published list is for a model of higher levels, and would begin in place.
    """
    if policy in FROM_NOISE:
        wanted = wanted * top / (1 + top)
    sigmas = wanted / np.maximum(1 - wanted, 1e-12)
    if policy in AYS and sigmas[1] > top * (1 + 1e-3):
        raise ValueError(
            f"{policy} begins at noise level sigma {sigmas[0]:.0f}, but this model's end at "
            f"{top:.1f}; use ays-sd or ays-sdxl"
        )
    return np.minimum(sigmas, top)


def resampled(fitted: Sequence[float], steps: int) -> np.ndarray:
    """(steps + 1,) levels that lie as densely as the fitted ones, which end above 0 or in 0.

    Log-odds of the level, over the share of the run, are read off between the fitted ones.
    """
    own = np.array([level for level in fitted if level > 0], dtype=float)
    if len(own) == steps:
        return np.append(own, 0.0)
    inner = np.clip(own, 1e-6, 1 - 1e-6)
    logs = np.log(inner / (1 - inner))
    found = np.interp(np.linspace(0, len(own) - 1, steps), range(len(own)), logs)
    result = 1 / (1 + np.exp(-found))
    result[0] = own[0]
    return np.append(result, 0.0)


def sigmas_of(alphas: np.ndarray) -> np.ndarray:
    """sqrt((1 - abar) / abar)."""
    return np.sqrt((1 - alphas) / alphas)


def timesteps_of(sigmas: np.ndarray, alphas: np.ndarray) -> np.ndarray:
    """Timesteps at which a variance-preserving model has these sigmas, between whole ones too."""
    return np.interp(np.log(sigmas), np.log(sigmas_of(alphas)), np.arange(len(alphas)))


def _level(alpha: float) -> float:
    signal, noise = math.sqrt(alpha), math.sqrt(1 - alpha)
    return noise / (signal + noise)
