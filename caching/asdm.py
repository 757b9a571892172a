"""A-SDM (2406.00210): a U-Net's blocks, layers or units inherit their features of a step before."""

from __future__ import annotations

import fnmatch
import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from accel.method import Method, Site, check_fields

from .forecasters import hold
from .module_mask import ModuleMask, Part
from .policies import explain_schedule
from .state import Cache
from .unet_parts import Granularity, groups


@dataclass(frozen=True)
class FeatureInheritance(Method):
    """A-SDM's feature inheritance: at some steps parts of the U-Net hand on their last output.

    Attributes:
        granularity: what inherits: a whole down, mid or up "block"; a "layer" (a ResNet with its
            attention); a "unit" (one ResNet, attention or feed-forward).
        inherit: module paths of the parts that inherit, also with wildcards ("up_blocks.1*",
            "*.attn2"); a layer goes by the path of its ResNet. None: all below full resolution.
        pattern: where in the run parts inherit: "every" step but each `interval`-th, or so in the
            "first" or the "last" part of the run only.
        interval: steps from one computed step to the next where parts inherit; 1 skips nothing.
        part: length of the first or last part, as a fraction of the run.

    Its authors' lists of parts are not public: the default is ours. Keeps the output of every part
    that inherits, of a down block also its residuals. A static schedule.
    """

    granularity: Granularity = "block"
    inherit: tuple[str, ...] | None = None
    pattern: Literal["every", "first", "last"] = "every"
    interval: int = 2
    part: float = 0.5

    level: ClassVar[str] = "blocks"
    kinds: ClassVar[tuple[str, ...]] = ("unet",)
    claims: ClassVar[str] = "caching"

    def __post_init__(self) -> None:
        check_fields(
            self,
            granularity=(self.granularity in ("block", "layer", "unit"), "block, layer or unit"),
            pattern=(self.pattern in ("every", "first", "last"), "every, first or last"),
            interval=(self.interval >= 1, "at least 1"),
            part=(0 <= self.part <= 1, "from 0 to 1"),
        )

    def expect(self, site: Site, steps: int) -> str:
        counts = [len(self.chosen(module)) for module in site.denoisers.values()]
        return explain_schedule(
            self, steps, f"at the others {sum(counts)} {self.granularity}s inherit; keeps as many"
        )

    def computes(self, index: int, total: int) -> bool:
        """Whether step `index` of `total` is computed whole."""
        length = math.floor(self.part * total)
        if self.pattern == "first" and index >= length:
            return True
        start = max(total - length, 1) if self.pattern == "last" else 1
        return index < start or (index - start + 1) % self.interval == 0

    def row(self, index: int, total: int) -> str:
        return "1" if self.computes(index, total) else "0"

    def chosen(self, denoiser: torch.nn.Module) -> list[list[str]]:
        """Paths of every part that inherits, in the order they run.

        Raises:
            ValueError: a pattern of `inherit` that names no part of this U-Net.
        """
        found = groups(getattr(denoiser, "_orig_mod", denoiser), self.granularity)
        if self.inherit is None:
            return [paths for _, paths, level in found if level > 0]
        names = [name for name, _, _ in found]
        for pattern in self.inherit:
            if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
                raise ValueError(
                    f"FeatureInheritance.inherit: {pattern!r} names no {self.granularity} of this "
                    f"U-Net; there are {', '.join(names[:4])} … {names[-1]}"
                )
        return [
            paths
            for name, paths, _ in found
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in self.inherit)
        ]

    def install(self, site: Site) -> None:
        def parts(denoiser: torch.nn.Module) -> list[Part]:
            return [
                Part(path, (0,), read=path == paths[-1])
                for paths in self.chosen(denoiser)
                for path in paths
            ]

        cache = Cache(site, hold, 1)
        ModuleMask(site, cache, "FeatureInheritance", parts, self).install()
