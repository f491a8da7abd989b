"""Numbers and names as people read them. Names come from files, so they are made harmless first."""

from __future__ import annotations

import math

TIME_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"))
BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def clean(text: object) -> str:
    """One printable line: whitespace becomes a blank, control and format characters a mark.

    A model's names may hold terminal escapes and line breaks; neither reaches the screen.
    """
    line = " ".join(str(text).split())
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)


def short(text: object, limit: int) -> str:
    """The cleaned text, its middle left out where it is longer than ``limit``."""
    line = clean(text)
    if len(line) <= limit:
        return line
    tail = (limit - 1) // 2
    return f"{line[: limit - 1 - tail]}\N{HORIZONTAL ELLIPSIS}{line[-tail:]}"


def seconds(value: float | None) -> str:
    """Seconds with three significant digits in a unit that fits; a dash where unknown."""
    if value is None or not math.isfinite(value):
        return "-"
    if value == 0.0:
        return "0"
    for scale, unit in TIME_UNITS:
        if abs(value) >= scale * 0.9995:
            return f"{_three(value / scale)} {unit}"
    return f"{value:.1e} s"


def millis(value: float | None) -> str:
    """Milliseconds, for columns that are compared."""
    return "-" if value is None or not math.isfinite(value) else f"{_three(value * 1e3)} ms"


def size(nbytes: float | None) -> str:
    """Bytes with three significant digits in a binary unit."""
    if nbytes is None:
        return "-"
    value, unit = float(nbytes), 0
    while abs(value) >= 1023.5 and unit < len(BYTE_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{int(value)} B" if unit == 0 else f"{_three(value)} {BYTE_UNITS[unit]}"


def rate(per_second: float | None, what: str) -> str:
    """A rate in decimal units: ``what`` is "B" or "FLOP"."""
    if per_second is None or not math.isfinite(per_second):
        return "-"
    for scale, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if per_second >= scale:
            return f"{_three(per_second / scale)} {prefix}{what}/s"
    return f"{_three(per_second)} {what}/s"


def percent(share: float | None) -> str:
    """A share of one as a percentage."""
    return "-" if share is None or not math.isfinite(share) else f"{share:.0%}"


def _three(value: float) -> str:
    """Three significant digits, never in exponent form."""
    if value == 0:
        return "0"
    digits = math.floor(math.log10(abs(value)))
    return f"{value:.{max(0, 2 - digits)}f}"
