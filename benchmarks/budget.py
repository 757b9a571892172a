"""Settings with which every method computes the same number of steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

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
from accel.caching.policies import schedule
from accel.method import Method
from benchmarks import peers
from benchmarks.models import Subject
from benchmarks.ways import STEPS

TARGETS = (12, 17, 10, 25)  # computed steps of STEPS, the most telling first


def static(make: Callable[[int, int], Any], computed: Callable[[Any], int], target: int) -> Any:
    """The setting `make(interval, warmup)` that computes `target` steps, with the most warm-up.

    Raises:
        ValueError: no interval and warm-up give that many.
    """
    for warmup in (3, 2, 1, 4, 5):
        for interval in range(1, STEPS):
            setting = make(interval, warmup)
            if computed(setting) == target:
                return setting
    raise ValueError(f"no interval computes {target} of {STEPS} steps")


def magcache(target: int) -> peers.MagCache:
    """MagCache told to skip as often as its longest skip allows, so that `target` are computed."""

    def count(longest: int, kept: int) -> int:
        return kept + (STEPS - kept) // (longest + 1)

    for kept in (3, 2, 1, 4, 5):
        for longest in range(1, STEPS):
            if count(longest, kept) == target:
                ones = (1.0,) * STEPS
                return peers.MagCache(ones, 1e9, max_skip=longest, retention=kept / STEPS)
    raise ValueError(f"no longest skip computes {target} of {STEPS} steps")


def ways(target: int, threshold: float) -> dict[str, Method | peers.Peer]:
    """Every method set to compute `target` of the steps, by name."""

    def ours(carrier: Any) -> TaylorSeer:
        return static(
            lambda n, w: TaylorSeer(n, warmup=w, carrier=carrier),
            lambda m: len(schedule(m.policy, STEPS)),
            target,
        )

    kept = schedule(ours("output").policy, STEPS)
    return {
        "ours: TaylorSeer output": ours("output"),
        "ours: TaylorSeer hidden": ours("hidden"),
        "ours: FirstBlockCache": FirstBlockCache(threshold),
        "diffusers: TaylorSeer lite": static(
            lambda n, w: peers.TaylorSeer(n, warmup=w), lambda p: len(p.computed(STEPS)), target
        ),
        "diffusers: FirstBlockCache": peers.FirstBlockCache(threshold),
        "diffusers: MagCache": magcache(target),
        "cache-dit: DBCache F1B0 step mask": peers.CacheDiT(mask=peers.mask(kept, STEPS)),
    }


def unet(target: int) -> dict[str, Method | peers.Peer]:
    """Every method for U-Nets, set to compute about `target` steps at equal distances."""
    every = round(STEPS / target)
    found: dict[str, Method] = {
        "DeepCache": DeepCache(every),
        "TaylorSeer output": TaylorSeer(every, warmup=1),
        "HiCache": HiCache(every, warmup=1),
        "Spectrum": Spectrum(every, growth=0.0),
        "FasterDiffusion": FasterDiffusion(every, noise=0.0),
        "FeatureInheritance": FeatureInheritance(interval=every),
        "Planned": Planned(nodes=tuple(range(0, STEPS, every)), steps=STEPS),
    }
    ours: dict[str, Method | peers.Peer] = {f"ours: {n}": m for n, m in found.items()}
    return {**ours, "DeepCache: DeepCache": peers.DeepCache(every)}


def others(target: int) -> dict[str, Method | peers.Peer]:
    """The rest of the methods for transformers, at about `target` computed steps.

    TeaCache is given a polynomial that estimates every step's change as 1, PAB keeps every kind of
    module as long as the steps between two computed ones. EasyCache and DiCache skip all that they
    may (which leaves 11), FasterCache extrapolates and guesses as often as others skip.
    """
    every = STEPS // target
    kinds = ("spatial", "temporal", "full", "cross", "feed_forward")
    nodes = tuple(range(0, STEPS, every))
    apart = {"attention_start": 0.06, "guidance_start": 0.06}
    found: dict[str, Method] = {
        "HiCache": HiCache(every),
        "Spectrum": Spectrum(every, growth=0.0),
        "FreqCa": FreqCa(every),
        "DBCache F1B0 steps": DBCache(front=1, steps=nodes),
        "TeaCache": TeaCache(every - 0.5, (0.0, 1.0)),
        "MagCache": MagCache((1.0,) * STEPS, threshold=1e9, longest=every - 1, retention=0.06),
        "SpeCa": SpeCa(1e9, floor=1.0, decay=1.0, longest=every - 1),
        "PAB": PAB(**dict.fromkeys(kinds, every), window=(0.0, 1.0)),
        "ToCa": ToCa(every),
        "ClusCa": ClusCa(every),
        "DuCa": DuCa(every),
        "EasyCache": EasyCache(1e9),
        "DiCache": DiCache(1e9),
        "SeaCache": SeaCache(1e9, longest=every - 1),
        "FasterCache": FasterCache(every, guidance_interval=every, **apart),
        "TaylorSeer module": TaylorSeer(every, carrier="module"),
        "Planned": Planned(nodes=tuple(range(target)), steps=STEPS),
    }
    return {f"ours: {name}": method for name, method in found.items()}


def residuals(subject: Subject) -> list[list[torch.Tensor]]:
    """What the first block adds in a plain run: by branch, in the order of calls, then by step."""
    pipe, found = peers.twin(subject.pipe), []
    denoiser = getattr(pipe, subject.denoiser)
    blocks = next(c for c in denoiser.children() if isinstance(c, torch.nn.ModuleList))

    def keep(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        before = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        found.append((out[1] if isinstance(out, tuple) else out) - before)

    blocks[0].register_forward_hook(keep, with_kwargs=True)
    subject.run(pipe, STEPS)
    return [found[branch :: subject.calls] for branch in range(subject.calls)]


def computed(branches: list[list[torch.Tensor]], threshold: float) -> float:
    """Steps, mean over branches, that FirstBlockCache computes if they see these residuals."""
    count = 0
    for steps in branches:
        reference: torch.Tensor | None = None
        for step in steps:
            if reference is not None:
                change = (step - reference).abs().mean() / reference.abs().mean()
            if reference is None or change >= threshold:
                reference, count = step, count + 1
    return count / len(branches)


def threshold(branches: list[list[torch.Tensor]], target: int) -> float:
    """FirstBlockCache's threshold at which nearest to `target` steps of a run are computed.

    Searched on the residuals of a plain run; what a run at it computes is counted afterwards.
    """
    low, high = 1e-6, 10.0
    for _ in range(30):
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if computed(branches, middle) > target else (low, middle)
    return min((low, high), key=lambda t: abs(computed(branches, t) - target))
