"""Processes that end, and are interrupted, with work in flight (S12, S13)."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

from tests.soak.figures import Figure

COMMON = """
import sys, time
import numpy as np
import crossdock as xd

b = xd.GraphBuilder()
x = y = b.input("x", (400, 400))
for _ in range(300):
    y = b.tanh(b.matmul(y, x))
graph = b.build({"y": y})
session = xd.compile(graph, sys.argv[1], measure=False)
feeds = {"x": np.zeros((400, 400), np.float32)}
session.submit({"x": feeds["x"]})
session.run(feeds)
"""
EXIT = (
    COMMON
    + """
futures = [session.submit(feeds) for _ in range(200)]
time.sleep(0.01)
print(time.time(), sum(f.done() for f in futures), flush=True)
"""
)
INTERRUPT = (
    COMMON
    + """
print("ready", flush=True)
try:
    while True:
        session.run(feeds)
except KeyboardInterrupt:
    told = time.time()
session.run(feeds)
print(told, flush=True)
"""
)


def _child(code: str, device: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, device],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def exits(count: int, device: str = "cpu:0") -> list[Figure]:
    """Ends with 200 runs in flight: status 0, and soon."""
    bad, longest = 0, 0.0
    for _ in range(count):
        child = _child(EXIT, device)
        out, err = child.communicate(timeout=120)
        ended = time.time()
        said = out.split()
        if child.returncode or err or len(said) != 2 or int(said[1]) == 200:
            bad += 1
            continue
        longest = max(longest, ended - float(said[0]))
    return [
        Figure("S12", f"ends of {count} with another status ({device})", bad, 0),
        Figure("S12", f"longest end with work in flight ({device})", round(longest, 2), 2.0, "s"),
    ]


def interrupts(count: int, device: str = "cpu:0") -> list[Figure]:
    """Ctrl-C in the middle of a long run: KeyboardInterrupt, and the session goes on."""
    bad, late = 0, [0.0]
    for i in range(count):
        child = _child(INTERRUPT, device)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(0.05 + 0.013 * (i % 20))
        sent = time.time()
        child.send_signal(signal.SIGINT)
        out, _ = child.communicate(timeout=120)
        if child.returncode or not out.strip():
            bad += 1
            continue
        late.append(float(out) - sent)
    return [
        Figure("S13", f"of {count} interrupts lost ({device})", bad, 0),
        Figure("S13", f"longest until KeyboardInterrupt ({device})", round(max(late), 4), 0.2, "s"),
    ]
