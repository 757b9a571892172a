"""Peers: other projects' caches, switched on and off around our own pipelines.

Each works on a `twin` of the pipeline: its own modules over the same weights. cache-dit patches the
pipeline's class and leaves things behind when it is disabled, so a twin has a class of its own and
is thrown away afterwards.
"""

from __future__ import annotations

import abc
import ast
import contextlib
import copy
import importlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import torch
from diffusers import FirstBlockCacheConfig, MagCacheConfig, TaylorSeerCacheConfig

DENOISERS = ("transformer", "transformer_2", "unet")
# what diffusers' TaylorSeer must be told to forecast, as its default matches nothing on Wan
EVERY_MODULE = {
    "WanTransformer3DModel": [r"blocks\.\d+\.(attn1|attn2|ffn)"],
    "FluxTransformer2DModel": [
        r"transformer_blocks\.\d+\.(attn|ff|ff_context)",
        r"single_transformer_blocks\.\d+\.proj_out",
    ],
}
IDLE = {"FluxTransformer2DModel": [r"single_transformer_blocks\.\d+\.(attn|proj_mlp|act_mlp)"]}


def twin(pipe: Any) -> Any:
    """A copy of a pipeline that shares its weights; its class is a subclass of the same name."""
    modules = [m for m in pipe.components.values() if isinstance(m, torch.nn.Module)]
    shared = {id(t): t for m in modules for t in (*m.parameters(), *m.buffers())}
    other = copy.deepcopy(pipe, shared)
    kind = type(pipe)
    other.__class__ = type(kind.__name__, (kind,), {"__module__": kind.__module__})
    return other


@dataclass(frozen=True)
class Peer(abc.ABC):
    """One peer at one setting. `project` says whose it is."""

    project: ClassVar[str]

    @abc.abstractmethod
    def install(self, pipe: Any, steps: int) -> None:
        """Switch the peer on for good, for runs of `steps` steps."""

    def describe(self) -> str:
        """`project Name(field=value, …)`."""
        shown = ", ".join(f"{k}={_short(v)}" for k, v in asdict(self).items())
        return f"{self.project} {type(self).__name__}({shown})"


@contextlib.contextmanager
def enabled(pipe: Any, peer: Peer, steps: int) -> Iterator[Any]:
    """A twin of `pipe` with `peer` on; `pipe` itself is not touched.

    Args:
        steps: iterations of the runs to come; MagCache and step masks are fixed to them.
    """
    other = twin(pipe)
    peer.install(other, steps)
    yield other


@dataclass(frozen=True)
class FirstBlockCache(Peer):
    """diffusers' FirstBlockCache."""

    threshold: float = 0.05
    project: ClassVar[str] = "diffusers"

    def install(self, pipe: Any, steps: int) -> None:
        _each(pipe, lambda _: FirstBlockCacheConfig(self.threshold))


@dataclass(frozen=True)
class TaylorSeer(Peer):
    """diffusers' TaylorSeer: of the output ("lite"), or of every module as published.

    Attributes:
        interval: steps from one computed step to the next, after the warm-up.
        warmup: the first steps, all computed.
    """

    interval: int = 5
    order: int = 1
    warmup: int = 3
    carrier: Literal["lite", "module"] = "lite"
    project: ClassVar[str] = "diffusers"

    def install(self, pipe: Any, steps: int) -> None:
        _each(pipe, self._config)

    def _config(self, denoiser: torch.nn.Module) -> TaylorSeerCacheConfig:
        kind, lite = type(denoiser).__name__, self.carrier == "lite"
        if not lite and kind not in EVERY_MODULE:
            raise ValueError(f"no module patterns for {kind}; known: {', '.join(EVERY_MODULE)}")
        return TaylorSeerCacheConfig(
            cache_interval=self.interval,
            disable_cache_before_step=self.warmup,
            max_order=self.order,
            taylor_factors_dtype=denoiser.dtype,
            cache_identifiers=None if lite else EVERY_MODULE[kind],
            skip_predict_identifiers=None if lite else IDLE.get(kind),
            use_lite_mode=lite,
        )

    def computed(self, steps: int) -> list[int]:
        """The steps that are computed: after the warm-up it predicts one step, then refreshes."""
        after = self.warmup + 1
        return [s for s in range(steps) if s < self.warmup or (s - after) % self.interval == 0]


@dataclass(frozen=True)
class MagCache(Peer):
    """diffusers' MagCache. `ratios` are a model's own: take them from `magnitudes`."""

    ratios: tuple[float, ...]
    threshold: float = 0.06
    max_skip: int = 3
    retention: float = 0.2
    project: ClassVar[str] = "diffusers"

    def install(self, pipe: Any, steps: int) -> None:
        config = MagCacheConfig(
            threshold=self.threshold,
            max_skip_steps=self.max_skip,
            retention_ratio=self.retention,
            num_inference_steps=steps,
            mag_ratios=list(self.ratios),
        )
        _each(pipe, lambda _: config)


