"""Our methods and the peers, set so that they compute every step, or skip every step they can.

Computing with their state updates on is what a computed step costs; the setting itself (interval,
threshold) changes which steps are computed, not what such a step does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import accel
from accel.caching import DeepCache, FirstBlockCache, TaylorSeer
from accel.method import Method
from benchmarks import peers

STEPS = 50  # of the runs that the steps are taken from
SETTLE = 4  # first steps of a run, not timed: warm-ups, and differences that need two anchors
NEVER = 10**6


@dataclass(frozen=True)
class Way:
    """One row of the overhead table.

    Attributes:
        compute: a setting that computes every step.
        skip: a setting that skips every step after the first `SETTLE`.
        goal: whether the goals of a computed step are set for it.
    """

    name: str
    by: str
    compute: Method | peers.Peer
    skip: Method | peers.Peer
    goal: bool = False


def _taylorseer(carrier: Any, goal: bool) -> Way:
    every, none = TaylorSeer(interval=1, carrier=carrier), TaylorSeer(NEVER, carrier=carrier)
    return Way(f"TaylorSeer {carrier}", "ours", every, none, goal)


def _diffusers_taylorseer(carrier: Any) -> Way:
    every = peers.TaylorSeer(interval=1, carrier=carrier)
    none = peers.TaylorSeer(interval=NEVER, carrier=carrier)
    return Way(f"TaylorSeer {carrier}", "diffusers", every, none)


def transformer(steps: int = STEPS) -> tuple[Way, ...]:
    """For transformers, in runs of `steps` steps, which MagCache and step masks are fixed to."""
    return (
        _taylorseer("output", True),
        _taylorseer("hidden", True),
        Way("FirstBlockCache", "ours", FirstBlockCache(0.0), FirstBlockCache(1e9), True),
        _taylorseer("module", False),
        Way("FirstBlockCache", "diffusers", peers.FirstBlockCache(0.0), peers.FirstBlockCache(1e9)),
        _diffusers_taylorseer("lite"),
        _diffusers_taylorseer("module"),
        Way(
            "MagCache",
            "diffusers",
            peers.MagCache((1.1,) * steps, threshold=0.0),
            peers.MagCache((1.0,) * steps, threshold=1e9, max_skip=NEVER, retention=2 / steps),
        ),
        Way(
            "DBCache F1B0",
            "cache-dit",
            peers.CacheDiT(threshold=1e-12, warmup=1),
            peers.CacheDiT(threshold=0.99, warmup=1),
        ),
        Way(
            "DBCache F1B0 step mask",
            "cache-dit",
            peers.CacheDiT(mask=(1,) * steps),
            peers.CacheDiT(mask=(1,) * 2 + (0,) * (steps - 2)),
        ),
    )


UNET = (
    Way("DeepCache", "ours", DeepCache(1, branch=1), DeepCache(NEVER, branch=1), True),
    _taylorseer("output", True),
    Way("DeepCache", "DeepCache", peers.DeepCache(1, branch=1), peers.DeepCache(NEVER, branch=1)),
)


def ready(pipe: Any, setting: Method | peers.Peer | None, steps: int = STEPS) -> Any:
    """A twin of `pipe` with `setting` on."""
    other = peers.twin(pipe)
    if isinstance(setting, peers.Peer):
        setting.install(other, steps)
    elif setting is not None:
        accel.enable(other, setting)
    return other


def without_denoiser(pipe: Any, name: str) -> Any:
    """A twin whose denoiser hands its input back at once: what is left of a step is the loop."""
    other = peers.twin(pipe)

    def echo(hidden_states: Any = None, *args: Any, sample: Any = None, **kwargs: Any) -> Any:
        return (sample if hidden_states is None else hidden_states,)

    getattr(other, name).forward = echo
    return other
