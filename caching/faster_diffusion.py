"""Faster Diffusion (2312.09608): run a U-Net's encoder at key steps, its decoder at every step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from accel.method import Method, Site, check_fields

from .control_hold import ControlHold
from .forecasters import hold
from .policies import Interval, Listed, Policy, Stretched, begins_and_rises, explain_schedule
from .prior_noise import PriorNoise
from .state import Cache
from .unet_encoder import Encoder, EncoderAhead

PUBLISHED = Stretched((0, 1, 2, 3, 5, 10, 15, 25, 35), 50)


@dataclass(frozen=True)
class FasterDiffusion(Method):
    """Encoder propagation: steps between two key steps decode the encoder features of the first.

    Attributes:
        interval: every `interval`-th step is a key step; 1 skips nothing. None: the published
            key steps for 50 steps, 0 1 2 3 5 10 15 25 35, at the same fractions of other runs.
        steps: key steps listed instead; must begin with 0.
        decoder: "in turn", at each step, or "batched": for all steps up to the next key step at
            once, at the key step, as published. The same but for rounding; faster where a batch
            of one leaves the device idle, but its memory grows with the longest group.
        noise: prior noise added before each scheduler step of the later half, times the latents
            the run began with; 0.003 as published, 0 for none. Left out where it makes no sense:
            image-to-image, second-order schedulers, UniPC, flow and continuous-time models.

    Within a group the model sees the sample of its key step only. A ControlNet is called at key
    steps only. A static schedule, counted from the first step run. Keeps the residuals of all
    levels ("in turn") or one output per step of a group ("batched").
    """

    interval: int | None = None
    steps: tuple[int, ...] | None = None
    decoder: Literal["in turn", "batched"] = "in turn"
    noise: float = 0.003

    level: ClassVar[str] = "blocks"
    kinds: ClassVar[tuple[str, ...]] = ("unet",)
    claims: ClassVar[str] = "caching"

    def __post_init__(self) -> None:
        check_fields(
            self,
            interval=(self.interval is None or self.interval >= 1, "at least 1, or None"),
            steps=(begins_and_rises(self.steps), "rising step numbers that begin with 0"),
            decoder=(self.decoder in ("in turn", "batched"), "in turn or batched"),
            noise=(0 <= self.noise < 1, "from 0 to below 1"),
        )

    @property
    def policy(self) -> Policy:
        if self.steps is not None:
            return Listed(self.steps)
        return PUBLISHED if self.interval is None else Interval(self.interval)

    def expect(self, site: Site, steps: int) -> str:
        how = "together with its key step's" if self.decoder == "batched" else "in turn"
        control = "; ControlNet at key steps" if hasattr(site.pipe, "controlnet") else ""
        return explain_schedule(
            self.policy, steps, f"the decoder of each other step runs {how}{control}"
        )

    def install(self, site: Site) -> None:
        carrier = EncoderAhead if self.decoder == "batched" else Encoder
        carrier(site, Cache(site, hold, 1), self.policy, "FasterDiffusion").install()
        ControlHold(site, self.policy, "FasterDiffusion")
        if self.noise:
            PriorNoise(site, self.noise)
