"""What a plan will hold, in bytes, told from the arguments of a denoiser before it runs."""

from __future__ import annotations

from typing import Any

from accel.batch_parts import stream_of
from accel.branches import guided, may_hold_both
from accel.method import Site
from accel.work import Work


def latents_ahead(site: Site, args: Any, kwargs: Any, work: Work) -> int:
    """Of a guided output of all samples in float32.

    It has no more channels than what the denoiser is given, where a mask or a picture may lie
    behind the latents, nor than what it returns, where a variance may.
    """
    given, size, returned = _one_branch(site, args, kwargs, work)
    return 4 * min(given, returned) // size


def difference_ahead(site: Site, args: Any, kwargs: Any, work: Work) -> int:
    """Of the difference of the branches of guidance, in their dtype; 0 where there is none."""
    return _one_branch(site, args, kwargs, work)[2] if guided(site.pipe) is not False else 0


def _one_branch(site: Site, args: Any, kwargs: Any, work: Work) -> tuple[int, int, int]:
    """Bytes of what a denoiser is given, of an entry of it, and of what it returns."""
    latents = stream_of(site.family.stream, args, kwargs)
    branches = 2 if may_hold_both(site, args, kwargs) else 1
    returned = sum(work.outputs.get("", (latents.nbytes,))[:1])
    return latents.nbytes // branches, latents.element_size(), returned // branches
