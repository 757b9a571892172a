"""Patterns: one file each, all of them builders of block maps."""
