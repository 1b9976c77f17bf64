"""Spans of steps in which the same is frozen: how they are declared, divided and begun."""
