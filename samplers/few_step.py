"""Few-step samplers of diffusers, picked and set up for a distilled checkpoint."""

from __future__ import annotations

import contextlib
import inspect
import json
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from diffusers import FlowMatchLCMScheduler, LCMScheduler, SCMScheduler, TCDScheduler
from safetensors import SafetensorError, safe_open

from accel.noise import is_flow

Kind = Literal["LCM", "TCD", "SCM", "FlowMatchLCM"]
SCHEDULERS: dict[str, type] = {
    "LCM": LCMScheduler,
    "TCD": TCDScheduler,
    "SCM": SCMScheduler,
    "FlowMatchLCM": FlowMatchLCMScheduler,
}
NAMED: dict[str, Kind] = {
    "lcm": "LCM",
    "consistency": "LCM",
    "dmd": "LCM",
    "dmd2": "LCM",
    "tcd": "TCD",
    "hyper": "TCD",
    "scm": "SCM",
    "sprint": "SCM",
}
"""Words in names and metadata of checkpoints, and the sampler that they were distilled for."""
OTHERS = {
    "lightning": "EulerDiscreteScheduler with timestep_spacing='trailing' and guidance_scale=0",
    "turbo": "the scheduler it came with and guidance_scale=0",
    "schnell": "the scheduler it came with and 4 steps",
}
"""Distilled for a sampler that is none of these."""
TOLD = ("distillation", "scheduler", "title", "description", "comment", "output_name", "name")
"""What keys of a checkpoint's metadata end with, where they tell how it was trained."""
LCM_STEPS, TCD_STEPS, SCM_STEPS = 4, 4, 2


@dataclass(frozen=True)
class FewStep:
    """What was picked: `pipe(prompt, **found.call)`.

    Attributes:
        kind: a key of `SCHEDULERS`.
        scheduler: set up, and in place at the pipeline.
        call: arguments for the pipeline's call: steps, guidance, and what else the sampler takes.
        evidence: what told.
    """

    kind: str
    scheduler: Any
    call: Mapping[str, Any]
    evidence: str


def few_step(pipe: Any, checkpoint: str | Path | None = None, kind: Kind | None = None) -> FewStep:
    """Give `pipe`, which holds distilled weights, the few-step sampler that they were made for.

    Looked at in this order: `kind`; metadata in the checkpoint's safetensors file; the scheduler
    and the denoiser of the pipeline; names of the checkpoint, the adapters and the model. Nothing
    but a name is a reason to warn.

    Args:
        checkpoint: the LoRA's file, folder or id, loaded before.
        kind: the sampler, where it is known.

    Raises:
        ValueError: nothing tells that the weights are distilled, two things tell otherwise, or the
            sampler does not fit the model's prediction or the pipeline; the pipeline is unchanged.
    """
    if kind is not None and kind not in SCHEDULERS:
        raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {kind!r}")
    found, evidence = (kind, "as asked") if kind is not None else _found(pipe, checkpoint)
    chosen = _fitting(pipe, found)
    scheduler = _configured(pipe, chosen)
    pipe.scheduler = scheduler
    return FewStep(chosen, scheduler, _call(pipe, chosen), evidence)


def _found(pipe: Any, checkpoint: str | Path | None) -> tuple[str, str]:
    for look in (_by_metadata, _by_parts):
        if (told := look(pipe, checkpoint)) is not None:
            return told
    model = getattr(pipe, "name_or_path", None) or ""
    paths = {"name of the checkpoint": checkpoint or "", "name of the model": model}
    names = [(source, "/".join(Path(path).parts[-2:])) for source, path in paths.items()]
    names[1:1] = [("name of an adapter", name) for name in _adapters(pipe)]
    told = _by_words(names)
    if told is None:
        shown = ", ".join(repr(text) for _, text in names if text) or "no names"
        raise ValueError(
            f"nothing tells that {type(pipe).__name__} holds few-step weights: no metadata, a "
            f"{type(pipe.scheduler).__name__}, and {shown}; give kind, one of "
            f"{', '.join(get_args(Kind))}, if they are"
        )
    warnings.warn(
        f"{told[0]} was picked by the {told[1]} alone; give kind if it is another", stacklevel=3
    )
    return told


def _by_metadata(pipe: Any, checkpoint: str | Path | None) -> tuple[str, str] | None:
    """By what a LoRA's safetensors file says of itself."""
    if checkpoint is None or not Path(checkpoint).exists():
        return None
    path = Path(checkpoint)
    texts: list[tuple[str, str]] = []
    for file in sorted(path.glob("*.safetensors")) if path.is_dir() else [path]:
        try:
            with safe_open(str(file), "pt") as opened:
                entries = _flat(opened.metadata() or {})
        except SafetensorError as error:
            raise ValueError(f"{file} is no safetensors file: {error}") from None
        texts += [(f"{key} in {file.name}", v) for key, v in entries if key.endswith(TOLD)]
    return _by_words(texts)


