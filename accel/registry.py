"""Registry: finds methods, families and recipes by name, importing packages only when asked."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import torch

from .family import Family, inspected
from .method import Method

PACKAGES = ("accel.caching", "accel.samplers", "accel.sparse_attn", "accel.distill")
FAMILIES = "accel.pipelines"


@cache
def methods() -> Mapping[str, type[Method]]:
    """Every method by class name: the `METHODS` tables of the packages."""
    return {
        name: method
        for package in PACKAGES
        for name, method in importlib.import_module(package).METHODS.items()
    }


@cache
def families() -> Mapping[str, Family]:
    """Every model family by name."""
    return importlib.import_module(FAMILIES).FAMILIES


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message: the names most like `name`, or all of them."""
    known = sorted(known)
    lower = {k.lower(): k for k in known}
    close = difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(lower[c] for c in close)}?"
    return f"known: {', '.join(known) or 'none'}"


def find_method(name: str) -> type[Method]:
    """The method class called `name`, in any case.

    Raises:
        ValueError: there is none; the message names the nearest.
    """
    for known, method in methods().items():
        if known.lower() == name.lower():
            return method
    raise ValueError(f"unknown method {name!r}; {nearest(name, methods())}")


def find_type(name: str) -> type:
    """A method, or a dataclass used in a field of one (a `TYPES` table of a package)."""
    for package in PACKAGES:
        for known, kind in getattr(importlib.import_module(package), "TYPES", {}).items():
            if known.lower() == name.lower():
                return kind
    return find_method(name)


def find_family(name: str) -> Family:
    """The family called `name`.

    Raises:
        ValueError: there is none; the message names the nearest.
    """
    if name not in families():
        raise ValueError(f"unknown family {name!r}; {nearest(name, families())}")
    return families()[name]


def recognise(pipe: Any) -> tuple[Family, dict[str, torch.nn.Module]]:
    """The family of a pipeline, and its denoisers by attribute.

    Raises:
        ValueError: the pipeline holds no denoiser that is known or can be described safely.
    """
    for family in families().values():
        found = {
            name: module
            for name in family.attributes
            if isinstance(module := getattr(pipe, name, None), torch.nn.Module)
            and family.matches(module)
        }
        if found:
            return family, found
    for name in ("transformer", "unet"):
        module = getattr(pipe, name, None)
        if isinstance(module, torch.nn.Module):
            return inspected(module, name), {name: module}
    raise ValueError(
        f"{type(pipe).__name__} has no denoiser that acceleration knows (looked for "
        f"pipe.transformer and pipe.unet); known families: {', '.join(sorted(families()))}"
    )


def recipe(name: str, family: Family) -> Any:
    """The plan of `family` called `name`.

    Raises:
        ValueError: the family has no such recipe; the message names the nearest.
    """
    if not family.recipes:
        raise ValueError(
            f"family {family.name} has no recipes; give methods instead, such as TaylorSeer()"
        )
    if name not in family.recipes:
        raise ValueError(
            f"family {family.name} has no recipe {name!r}; {nearest(name, family.recipes)}"
        )
    return family.recipes[name]()
