"""Numbers with units as texts for people: FLOPs, bytes, seconds, shares and changes. The unit scales with the number."""

from __future__ import annotations

import math

DECIMAL_PREFIXES = ("", "k", "M", "G", "T", "P", "E")
BINARY_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def digits_text(value: float | None, digits: int = 4) -> str:
    """Return a number as text with `digits` significant digits, such as `0.9655`; "" for None and NaN.

    A number of a million or more, or below a ten-thousandth, is written with an exponent.
    """
    return "" if value is None or math.isnan(value) else f"{value:.{digits}g}"


def flops_text(flops: float | None) -> str:
    """Return a number of floating-point operations as text, such as `87.04 kFLOP` or `2.295 GFLOP`; "" for None and NaN."""
    return _scaled(flops, 1000, [f"{prefix}FLOP" for prefix in DECIMAL_PREFIXES])


def bytes_text(size: float | None) -> str:
    """Return a number of bytes as text, such as `512 B`, `63.46 KiB` or `1.5 GiB`; "" for None and NaN."""
    return _scaled(size, 1024, BINARY_UNITS)


def seconds_text(seconds: float | None) -> str:
    """Return a time as text, such as `1.25 ms` or `3.4 s`; "" for None and NaN."""
    if seconds is None or math.isnan(seconds):
        return ""
    factor, unit = (1.0, "s") if seconds >= 1 else (1e3, "ms") if seconds >= 1e-3 else (1e6, "µs")
    return f"{seconds * factor:.3g} {unit}"


def percent_text(share: float | None) -> str:
    """Return a share as text: 0.341 gives `34%`, 0.034 gives `3.4%`, 0.0001 gives `<0.1%`; "" for None and NaN.

    `0%` and `100%` are exact: 0.9996 gives `>99.9%`, and 1.0004 `>100%`.
    """
    if share is None or math.isnan(share):
        return ""
    if 0 < share < 0.001:
        return "<0.1%"
    if 0.995 <= share < 1.005 and share != 1:
        return f"{share:.1%}" if share < 0.9995 or share >= 1.0005 else ">99.9%" if share < 1 else ">100%"
    return f"{share:.0%}" if share >= 0.0995 or share == 0 else f"{share:.1%}"


def change_text(change: float | None) -> str:
    """Return a relative change in percent, with three significant digits: 0.3207 gives `32.1%`; "" for None and NaN.

    A change of tenfold to ten-million-fold is written in full, such as `23,300%`.
    """
    if change is None or math.isnan(change):
        return ""
    percent = float(f"{100 * change:.3g}")
    return f"{percent:,.0f}%" if 1000 <= percent < 1e9 else f"{percent:.3g}%"


def short_change_text(change: float) -> str:
    """Return a relative change in at most five characters, such as `32%`, `3.2%`, `<.1%` or `>999%`."""
    if 0 < change < 0.001:
        return "<.1%"
    return ">999%" if change >= 9.995 else percent_text(change) if change < 0.995 else f"{change:.0%}"


def _scaled(value: float | None, base: int, units: tuple[str, ...] | list[str]) -> str:
    """Return a number of 0 or more with four significant digits, in the largest unit in which it is at least 1."""
    if value is None or math.isnan(value):
        return ""
    for unit in units[:-1]:
        if float(f"{value:.4g}") < base:
            return f"{value:.4g} {unit}"
        value = max(value / base, 1)  # 999,999 is 1 M, not 1000 k
    return f"{value:.4g} {units[-1]}"
