"""Stand for measurements on a card that go wrong in every way; import nothing that takes long."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from benchmarks.isolated import BROKEN

Question = tuple[tuple[str, str, float], list[Any]]
TILES = [["forward", "sm_90", 64, "bfloat16", 128, 128], {"m": 64}]


def healthy(shape: str, kind: str) -> Callable[[Question], dict[str, Any]]:
    def answer(question: Question) -> dict[str, Any]:
        (part, way, density), tuned = question
        if part == "tuning":
            return {"tuned": [TILES] if way == "triton" else [], "ms": {}}
        result = {"ms": 1.0, "ms_low": 1.0, "ms_high": 1.0, "error": 1e-3, "computed": density}
        result |= {"building_ms": 0.01, "first_ms": 0.1, "later_ms": 0.0} if density == 0 else {}
        return result | {"process": os.getpid(), "tuned_before": tuned}

    return answer


def faulty(shape: str, kind: str) -> Callable[[Question], dict[str, Any]]:
    well = healthy(shape, kind)

    def answer(question: Question) -> dict[str, Any]:
        _, way, density = question[0]
        if way == "SDPA cuDNN":
            os.abort()
        if way == "FlashAttention 2":
            time.sleep(600)
        if way == "FlashAttention 3":
            return {"failed": "an illegal memory access", BROKEN: True}
        if way == "FlashAttention 4":
            return {"failed": "not installed"}
        if (way, density) == ("triton", 0.5):
            os._exit(3)
        return well(question)

    return answer


def hanging(shape: str, kind: str) -> Callable[[Question], dict[str, Any]]:
    return lambda question: time.sleep(600) or {}


def unable(shape: str, kind: str) -> Callable[[Question], dict[str, Any]]:
    os._exit(7)
