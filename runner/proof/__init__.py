"""Prove it: what became of every tensor, to the last bit, and who moved it."""
