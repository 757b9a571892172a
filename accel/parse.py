"""Reads `TaylorSeer:interval=5,order=1`, the form in which a shell names a method."""

from __future__ import annotations

import ast
from typing import Any

from .method import Method
from .plan import build
from .registry import find_method, find_type

WORDS = {"true": True, "false": False, "none": None, "inf": float("inf")}


def parse_method(text: str) -> Method:
    """A method from `Name` or `Name:field=value,field=Other(field=value)`.

    Values are Python literals; a bare word is a string. Nothing is executed.

    Raises:
        ValueError: text that is not of that form, or an unknown name (the nearest is named).
    """
    name, _, rest = text.partition(":")
    kind = find_method(name.strip())
    try:
        call = ast.parse(f"f({rest})", mode="eval").body
        return build(kind, _fields(call))
    except (SyntaxError, RecursionError, MemoryError):
        raise ValueError(
            f"cannot read {text!r}; write Name:field=value,field=value, for example "
            f"TaylorSeer:interval=5,order=1"
        ) from None


def _fields(call: ast.expr) -> dict[str, Any]:
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        raise SyntaxError("one call of one name")
    names = [k.arg for k in call.keywords]
    if call.args or None in names or len(set(names)) < len(names):
        raise SyntaxError("fields are given by name, each once")
    return {str(k.arg): _value(k.value) for k in call.keywords}


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Name):
        return WORDS.get(node.id.lower(), node.id)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return build(find_type(node.func.id), _fields(node))
    if isinstance(node, ast.Tuple | ast.List):
        return tuple(_value(n) for n in node.elts)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _value(node.operand)
        if isinstance(value, int | float):
            return -value
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise SyntaxError(ast.unparse(node)) from None
