"""Our methods and the peers, set so that they compute every step, or skip every step they can.

Computing with their state updates on is what a computed step costs; the setting itself (interval,
threshold) changes which steps are computed, not what such a step does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import accel
from accel.caching import (
    PAB,
    ClusCa,
    DBCache,
    DeepCache,
    DiCache,
    DuCa,
    EasyCache,
    FasterCache,
    FasterDiffusion,
    FeatureInheritance,
    FirstBlockCache,
    FreqCa,
    HiCache,
    MagCache,
    Planned,
    SeaCache,
    SpeCa,
    Spectrum,
    TaylorSeer,
    TeaCache,
    ToCa,
)
from accel.method import Method
from benchmarks import peers

STEPS = 50  # of the runs that the steps are taken from
SETTLE = 4  # first steps of a run, not timed: warm-ups, and differences that need two anchors
NEVER = 10**6
ALWAYS = 1e9  # a threshold that nothing reaches
NOTHING = 1e-12  # one that everything does; at 0 our methods would not even measure


@dataclass(frozen=True)
class Way:
    """One row of the overhead table.

    Attributes:
        compute: a setting that computes every step.
        skip: a setting that skips every step after the first `SETTLE`.
        goal: whether the goals of a computed step are set for it.
        rest: most that is left of a step's work when it is skipped, as a share.
        extra: most work it adds to a computed step, as a share.
    """

    name: str
    by: str
    compute: Method | peers.Peer
    skip: Method | peers.Peer
    goal: bool = False
    rest: float = 0.5
    extra: float = 0.0


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
        Way("FirstBlockCache", "ours", FirstBlockCache(NOTHING), FirstBlockCache(ALWAYS), True),
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


def others(steps: int = STEPS) -> tuple[Way, ...]:
    """The rest of our methods for transformers, in runs of `steps` steps.

    TeaCache's polynomial is that of a model whose estimate is the indicator's change itself.
    """
    same, grows, begin = (1.0,) * steps, (1.1,) * steps, 2 / steps
    apart = {"attention_start": begin, "guidance_start": begin}
    once, never = dict.fromkeys(KINDS, 1), dict.fromkeys((*KINDS, "feed_forward"), NEVER)
    pairs: dict[str, tuple[Method, Method]] = {
        "HiCache": (HiCache(1), HiCache(NEVER)),
        "Spectrum": (Spectrum(1, growth=0.0), Spectrum(NEVER, warmup=SETTLE)),
        "FreqCa": (FreqCa(1), FreqCa(NEVER)),
        "DBCache F1B0": (_dbcache(NOTHING), _dbcache(ALWAYS)),
        "TeaCache": (TeaCache(NOTHING, (1.0, 0.0)), TeaCache(ALWAYS, (1.0, 0.0), tail=0)),
        "MagCache": (
            MagCache(grows, threshold=NOTHING),
            MagCache(same, threshold=ALWAYS, longest=NEVER, retention=begin),
        ),
        "EasyCache": (EasyCache(NOTHING), EasyCache(ALWAYS, warmup=2, tail=0)),
        "SeaCache": (SeaCache(NOTHING), SeaCache(ALWAYS, tail=0, longest=NEVER)),
        "DiCache": (DiCache(NOTHING), DiCache(ALWAYS, retention=begin, tail=0)),
        "SpeCa": (SpeCa(0.0), SpeCa(ALWAYS, floor=1.0, decay=1.0, longest=NEVER)),
        "PAB": (PAB(**once), PAB(**never, window=(0.0, 1.0))),
        "FasterCache": (
            FasterCache(attention_interval=1, guidance_interval=1),
            FasterCache(attention_interval=NEVER, guidance_interval=NEVER, **apart),
        ),
        "ToCa": (ToCa(1), ToCa(NEVER)),
        "DuCa": (DuCa(1), DuCa(NEVER)),
        "ClusCa": (ClusCa(1), ClusCa(NEVER)),
        "Planned": (_planned(steps, steps), _planned(SETTLE, steps)),
    }
    differs = {"FasterCache": {"rest": 0.8}, "TeaCache": {"extra": 0.002}}  # its indicator
    return tuple(
        Way(name, "ours", compute, skip, **differs.get(name, {}))
        for name, (compute, skip) in pairs.items()
    )


KINDS = ("spatial", "temporal", "full", "cross")  # of attention, as PAB tells them apart


def _dbcache(threshold: float) -> DBCache:
    return DBCache(threshold, front=1, warmup=1)


def _planned(count: int, steps: int) -> Planned:
    """Computes the first `count` of `steps` steps."""
    return Planned(nodes=tuple(range(count)), steps=steps)


UNET = (
    Way("DeepCache", "ours", DeepCache(1, branch=1), DeepCache(NEVER, branch=1), True),
    _taylorseer("output", True),
    Way("HiCache", "ours", HiCache(1), HiCache(NEVER)),
    Way("Spectrum", "ours", Spectrum(1, growth=0.0), Spectrum(NEVER, warmup=SETTLE)),
    Way(
        "FasterDiffusion",
        "ours",
        FasterDiffusion(interval=1, noise=0.0),
        FasterDiffusion(interval=NEVER, noise=0.0),
        rest=0.8,
    ),
    Way(
        "FeatureInheritance",
        "ours",
        FeatureInheritance(interval=1),
        FeatureInheritance(interval=NEVER),
        rest=0.8,
    ),
    Way("DeepCache", "DeepCache", peers.DeepCache(1, branch=1), peers.DeepCache(NEVER, branch=1)),
)


def fitting(unet: bool, steps: int = STEPS) -> tuple[Way, ...]:
    """All ways for a U-Net or a transformer, in runs of `steps` steps."""
    return UNET if unet else (*transformer(steps), *others(steps))


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
