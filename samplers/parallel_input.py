"""Where in a denoiser's input the state lies that the scheduler steps."""

from __future__ import annotations

import torch
from torch import Tensor

from accel.branches import guided
from accel.method import Site


def axis_beside(name: str, site: Site, given: Tensor, state: Tensor) -> int | None:
    """The axis along which the input goes on behind the state; None where it is the state alone.

    Some pipelines put a condition there: the first frame, a mask, the picture to change.

    Args:
        given: (R, …) first input of a denoiser, with the state for every branch of guidance.
        state: (B, …) what the scheduler is given to step.

    Raises:
        ValueError: the input does not begin with the state, or the state holds both branches.
    """
    pipe = type(site.pipe).__name__
    branches, left = divmod(len(given), len(state))
    longer = []
    if left == 0 and given.ndim == state.ndim:
        own = given[(slice(None), *(slice(size) for size in state.shape[1:]))]
        expected = state.to(own.dtype).repeat(branches, *[1] * (state.ndim - 1))
        longer = [a for a in range(1, state.ndim) if given.shape[a] != own.shape[a]]
        left = int(len(longer) > 1 or not torch.equal(own, expected))
    if left or given.ndim != state.ndim:
        raise ValueError(
            f"{name} puts other states into the denoiser's input, and that of {pipe}, "
            f"{tuple(given.shape)}, does not begin with the state its scheduler steps, "
            f"{tuple(state.shape)}, as where a given frame is not stepped; use {pipe} without "
            f"{name}"
        )
    doubled = branches == 1 and len(site.family.fused) == 2 and guided(site.pipe) is not False
    if doubled and len(state) % 2 == 0 and torch.equal(*state.chunk(2)):
        raise ValueError(
            f"{name} evaluates levels of one state, and the one that {pipe} steps holds both "
            f"branches of guidance; use {pipe} without {name}"
        )
    return longer[0] if longer else None


def put_in(states: Tensor, given: Tensor, axis: int | None) -> Tensor:
    """`given` (R, …) with other states (R, …), and what lies behind them along `axis` as it was."""
    if axis is None:
        return states
    size = states.shape[axis]
    return torch.cat([states, given.narrow(axis, size, given.shape[axis] - size)], dim=axis)
