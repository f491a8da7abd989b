"""Each case of the corpus in a process of its own, within 10 s of a processor and 1 GiB.

    python -m tests.runtime.hostile.children [--seed N] [--all] [--only KIND] [--onnxruntime]

prints what became of the cases by kind. A parent that has imported everything and opened nothing
forks a child for each case: importing takes longer than most cases. The cap on memory is one of
address space over what the parent has mapped already, since that is mostly code of libraries, which
no model can be blamed for. ``--onnxruntime`` shows what that makes of the same ONNX files.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.runtime.hostile.kit import ERROR, RIGHT, Case, corpus

PATIENCE = 40
"""Seconds by the clock that a case may take beyond its own: other processes may be busy.

The clock is looked at in turns of a second, so that time in which everything stood still does not
count.
"""
MEMORY = 1 << 30
LONGEST = 1_000
"""Characters that a message may have."""

CLEAN = ("refused", "ran")
"""Ends that are as they should be, where the case allows them."""

KILLED, HUNG, MEMORY_ERROR, UNTYPED, WORDY, WRONG = (
    "crash", "hang", "memory", "untyped", "message", "wrong",
)  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """How a case ended; ``text`` is the error's, ``seconds`` are a processor's."""

    id: str
    kind: str
    end: str
    text: str
    seconds: float
    megabytes: int

    @property
    def clean(self) -> bool:
        """As it should be."""
        return self.end in CLEAN


Open = Callable[[Case, Path], Any]


def run(cases: Iterable[Case], open_case: Open | None = None) -> list[Ended]:
    """Run cases one after the other, each in a child."""
    opened = open_case or open_here
    return [_one(case, opened) for case in cases]


def _one(case: Case, opened: Open) -> Ended:
    folder = Path(tempfile.mkdtemp(prefix="hostile-"))
    try:
        path = case.build(folder)
        end, text, usage = _forked(case, path, opened)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    seconds = usage.ru_utime + usage.ru_stime
    ended = Ended(case.id, case.kind, end, text, round(seconds, 2), usage.ru_maxrss >> 10)
    if not ended.clean or seconds > case.seconds / 2:
        print(  # noqa: T201 - which case it is, while the others run
            ended.end, ended.id, f"{seconds:.1f} s", text[:200], file=sys.stderr, flush=True
        )
    return ended


def _forked(case: Case, path: Path, opened: Open) -> tuple[str, str, resource.struct_rusage]:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _child(case, path, opened, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        ready = any(select.select([pipe], [], [], 1.0)[0] for _ in range(case.seconds + PATIENCE))
        if not ready:
            os.kill(child, signal.SIGKILL)
        said = pipe.read() if ready else b""
    _, status, usage = os.wait4(child, 0)
    if not ready:
        return HUNG, f"not done after {case.seconds + PATIENCE} s", usage
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU:
        return HUNG, f"not done after {case.seconds} s of a processor", usage
    if not said:
        return KILLED, f"ended by {_reason(status)}", usage
    end, text = json.loads(said)
    return end, text, usage


def _reason(status: int) -> str:
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    return signal.Signals(number).name if number else f"exit status {os.WEXITSTATUS(status)}"


def _child(case: Case, path: Path, opened: Open, writer: int) -> None:
    """Open a case under the cap, say how it ended, and be gone without cleaning up."""
    cap(case.seconds)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    end, text = _attempt(case, path, opened)
    os.write(writer, json.dumps([end, text[: 4 * LONGEST]]).encode())
    os._exit(0)


def cap(seconds: int) -> None:
    """Limit the address space to what is mapped now and ``MEMORY`` more, and the time."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))


def _attempt(case: Case, path: Path, opened: Open) -> tuple[str, str]:
    from crossdock.runtime.errors import Error

    try:
        out = opened(case, path)
    except MemoryError as error:
        return MEMORY_ERROR, repr(error)
    except Error as error:
        text = f"{type(error).__name__}: {error}"
        if not _one_line(str(error)):
            return WORDY, text
        return (WRONG if case.expect == RIGHT else "refused"), text
    except BaseException as error:  # noqa: BLE001 - whatever it is, it must not have come
        return UNTYPED, f"{type(error).__name__}: {error}"
    if case.expect == ERROR:
        return WRONG, "accepted"
    if case.check is not None and not case.check(out):
        return WRONG, f"gave {str(out)[:200]}"
    return "ran", ""


