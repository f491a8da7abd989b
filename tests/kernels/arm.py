"""Kernels of the processor compiled for 64-bit ARM by the LLVM at hand: ``python -m
tests.kernels.arm [--all]`` prints what is called and spilt as JSON.

A process of its own, since what a processor has is asked for once in a process.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from typing import Any

import llvmlite.binding as llvm

from crossdock.devices import cpu_llvm, registry
from crossdock.devices.cpu_compiler import optimised
from crossdock.devices.program import NativeCall
from crossdock.kernels import table

FEATURES = frozenset(("neon", "fp-armv8", "fullfp16"))
TRIPLE, CPU = "aarch64-unknown-linux-gnu", "neoverse-n1"
PER_KERNEL = 2
"""Texts of a kernel that are compiled without ``--all``."""


def texts() -> dict[str, list[tuple[str, str]]]:
    """By kernel, the distinct texts that op cases lower to, and the case that each comes from."""
    cpu_llvm.host_features = lambda: FEATURES  # type: ignore[assignment]  # before it is imported
    from crossdock.kernels import cpu_ir
    from tests.cases import CASES
    from tests.kernels.test_cpu import instance

    seen: list[str] = []

    def recorded(text: str, names: Sequence[str]) -> list[int]:
        seen.append(text)
        return [1 for _ in names]  # an address that nothing is run at

    cpu_ir.compile_ir = recorded
    info = next(d for d in registry.devices() if d.id == "cpu:0")
    found: dict[str, list[tuple[str, str]]] = {}
    for case in CASES:
        call, _ = instance(case)
        for kernel in table.candidates(call, info).fitting:
            for step in kernel.lower(call, info).steps:
                if isinstance(step, NativeCall):
                    step.address()
            found.setdefault(kernel.name, []).extend((text, str(case)) for text in seen)
            seen.clear()
    return {name: rows for name, rows in found.items() if rows}


def machine() -> Any:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    return llvm.Target.from_triple(TRIPLE).create_target_machine(cpu=CPU, opt=3)


def main() -> None:
    limit = None if "--all" in sys.argv else PER_KERNEL
    target = machine()
    rows = []
    for kernel, found in sorted(texts().items()):
        for text, case in found[:limit]:
            made = str(target.emit_assembly(optimised(target, text)))
            rows.append(
                {
                    "kernel": kernel,
                    "case": case,
                    "calls": sorted(set(re.findall(r"\bbl\t(\w+)", made))),
                    "multiply_adds": len(re.findall(r"\bfml[as]\t", made)),
                    "reloads": len(re.findall(r"\bldr\tq\d+, \[sp", made))
                    + 2 * len(re.findall(r"\bldp\tq\d+, q\d+, \[sp", made)),
                }
            )
    sys.stdout.write(json.dumps(rows))


if __name__ == "__main__":
    main()