def magnitudes(
    pipe: Any, call: Callable[[Any], object], steps: int, context: int = 0
) -> tuple[float, ...]:
    """MagCache's ratios of one calibration run, `call(pipe)`, by its own calibration mode.

    Args:
        context: which of the contexts to take, in the order of calls (0 is `cond` on Wan).
    """
    other, printed = twin(pipe), io.StringIO()
    config = MagCacheConfig(calibrate=True, num_inference_steps=steps)
    _each(other, lambda _: config)
    with contextlib.redirect_stdout(printed):
        call(other)
    found = [ast.literal_eval(x) for x in printed.getvalue().splitlines() if x.startswith("[1.0")]
    if len(found) <= context:
        raise RuntimeError(f"the calibration run did not make {steps} steps")
    return tuple(found[context])


@dataclass(frozen=True)
class CacheDiT(Peer):
    """cache-dit's DBCache: by threshold, or by a static step mask.

    Attributes:
        threshold: of the first blocks' residual; ignored with a mask.
        first, last: blocks always computed (F1B0 is its fastest).
        warmup: first steps, all computed; with a mask, those before its first 0.
        order: of its Taylor calibrator; None reuses the residual as it is.
        mask: 1 for every step that is computed, 0 for the others.
    """

    threshold: float = 0.08
    first: int = 1
    last: int = 0
    warmup: int = 8
    max_continuous: int = -1
    order: int | None = None
    mask: tuple[int, ...] | None = None
    project: ClassVar[str] = "cache-dit"

    def install(self, pipe: Any, steps: int) -> None:
        os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "ERROR")
        cache_dit = importlib.import_module("cache_dit")
        if self.mask is not None and len(self.mask) != steps:
            raise ValueError(f"the mask has {len(self.mask)} steps, the run {steps}")
        config = cache_dit.DBCacheConfig(
            Fn_compute_blocks=self.first,
            Bn_compute_blocks=self.last,
            residual_diff_threshold=self.threshold,
            max_warmup_steps=self.warmup,
            max_continuous_cached_steps=self.max_continuous,
            num_inference_steps=steps,
            steps_computation_mask=None if self.mask is None else list(self.mask),
            steps_computation_policy="dynamic" if self.mask is None else "static",
        )
        calibrator = None
        if self.order is not None:
            # the last block of SD3 gives no text, whose residual the calibrator would ask for
            parts = [getattr(pipe, name, None) for name in DENOISERS]
            layers = (m for part in parts if part is not None for m in part.modules())
            silent = any(getattr(layer, "context_pre_only", None) for layer in layers)
            calibrator = cache_dit.TaylorSeerCalibratorConfig(
                taylorseer_order=self.order, enable_encoder_calibrator=not silent
            )
        cache_dit.enable_cache(pipe, cache_config=config, calibrator_config=calibrator)


@dataclass(frozen=True)
class DeepCache(Peer):
    """The DeepCache package (Stable Diffusion U-Nets)."""

    interval: int = 3
    branch: int = 0
    project: ClassVar[str] = "DeepCache"

    def install(self, pipe: Any, steps: int) -> None:
        helper = importlib.import_module("DeepCache").DeepCacheSDHelper(pipe=pipe)
        helper.set_params(cache_interval=self.interval, cache_branch_id=self.branch)
        helper.enable()
        kind, call = type(pipe), type(pipe).__call__

        def fresh(self: Any, *args: Any, **kwargs: Any) -> Any:
            helper.cached_output, helper.start_timestep = {}, None  # it keeps the last picture's
            return call(self, *args, **kwargs)

        kind.__call__ = fresh


def mask(computed: Sequence[int], steps: int) -> tuple[int, ...]:
    """A step mask for `CacheDiT` from the indices of computed steps."""
    return tuple(int(s in set(computed)) for s in range(steps))


def _each(pipe: Any, config: Callable[[torch.nn.Module], Any]) -> None:
    """Enable a diffusers cache on every denoiser of `pipe`."""
    for name in DENOISERS:
        denoiser = getattr(pipe, name, None)
        if denoiser is None:
            continue
        if not hasattr(denoiser, "enable_cache"):
            raise ValueError(f"diffusers has no cache for {type(denoiser).__name__}")
        denoiser.enable_cache(config(denoiser))


def _short(value: Any) -> str:
    if isinstance(value, tuple) and len(value) > 8 and set(value) <= {0, 1}:
        return "".join(map(str, value))
    return f"<{len(value)} values>" if isinstance(value, tuple) and len(value) > 8 else repr(value)
