"""Method: a frozen dataclass of settings that installs itself at a site."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from .family import Family
from .patch import PatchStack
from .step import StepClock

if TYPE_CHECKING:
    from .recorder import Recorder

LEVELS = ("sampler", "guidance", "step", "tokens", "blocks", "attention", "weights")


@dataclass(frozen=True)
class Site:
    """Where methods are installed: references only, no behaviour.

    `keep_on` is where kept outputs lie: "device", or "cpu" for host memory.
    """

    pipe: Any
    family: Family
    denoisers: Mapping[str, torch.nn.Module]
    clock: StepClock
    patches: PatchStack
    report: Recorder
    keep_on: str = "device"


@dataclass(frozen=True)
class Method(abc.ABC):
    """One way to spend less work. Fields are the settings; the docstring is the help.

    Class attributes:
        level: what the method acts on, one of `LEVELS`.
        kinds: kinds of family it works on.
        claims: what it alone decides; two methods with the same claim cannot be combined.
    """

    level: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]] = ("transformer", "unet")
    claims: ClassVar[str] = ""

    @abc.abstractmethod
    def install(self, site: Site) -> None:
        """Attach to `site` by its patches and its clock; raise ValueError if that cannot be."""

    @abc.abstractmethod
    def expect(self, site: Site, steps: int) -> str:
        """One line for `explain()`: what a run of `steps` steps will compute and keep."""

    def claimed(self) -> tuple[str, ...]:
        """What this method, as set, alone decides."""
        return (self.claims,) if self.claims else ()

    def supports(self, family: Family) -> bool:
        """Whether this method, as set, can work on `family`."""
        return family.kind in self.kinds

    def why_not(self, family: Family) -> str:
        """Why it cannot work on `family`, beyond the kind of model; empty where that is all."""
        return ""


def check_fields(method: Any, **rules: tuple[bool, str]) -> None:
    """Raise ValueError for the first field whose rule is not met.

    Args:
        rules: field name -> (is it right, what would be right).
    """
    for name, (right, wanted) in rules.items():
        if not right:
            raise ValueError(
                f"{type(method).__name__}.{name} must be {wanted}, got {getattr(method, name)!r}"
            )
