"""Algorithms of a library are chosen from another process as they are in its own.

The card is pretended, and so is the border: what crosses it is written as JSON, and read again.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crossdock.devices import registry, variants
from crossdock.devices.cuda_blas import Product
from crossdock.devices.cuda_lt import LtProduct
from crossdock.devices.isolated_device import IsolatedDevice
from crossdock.devices.isolated_forms import read_step, step_form
from crossdock.devices.isolated_worker import Server
from crossdock.devices.program import fixed
from crossdock.kernels.grid_matmul import Factors, tiled
from tests.cards import CARD
from tests.fakes import cards
from tests.fakes.cublaslt import Algo
from tests.fakes.cupy_fake import FakeCupy

STEP = LtProduct(Product(4, 5, 6, "float32", "float32"), workspace=4096).step()


class Beyond(IsolatedDevice):
    """A device whose process is a server in this one."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.name, self.info = "isolated:cuda:0", server.device.info
        self._numbers = itertools.count(1)

    def _ask(self, what: str, *args: object, descriptors: Any = ()) -> Any:
        del descriptors
        answer = self.server._does[what](*json.loads(json.dumps(args)))
        return json.loads(json.dumps(answer))

    def forget(self, what: str, number: int) -> None:
        if what == "executable":
            self.server._executables.pop(number, None)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeCupy]:
    tmp_path.chmod(0o700)
    monkeypatch.setenv("CROSSDOCK_CACHE_DIR", str(tmp_path))
    with cards.installed(monkeypatch) as made:
        made.cublaslt.algorithms = (Algo(5), Algo(7, workspace=256), Algo(9))
        yield made


def test_a_choice_is_made_beyond_the_border(fake: FakeCupy) -> None:
    with cards.first() as card:
        server = Server(None)  # type: ignore[arg-type]
        server.device = card
        device = Beyond(server)
        made = device.compile(STEP)
        assert made.said.endswith("its own first choice, not timed")
        assert device.algorithms(made) == 3
        device.take_algorithm(made, 2)
        library = server._executables[made.number].library  # type: ignore[attr-defined]
        assert library.algorithm.algorithm[6] == 9
        device.take_algorithm(made, 1)
        device.keep_algorithm(made, 1, [2.0, 0.5, "it fails"])
        again = device.compile(STEP)
        assert again.said == (
            "cuBLASLt's algorithm 7 (tile 20, stages 7), the fastest of 2 timed, 4.00 x its own "
            "first choice; 1 dropped (cuBLASLt's algorithm 9 (tile 20, stages 7): it fails)"
        )
        assert device.algorithms(again) == 0
        assert fake.cublaslt.asked == [1, 8]
        del made, again
        assert not server._executables


POCL = bool(registry.probe_all(["opencl"])[0].devices)
PRODUCT = Factors(100, 90, 130, "float32")


@pytest.mark.skipif(not POCL, reason="the fake cupy runs kernels on PoCL")
def test_a_variant_is_chosen_beyond_the_border(
    fake: FakeCupy, monkeypatch: pytest.MonkeyPatch
) -> None:
    del fake
    monkeypatch.setattr(variants, "_CHOSEN", {})
    with cards.first() as card:
        server = Server(None)  # type: ignore[arg-type]
        server.device = card
        device = Beyond(server)
        step = tiled(PRODUCT, card.info)
        rule, other, *_ = (one.variant for one in (step, *step.others))
        made = device.compile(step)
        assert made.said == f"{rule}, the rule's choice, not timed"
        count = device.algorithms(made)
        assert count == 1 + len(step.others)
        device.keep_algorithm(made, 1, [2.0, 0.5, *([None] * (count - 2))])
        again = device.compile(step)
        assert again.said.startswith(f"{other}, the fastest of 2 timed, 4.00 x the rule's choice")
        assert device.algorithms(again) == 0
        del made, again


def test_a_launch_crosses_the_border_as_it_is() -> None:
    step = tiled(PRODUCT, CARD)
    assert step.others
    assert read_step(json.loads(json.dumps(step_form(step, "here")))) == step


def test_what_is_fixed_stays_so_beyond_the_border(fake: FakeCupy) -> None:
    with cards.first() as card:
        server = Server(None)  # type: ignore[arg-type]
        server.device = card
        device = Beyond(server)
        tuned = device.compile(STEP)
        device.algorithms(tuned)
        device.keep_algorithm(tuned, 1, [2.0, 0.5, None])
        made = device.compile(fixed(STEP))
        assert made.said.endswith("its own first choice, not timed")
        assert device.algorithms(made) == 0
