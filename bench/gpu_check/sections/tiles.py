"""Which tiles our own products take on the card, beside those of the rule."""

from __future__ import annotations

from collections.abc import Callable

from bench import tiles
from bench.gpu_check.place import Place
from bench.gpu_check.report import Report
from crossdock.kernels.spec import OpCall

MORE: dict[str, Callable[[], OpCall]] = {
    "1024x1024x1024": lambda: tiles.matmul(1024, 1024, 1024),
    "4096x4096x4096": lambda: tiles.matmul(4096, 4096, 4096),
    "16x4096x4096": lambda: tiles.matmul(16, 4096, 4096),
    "conv 3x3 64 56x56, 8 images": lambda: tiles.conv(64, 56, 8),
    "conv 3x3 256 14x14, 8 images": lambda: tiles.conv(256, 14, 8),
}
SMALL: dict[str, Callable[[], OpCall]] = {"20x30x40": lambda: tiles.matmul(20, 30, 40)}


def run(place: Place, report: Report) -> None:
    """How many times as fast the measured tile is; the note says which one it is."""
    device = place.open()
    for name, call in (SMALL if place.rehearsal else {**tiles.PRODUCTS, **MORE}).items():
        if place.left < 1:
            report.not_run(name, "the section's time is over")
            continue
        found = tiles.duel(device, call(), place.size(15, 2))
        note = f"{found.tuned * 1e6:.0f} us; {found.said}"
        report.figure(f"{name} by the measured tile, over the rule's", found.ratio, "x", note=note)
