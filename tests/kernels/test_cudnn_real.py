"""Our graphs and the real frontend of cuDNN, where it is installed.

As far as it goes without a card: up to a graph's validation, and that where there is a cuDNN. With
a stub of the driver, ``tests.kernels.cudnn_plans`` goes on to plans for cards that are not here.
"""

from __future__ import annotations

from typing import Any

import pytest

from crossdock.devices import cuda_dnn
from crossdock.devices.cuda_dnn import Asked
from tests.kernels.cudnn_plans import FORMS, asked_of

real = pytest.importorskip("cudnn", reason="nvidia-cudnn-frontend is not installed")
NODES = {
    "convolution": ["conv_fprop", "add", "bias", "relu"],
    "layers": ["layernorm"],
    "images": ["instancenorm"],
    "channels": ["add", "rsqrt", "mul", "sub", "mul", "add"],
    "attention": ["sdpa"],
}
PLAIN = ["add", "rsqrt", "sub", "mul"]


def placed(asked: Asked) -> dict[int, Any]:
    return {n: (list(p.sizes), list(p.strides)) for n, p in asked.tensors().items()}


@pytest.mark.parametrize("name", FORMS)
def test_it_takes_the_graph(name: str) -> None:
    asked = asked_of(name)
    graph = cuda_dnn.graph_of(real, asked, handle=real.Handle(1, 0, 0))
    made = [node.name.partition(".")[0] for node in graph.nodes]
    assert made == (PLAIN if name == "channels, plain" else NODES[name.partition(",")[0]])
    fixed = {
        t.uid: (list(t.dim), list(t.stride))
        for t in graph.tensors.values()
        if not t.is_virtual and not t.is_pass_by_value
    }
    assert fixed == placed(asked)
    if why := cuda_dnn.problem():
        with pytest.raises(RuntimeError, match="cudnnGetVersion"):
            graph.validate()
        pytest.skip(why)
    graph.validate()