def _one_line(text: str) -> bool:
    """One line of bounded length without control or direction marks."""
    odd = any(unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp") for c in text)
    return bool(text) and len(text) <= LONGEST and not odd


# --- what opens a case ----------------------------------------------------------------------------


def open_here(case: Case, path: Path) -> Any:
    """Open a case's file with what reads its kind."""
    import crossdock as xd

    if case.reader == "tensors":
        return xd.load_tensors(path)
    if case.reader != "model":
        return _record(case.reader, path)
    graph = xd.load(path)
    with xd.compile(graph, devices=["cpu:0"], measure=False, threads=1) as session:
        return session.run(case.feeds or _zeros(graph))


def _zeros(graph: Any) -> dict[str, Any]:
    """Zeros for the inputs, symbols of size 2."""
    import numpy as np

    from crossdock.runtime.tensor import to_numpy

    fed = {}
    for name, spec in graph.inputs.items():
        shape = tuple(2 if isinstance(d, str) else d for d in spec.shape)
        fed[name] = np.broadcast_to(np.zeros((), to_numpy(spec.dtype)), shape)
    return fed


def _record(reader: str, path: Path) -> Any:
    from crossdock.devices.machine import Machine
    from crossdock.runtime.costing import read_costs
    from crossdock.runtime.files import read_json, read_record
    from crossdock.runtime.plan import Plan

    if reader == "plan":
        return Plan.loads(read_record(path, "plan"))
    if reader == "machine":
        return Machine.from_json(read_json(path, "machine profile"))
    return read_costs(path)


def open_in_onnxruntime(case: Case, path: Path) -> Any:
    """The same ONNX file in onnxruntime; its own errors count as clean."""
    import numpy as np
    import onnxruntime as ort

    from crossdock.runtime.errors import LoadError

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        fed = dict(case.feeds or {})
        for value in session.get_inputs():
            kind = {"float": np.float32, "int64": np.int64, "bool": np.bool_}
            shape = [d if isinstance(d, int) else 2 for d in value.shape]
            dtype = kind.get(value.type[7:-1], np.float32)
            fed.setdefault(value.name, np.zeros(shape, dtype))
        out = session.run(None, fed)
    except Exception as error:
        if isinstance(error, MemoryError) or "bad_alloc" in str(error):
            raise MemoryError from error
        raise LoadError(type(error).__name__) from error
    return dict(zip([o.name for o in session.get_outputs()], out, strict=True))


# --- the whole of it ------------------------------------------------------------------------------


def chosen(
    cases: Sequence[Case], *, every: int = 1, slow: bool = False, only: str = ""
) -> list[Case]:
    """Every so many of each kind's cases, without the slow ones unless they are asked for."""
    seen: Counter[str] = Counter()
    kept = []
    for case in cases:
        if (case.slow and not slow) or not case.id.startswith(only):
            continue
        seen[case.kind] += 1
        if (seen[case.kind] - 1) % every == 0:
            kept.append(case)
    return kept


def warm() -> None:
    """Import what the cases use, and open nothing."""
    from crossdock.kernels import table
    from crossdock.runtime import session
    from crossdock.runtime.loaders import onnx, onnx_table
    from crossdock.runtime.loaders.onnx_host import load_hosts

    assert session
    assert onnx
    table.load()
    onnx_table.load_table()
    load_hosts()


def summary(ended: Sequence[Ended]) -> str:
    """Counts by kind, and the cases that did not end as they should."""
    ends = ["refused", "ran", HUNG, MEMORY_ERROR, KILLED, UNTYPED, WORDY, WRONG]
    lines = [f"{'kind':14}" + "".join(f"{end:>9}" for end in ends)]
    for kind in [*dict.fromkeys(e.kind for e in ended), ""]:
        counts = Counter(e.end for e in ended if kind in ("", e.kind))
        lines.append(f"{kind or 'all':14}" + "".join(f"{counts[end]:>9}" for end in ends))
    lines += [f"{e.end:9}{e.id}: {e.text[:160]}" for e in ended if not e.clean]
    slowest = max(ended, key=lambda e: e.seconds)
    lines.append(f"{len(ended)} cases, {sum(e.clean for e in ended)} clean; slowest {slowest.id} "
                 f"with {slowest.seconds:.1f} s")  # fmt: skip
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """The command; 1 where a case did not end as it should."""
    parser = argparse.ArgumentParser(prog="hostile")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--all", action="store_true", help="the slow ones too")
    parser.add_argument("--only", default="", help="cases whose id starts so")
    parser.add_argument("--json", default="", help="a file for what became of each case")
    parser.add_argument("--onnxruntime", action="store_true")
    given = parser.parse_args(argv)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    cases = chosen(corpus(given.seed), every=given.every, slow=given.all, only=given.only)
    if not cases:
        parser.error(f"no case's id starts with {given.only!r}")
    if given.onnxruntime:
        import onnxruntime

        assert onnxruntime
        cases = [case for case in cases if case.reader == "model"]
        ended = run(cases, open_in_onnxruntime)
    else:
        warm()
        ended = run(cases)
    print(summary(ended))  # noqa: T201 - the command's output
    if given.json:
        Path(given.json).write_text(json.dumps([asdict(e) for e in ended], indent=1))
    return 0 if all(e.clean for e in ended) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
