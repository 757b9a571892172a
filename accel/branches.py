"""Branches of guidance: which of them a call of a denoiser holds, and its rows of one branch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .batch_parts import stream_of
from .family import select_rows
from .method import Site


def guided(pipe: Any) -> bool | None:
    """Whether the run going on uses classifier-free guidance; None if the pipeline hides it."""
    told = getattr(pipe, "do_classifier_free_guidance", None)
    if told is None and (scale := getattr(pipe, "guidance_scale", None)) is not None:
        told = scale > 1
    return None if told is None else bool(told)


def may_hold_both(site: Site, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether the call going on may hold both branches in one batch."""
    family, pipe = site.family, site.pipe
    return (
        len(family.fused) == 2
        and site.clock.step.branch in ("both", "0")
        and len(stream_of(family.stream, args, kwargs)) % 2 == 0
        and guided(pipe) is not False
        and not getattr(pipe, "do_perturbed_attention_guidance", False)
    )


def same_samples(site: Site, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether the halves of the batch are the branches of the same samples.

    Pipelines that do not say so give both the same latents. Samples may merely begin alike: ask
    after the first step, and once, since it reads values.
    """
    halves = stream_of(site.family.stream, args, kwargs).chunk(2)
    return guided(site.pipe) or torch.equal(*halves)


def rows_of_branch(
    site: Site,
    name: str,
    branch: str,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    samples: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Arguments of denoiser `name` for one branch of a batch that holds both.

    Args:
        samples: which of them; None for all.
    """
    family = site.family
    hidden = stream_of(family.stream, args, kwargs)
    count = len(hidden) // 2
    chosen = torch.arange(count) if samples is None else torch.tensor(samples)
    rows = (chosen + family.fused.index(branch) * count).to(hidden.device)
    return select_rows(family, site.denoisers[name], args, kwargs, rows)
