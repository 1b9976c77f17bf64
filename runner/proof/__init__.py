"""Prove it: how each tensor changed, to the last bit, and what changed it."""
