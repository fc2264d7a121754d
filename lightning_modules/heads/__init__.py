"""Heads: pooled features to the fields of an ``Output``."""
