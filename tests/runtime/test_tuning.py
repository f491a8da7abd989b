"""Algorithms of a library are timed with their kernel, the fastest is kept, and nothing else is."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import crossdock as xd
from crossdock.devices import cuda_lt, cuda_lt_choice, cuda_lt_library, kept_choices, registry
from crossdock.devices.cuda import CudaDevice
from crossdock.kernels import table
from crossdock.kernels.spec import OpCall
from crossdock.runtime import binding, costing, kept, trial, tuning
from crossdock.runtime.errors import CompileError, DeviceError
from crossdock.runtime.graph import Graph
from tests.fakes import cards, cublaslt
from tests.fakes.cublaslt import Algo
from tests.fakes.cupy_fake import FakeCupy

M, N, K = 8, 16, 12
NAME = "cublaslt.matmul"
SLOW, FAST, MIDDLE = Algo(5, 4e-3), Algo(7, 1e-3), Algo(9, 2e-3, tile=4, parts=3)
LARGE = Algo(11, 1e-4, workspace=1 << 30)
FAILS = Algo(13, 1e-5, status=14)
UNABLE = Algo(15, 1e-5, state=15)


def product() -> Graph:
    b = xd.GraphBuilder()
    w = np.random.default_rng(0).uniform(-1, 1, (K, N)).astype(np.float32)
    return b.build({"y": b.matmul(b.input("x", (M, K)), b.constant(w), label="product")})


def call_of(graph: Graph) -> OpCall:
    (call,) = costing.op_calls(graph).values()
    return call


@dataclass
class Card:
    """A pretended card, its cuBLASLt, and what of them is timed."""

    fake: FakeCupy
    device: CudaDevice

    @property
    def lt(self) -> cublaslt.Lt:
        found: cublaslt.Lt = self.fake.cublaslt
        return found

    def measured(self, call: OpCall | None = None, name: str = NAME) -> trial.Trial:
        """A kernel as it is measured."""
        call = call or call_of(product())
        fitting = table.candidates(call, self.device.info).fitting
        made = trial.prepare_trial(self.device, next(k for k in fitting if k.name == name), call)
        made.close()
        return made

    def runs_by(self, call: OpCall | None = None, name: str = NAME, **how: Any) -> tuple[int, str]:
        """The algorithm that a kernel is compiled with now, and what it says of it."""
        call = call or call_of(product())
        fitting = table.candidates(call, self.device.info).fitting
        kernel = next(k for k in fitting if k.name == name)
        (made,) = trial.compile_op(self.device, kernel, call, **how).executables
        library = made.library  # type: ignore[attr-defined]
        return int(library.algorithm.algorithm[6]), made.said


Open = Callable[..., Card]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, costs: costing.CostStore) -> Path:
    """Where choices are kept; costs are kept nowhere."""
    del costs
    monkeypatch.setenv("CROSSDOCK_CACHE_DIR", str(tmp_path))
    tmp_path.chmod(0o700)
    return tmp_path / "algorithms"


@pytest.fixture
def start(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Open the card as a new process would, with these algorithms; time is the machine's."""
    del cache
    monkeypatch.setattr(tuning, "SECONDS", 1e3)
    with pytest.MonkeyPatch.context() as patch:
        open_cards: list[Any] = []

        def opened(*algorithms: Algo) -> Card:
            while open_cards:
                open_cards.pop().__exit__(None, None, None)
            cuda_lt_library._library.cache_clear()
            there = cards.installed(patch)
            fake = there.__enter__()
            open_cards.append(there)
            fake.machine.seconds = 0.0
            fake.cublaslt.algorithms = algorithms
            device = registry.open_device("cuda:0")
            assert isinstance(device, CudaDevice)
            return Card(fake, device)

        yield opened
        while open_cards:
            open_cards.pop().__exit__(None, None, None)


def test_the_fastest_is_taken_and_kept(start: Open) -> None:
    card = start(SLOW, FAST, MIDDLE)
    made = card.measured()
    assert made.seconds == pytest.approx(FAST.seconds)
    assert card.lt.asked == [1, cuda_lt_choice.MOST]
    number, said = card.runs_by()
    assert number == FAST.number
    assert said == (
        "cuBLASLt's algorithm 7 (tile 20, stages 7), the fastest of 3 timed, "
        "4.00 x its own first choice"
    )


