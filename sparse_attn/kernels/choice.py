"""Which kernel computes an attention, and why."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from accel.registry import nearest

from ..layout import BlockLayout

PREFERRED = {"cuda": ("triton", "flex", "gather"), "cpu": ("gather",)}
"""What `auto` tries, the fastest first, by the type of device."""

BREAK_EVEN = {"gather": 1.0, "flex": 0.8, "triton": 0.75}
"""Share of pairs from which on the attention of the model is as fast: the rate of the kernel over
that of dense attention, at full density. `gather` and `flex` as measured on a CPU
(benchmarks/results/attention_cpu.md), `triton` as it is meant to be, for want of a card."""


def choose(
    name: str, kernels: dict[str, Any], q: Tensor, layout: BlockLayout, *, dense: bool = False
) -> tuple[str, Any, str]:
    """The kernel called `name`, or for "auto" the first preferred one that works here.

    What was never launched on a device of this type (`doubt`) is never chosen by "auto".

    Args:
        dense: whether the attention of the model can be called instead: "auto" does, where the
            layout is known to hold more pairs than `BREAK_EVEN` says the kernel is good for.

    Returns:
        Its name, the kernel, and why it; "dense" and None for the attention of the model.

    Raises:
        ValueError: `name` cannot be used on these tensors, or "auto" finds none; the message says
            why, and which could be asked for.
    """
    where = f"{str(q.dtype).removeprefix('torch.')} on {q.device.type}, head size {q.shape[-1]}"
    preferred = [k for k in PREFERRED.get(q.device.type, ("gather",)) if k in kernels]
    if name != "auto":
        check_name(name, kernels)
        if reason := kernels[name].why_not(q, layout):
            others = [k for k in preferred if kernels[k].why_not(q, layout) is None]
            raise ValueError(
                f"kernel {name!r} cannot be used for {where}: {reason}; kernels that can: "
                f"{', '.join(others) or 'none'}"
            )
        return name, kernels[name], "asked for by name"
    passed: dict[str, str] = {}
    usable: list[str] = []
    for known in preferred:
        reason = kernels[known].why_not(q, layout)
        if reason is None:
            usable.append(f"kernel={known!r}")
            reason = doubt(kernels[known], q.device)
        if reason is not None:
            passed[known] = reason
            continue
        limit = BREAK_EVEN.get(known, 1.0)
        if dense and layout.share is not None and layout.share >= limit:
            kept = (
                f"{layout.share:.0%} of pairs are kept, and {known} gains below {limit:.0%} alone"
            )
            return "dense", None, f"the attention of the model: {kept}"
        rest = f"; not {_listed(passed)}" if passed else ""
        return known, kernels[known], f"the fastest that works for {where}{rest}"
    hint = f"; ask for it by name, {' or '.join(usable)}, and compare it with dense attention"
    raise ValueError(
        f"there is no kernel that 'auto' may choose for {where}: {_listed(passed)}"
        f"{hint if usable else ''}"
    )


def doubt(kernel: Any, device: torch.device) -> str | None:
    """Why "auto" leaves `kernel` alone on `device`; None where it was launched on such a one.

    Kernels say so in `unproven`, and in `proven_on` which types of device that is not about.
    """
    proven = device.type in getattr(kernel, "proven_on", ())
    return None if proven else getattr(kernel, "unproven", None)


def _listed(passed: dict[str, str]) -> str:
    return ", ".join(f"{name} ({reason})" for name, reason in passed.items())


def check_name(name: str, kernels: dict[str, Any]) -> None:
    """Raise ValueError for a kernel that there is not."""
    if name != "auto" and name not in kernels:
        raise ValueError(f"unknown kernel {name!r}; {nearest(name, ['auto', *kernels])}")
