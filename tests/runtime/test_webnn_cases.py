"""The third-party WebNN cases through sessions: on the host, on OpenCL, and on the fake CUDA card.

Every op has to run on the device asked for, natively or emulated; nothing goes to the host.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

import crossdock as xd
from tests.fakes import cards
from tests.fakes.cuda_machine import Machine
from tests.kernels.grid_run import opencl_ids, opened
from tests.kernels.test_ops_third_party import CASES, marked
from tests.kernels.third_party import ThirdParty, array, build, verdict

CARD = "cuda:0"
ON_THE_HOST, ON_OPENCL, ON_THE_CARD = 2, 8, 16
"""One in so many cases of an operator is run at once, the first among them; the rest with the slow
tests.

All of them are evaluated at once with numpy, in ``kernels/test_ops_third_party``; here sessions
run them, and the many cases of an operator go one way through a session. The fake card runs the
kernels' texts on the OpenCL device, too.
"""


@pytest.fixture(scope="module")
def card() -> Iterator[str]:
    """A card on the fake cupy, which runs kernels on the OpenCL device."""
    opened(opencl_ids()[0])
    machine = Machine(memory=4 << 30)  # one case has 432 MB
    with pytest.MonkeyPatch.context() as patch, cards.installed(patch, machine):
        yield CARD


def judge(case: ThirdParty, device: str) -> None:
    graph, feeds = build(case)
    with xd.compile(graph, devices=[device], measure=False) as session:
        outputs = session.run(feeds)
        ran = {op.device for op in session.receipt.ops}
    assert ran <= {device}
    for name, entry in case.graph["expectedOutputs"].items():
        assert (wrong := verdict(case, outputs[name], array(entry))) is None, f"{name}: {wrong}"


def one_in(share: int) -> list[object]:
    counts: Counter[str] = Counter()
    made = []
    for case in CASES:
        made.append(marked(case, slow=counts[case.file] % share > 0))
        counts[case.file] += 1
    return made


@pytest.mark.parametrize("case", one_in(ON_THE_HOST))
def test_on_the_host(case: ThirdParty) -> None:
    judge(case, "cpu:0")


@pytest.mark.parametrize("case", one_in(ON_OPENCL))
def test_on_opencl(case: ThirdParty) -> None:
    judge(case, opened(opencl_ids()[0]).info.id)


@pytest.mark.parametrize("case", one_in(ON_THE_CARD))
def test_on_the_fake_card(case: ThirdParty, card: str) -> None:
    judge(case, card)
