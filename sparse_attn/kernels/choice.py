"""Which kernel computes an attention, and why."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from accel.registry import nearest

from ..layout import BlockLayout

PREFERRED = {"cuda": ("triton", "flex", "gather"), "cpu": ("gather",)}
"""What `auto` tries, the fastest first, by the type of device."""


def choose(
    name: str, kernels: dict[str, Any], q: Tensor, layout: BlockLayout
) -> tuple[str, Any, str]:
    """The kernel called `name`, or for "auto" the first preferred one that works here.

    Kernels that have an attribute `unproven` (a reason in words) are never chosen by "auto".

    Returns:
        Its name, the kernel, and why it.

    Raises:
        ValueError: `name` cannot be used on these tensors; the message says why.
    """
    where = f"{str(q.dtype).removeprefix('torch.')} on {q.device.type}, head size {q.shape[-1]}"
    if name != "auto":
        check_name(name, kernels)
        if reason := kernels[name].why_not(q, layout):
            raise ValueError(
                f"kernel {name!r} cannot be used for {where}: {reason}; kernel='auto' picks one "
                f"that can"
            )
        return name, kernels[name], "asked for by name"
    passed: list[str] = []
    for known in PREFERRED.get(q.device.type, ("gather",)):
        if known not in kernels:
            continue
        reason = getattr(kernels[known], "unproven", None) or kernels[known].why_not(q, layout)
        if reason is None:
            others = f"; not {', '.join(passed)}" if passed else ""
            return known, kernels[known], f"the fastest that works for {where}{others}"
        passed.append(f"{known} ({reason})")
    raise ValueError(f"no kernel works for {where}: {'; '.join(passed)}")


def check_name(name: str, kernels: dict[str, Any]) -> None:
    """Raise ValueError for a kernel that there is not."""
    if name != "auto" and name not in kernels:
        raise ValueError(f"unknown kernel {name!r}; {nearest(name, ['auto', *kernels])}")
