"""Arena planning: no two tenants that may be alive together share a byte."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossdock.runtime import memory
from crossdock.runtime.memory import Tenant, conflicts, plan_arena


@st.composite
def tenants(draw: st.DrawFn) -> list[Tenant]:
    """Tensors with clocks over up to three queues, sizes from nothing to some pages."""
    queues = draw(st.integers(1, 3))
    made = []
    for i in range(draw(st.integers(0, 24))):
        born = tuple(float(draw(st.integers(0, 12))) for _ in range(queues))
        last = tuple(draw(st.sampled_from([0.0, b + draw(st.integers(1, 6))])) for b in born)
        made.append(Tenant(f"t{i}", draw(st.integers(0, 9000)), born, last))
    return made


@given(tenants(), st.sampled_from([64, 128, 4096]))
def test_tenants_alive_together_never_overlap(given_: list[Tenant], alignment: int) -> None:
    arena = plan_arena(given_, alignment)
    clash = conflicts(given_)
    for i, a in enumerate(given_):
        start = arena.offsets[a.name]
        assert start % alignment == 0
        assert start + a.nbytes <= arena.nbytes
        for j, b in enumerate(given_):
            other = arena.offsets[b.name]
            if clash[i, j]:
                assert start + a.nbytes <= other or other + b.nbytes <= start


@given(tenants())
def test_arena_is_at_least_what_is_alive_at_once(given_: list[Tenant]) -> None:
    arena = plan_arena(given_)
    assert arena.nbytes >= max((t.nbytes for t in given_), default=0)
    assert arena.nbytes <= sum(-(-max(t.nbytes, 1) // 64) * 64 for t in given_)


def test_a_chain_needs_two_tensors() -> None:
    """In a chain a -> b -> c -> ... only a step's operand and result are alive."""
    chain = [Tenant(f"t{i}", 640, (float(i),), (float(i + 2),)) for i in range(50)]
    assert plan_arena(chain).nbytes == 2 * 640


def test_a_tensor_on_an_asynchronous_queue_is_not_reused_before_its_reader_is_known_done() -> None:
    """Queue 1 reads ``a`` at its position 0; ``b`` is born knowing nothing of queue 1."""
    a = Tenant("a", 64, (0.0, 0.0), (1.0, 1.0))
    unaware = Tenant("b", 64, (5.0, 0.0), (6.0, 0.0))
    aware = Tenant("b", 64, (5.0, 1.0), (6.0, 0.0))
    assert plan_arena([a, unaware]).nbytes == 128
    assert plan_arena([a, aware]).nbytes == 64


def test_other_orders_close_the_gaps_that_largest_first_leaves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(3)

    def network() -> list[Tenant]:
        """Tensors of a chain of steps, most of them read by the next one, some much later."""
        lengths = rng.choice([2, 2, 2, 3, 9], 60)
        sizes = 64 * rng.integers(1, 60, 60)
        return [
            Tenant(f"t{i}", int(size), (float(i),), (float(i + length),))
            for i, (size, length) in enumerate(zip(sizes, lengths, strict=True))
        ]

    networks = [network() for _ in range(40)]
    many = [plan_arena(tenants) for tenants in networks]
    monkeypatch.setattr(memory, "TRIES", 1)
    one = [plan_arena(tenants) for tenants in networks]
    assert all(a.nbytes <= b.nbytes for a, b in zip(many, one, strict=True))
    over = [[a.nbytes / a.live_bytes for a in arenas] for arenas in (many, one)]
    assert np.mean(over[0]) < 1.03 < 1.05 < np.mean(over[1])
