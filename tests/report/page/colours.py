"""The contrast of two colours, as WCAG 2 defines it."""

from __future__ import annotations

import re


def channels(colour: str) -> list[float]:
    """Return red, green and blue, from 0 to 1, of a colour such as `#fff`, `#1a1d21` or `rgb(26, 29, 33)`."""
    if not colour.startswith("#"):
        return [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    digits = colour[1:]
    digits = "".join(digit * 2 for digit in digits) if len(digits) == 3 else digits
    return [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]


def luminance(colour: str) -> float:
    """Return the relative luminance of a colour, from 0 (black) to 1 (white)."""
    linear = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in channels(colour))
    red, green, blue = linear
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours, from 1 to 21; text needs 4.5, other signs need 3."""
    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)
