"""Step Rehash of Streamlined Inference (2411.01171): keep a video U-Net's high-level features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from accel.method import Method, Site, check_fields

from .forecasters import hold
from .policies import Interval, Policy, explain_schedule
from .state import Cache
from .unet_branch import UNetBranch


@dataclass(frozen=True)
class StepRehash(Method):
    """Run the whole video U-Net, then for `reuse` steps only its outermost stages.

    Attributes:
        reuse: steps in a row that reuse the features of the last whole one; 0 skips nothing.
        stages: up blocks that run at every step, from the output back; so do the down layers they
            read. What the stage before handed them last is reused.

    DeepCache cut between whole stages, spatial and temporal layers alike: the branch that ends
    with the last layer of a stage. How the authors choose their steps is not public; here every
    (`reuse` + 1)-th is whole. Their slicing of features, which saves memory, is no part of this.
    Keeps one hidden state (frames as rows). A static schedule.
    """

    reuse: int = 1
    stages: int = 1

    level: ClassVar[str] = "blocks"
    kinds: ClassVar[tuple[str, ...]] = ("unet",)
    claims: ClassVar[str] = "caching"

    def __post_init__(self) -> None:
        check_fields(
            self,
            reuse=(self.reuse >= 0, "0 or more"),
            stages=(self.stages >= 1, "at least 1"),
        )

    @property
    def policy(self) -> Policy:
        return Interval(self.reuse + 1)

    def expect(self, site: Site, steps: int) -> str:
        kept = f"the others run {self.stages} of the up blocks; keeps 1 hidden state"
        return explain_schedule(self.policy, steps, kept)

    def install(self, site: Site) -> None:
        cache = Cache(site, hold, 1)
        _Stages(site, cache, self.policy, "StepRehash", branch=self.stages).install()


class _Stages(UNetBranch):
    """A branch counted in stages."""

    def attach(self, name: str, denoiser: torch.nn.Module) -> list[str]:
        stages = self.branch
        blocks = getattr(denoiser, "_orig_mod", denoiser).up_blocks
        if stages > len(blocks):
            raise ValueError(
                f"StepRehash.stages must be from 1 to {len(blocks)} on this U-Net, got {stages}"
            )
        self.branch = sum(len(block.resnets) for block in blocks[len(blocks) - stages :]) - 1
        return super().attach(name, denoiser)
