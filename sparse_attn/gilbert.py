"""The generalised Hilbert curve: through a box of any size, never far from one token to the next.

After the recursion that J. Cerveny published as gilbert (2018): a box is walked along its first
side; it is halved there when long, into three parts where one other side is long too, and into five
where it is like a cube, each part again a box with sides of its own.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from accel.token_grid import TokenGrid

Vector = tuple[int, int, int]


def gilbert(grid: TokenGrid, device: torch.device | str | None = None) -> Tensor:
    """(F * H * W,) long order of the tokens along the curve, the longest side first.

    Successive tokens are neighbours, but for a few diagonal steps where sides are odd.
    """
    sizes = (grid.frames, grid.height, grid.width)
    unit = ((sizes[0], 0, 0), (0, sizes[1], 0), (0, 0, sizes[2]))
    sides = sorted(unit, key=_length, reverse=True)
    strides = (grid.height * grid.width, grid.width, 1)
    walk = _walk((0, 0, 0), *sides)
    return torch.tensor([_dot(at, strides) for at in walk], device=device)


def _walk(at: Vector, a: Vector, b: Vector, c: Vector) -> Iterator[Vector]:
    """Tokens of the box at `at` with sides a, b, c, ending at the far end of a."""
    w, h, d = _length(a), _length(b), _length(c)
    step, up, out = _unit(a), _unit(b), _unit(c)
    if sorted((w, h, d))[1] == 1:  # a line, along whichever side is long
        along = max((a, b, c), key=_length)
        for i in range(_length(along)):
            yield _add(at, _times(_unit(along), i))
        return
    a2, b2, c2 = (_half(side) for side in (a, b, c))
    end = _less(_add(at, a), step)
    if 2 * w > 3 * h and 2 * w > 3 * d:
        yield from _walk(at, a2, b, c)
        yield from _walk(_add(at, a2), _less(a, a2), b, c)
    elif 3 * h > 4 * d:
        yield from _walk(at, b2, c, a2)
        yield from _walk(_add(at, b2), a, _less(b, b2), c)
        back = _less(_add(end, b2), up)
        yield from _walk(back, _minus(b2), c, _minus(_less(a, a2)))
    elif 3 * d > 4 * h:
        yield from _walk(at, c2, a2, b)
        yield from _walk(_add(at, c2), a, b, _less(c, c2))
        back = _less(_add(end, c2), out)
        yield from _walk(back, _minus(c2), _minus(_less(a, a2)), b)
    else:
        rest_a, rest_b, rest_c = _less(a, a2), _less(b, b2), _less(c, c2)
        far = _less(c, out)
        yield from _walk(at, b2, c2, a2)
        yield from _walk(_add(at, b2), c, a2, rest_b)
        yield from _walk(_add(_less(_add(at, b2), up), far), a, _minus(b2), _minus(rest_c))
        yield from _walk(_add(_add(end, b2), far), _minus(c), _minus(rest_a), rest_b)
        yield from _walk(_less(_add(end, b2), up), _minus(b2), c2, _minus(rest_a))


def _half(side: Vector) -> Vector:
    """Half a side, of an even number of tokens where it can be, so that few steps are diagonal."""
    length = _length(side)
    half = length // 2
    return _times(_unit(side), half + (half % 2 and length > 2))


def _length(v: Vector) -> int:
    return abs(sum(v))


def _unit(v: Vector) -> Vector:
    return tuple((x > 0) - (x < 0) for x in v)  # type: ignore[return-value]


def _times(v: Vector, n: int) -> Vector:
    return tuple(x * n for x in v)  # type: ignore[return-value]


def _minus(v: Vector) -> Vector:
    return _times(v, -1)


def _add(v: Vector, w: Vector) -> Vector:
    return tuple(x + y for x, y in zip(v, w, strict=True))  # type: ignore[return-value]


def _less(v: Vector, w: Vector) -> Vector:
    return _add(v, _minus(w))


def _dot(v: Vector, w: Vector) -> int:
    return sum(x * y for x, y in zip(v, w, strict=True))
