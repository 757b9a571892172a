"""What methods keep, in bytes, known from shapes before anything is computed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Kept:
    """Outputs of one module that a method keeps, per branch.

    Attributes:
        path: of the module in the denoiser; "" is the denoiser.
        leaf: which of the tensors it returns; None for all of them.
        copies: how many outputs at most.
    """

    path: str
    leaf: int | None = None
    copies: int = 1

    def bytes(self, outputs: Mapping[str, tuple[int, ...]]) -> int:
        """Bytes kept, given those of the tensors that every module returns (`Work.outputs`)."""
        sizes = outputs.get(self.path, ())
        chosen = sizes if self.leaf is None else sizes[self.leaf : self.leaf + 1]
        return self.copies * sum(chosen)


UNITS = {"GB": 10**9, "MB": 10**6, "kB": 10**3}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(gb|mb|kb|b|bytes)?")


def parse_size(text: str) -> int:
    """Bytes from text such as "800 MB", "1.5GB" or "4096".

    Raises:
        ValueError: text of another form.
    """
    number = _SIZE.fullmatch(text.strip().lower())
    if number is None:
        raise ValueError(f"cannot read {text!r} as bytes; write for example 800MB or 1.5GB")
    unit = {name.lower(): size for name, size in UNITS.items()}.get(number[2], 1)
    return round(float(number[1]) * unit)


def sized(count: int) -> str:
    """Bytes as people read them."""
    for unit, size in UNITS.items():
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