def _flat(metadata: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Entries of the metadata, those of JSON objects in it too."""
    for key, value in metadata.items():
        if isinstance(value, str) and value.startswith("{"):
            with contextlib.suppress(json.JSONDecodeError):
                value = json.loads(value)
        if isinstance(value, Mapping):
            yield from _flat(value)
        else:
            yield str(key), str(value)


def _by_parts(pipe: Any, checkpoint: str | Path | None) -> tuple[str, str] | None:
    """By the scheduler the model came with, or a denoiser that is told the guidance scale."""
    for kind, scheduler in SCHEDULERS.items():
        if type(pipe.scheduler) is scheduler:
            return kind, f"scheduler of the model ({scheduler.__name__})"
    if _config_of(pipe).get("time_cond_proj_dim") is not None:
        return "LCM", "config of the U-Net (time_cond_proj_dim: it is told the guidance scale)"
    return None


def _by_words(texts: Iterable[tuple[str, str]]) -> tuple[str, str] | None:
    """The kind that words tell of, and which text; errors for two kinds, and for none of ours."""
    found: dict[str, str] = {}
    for source, text in texts:
        words = re.findall(r"[a-z]+2?", text.lower())
        for word in words:
            if word in NAMED:
                found.setdefault(NAMED[word], f"{source} ({text})")
            elif word in OTHERS and not found:
                raise ValueError(
                    f"the {source} ({text}) tells of weights distilled for another sampler: use "
                    f"{OTHERS[word]}"
                )
    if len(found) > 1:
        (a, one), (b, two) = list(found.items())[:2]
        raise ValueError(f"{one} tells of {a}, {two} of {b}; give kind")
    return next(iter(found.items()), None)


def _adapters(pipe: Any) -> list[str]:
    denoiser = getattr(pipe, "transformer", None) or getattr(pipe, "unet", None)
    return [str(name) for name in getattr(denoiser, "peft_config", None) or {}]


def _fitting(pipe: Any, kind: str) -> str:
    """`kind`, or its form for the model's prediction."""
    flow = is_flow(pipe.scheduler)
    takes = inspect.signature(type(pipe).__call__).parameters
    if kind == "LCM" and flow:
        return "FlowMatchLCM"
    if kind == "FlowMatchLCM" and not flow:
        raise ValueError(f"FlowMatchLCM is for flow models; {type(pipe).__name__} holds none")
    if kind == "TCD" and flow:
        raise ValueError(
            f"TCD is for models that predict noise; {type(pipe).__name__} holds a flow model, "
            f"whose few-step sampler is FlowMatchLCM"
        )
    if kind == "SCM" and "intermediate_timesteps" not in takes:
        raise ValueError(
            f"SCM is for models told trigonometric times, as by SanaSprintPipeline; "
            f"{type(pipe).__name__} tells them others"
        )
    return kind


def _configured(pipe: Any, kind: str) -> Any:
    """The scheduler, with what the model's own one says of its noise and its prediction."""
    own, wanted = pipe.scheduler, SCHEDULERS[kind]
    if type(own) is wanted:
        return own
    known = inspect.signature(wanted).parameters
    config = {k: v for k, v in own.config.items() if k in known}
    if kind == "FlowMatchLCM":
        config.setdefault("shift", own.config.get("flow_shift", 1.0))
    return wanted(**config)


def _call(pipe: Any, kind: str) -> dict[str, Any]:
    """As published: 2310.04378 and 2311.05556 (LCM), 2402.19159 (TCD), 2503.09641 (SCM)."""
    takes = inspect.signature(type(pipe).__call__).parameters
    scale = "true_cfg_scale" if "true_cfg_scale" in takes else "guidance_scale"
    settings: dict[str, Callable[[], dict[str, Any]]] = {
        "LCM": lambda: {"num_inference_steps": LCM_STEPS, scale: _lcm_guidance(pipe)},
        "TCD": lambda: {"num_inference_steps": TCD_STEPS, scale: 0.0, "eta": 0.3},
        "SCM": lambda: {
            "num_inference_steps": SCM_STEPS,
            "guidance_scale": 4.5,
            "intermediate_timesteps": 1.3,
        },
        "FlowMatchLCM": lambda: {"num_inference_steps": LCM_STEPS, scale: 1.0},
    }
    return {name: value for name, value in settings[kind]().items() if name in takes}


def _lcm_guidance(pipe: Any) -> float:
    """8 where the denoiser is told it; else none, as of a LoRA."""
    return 8.0 if _config_of(pipe).get("time_cond_proj_dim") is not None else 1.0


def _config_of(pipe: Any) -> Mapping[str, Any]:
    return getattr(getattr(pipe, "unet", None), "config", {})
