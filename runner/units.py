"""Numbers with units, as texts for people: FLOPs, bytes and shares."""

from __future__ import annotations


def in_digits(value: float | None, unit: float = 1.0) -> str:
    """Return `value / unit` as text with four significant digits; "" for None and NaN."""
    return "" if value is None or value != value else f"{value / unit:.4g}"


def in_gflop(flops: float | None) -> str:
    """Return a number of floating-point operations in GFLOP (10**9), as text without the unit; "" for None and NaN."""
    return in_digits(flops, 1e9)


def in_mib(size: float | None) -> str:
    """Return a number of bytes in MiB (2**20 bytes), as text without the unit; "" for None and NaN."""
    return in_digits(size, 2**20)


def in_percent(share: float | None) -> str:
    """Return a share as text in whole percent: 0.25 gives `25%`; "" for None and NaN."""
    return "" if share is None or share != share else f"{share:.0%}"
