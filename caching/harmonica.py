"""HarmoniCa (2410.01723): a learned static mask of which modules to compute at which step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from accel.family import Family
from accel.method import Method, Site, check_fields
from accel.step import Run

from .forecasters import hold
from .module_mask import ModuleMask, Part
from .policies import explain_schedule
from .state import Cache


@dataclass(frozen=True)
class HarmoniCa(Method):
    """Compute the modules that a trained mask names for each step, hold the others' last outputs.

    Attributes:
        mask: one text per step, one character per attention and feed-forward module in the order
            they run: "1" computes it, "0" takes its output (before the gate) of the last step at
            which it was computed. The first step must be all "1". Comes from a plan file.
        resample: run another number of steps than the mask was trained for, taking for each step
            the row nearest to it in fraction of the run; otherwise that is an error.

    A mask belongs to one model, scheduler, number of steps and guidance. It does not look at the
    sample: nothing waits for the host, and samples of a batch do not influence one another. Keeps
    one output per held module and branch.
    """

    mask: tuple[str, ...] = ()
    resample: bool = False

    level: ClassVar[str] = "blocks"
    kinds: ClassVar[tuple[str, ...]] = ("transformer",)
    claims: ClassVar[str] = "caching"

    def __post_init__(self) -> None:
        width = len(self.mask[0]) if self.mask else 0
        even = all(len(row) == width and set(row) <= {"0", "1"} for row in self.mask)
        whole = not self.mask or set(self.mask[0]) == {"1"}
        check_fields(
            self,
            mask=(
                even and whole,
                'texts of equal length, of "0" and "1", the first all "1" (nothing is held yet)',
            ),
        )

    def supports(self, family: Family) -> bool:
        return any(blocks.modules for blocks in family.blocks)

    def expect(self, site: Site, steps: int) -> str:
        cells = "".join(self.row(i, steps) for i in range(steps))
        share = cells.count("0") / len(cells)
        return explain_schedule(
            self, steps, f"holds {share:.0%} of all module outputs; keeps 1 per held module"
        )

    def row(self, index: int, total: int) -> str:
        """The mask's row for step `index` of `total`."""
        last, steps = len(self.mask) - 1, max(total - 1, 1)
        return self.mask[(2 * index * last + steps) // (2 * steps)]

    def computes(self, index: int, total: int) -> bool:
        """Whether step `index` of `total` holds nothing."""
        return "0" not in self.row(index, total)

    def install(self, site: Site) -> None:
        if not self.mask:
            raise ValueError(
                "HarmoniCa has no mask; it is learned for one model and number of steps, and "
                "comes from a plan file: accel.Plan.load(...)"
            )

        def check(run: Run) -> None:
            if self.resample or run.total == len(self.mask):
                return
            raise ValueError(
                f"HarmoniCa's mask is for {len(self.mask)} steps, this run has {run.total}; run "
                f"{len(self.mask)}, load a mask for {run.total}, or set resample=True to take "
                f"the nearest row for each step"
            )

        def parts(denoiser: torch.nn.Module) -> list[Part]:
            found = mask_parts(site.family, denoiser)
            units = 1 + max(unit for part in found for unit in part.units)
            if units != len(self.mask[0]):
                raise ValueError(
                    f"HarmoniCa.mask is for {len(self.mask[0])} modules, but "
                    f"{type(denoiser).__name__} has {units}: it was learned for another model"
                )
            return found

        site.clock.on_begin.append(check)
        ModuleMask(site, Cache(site, hold, 1), "HarmoniCa", parts, self).install()


def mask_parts(family: Family, denoiser: torch.nn.Module) -> list[Part]:
    """Attention and feed-forward modules in the order they run, a column of the mask each.

    What feeds nothing but modules of its block is left out when all of them are held.
    """
    found: list[Part] = []
    unit = 0
    for path, _, spec in family.flat_blocks(denoiser):
        units = tuple(range(unit, unit + len(spec.modules)))
        found += [Part(f"{path}.{m}", (u,)) for m, u in zip(spec.modules, units, strict=True)]
        found += [Part(f"{path}.{m}", units, read=False) for m in spec.idle if units]
        unit += len(units)
    return found
