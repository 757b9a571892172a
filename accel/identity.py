"""Which model is it: its architecture in words, its weights and adapters as short digests."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

STRUCTURE = (
    "num_layers",
    "num_single_layers",
    "num_refiner_layers",
    "num_attention_heads",
    "attention_head_dim",
    "in_channels",
    "out_channels",
    "block_out_channels",
    "layers_per_block",
    "cross_attention_dim",
)
"""Settings of a denoiser that its architecture is told by."""
SAMPLED = 8
"""Entries of every parameter that a digest reads."""

Denoisers = Mapping[str, torch.nn.Module]


def architecture(denoisers: Denoisers) -> str:
    """`WanTransformer3DModel(num_layers=12, …)`, joined by ` + ` where there are several."""
    told = []
    for module in denoisers.values():
        module = getattr(module, "_orig_mod", module)
        config = getattr(module, "config", {})
        known = {k: config[k] for k in STRUCTURE if config.get(k) is not None}
        shown = (f"{k}={list(v) if isinstance(v, tuple | list) else v}" for k, v in known.items())
        told.append(f"{type(module).__name__}({', '.join(shown)})")
    return " + ".join(told)


def weights(denoisers: Denoisers) -> dict[str, str]:
    """A digest of a few entries of every parameter; empty where they cannot be read now.

    Rounded to bfloat16 first, so that a model in float32 and in bfloat16 has the same; float16,
    which rounds otherwise, has one by another name. Adapters do not count unless merged.
    """
    entries, half = [], False
    for name, parameter in _parameters(denoisers):
        if "lora_" in name:
            continue
        if parameter.is_meta:  # offloaded, and only loaded when its turn comes
            return {}
        half |= parameter.dtype == torch.float16
        entries.append(_sampled(parameter))
    return {"weights in float16" if half else "weights": _digest(entries)} if entries else {}


def adapters(denoisers: Denoisers) -> str:
    """Active LoRA adapters with their weight and a digest of their entries; empty without."""
    found: dict[tuple[str, float], list[Tensor]] = {}
    for module in denoisers.values():
        for layer in module.modules():
            scaling = getattr(layer, "scaling", None)
            if not isinstance(scaling, dict) or getattr(layer, "disable_adapters", False):
                continue
            for name in getattr(layer, "active_adapters", ()):
                own = [p for n, p in layer.named_parameters() if f".{name}." in n]
                readable = [_sampled(p) for p in own if not p.is_meta]
                found.setdefault((name, float(scaling.get(name, 1.0))), []).extend(readable)
    shown = (f"{name} × {scale:g} {_digest(entries)}" for (name, scale), entries in found.items())
    return ", ".join(sorted(shown))


def _parameters(denoisers: Denoisers) -> Iterator[tuple[str, Tensor]]:
    """Floating-point ones, by the names they have without adapters or compilation."""
    named: dict[str, Tensor] = {}
    for prefix, module in denoisers.items():
        for name, parameter in module.named_parameters():
            if parameter.is_floating_point():
                clean = name.replace("_orig_mod.", "").replace(".base_layer", "")
                named[f"{prefix}.{clean}"] = parameter
    yield from sorted(named.items())


def _sampled(parameter: Tensor) -> Tensor:
    flat = parameter.detach().reshape(-1)
    return flat[:: max(1, len(flat) // SAMPLED)][:SAMPLED]


def _digest(entries: list[Tensor]) -> str:
    """Of all entries in order; one copy from every device."""
    places: dict[Any, list[Tensor]] = {}
    for one in entries:
        places.setdefault(one.device, []).append(one.to(torch.bfloat16))
    total = hashlib.sha256()
    for parts in places.values():
        total.update(torch.cat(parts).cpu().view(torch.int16).numpy().tobytes())
    return total.hexdigest()[:12]
