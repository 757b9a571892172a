"""Plan: an ordered set of methods, what it was made for, and its JSON."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .files import write_text
from .method import Method, check_fields
from .registry import find_method, find_type, nearest

FILE = "acceleration.json"


@dataclass(frozen=True)
class Plan:
    """Methods to enable together.

    Attributes:
        methods: in the order they are installed, outermost first.
        name: of the recipe, if it is one.
        note: where the settings come from ("measured on …", "published settings, …").
        fingerprint: what the plan was made for: model, scheduler, steps, guidance. A run that
            differs warns; another architecture or kind of prediction is refused.
        measured: what was found while the plan was made (numbers, texts, lists of them).
        max_bytes: most bytes that methods may keep between steps; a run that would need more is
            refused before it begins.
        keep_on: where kept outputs lie: on their "device", or in the memory of the "cpu", pinned
            and fetched while the device computes.

    Raises:
        ValueError: two of the methods cannot be combined, or a field is out of range.
    """

    methods: tuple[Method, ...]
    name: str = ""
    note: str = ""
    fingerprint: Mapping[str, str | int | float] = dataclasses.field(default_factory=dict)
    measured: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    max_bytes: int | None = None
    keep_on: Literal["device", "cpu"] = "device"

    def __post_init__(self) -> None:
        limit = self.max_bytes
        check_fields(
            self,
            max_bytes=(limit is None or (type(limit) is int and limit >= 0), "bytes, 0 or more"),
            keep_on=(self.keep_on in ("device", "cpu"), "device or cpu"),
        )
        for i, first in enumerate(self.methods):
            for second in self.methods[i + 1 :]:
                names = type(first).__name__, type(second).__name__
                if names[0] == names[1]:
                    raise ValueError(f"{names[0]} is given twice; give it once")
                if shared := sorted(set(first.claimed()) & set(second.claimed())):
                    raise ValueError(
                        f"{names[0]} and {names[1]} cannot be combined: both are {shared[0]} "
                        f"methods and decide which steps are computed; enable one of them"
                    )

    def __str__(self) -> str:
        return " + ".join(describe(m) for m in self.methods) or "nothing"

    def to_json(self) -> str:
        values = {
            "name": self.name,
            "note": self.note,
            "fingerprint": dict(self.fingerprint),
            "measured": _encode(self.measured),
            "max_bytes": self.max_bytes,
            "keep_on": "" if self.keep_on == "device" else self.keep_on,
            "methods": [_encode(m) for m in self.methods],
        }
        shown = {k: v for k, v in values.items() if v or v == 0 or k == "methods"}
        return json.dumps(shown, indent=1)

    def save(self, path: str | Path) -> Path:
        """Write the plan as JSON, whole or not at all; nothing in it is ever executed."""
        return write_text(Path(path), self.to_json() + "\n")

    def plot(self, path: str | Path) -> Path:
        """Draw the plan into a picture file: computed steps, weights, errors, where it has them.

        Raises:
            ValueError: nothing of it can be drawn, or the file's ending names no kind of picture.
        """
        from .plan_picture import draw  # matplotlib takes a second to import

        return draw(self, Path(path))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read what `to_json` wrote.

        Raises:
            ValueError: not JSON, an unknown method or field (the nearest known one is named), or
                a value of the wrong type.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"not a plan: {error}") from None
        if not isinstance(values, dict) or not isinstance(values.get("methods"), list):
            raise ValueError('not a plan: expected an object with a list "methods"')
        known = [f.name for f in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise ValueError(f"plan has no field {key!r}; {nearest(key, known)}")
        found = tuple(_decode(v, Method, "methods") for v in values["methods"])
        name, note = (_text(values.get(k, ""), k) for k in ("name", "note"))
        fingerprint, measured = (values.get(k, {}) for k in ("fingerprint", "measured"))
        for key, value in {"fingerprint": fingerprint, "measured": measured}.items():
            if not isinstance(value, dict):
                raise ValueError(f"{key} must be an object, got {value!r}")
        limit = _decode(values.get("max_bytes"), int | None, "max_bytes")
        place = _decode(values.get("keep_on", "device"), Literal["device", "cpu"], "keep_on")
        return cls(found, name, note, fingerprint, measured, limit, place)

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan from a file; errors name the file."""
        try:
            return cls.from_json(Path(path).read_text())
        except OSError as error:
            raise ValueError(f"cannot read the plan {path}: {error.strerror}") from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


