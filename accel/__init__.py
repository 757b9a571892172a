"""Speeds up diffusers pipelines with one call."""

from accel.versions import __version__, check

check()

__all__ = ["__version__"]