def test_a_warm_start_neither_measures_nor_asks(start: Open) -> None:
    start(SLOW, FAST, MIDDLE).measured()
    card = start(SLOW, FAST, MIDDLE)
    assert card.runs_by()[0] == FAST.number
    assert card.measured().seconds == pytest.approx(FAST.seconds)
    assert card.lt.asked == []
    assert set(card.lt.ran) == {FAST.number}


@pytest.mark.parametrize("what", ["version", "card", "shape", "precision", "epilogue", "dtype"])
def test_nothing_is_kept_for_another(
    what: str, start: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(SLOW, FAST).measured()
    name, call = NAME, call_of(product())
    if what == "version":
        monkeypatch.setattr(cublaslt, "VERSION", cublaslt.VERSION + 1)
    card = start(SLOW, FAST)
    b = xd.GraphBuilder()
    if what == "card":
        facts = card.fake.cuda.runtime.getDeviceProperties
        monkeypatch.setattr(
            card.fake.cuda.runtime,
            "getDeviceProperties",
            lambda index: {**facts(index), "clockRate": 2},
        )
    if what == "shape":
        other = b.build({"y": b.matmul(b.input("x", (M + 1, K)), b.input("w", (K, N)))})
        call = call_of(other)
    if what == "dtype":
        halves = [b.input("x", (M, K), "float16"), b.input("w", (K, N), "float16")]
        call = call_of(b.build({"y": b.matmul(*halves)}))
    if what == "precision":
        name = f"{NAME}.tf32"
    if what == "epilogue":
        ones = b.constant(np.ones(N, np.float32))
        y = b.gemm(b.input("x", (M, K)), b.input("w", (K, N)), c=ones)
        name, call = "cublaslt.gemm", call_of(b.build({"y": y}))
    assert card.runs_by(call, name)[0] == SLOW.number
    assert card.lt.asked == [1]


def test_one_that_is_hardly_faster_is_not_worth_it(start: Open) -> None:
    card = start(SLOW, Algo(7, 0.98 * SLOW.seconds))
    card.measured()
    number, said = card.runs_by()
    assert number == SLOW.number
    assert said.endswith("its own first choice, which no other of 2 timed beats")


def test_what_fails_is_dropped_and_told_of(start: Open) -> None:
    card = start(SLOW, FAILS, FAST, UNABLE)
    card.measured()
    number, said = card.runs_by()
    assert number == FAST.number
    assert "the fastest of 2 timed" in said
    assert "1 dropped (cuBLASLt's algorithm 13 (tile 20, stages 7): cuda:0: cuBLAS, 8x12" in said
    assert "cublasLtMatmul returned 14" in said
    assert UNABLE.number not in card.lt.ran


def test_a_first_choice_that_fails_is_dropped_too(start: Open) -> None:
    card = start(FAILS, SLOW, FAST)
    assert card.measured().seconds == pytest.approx(FAST.seconds)
    number, said = card.runs_by()
    assert number == FAST.number
    assert "the fastest of 2 timed; 1 dropped (cuBLASLt's algorithm 13" in said


def test_an_only_choice_that_fails_is_a_kernel_without_a_time(start: Open) -> None:
    card = start(FAILS)
    with pytest.raises(DeviceError, match="cublasLtMatmul returned 14"):
        card.measured()


def test_none_takes_more_workspace_than_there_is(start: Open) -> None:
    card = start(SLOW, LARGE, FAST)
    card.measured()
    assert card.runs_by()[0] == FAST.number
    assert LARGE.number not in card.lt.ran


def test_where_all_fail_the_kernel_has_no_time(
    start: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = start(SLOW, FAST)
    take = cuda_lt._LtGemm.take
    failing = cublaslt.NOT_SUPPORTED

    def refusing(self: Any, index: int) -> None:
        card.lt.refuse = failing
        take(self, index)

    monkeypatch.setattr(cuda_lt._LtGemm, "take", refusing)
    with pytest.raises(DeviceError, match="cublasLtMatmul returned 15"):
        card.measured()
    monkeypatch.undo()


def test_count_and_time_are_bounded(start: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    many = tuple(Algo(20 + i, 1e-3 * (20 - i)) for i in range(20))
    card = start(*many)
    card.measured()
    assert card.runs_by()[0] == many[cuda_lt_choice.MOST - 1].number
    monkeypatch.setattr(tuning, "SECONDS", -1.0)
    call = call_of(_wider())
    card.measured(call)
    number, said = card.runs_by(call)
    assert number == many[0].number
    assert "no other of 1 timed beats, 7 not timed" in said


def _wider() -> Graph:
    b = xd.GraphBuilder()
    return b.build({"y": b.matmul(b.input("x", (M, K)), b.input("w", (K, 2 * N)))})


def test_one_that_is_far_behind_is_not_timed_again(start: Open) -> None:
    far = replace(FAST, number=FAST.number + 10, seconds=10 * SLOW.seconds)
    card = start(SLOW, FAST, far)
    card.measured()
    assert card.lt.ran.count(far.number) <= 4  # two command buffers of two runs, in one round
    assert card.runs_by()[0] == FAST.number


def test_the_only_one_is_kept_untimed(start: Open) -> None:
    card = start(FAST)
    card.measured()
    assert card.runs_by()[1].endswith("the only one there is")
    assert start(FAST).runs_by()[1].endswith("the only one there is")


@pytest.mark.parametrize("now", [{"check": 15}, {"workspace": 1 << 30}])
def test_a_kept_one_that_the_library_refuses_is_asked_for_anew(
    start: Open, now: dict[str, int]
) -> None:
    start(SLOW, FAST).measured()
    card = start(SLOW, replace(FAST, **now))
    number, said = card.runs_by()
    assert number == SLOW.number
    assert said.endswith("its own first choice, not timed")


@pytest.mark.parametrize("how", ["cut", "changed", "moved", "no words", "others may write"])
def test_what_is_damaged_is_not_used(how: str, start: Open, cache: Path) -> None:
    start(SLOW, FAST).measured()
    (file,) = cache.iterdir()
    data = file.read_bytes()
    if how == "cut":
        file.write_bytes(data[:-1])
    if how == "changed":
        file.write_bytes(data.replace(b'"workspace": 0', b'"workspace": 1'))
    if how == "moved":
        (cache / file.name).write_bytes(kept.digest_of("other", data[32:]) + data[32:])
    if how == "no words":
        text = json.dumps({**json.loads(data[32:]), "words": [1]}).encode()
        file.write_bytes(kept.digest_of(file.name, text) + text)
    if how == "others may write":
        file.chmod(0o666)
    assert start(SLOW, FAST).runs_by()[0] == SLOW.number


def test_choices_kept_are_bounded(
    start: Open, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = start(SLOW, FAST)
    card.measured()
    (first,) = cache.iterdir()
    monkeypatch.setattr(kept_choices, "MOST_BYTES", first.stat().st_size + 10)
    os.utime(first, ns=(0, 0))
    card.measured(call_of(_wider()))
    (left,) = cache.iterdir()
    assert left.name != first.name


def test_what_was_used_last_stays(
    start: Open, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = start(SLOW, FAST)
    card.measured()
    (used,) = cache.iterdir()
    card.measured(call_of(_wider()))
    (idle,) = set(cache.iterdir()) - {used}
    os.utime(used, ns=(0, 0))
    os.utime(idle, ns=(10**9, 10**9))
    card = start(SLOW, FAST)
    assert card.runs_by()[0] == FAST.number
    room = used.stat().st_size + idle.stat().st_size + 10
    monkeypatch.setattr(kept_choices, "MOST_BYTES", room)
    card.measured(name=f"{NAME}.tf32")
    assert used.exists()
    assert not idle.exists()


def test_without_a_cache_it_is_chosen_once_a_process(
    start: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CROSSDOCK_CACHE_DIR", "off")
    card = start(SLOW, FAST)
    card.measured()
    assert card.runs_by()[0] == FAST.number
    assert start(SLOW, FAST).runs_by()[0] == SLOW.number


# --- sessions -------------------------------------------------------------------------------------


def session_of(card: Card, **options: Any) -> tuple[xd.Session, np.ndarray]:
    """A session on the card, made to run ``NAME`` on it, and what one run gives."""
    pin = xd.Constraints(pin={"product": card.device.info.id})
    made = xd.compile(product(), card.device.info.id, measure=False, constraints=pin, **options)
    x = np.random.default_rng(1).uniform(-1, 1, (M, K)).astype(np.float32)
    card.lt.ran.clear()
    return made, made.run({"x": x})["y"]


def test_plans_and_receipts_say_which(opencl: Any, start: Open, costs: costing.CostStore) -> None:
    del opencl
    card = start(SLOW, FAST)
    made = card.measured()
    info, call = card.device.info, made.call
    costs.model.record_many(info.fingerprint, NAME, call.key(), [1e-6] * 3, made.work)
    session, _ = session_of(card)
    (op,) = session.receipt.ops
    assert op.kernel == NAME
    assert op.algorithm == card.runs_by()[1] != ""
    assert op.algorithm in session.plan.explain()
    assert f"by {op.algorithm}" in session.plan.explain_op("product")
    assert op.algorithm in json.dumps(session.receipt.to_json())
    assert card.lt.ran == [FAST.number]
    assert "algorithm" not in session.plan.dumps().replace("algorithms", "")
    session.close()


def test_deterministic_keeps_to_one_whatever_was_measured(opencl: Any, start: Open) -> None:
    del opencl
    seen = []
    for algorithms, measured in (((SLOW, FAST), False), ((SLOW, FAST), True), ((SLOW,), False)):
        card = start(*algorithms)
        if measured:
            card.measured()
        session, y = session_of(card, deterministic=True)
        (op,) = session.receipt.ops
        assert op.kernel == NAME
        assert op.algorithm.endswith("its own first choice, not timed")
        seen.append((set(card.lt.ran), y.tobytes()))
        session.close()
    assert seen == seen[:1] * 3
    assert seen[0][0] == {SLOW.number}


def test_no_algorithm_is_still_a_kernel_that_does_not_build(start: Open) -> None:
    card = start(UNABLE)
    with pytest.raises(CompileError, match="cuBLASLt has no product"):
        card.runs_by()


# --- planted bugs ---------------------------------------------------------------------------------


def fault(start: Open) -> str:
    """The first thing that is wrong with how algorithms are chosen, by a few looks at it."""
    try:
        _look(start)
    except Exception as error:  # noqa: BLE001 - whatever a bug leads to
        return f"{type(error).__name__}: {error}"
    return ""


def _look(start: Open) -> None:
    card = start(SLOW, FAILS, FAST, UNABLE)
    made = card.measured()
    assert made.seconds == pytest.approx(FAST.seconds)
    number, said = card.runs_by()
    assert number == FAST.number
    assert "dropped" in said
    assert "4.00 x" in said
    assert card.runs_by(steady=True)[0] == SLOW.number
    assert card.runs_by(call_of(_wider()))[0] == SLOW.number, "another shape"
    assert card.runs_by(name=f"{NAME}.tf32")[0] == SLOW.number
    card = start(SLOW, FAILS, FAST, UNABLE)
    assert card.runs_by()[0] == FAST.number
    assert card.lt.asked == []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cublaslt, "VERSION", cublaslt.VERSION + 1)
        assert start(SLOW, FAST).runs_by()[0] == SLOW.number, "another version"
    refused = start(SLOW, replace(FAST, check=15))
    assert refused.runs_by()[0] == SLOW.number


LT, CHOICE = cuda_lt._LtGemm, cuda_lt_choice


def _keyed(*parts: str) -> property:
    return property(lambda _self: kept.key("cublaslt", *parts))


def _raw_key(self: Any) -> str:
    return kept.key("cublaslt", str(self.lt.version), str(self.wanted.product.n))


BUGS: dict[str, tuple[Any, str, Any]] = {
    "an algorithm is not taken": (LT, "take", lambda self, index: None),
    "the first is kept": (
        LT, "keep", lambda self, index, timings, keep=LT.keep: keep(self, 0, timings)
    ),
    "nothing is kept": (LT, "keep", lambda self, index, timings: None),
    "nothing is kept on disk": (CHOICE, "save", lambda name, chosen: None),
    "one choice for all products": (LT, "_name", _keyed("120903")),
    "one choice for all formats": (LT, "_name", property(_raw_key)),
    "one choice for all versions": (
        LT, "_name", property(lambda self: kept.key(repr(self.wanted)))
    ),
    "the library is not asked whether it takes it": (LT, "_takes", lambda self, found: True),
    "the slowest is taken": (tuning, "min", lambda *args, **how: max(*args, **how)),
    "a failure ends the search": (tuning, "DeviceLost", DeviceError),
    "one algorithm is asked for": (CHOICE, "MOST", 1),
    "what was fixed is tuned": (binding, "fixed", lambda step: step),
    "what failed is not told": (
        CHOICE, "summary",
        lambda names, index, timings, summary=CHOICE.summary: summary(
            names, index, [t if isinstance(t, float) else None for t in timings]
        ),
    ),
    "it is chosen anew each time": (LT, "_chosen", lambda self: None),
}  # fmt: skip


def test_without_a_bug_nothing_is_found(start: Open) -> None:
    assert fault(start) == ""


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found(name: str, start: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    where, attribute, bug = BUGS[name]
    monkeypatch.setattr(where, attribute, bug, raising=attribute != "min")
    assert fault(start)
