"""Tiles of a product are timed where its kernel is, the fastest is taken and kept, and said so."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import crossdock as xd
from crossdock.devices import registry, variants
from crossdock.devices.base import Bound, CommandBuffer, Device
from crossdock.devices.program import GridLaunch, Lowered, Out, Scratch, fixed, renamed
from crossdock.kernels import grid_tile
from crossdock.kernels.spec import Kernel, OpCall
from crossdock.runtime import binding, costing, trial
from crossdock.runtime.errors import CompileError
from crossdock.runtime.tensor import Array
from tests.fakes import cards
from tests.kernels.grid_run import (
    as_gpu,
    call_of,
    compare,
    execute,
    expected,
    grid_kernels,
    opencl_ids,
    opened,
)
from tests.kernels.texts import all_tiles

M, K, N = 100, 130, 90
"""Of a product that is worth the timing; no tile divides it."""
NAME = "grid.matmul.tiled"


def normal(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def kernel_of(call: OpCall, device: Device, name: str = NAME) -> Kernel:
    return next(k for k in grid_kernels(call, device.info) if k.name == name)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, costs: costing.CostStore) -> Path:
    """Where choices are kept; costs are kept nowhere, and nothing is known from before."""
    del costs
    tmp_path.chmod(0o700)
    monkeypatch.setenv("CROSSDOCK_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(variants, "_CHOSEN", {})
    return tmp_path / "algorithms"


@pytest.fixture(params=["opencl", "cuda"])
def device(
    request: pytest.FixtureRequest, opencl: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Device]:
    """A real OpenCL device, and a pretended card, which computes on it."""
    del cache
    with ExitStack() as stack:
        if request.param == "cuda":
            stack.enter_context(cards.installed(monkeypatch))
            yield registry.open_device("cuda:0")
        else:
            yield registry.open_device(opencl.id)


@dataclass
class Times:
    """What each variant is said to take; anything else takes what it takes, or ``others``.

    The first ``disturbed`` runs of a variant take nine times as long.
    """

    seconds: Mapping[str, float]
    seen: list[str]
    others: float = 0.0
    disturbed: dict[str, int] = field(default_factory=dict)


Timed = Callable[..., Times]


@pytest.fixture
def timed(device: Device, monkeypatch: pytest.MonkeyPatch) -> Timed:
    """Let trials of commands that are one launch take so long as its variant is said to."""
    record, run = type(device).record, trial._run
    recorded: dict[int, tuple[CommandBuffer, str]] = {}
    times = Times({}, [])

    def noting(self: Any, bound: list[Bound]) -> CommandBuffer:
        made = record(self, bound)
        choices = [item.executable.choice for item in bound]
        taken = {c.step.variant for c in choices if isinstance(c, variants.Built)}
        if len(taken) == 1:
            recorded[id(made)] = made, taken.pop()
        return made

    def ran(device: Device, commands: CommandBuffer, runs: int, steps: int) -> float:
        real = run(device, commands, runs, steps)
        _, variant = recorded.get(id(commands), (None, ""))
        times.seen.append(variant)
        slow = times.seen.count(variant) <= times.disturbed.get(variant, 0)
        return (9 if slow else 1) * times.seconds.get(variant, max(real, times.others))

    monkeypatch.setattr(type(device), "record", noting)
    monkeypatch.setattr(trial, "_run", ran)

    def take(*seconds: float) -> Times:
        times.seconds = dict(zip(names(device), seconds, strict=False))
        times.seen.clear()
        return times

    return take


def product() -> OpCall:
    return call_of("matmul", [normal(M, K), normal(K, N)])


def launch_of(device: Device, call: OpCall | None = None) -> GridLaunch:
    call = call or product()
    (step,) = kernel_of(call, device).lowered(call, device.info).steps
    assert isinstance(step, GridLaunch)
    return step


def names(device: Device) -> list[str]:
    """What the variants are called: the rule's choice first."""
    step = launch_of(device)
    return [step.variant, *(other.variant for other in step.others)]


def measured(device: Device, call: OpCall | None = None, **how: Any) -> trial.Trial:
    call = call or product()
    made = trial.prepare_trial(device, kernel_of(call, device), call, **how)
    made.sample()
    made.close()
    return made


def runs_by(device: Device, call: OpCall | None = None, **how: Any) -> tuple[str, str]:
    """The variant that a kernel is compiled with now, and what it says of it."""
    call = call or product()
    (made,) = binding.compile_op(device, kernel_of(call, device), call, **how).executables
    assert isinstance(made.choice, variants.Built)
    return made.choice.step.variant, made.said