def describe(method: Any, width: int = 160, begun: bool = False) -> str:
    """`Name(field=value, …)` with the fields that differ from their defaults.

    Args:
        width: characters above which a value is "…": what is fitted to a model can be pages.
        begun: show as much of such a value, which tells two fits of one method apart.
    """
    shown = []
    for field in dataclasses.fields(method):
        value = getattr(method, field.name)
        if value != field.default:
            text = repr(value)
            long = f"{text[:width] if begun else ''}…"
            shown.append(f"{field.name}={text if len(text) <= width else long}")
    return f"{type(method).__name__}({', '.join(shown)})"


def build(kind: type, fields: Mapping[str, Any]) -> Any:
    """An instance of the dataclass `kind` from plain values.

    Raises:
        ValueError: an unknown field, or a value that does not fit the field's annotation.
    """
    annotations = typing.get_type_hints(kind)
    known = {f.name for f in dataclasses.fields(kind)}
    for name in fields:
        if name not in known:
            raise ValueError(f"{kind.__name__} has no field {name!r}; {nearest(name, known)}")
    label = kind.__name__
    return kind(**{n: _decode(v, annotations[n], f"{label}.{n}") for n, v in fields.items()})


def _encode(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"method": type(value).__name__, **fields}
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): _encode(v) for k, v in value.items()}
    if isinstance(value, tuple | list | frozenset):
        return [_encode(v) for v in value]
    return value


def _decode(value: Any, wanted: Any, where: str) -> Any:
    """`value` as the annotation `wanted` has it; plain values come from JSON or from a shell."""
    if isinstance(value, dict) and "method" in value:
        fields = dict(value)
        value = build(find_type(_text(fields.pop("method"), "the name of a method")), fields)
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if wanted is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        for option in arguments:
            with contextlib.suppress(ValueError):
                return _decode(value, option, where)
    elif origin is typing.Literal:
        if value in arguments:
            return value
        raise ValueError(f"{where} must be one of {', '.join(map(repr, arguments))}, got {value!r}")
    elif origin is tuple and isinstance(value, list | tuple):
        return _decode_tuple(value, arguments, where)
    elif wanted is float and (type(value) is int or value in ("inf", "-inf", "nan")):
        return float(value)
    elif isinstance(wanted, type):
        if issubclass(wanted, enum.Enum) and isinstance(value, str):
            if value in wanted.__members__:
                return wanted[value]
            raise ValueError(f"{where} {value!r}; {nearest(value, wanted.__members__)}")
        if type(value) is wanted or (isinstance(value, wanted) and not isinstance(value, bool)):
            return value
    raise ValueError(f"{where} must be {_name(wanted)}, got {value!r}")


def _decode_tuple(value: Sequence[Any], arguments: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(_decode(v, arguments[0], where) for v in value)
    if len(value) != len(arguments):
        raise ValueError(f"{where} must have {len(arguments)} entries, got {value!r}")
    return tuple(_decode(v, a, where) for v, a in zip(value, arguments, strict=True))


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where} must be a string, got {value!r}")
    return value


def _name(wanted: Any) -> str:
    """How an error calls a type."""
    if wanted is Method:
        return 'an object with a "method"'
    if typing.get_origin(wanted) in (typing.Union, types.UnionType):
        return " | ".join(_name(a) for a in typing.get_args(wanted))
    if wanted is type(None):
        return "None"
    return str(wanted) if typing.get_origin(wanted) else wanted.__name__


def as_method(name: str, **fields: Any) -> Method:
    """A method by its name, in any case; recipes use this so that families import no method."""
    return build(find_method(name), fields)
