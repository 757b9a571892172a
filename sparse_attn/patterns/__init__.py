"""Patterns: one file each, all of them builders of block maps."""

from ..pattern import Pattern
from .adaspa import AdaSpa
from .attention_tile import AttentionTile
from .draft import DraftAttention
from .full import Full
from .jenga import Jenga
from .radial import Radial
from .sliding_tile import SlidingTile
from .sparge import SpargeAttn
from .sparse_videogen import SparseVideoGen
from .sparse_videogen2 import SparseVideoGen2
from .vsa import VSA
from .xattention import XAttention

PATTERNS: dict[str, type[Pattern]] = {
    "AdaSpa": AdaSpa,
    "AttentionTile": AttentionTile,
    "DraftAttention": DraftAttention,
    "Full": Full,
    "Jenga": Jenga,
    "Radial": Radial,
    "SlidingTile": SlidingTile,
    "SpargeAttn": SpargeAttn,
    "SparseVideoGen": SparseVideoGen,
    "SparseVideoGen2": SparseVideoGen2,
    "VSA": VSA,
    "XAttention": XAttention,
}
"""Every pattern by name."""
