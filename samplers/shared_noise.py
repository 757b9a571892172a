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

NOISE = {
    "batch_size",
    "num_channels_latents",
    "num_frames",
    "height",
    "width",
    "dtype",
    "device",
    "generator",
    "latents",
    "noise_scale",  # of latents that are passed
}
"""What `prepare_latents` takes where it makes noise alone."""

APART = {
    "ChronoEditPipeline",
    "CogVideoXImageToVideoPipeline",
    "Cosmos2VideoToWorldPipeline",
    "CosmosVideoToWorldPipeline",
    "HunyuanSkyreelsImageToVideoPipeline",
    "LucyEditPipeline",
    "SkyReelsV2DiffusionForcingImageToVideoPipeline",
    "SkyReelsV2DiffusionForcingPipeline",
    "SkyReelsV2DiffusionForcingVideoToVideoPipeline",
    "SkyReelsV2ImageToVideoPipeline",
    "WanImageToVideoPipeline",
}
"""Pipelines whose `prepare_latents` takes a picture or a video, and returns it beside the noise."""

OPTIONAL = {"LTXConditionPipeline": "conditions"}
"""Pipelines whose first latents are noise alone where `prepare_latents` is not given this."""


@dataclass(frozen=True)
class SharedNoise(Method):
    """Frame f begins from a n_0 + b n_f, n_0 the noise of the first frame (LAMP, 2310.10769).

    LAMP takes a = share, b = 1 - share, which for 0.2 leaves noise of standard deviation 0.825 that
    no untuned model was trained on; here a^2 = share and b^2 = 1 - share, which keeps it at 1.
    Frames then agree more from the start, and move less. Latents that are passed to the pipeline
    are left as they are. Pipelines whose first latents hold a picture or a video too, as those of
    LTX's image-to-video and Wan's video-to-video do, are refused. Spends no less work by itself.

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
        content = content_of(type(pipe)) if self.share else ()
        if set(content) - set(OPTIONAL.values()):
            raise _refusal(pipe, content)

        def prepared(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            result = call(*args, **kwargs)
            given = signature.bind(pipe, *args, **kwargs).arguments
            if given.get("latents") is not None or self.share == 0:
                return result
            if any(given.get(name) for name in content):
                raise _refusal(pipe, content)
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


def content_of(kind: type) -> tuple[str, ...]:
    """What the first latents of pipelines of `kind` are made of beside noise, as far as is known.

    Parameters of `prepare_latents`; empty where latents are noise alone.
    """
    owner = next(base for base in kind.__mro__ if "prepare_latents" in vars(base))
    if owner.__name__ in APART:
        return ()
    if owner.__name__ in OPTIONAL:
        return (OPTIONAL[owner.__name__],)
    _, *taken = inspect.signature(vars(owner)["prepare_latents"]).parameters
    return tuple(name for name in taken if name not in NOISE)


def _refusal(pipe: Any, content: tuple[str, ...]) -> ValueError:
    return ValueError(
        f"{type(pipe).__name__} makes its first latents of {', '.join(content)} as well as of "
        f"noise, and SharedNoise would spread what they hold of the first frame over the others; "
        f"it is for pipelines that begin from noise alone, such as those of text to video, or "
        f"that keep the picture apart, as WanImageToVideoPipeline does"
    )


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
