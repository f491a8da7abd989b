"""The backend suite of the package ``onnx``: running it on a device, and its list of exclusions.

    python -m tests.runtime.loaders.onnx_suite [DEVICE] [-k PART] [--write]

runs it and prints what fails; ``--write`` brings ``onnx_exclusions.toml`` up to date: cases that
pass leave the list, new failures come in under "unexplained" with their error, for a person to give
the reason.
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
import unittest
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crossdock import onnx_backend

TABLE = Path(__file__).with_name("onnx_exclusions.toml")
UNEXPLAINED = "unexplained"


@dataclass
class Outcome:
    """What a device made of the suite: errors by case, ops that no kernel of it could run."""

    passed: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    strays: dict[str, set[str]] = field(default_factory=dict)

    def wrong(self, excluded: Mapping[str, str]) -> list[str]:
        """One line for each case that is not as the table has it."""
        lines = [f"{n}: {why}" for n, why in self.failed.items() if n not in excluded]
        kept = [n for n in self.passed if n in excluded]
        return lines + [f"{n} passes; take it off the list" for n in kept]


def excluded(device: str) -> dict[str, str]:
    """Reason by case; the rows without devices are for all of them."""
    rows = tomllib.loads(TABLE.read_text(encoding="utf-8"))["excluded"]
    return {
        case: row["reason"]
        for row in rows
        if device in row.get("devices", [device])
        for case in row["cases"]
    }


def backend_on(device: str, outcome: Outcome, asked: list[str]) -> type[Any]:
    """The backend with a device in place of the suite's CPU; receipts go into ``outcome``."""

    class OnDevice(onnx_backend):  # type: ignore[misc,valid-type]
        @classmethod
        def supports_device(cls, name: str) -> bool:
            return bool(name == "CPU")

        @classmethod
        def prepare(cls, model: Any, _device: str = "CPU", **options: Any) -> Any:
            rep = super().prepare(model, device, threads=1, **options)
            run = rep.run

            def noting(inputs: Any, **rest: Any) -> Any:
                results = run(inputs, **rest)
                for op in rep.session.receipt.ops:
                    if op.device != device and op.kernel != "host":
                        outcome.strays.setdefault(op.op, set()).add(asked[0])
                return results

            rep.run = noting
            return rep

    return OnDevice


def cases(backend: type[Any]) -> Iterator[tuple[str, Any]]:
    """Name and function of each case, for one device."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test import BackendTest

        classes = BackendTest(backend, __name__).test_cases
    for holder in classes.values():
        for name in unittest.defaultTestLoader.getTestCaseNames(holder):
            if name.endswith("_cpu"):
                yield name.removesuffix("_cpu"), getattr(holder, name)


def run_suite(device: str, part: str = "", leave: Mapping[str, str] | None = None) -> Outcome:
    """Run the cases whose names match ``part``, but those in ``leave``."""
    outcome, asked = Outcome(), [""]
    for name, case in cases(backend_on(device, outcome, asked)):
        if not re.search(part, name) or name in (leave or {}):
            continue
        asked[0] = name
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                case(None)
        except (Exception, unittest.SkipTest) as error:  # noqa: BLE001 - whatever it is, it is told
            outcome.failed[name] = f"{type(error).__name__}: {_line(error)}"
        else:
            outcome.passed.append(name)
    return outcome


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def updated(outcome: Outcome, old: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The table's rows after a run on the processor: what passes is gone, new failures are in."""
    rows = []
    for row in old:
        if row["reason"].startswith(UNEXPLAINED):
            continue
        left = [c for c in row["cases"] if "devices" in row or c not in outcome.passed]
        if left:
            rows.append({**row, "cases": left})
    known = {case for row in rows if "devices" not in row for case in row["cases"]}
    fresh: dict[str, list[str]] = {}
    for case, why in outcome.failed.items():
        if case not in known:
            fresh.setdefault(re.sub(r"\d+", "#", why), []).append(case)
    rows += [{"reason": f"{UNEXPLAINED}: {why}", "cases": found} for why, found in fresh.items()]
    return rows


def text_of(rows: list[dict[str, Any]]) -> str:
    """The table as TOML."""
    parts = ["# Cases of onnx.backend.test that are not expected to pass; see onnx_suite.py.\n"]
    for row in rows:
        quoted = row["reason"].replace("\\", "\\\\").replace('"', '\\"')
        parts.append(f'\n[[excluded]]\nreason = "{quoted}"\n')
        if "devices" in row:
            parts.append(f"devices = {list(row['devices'])!r}\n".replace("'", '"'))
        listed = "".join(f'    "{case}",\n' for case in sorted(row["cases"]))
        parts.append(f"cases = [\n{listed}]\n")
    return "".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("device", nargs="?", default="cpu:0")
    parser.add_argument("-k", dest="part", default="")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    outcome = run_suite(args.device, args.part)
    lines = [f"{name}: {why}" for name, why in outcome.failed.items()]
    for op, names in sorted(outcome.strays.items()):
        lines.append(
            f"{op} has no kernel on {args.device}: {len(names)} cases such as {min(names)}"
        )
    lines.append(f"{len(outcome.passed)} passed, {len(outcome.failed)} failed")
    sys.stdout.write("\n".join((*lines, "")))
    if args.write:
        old = tomllib.loads(TABLE.read_text(encoding="utf-8")).get("excluded", [])
        TABLE.write_text(text_of(updated(outcome, old)), encoding="utf-8")


if __name__ == "__main__":
    main()
