"""Freezing methods, one file each."""
