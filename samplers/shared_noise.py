"""Shared noise: the frames of a video begin from noise that they partly have in common."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from accel.family import Family
from accel.method import Method, Site, check_fields


@dataclass(frozen=True)
class SharedNoise(Method):
    """Frame f begins from a n_0 + b n_f, n_0 the noise of the first frame (LAMP, 2310.10769).

    LAMP takes a = share, b = 1 - share, which for 0.2 leaves noise of standard deviation 0.825 that
    no untuned model was trained on; here a^2 = share and b^2 = 1 - share, which keeps it at 1.
    Frames then agree more from the start, and move less. Latents that are passed to the pipeline
    are left as they are. Spends no less work by itself.

    Attributes:
        share: 0 (noise as ever) to 1 (one noise for all frames).
        preserve_variance: False for LAMP's own weights.
    """

    share: float = 0.2
    preserve_variance: bool = True

    level: ClassVar[str] = "sampler"
    claims: ClassVar[str] = "start"

    def __post_init__(self) -> None:
        check_fields(self, share=(0 <= self.share <= 1, "between 0 and 1"))

    def supports(self, family: Family) -> bool:
        return True

    def expect(self, site: Site, steps: int) -> str:
        return f"computes every step, from noise of which frames share {self.share:g}"

    def install(self, site: Site) -> None:
        pipe = site.pipe
        if not hasattr(type(pipe), "prepare_latents"):
            raise ValueError(f"{type(pipe).__name__} has no prepare_latents whose noise to share")
        signature = inspect.signature(type(pipe).prepare_latents)

        def prepared(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            result = call(*args, **kwargs)
            given = signature.bind(pipe, *args, **kwargs).arguments
            if given.get("latents") is not None or self.share == 0:
                return result
            if isinstance(result, tuple):
                return self._mixed(site, result[0], given), *result[1:]
            return self._mixed(site, result, given)

        site.patches.method(pipe, "prepare_latents", prepared, "SharedNoise", always=True)

    def _mixed(self, site: Site, noise: Tensor, given: dict[str, Any]) -> Tensor:
        if noise.ndim == 5:
            axis = 1 if site.family.channels == 2 else 2
            return shared(noise, axis, self.share, self.preserve_variance)
        ratio = getattr(site.pipe, "vae_temporal_compression_ratio", None)
        frames = (given.get("num_frames", 1) - 1) // ratio + 1 if ratio else 1
        if noise.ndim != 3 or frames < 2 or noise.shape[1] % frames:
            raise ValueError(
                f"latents of shape {tuple(noise.shape)} have no frames to share noise; SharedNoise "
                f"is for video"
            )
        apart = noise.unflatten(1, (frames, -1))
        return shared(apart, 1, self.share, self.preserve_variance).flatten(1, 2)


def shared(noise: Tensor, axis: int, share: float, preserve_variance: bool = True) -> Tensor:
    """Noise whose frames (along `axis`) after the first contain it.

    The correlation of two of them is `share`, with the first sqrt(share); in LAMP's own weights
    share^2 / (share^2 + (1 - share)^2), and 0.825 is the standard deviation for share 0.2.
    """
    first = noise.narrow(axis, 0, 1)
    common, own = share, 1 - share
    if preserve_variance:
        common, own = math.sqrt(share), math.sqrt(1 - share)
    mixed = common * first + own * noise
    mixed.narrow(axis, 0, 1).copy_(first)
    return mixed
