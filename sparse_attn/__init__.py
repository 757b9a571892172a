"""Sparse attention: compute only the blocks of the attention map that matter."""

if not __name__.startswith("accel."):
    raise ImportError(f"import accel.{__name__}, not {__name__}: a second copy shares no state")

from accel.method import Method

from .method import SparseAttention
from .pattern import Pattern
from .patterns import PATTERNS
from .patterns.adaspa import AdaSpa
from .patterns.attention_tile import AttentionTile
from .patterns.draft import DraftAttention
from .patterns.full import Full
from .patterns.jenga import Jenga
from .patterns.radial import Radial
from .patterns.sliding_tile import SlidingTile
from .patterns.sparge import SpargeAttn
from .patterns.sparse_videogen import SparseVideoGen
from .patterns.sparse_videogen2 import SparseVideoGen2
from .patterns.vsa import VSA
from .patterns.xattention import XAttention

METHODS: dict[str, type[Method]] = {"SparseAttention": SparseAttention}

TYPES: dict[str, type[Pattern]] = {**PATTERNS, "SlidingTile": SlidingTile}
"""Patterns, which are fields of the method."""

__all__ = [
    "METHODS",
    "TYPES",
    "AdaSpa",
    "AttentionTile",
    "DraftAttention",
    "Full",
    "Jenga",
    "Radial",
    "SlidingTile",
    "SpargeAttn",
    "SparseAttention",
    "SparseVideoGen",
    "SparseVideoGen2",
    "VSA",
    "XAttention",
]
