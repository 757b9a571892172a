"""Settings tried for methods whose work cannot be told beforehand, the same for every ratio."""

from __future__ import annotations

from itertools import product

from accel.caching import DBCache
from accel.method import Method

GRIDS: dict[str, list[Method]] = {
    "DBCache": [
        DBCache(threshold=t, front=f, warmup=w, order=1)
        for f, t, w in product((1, 2), (0.04, 0.08, 0.16, 0.3, 0.6), (3, 5))
    ],
}
"""Row of the table -> what is tried."""
