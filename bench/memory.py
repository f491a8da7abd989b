"""Predicted against measured peak memory of models, a device at a time; prints JSON.

    python memory.py [MODEL...]

Models are those of never_worse.py. Measured is the most that a device's allocator had given out
while the model was compiled (nothing being timed) and run once, less what it had before.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from never_worse import load

import crossdock as xd
from crossdock.devices import registry


def peaks(name: str) -> list[dict[str, Any]]:
    """A row a device that runs the model by itself."""
    graph, feeds = load(name)
    shapes = {key: value.shape for key, value in feeds.items()}
    rows = []
    for info in xd.devices():
        device = registry.open_device(info.id)
        device.allocate(1)  # what was freed before is counted by then
        before = device.gauge.used
        device.gauge.reset()
        with xd.compile(graph, info.id, shapes=shapes, measure=False) as session:
            session.run(feeds)
            predicted = session.estimate().peak_bytes[info.id]
        measured = device.gauge.peak - before
        ratio = predicted / max(1, measured)
        rows.append(
            {
                "model": name,
                "device": info.id,
                "predicted": predicted,
                "measured": measured,
                "ratio": ratio,
                "proven": measured <= predicted <= 1.2 * measured,
            }
        )
    return rows


if __name__ == "__main__":
    print(json.dumps([row for name in sys.argv[1:] for row in peaks(name)], indent=1))