def test_the_fastest_is_taken_and_kept(
    device: Device, timed: Timed, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule, other, *_ = names(device)
    assert runs_by(device) == (rule, f"{rule}, the rule's choice, not timed")
    times = timed(3e-4, 2e-4)
    assert measured(device).seconds == pytest.approx(2e-4)
    assert times.seen[-1] == other  # what is sampled from then on
    said = f"{other}, the fastest of 2 timed, 1.50 x the rule's choice"
    assert runs_by(device)[0] == other
    assert runs_by(device)[1].startswith(said[: said.index(" of ")])
    monkeypatch.setattr(variants, "_CHOSEN", {})  # as another process
    times = timed(1e-9, 1.0)
    assert runs_by(device)[0] == other
    assert measured(device).seconds == pytest.approx(1.0)
    assert rule not in times.seen


def test_the_rules_choice_stays_where_none_is_faster(device: Device, timed: Timed) -> None:
    rule, *others = names(device)
    timed(1.02e-4, *(1e-4 for _ in others))
    measured(device)
    count = 1 + len(others)
    said = f"{rule}, the rule's choice, which no other of {count} timed beats"
    assert runs_by(device) == (rule, said)


@pytest.mark.parametrize("runs", [1, 3, 5])
def test_what_disturbs_the_first_choice_alone_decides_nothing(
    device: Device, timed: Timed, runs: int
) -> None:
    rule, *others = names(device)
    times = timed(1e-4, *[0.99e-4 for _ in others])
    times.disturbed = {rule: runs}
    measured(device)
    assert runs_by(device)[0] == rule


def test_what_is_chosen_computes_the_product(device: Device, timed: Timed) -> None:
    _, *others = names(device)
    timed(3e-4, 1e-4)
    measured(device)
    call, arrays = product(), [normal(M, K), normal(K, N)]
    assert runs_by(device)[0] == others[0]
    lowered = kernel_of(call, device).lowered(call, device.info)
    (got,), (want,) = execute(lowered, call, arrays, device), expected(call, arrays)
    compare(got, want, "float32", NAME)


@pytest.mark.parametrize("what", ["device", "shape", "dtype"])
def test_nothing_is_kept_for_another(
    what: str, device: Device, timed: Timed, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(3e-4, 1e-4)
    measured(device)
    call = product()
    if what == "device":
        other = replace(device.info, fingerprint=f"{device.info.fingerprint}|newer driver")
        monkeypatch.setattr(device, "info", other)
    if what == "shape":
        call = call_of("matmul", [normal(M, K), normal(K, N + 1)])
    if what == "dtype":
        halves = [normal(M, K).astype(np.float16), normal(K, N).astype(np.float16)]
        call = call_of("matmul", halves)
    assert runs_by(device, call)[1].endswith("the rule's choice, not timed")


def test_fixed_steps_keep_to_the_rule(device: Device, timed: Timed) -> None:
    rule, *_ = names(device)
    timed(3e-4, 1e-4)
    measured(device)
    assert runs_by(device, steady=True) == (rule, f"{rule}, the rule's choice, not timed")
    made = device.compile(fixed(launch_of(device)))
    assert device.algorithms(made) == 0


def with_broken(device: Device) -> Lowered:
    """The product's launch with a variant before the others whose text does not build."""
    step = launch_of(device)
    broken = replace(step, source="KERNEL void product( {", variant="tile broken", others=())
    return Lowered((replace(step, others=(broken, *step.others)),))


def test_what_does_not_build_is_dropped_and_told_of(device: Device, timed: Timed) -> None:
    _, other, *_ = names(device)
    timed(3e-4, 2e-4)
    lowered = with_broken(device)
    measured(device, lowered=lowered)
    variant, said = runs_by(device, lowered=lowered)
    assert variant == other
    assert "1 dropped (tile broken: " in said
    assert "does not build" in said


def test_a_kept_one_that_builds_no_more_is_chosen_anew(
    device: Device, timed: Timed, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule, *_ = names(device)
    timed(3e-4, 1e-4)
    measured(device)
    build = variants.Built._chosen

    def refusing(self: variants.Built[Any]) -> Any:
        inner = self._build

        def only_first(step: GridLaunch) -> Any:
            if step.variant != rule:
                raise CompileError("no more")
            return inner(step)

        self._build = only_first
        return build(self)

    monkeypatch.setattr(variants.Built, "_chosen", refusing)
    assert runs_by(device) == (rule, f"{rule}, the rule's choice, not timed")


@pytest.mark.parametrize("damage", ["cut", "changed", "of another"])
def test_what_is_damaged_is_not_used(
    damage: str, device: Device, timed: Timed, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule, *_ = names(device)
    timed(3e-4, 1e-4)
    measured(device)
    (file,) = cache.iterdir()
    data = file.read_bytes()
    if damage == "cut":
        file.write_bytes(data[:-1])
    if damage == "changed":
        file.write_bytes(data.replace(b"fastest", b"slowest"))
    if damage == "of another":
        file.rename(cache / ("0" * 64))
    monkeypatch.setattr(variants, "_CHOSEN", {})
    assert runs_by(device)[0] == rule


def test_small_products_have_one_tile(device: Device) -> None:
    call = call_of("matmul", [normal(20, 30), normal(30, 40)])
    step = launch_of(device, call)
    assert (step.variant, step.others) == ("", ())
    assert runs_by(device, call) == ("", "")


def test_few_tiles_are_timed_and_none_far_behind(device: Device) -> None:
    tiles = [grid_tile.Tile(16, 16, 8, 4, 4, pace) for pace in (1.0, 0.9, 0.8, 0.7, 0.1)]
    found = grid_tile.ranked(tiles, 512, 512, 1, device.info)
    assert [t.pace for t in found] == [1.0, 0.9, 0.8]
    assert grid_tile.ranked(tiles[::4], 512, 512, 1, device.info) == (tiles[0],)


def test_variants_are_given_what_the_launch_is(device: Device) -> None:
    step = renamed(launch_of(device), {Out(0): Scratch(3)})
    assert isinstance(step, GridLaunch)
    assert step.others
    for one in (step, *step.others):
        assert Scratch(3) in one.args
        assert Out(0) not in one.args


# --- sessions -------------------------------------------------------------------------------------


def session_of(device: Device, **options: Any) -> tuple[xd.Session, Array]:
    """A session that has its product on the device, and what one run gives."""
    b = xd.GraphBuilder()
    y = b.matmul(b.input("x", (M, K)), b.input("w", (K, N)), label="product")
    graph = b.build({"y": y})
    pin = xd.Constraints(pin={"product": device.info.id})
    made = xd.compile(graph, device.info.id, constraints=pin, **options)
    return made, made.run({"x": normal(M, K), "w": normal(K, N)})["y"]


def test_plans_and_receipts_say_which(device: Device, timed: Timed) -> None:
    _, other, *_ = names(device)
    timed(3e-6, 2e-6).others = 1e-3  # of a library's products, where it is a card
    session, y = session_of(device)
    said = session.plan.algorithms["product"]
    assert said.startswith(f"{other}, the fastest of ")
    assert "1.50 x the rule's choice" in said
    assert said in session.plan.explain()
    assert f"by {said}" in session.plan.explain_op("product")
    (op,) = session.receipt.ops
    assert (op.kernel, op.algorithm) == (NAME, said)
    assert said in json.dumps(session.receipt.to_json())
    np.testing.assert_allclose(y, normal(M, K) @ normal(K, N), rtol=1e-4, atol=1e-4)
    session.close()


# --- the tiles themselves -------------------------------------------------------------------------

CALLS: dict[str, Callable[[], tuple[OpCall, list[Any]]]] = {}


def case(name: str, op: str, attrs: Mapping[str, Any], *arrays: Array | None) -> None:
    CALLS[name] = lambda: (call_of(op, arrays, attrs), list(arrays))


case("matmul", "matmul", {}, normal(3, M, K), normal(K, N))
case("gemm", "gemm", {"a_transpose": True, "b_transpose": True, "alpha": 0.5, "beta": 2.0},
     normal(K, M), normal(N, K), normal(N))  # fmt: skip
case("conv", "conv2d", {"padding": (1, 1, 1, 1)}, normal(2, 9, 23, 25), normal(33, 9, 3, 3),
     normal(33))  # fmt: skip
case("1x1", "conv2d", {}, normal(2, 50, 23, 25), normal(33, 50, 1, 1), None)
case("transposed", "conv_transpose2d", {"strides": (2, 2)}, normal(2, 50, 17, 19),
     normal(50, 40, 3, 3), None)  # fmt: skip


FIRST, *MORE = opencl_ids()
WHERE = [
    *((FIRST, name, False) for name in CALLS),
    *((where, name, False) for where in MORE for name in ("matmul", "conv")),
    (FIRST, "matmul", True),
]
LONG = [(where, name, True) for where in (FIRST, *MORE) for name in ("matmul", "gemm", "conv")]


@pytest.mark.parametrize(
    ("where", "name", "gpu"),
    [*WHERE, *(pytest.param(*case, marks=pytest.mark.slow) for case in LONG if case not in WHERE)],
)
def test_every_tile_gives_the_same_bits(where: str, name: str, gpu: bool) -> None:
    device = opened(where)
    info = as_gpu(device.info) if gpu else device.info
    call, arrays = CALLS[name]()
    (want,) = expected(call, arrays)
    checked = 0
    for kernel in grid_kernels(call, info):
        with all_tiles():
            lowered = kernel.lowered(call, info)
        most = max((len(s.others) for s in lowered.steps if isinstance(s, GridLaunch)), default=0)
        seen = set()
        for index in range(most + 1):
            steps = tuple(variant(step, index) for step in lowered.steps)
            (got,) = execute(replace(lowered, steps=steps), call, arrays, device)
            compare(got, want, "float32", f"{kernel.name} {steps}")
            seen.add(got.tobytes())
            checked += index > 0
        assert len(seen) == 1
    assert checked


def variant(step: Any, index: int) -> Any:
    """One of a launch's variants; a step without as many is as it is."""
    return step.others[index - 1] if 0 < index <= len(getattr(step, "others", ())) else fixed(step)
