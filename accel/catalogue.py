"""The methods there are: a table of all, or one with its fields."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from typing import Any

from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from .family import Family
from .method import Method
from .registry import families, find_family, find_method, methods

ITEM = re.compile(r"(\w+(?:, \w+)*): (.*)")


def serves(method: type[Method], family: Family) -> bool:
    """Whether `method` works on `family`, with its defaults where it has them all."""
    required = any(
        f.default is f.default_factory is dataclasses.MISSING for f in dataclasses.fields(method)
    )
    return family.kind in method.kinds if required else method().supports(family)


def families_of(method: type[Method]) -> list[str]:
    """Names of the families that `method` works on."""
    return [name for name, family in families().items() if serves(method, family)]


def table(family: str | None = None) -> Table:
    """All methods, or those that work on one family.

    Raises:
        ValueError: an unknown family; the message names the nearest.
    """
    only = None if family is None else find_family(family)
    shown = Table(box=None, header_style="bold", pad_edge=False)
    shown.add_column("method", style="cyan", no_wrap=True)
    for column in ("level", "families", "what it does"):
        shown.add_column(column)
    for name, method in sorted(methods().items()):
        if only is None or serves(method, only):
            known = families_of(method)
            served = "all" if len(known) == len(families()) else " ".join(known)
            shown.add_row(name, method.level, served, Text(summary(method)))
    return shown


def detail(name: str) -> Group:
    """One method: what it does, where it works, its fields with their types and defaults.

    Raises:
        ValueError: an unknown method; the message names the nearest.
    """
    method = find_method(name)
    heading, rest = _sections(method)
    fields = Table(box=None, header_style="bold", pad_edge=False)
    fields.add_column("field", style="cyan", no_wrap=True)
    for column in ("default", "type", "meaning"):
        fields.add_column(column)
    meanings = attributes(method)
    for field in dataclasses.fields(method):
        default = "required" if field.default is dataclasses.MISSING else repr(field.default)
        annotation = typing.get_type_hints(method)[field.name]
        kind = _type(annotation)
        row = (default, kind, meanings.get(field.name, ""))
        fields.add_row(field.name, *map(Text, row))
    excluded = f"; not together with other {method.claims} methods" if method.claims else ""
    place = f"level {method.level}; families: {', '.join(families_of(method))}{excluded}"
    parts: list[Any] = [
        Text.assemble((method.__name__, "bold cyan"), f"  {heading}"),
        Text(place, "dim"),
        Padding(fields, (1, 0, 1, 2)),
        *(Text(" ".join(p.split()) + "\n") for p in rest),
    ]
    first = dataclasses.fields(method)[:1]
    value = "" if not first or first[0].default is dataclasses.MISSING else first[0].default
    example = f":{first[0].name}={value}" if first else ""
    return Group(*parts, Text(f"accel generate … --method {method.__name__}{example}", "dim"))


def summary(method: type[Method]) -> str:
    """The first line of the method's help."""
    return _sections(method)[0]


def attributes(method: type[Method]) -> dict[str, str]:
    """Field -> meaning, from the *Attributes* section of the docstring."""
    found: dict[str, str] = {}
    names: list[str] = []
    lines = iter((inspect.getdoc(method) or "").splitlines())
    for line in lines:
        if line.strip() == "Attributes:":
            break
    for line in lines:
        if line and not line.startswith(" "):
            break
        item = ITEM.match(line.strip()) if line.startswith("    ") and line[4:5] != " " else None
        if item:
            names = item[1].split(", ")
        for name in names:
            text = item[2] if item else line.strip()
            found[name] = f"{found.get(name, '')} {text}".strip()
    return found


def _sections(method: type[Method]) -> tuple[str, list[str]]:
    """First line of the docstring, and its paragraphs but for the list of attributes."""
    first, *rest = (inspect.getdoc(method) or "").split("\n\n")
    return " ".join(first.split()), [p for p in rest if not p.startswith("Attributes:")]


def _type(annotation: Any) -> str:
    if typing.get_origin(annotation) is typing.Literal:
        return " | ".join(map(str, typing.get_args(annotation)))
    return annotation.__name__ if inspect.isclass(annotation) else str(annotation)
