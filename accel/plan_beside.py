"""Plans kept in a model's own folder: what recipes look for first."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from .files import writable_file, write_text
from .plan import FILE, Plan

FIRST = "balanced"
"""The recipe that a file with a single plan stands for."""


def folder(pipe: Any) -> Path | None:
    """Where `pipe` was loaded from, if that is a folder here."""
    path = Path(str(getattr(pipe, "name_or_path", "") or "."))
    return path if path != Path(".") and path.is_dir() else None


def find(pipe: Any, recipe: str) -> Plan | None:
    """The plan called `recipe` in the model's folder, None if there is none.

    Raises:
        ValueError: the file is not one; the message names it.
    """
    home = folder(pipe)
    if home is None or not (home / FILE).is_file():
        return None
    found = read(home / FILE).get(recipe)
    if found is None:
        return None
    note = f"{home / FILE}" + (f": {found.note}" if found.note else "")
    return dataclasses.replace(found, name=recipe, note=note)


def read(path: Path) -> dict[str, Plan]:
    """Plans of a file by recipe: a single plan, or an object of them by name."""
    try:
        values = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"cannot read the plan {path}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path}: not a plan: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: not a plan: expected an object, or an object of plans by name")
    named = {FIRST: values} if "methods" in values else values
    try:
        return {name: Plan.from_json(json.dumps(value)) for name, value in named.items()}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def target(pipe: Any) -> Path:
    """The file that `keep` writes to, which is proved to be possible.

    Raises:
        ValueError: the pipeline was not loaded from a folder here, or the file there is not one.
        OSError: it cannot be written.
    """
    home = folder(pipe)
    if home is None:
        raise ValueError(
            f"{getattr(pipe, 'name_or_path', '') or type(pipe).__name__} is no folder on this "
            f"machine; save the pipeline with save_pretrained, and load it from there"
        )
    path = home / FILE
    if path.exists():
        read(path)
    return writable_file(path)


def keep(pipe: Any, recipe: str, plan: Plan) -> Path:
    """Put `plan` into the model's folder as `recipe`; other recipes there stay.

    Raises:
        ValueError, OSError: as `target`.
    """
    path = target(pipe)
    plans = read(path) if path.exists() else {}
    plans[recipe] = plan
    text = json.dumps({name: json.loads(one.to_json()) for name, one in plans.items()}, indent=1)
    return write_text(path, text + "\n")
