"""The main job on real models: probe, place, run, explain. `make demo` runs it.

Two trained models on real input, each on the processor, on OpenCL, and placed over both: what type
this repository's own files are, and what the text line in ``examples/line.png`` says.
"""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import dataclass

import inputs
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import crossdock as xd

OUT = Console()
REPEATS = 15


@dataclass
class Result:
    """One model on one set of devices."""

    outputs: dict[str, inputs.Array]
    predicted: float
    low: float
    high: float
    measured: float
    shares: dict[str, float]
    plan: xd.Plan
    lacking: int


def main() -> int:
    """Run the demonstration; 0 where everything that was read out is right."""
    OUT.rule("devices")
    show_devices()
    good = files()
    good = line() and good
    OUT.rule()
    OUT.print("[green]all answers are right[/]" if good else "[red]an answer is wrong[/]")
    return 0 if good else 1


def show_devices() -> None:
    """Probe quickly and print what was found and how fast it is."""
    machine = xd.probe(quick=True)
    table = Table("device", "name", "status", "GFLOP/s (float32)", "memory GB/s")
    for part in machine.devices:
        if part.kind == "sim" and part.info is None:
            continue  # simulated devices are there when somebody registers one
        said = escape(f"{part.status} {part.reason} {part.fix}".strip())
        flops = {} if part.rates is None else part.rates.flops_by_class()
        best = max((v for k, v in flops.items() if k.endswith("float32")), default=0.0)
        sizes = () if part.rates is None else part.rates.bandwidth
        rate = sizes[-1].bytes_per_s.median if sizes else 0.0
        name = part.kind if part.info is None else part.info.name
        table.add_row(part.id, name, said, f"{best / 1e9:.0f}", f"{rate / 1e9:.1f}")
    OUT.print(table)


def device_sets() -> dict[str, str | list[str]]:
    """The processor alone, the first OpenCL device alone, and everything."""
    sets: dict[str, str | list[str]] = {"cpu:0": ["cpu:0"]}
    opencl = [d.id for d in xd.devices() if d.kind == "opencl"]
    if opencl:
        sets[opencl[0]] = opencl[:1]
        sets["placed over both"] = ["cpu:0", opencl[0]]
    return sets


def run(name: str, devices: str | list[str], feeds: dict[str, inputs.Array]) -> Result:
    """Compile a model for some devices and run it."""
    graph = xd.load(inputs.model_path(name))
    shapes = {key: value.shape for key, value in feeds.items()}
    with OUT.status(f"{name} on {devices}: measuring and compiling"):
        session = xd.compile(graph, devices, shapes=shapes)
        estimate = session.estimate()
        outputs = session.run(feeds)
        times = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            session.run(feeds)
            times.append(time.perf_counter() - start)
    plan, ran = session.plan, session.receipt.ops
    lacking = sum(op.device not in devices for op in ran)
    session.close()
    return Result(
        outputs,
        estimate.seconds,
        estimate.low,
        estimate.high,
        statistics.median(times),
        plan.shares(),
        plan,
        lacking,
    )


def run_everywhere(name: str, feeds: dict[str, inputs.Array]) -> dict[str, Result]:
    """Run a model on each set of devices and print the comparison."""
    results = {label: run(name, devices, feeds) for label, devices in device_sets().items()}
    table = Table("devices", "predicted ms (80 % interval)", "measured ms", "ops a device")
    for label, r in results.items():
        shares = ", ".join(f"{d} {s:.0%}" for d, s in r.shares.items() if s)
        table.add_row(
            label,
            f"{r.predicted * 1e3:.2f} ({r.low * 1e3:.2f} to {r.high * 1e3:.2f})",
            f"{r.measured * 1e3:.2f}",
            shares + (f" ({r.lacking} for want of a kernel)" if r.lacking else ""),
        )
    OUT.print(table)
    placed = list(results.values())[-1].plan
    OUT.print("the five dearest ops, and why they run where they do:")
    for step in sorted(placed.launches(), key=lambda s: -s.seconds)[:5]:
        took = f"{step.seconds * 1e3:.2f} ms"
        OUT.print(
            f"  {step.name} ({step.op}) on {step.device}, {took}: {step.reason}",
            highlight=False,
            markup=False,
        )
    return results


def files() -> bool:
    """Tell the types of this repository's files."""
    OUT.rule("magika: what type are this repository's files?")
    paths = inputs.repository_files()
    results = run_everywhere("magika", {"bytes": inputs.magika_bytes(paths)})
    answers = [inputs.magika_labels(next(iter(r.outputs.values()))) for r in results.values()]
    for path, (label, score) in zip(paths, answers[-1], strict=True):
        OUT.print(f"  {path.relative_to(inputs.ROOT)}: [bold]{label}[/] ({score:.1%})")
    labels = [[label for label, _ in answer] for answer in answers]
    wanted = {".py": "python", ".toml": "toml", ".png": "png", ".md": "markdown"}
    right = all(
        wanted.get(path.suffix, label) == label
        for path, label in zip(paths, labels[-1], strict=True)
    )
    return right and all(row == labels[0] for row in labels)


def line() -> bool:
    """Read the text line."""
    OUT.rule("rapidocr: what does examples/line.png say?")
    results = run_everywhere("rapidocr-rec", {"x": inputs.line_image()})
    characters = inputs.ocr_characters()
    texts = []
    for label, r in results.items():
        texts.append(inputs.ocr_text(next(iter(r.outputs.values())), characters).strip())
        OUT.print(f"  {label}: [bold]{texts[-1]}[/]")
    first = next(iter(results["cpu:0"].outputs.values()))
    scores = [next(iter(r.outputs.values())) for r in results.values()]
    worst = max(float(np.abs(s - first).max()) for s in scores)
    OUT.print(f"  largest difference between devices: {worst:.1e}")
    return all(text == inputs.LINE_TEXT for text in texts)


if __name__ == "__main__":
    sys.exit(main())
