"""STORK: a stabilised Runge-Kutta step whose many inner velocities are forecast, not evaluated."""

from __future__ import annotations

from functools import cache
from typing import Any

from diffusers.configuration_utils import register_to_config
from torch import Tensor

from .integrator import Integrator
from .multistep import derivatives


class STORK(Integrator):
    """STORK-2 (arXiv 2505.24210): Runge-Kutta-Gegenbauer over a Taylor model of the velocity.

    The inner velocities come from the last outputs, one evaluation a step. Derivatives are those of
    the polynomial through the last outputs on their true, uneven levels; released code assumes even
    gaps at second order, and at third takes the slope twice. As the inner velocities depend on the
    level alone, all inner steps together are one weighted sum, which is what is computed.

    Args:
        derivatives: of the Taylor model, 1, 2 or 3; early steps have fewer.
        inner: inner steps, 3 or more.
        model: config of the model's own scheduler, see `Integrator`.

    Raises:
        ValueError: a number that is out of range.
    """

    @register_to_config
    def __init__(self, derivatives: int = 2, inner: int = 50, **model: Any) -> None:
        if derivatives not in (1, 2, 3):
            raise ValueError(f"derivatives must be 1, 2 or 3, got {derivatives!r}")
        if inner < 3:
            raise ValueError(f"inner must be 3 or more, got {inner!r}")
        self.history = derivatives + 1
        super().__init__(**model)

    def advance(self, i: int, y: Tensor, velocity: Tensor, generator: Any) -> Tensor:
        step = self._levels[i + 1].g - self._levels[i].g
        moments = inner_moments(self.config.inner)
        weights = [step * moments[0], *[0.0] * (len(self._past) - 1)]
        if len(self._past) > 1:
            table = derivatives([g for g, _ in self._past], len(self._past) - 1)
            factor = 1.0
            for k, row in enumerate(table, start=1):
                factor *= k
                share = step ** (k + 1) * moments[k] / factor
                weights = [w + share * r for w, r in zip(weights, row.tolist(), strict=True)]
        for weight, (_, each) in zip(weights, self._past, strict=True):
            y = y.add(each, alpha=weight)
        return y


@cache
def inner_moments(inner: int) -> tuple[float, float, float, float]:
    """What a Runge-Kutta-Gegenbauer step of `inner` stages makes of v = 1, t, t^2, t^3 on [0, 1].

    The recursion of Skaras et al. (2021), equations 12 to 17, for a velocity of time alone; exact
    up to t (1 and 1/2), as the rule is of second order.
    """

    def b(j: int) -> float:
        if j < 2:
            return (1.0, 1 / 3)[j]
        return 4 * (j - 1) * (j + 4) / (3 * j * (j + 1) * (j + 2) * (j + 3))

    width = 6 / ((inner + 4) * (inner - 1))
    found = []
    for power in range(4):
        start = 1.0 if power == 0 else 0.0
        before, last = 0.0, width * start
        time_before, time = 0.0, width
        for j in range(2, inner + 1):
            share = (2 * j + 1) / j * b(j) / b(j - 1)
            older = -(j + 1) / j * b(j) / b(j - 2)
            pull = -share * width * (1 - b(j - 1) * j * (j + 1) / 2)
            before, last = (
                last,
                share * last + older * before + share * width * time**power + pull * start,
            )
            time_before, time = (
                time,
                share * time + older * time_before + share * width + pull,
            )
        found.append(last)
    return found[0], found[1], found[2], found[3]
