"""Where a conversion is cut: the nodes of an ONNX graph that are for the host or later stages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from crossdock.runtime.graph import Graph
from crossdock.runtime.loaders.onnx_check import reads
from crossdock.runtime.loaders.onnx_host import HostEntry
from crossdock.runtime.loaders.onnx_model import OnnxNode
from crossdock.runtime.loaders.onnx_stage import HostStep, Kind
from crossdock.runtime.loaders.onnx_table import Deferred

NO_FORM = "the operator has no form in the IR"


class ForHost(Deferred):
    """The host runs a node; the message says why."""

    def __init__(self, why: str, entry: HostEntry) -> None:
        super().__init__(why)
        self.entry = entry


class Cut:
    """The nodes that a conversion puts off, and what they wait for.

    ``given`` are the values that are there before the stage: where one of them is demanded
    (``ask``), the stage is converted anew with it as a constant, and nothing is run for it.
    """

    def __init__(self, given: Mapping[str, Kind]) -> None:
        self.given = given
        self.late: set[str] = set()
        self.hosts: list[HostStep] = []
        self._left: list[tuple[OnnxNode, tuple[str, ...]]] = []
        self._by_host: set[str] = set()

    def is_behind(self, node: OnnxNode) -> bool:
        """True where a node reads what only a later stage or the host makes."""
        return any(name in self.late for name in reads(node))

    def behind(self, node: OnnxNode, step: HostStep | None) -> None:
        """Put off a node that reads late values; ``step`` if the host runs it in any case.

        It runs in this stage if all that it waits for are host steps of this stage.
        """
        waits = [name for name in reads(node) if name in self.late]
        if step is not None and self._by_host.issuperset(waits):
            self.host(step)
        else:
            self._leave(node, ())

    def host(self, step: HostStep) -> None:
        """Have the host run a node after this stage's graph."""
        self.hosts.append(step)
        made = [name for name in step.node.outputs if name]
        self.late.update(made)
        self._by_host.update(made)

    def demand(self, node: OnnxNode, indices: Iterable[int]) -> None:
        """Put off a node until values of its inputs are known."""
        self._leave(node, tuple(node.inputs[index] for index in indices))

    @property
    def rest(self) -> tuple[OnnxNode, ...]:
        """The nodes for later stages."""
        return tuple(node for node, _ in self._left)

    @property
    def demands(self) -> tuple[str, ...]:
        """Names whose values the nodes put off want."""
        return tuple(dict.fromkeys(name for _, names in self._left for name in names))

    @property
    def ask(self) -> tuple[str, ...]:
        """Those of them that are there already."""
        return tuple(name for name in self.demands if name in self.given)

    def needed(self, outputs: Iterable[str]) -> list[str]:
        """Forget what no output needs; names that are read later, from this stage or before."""
        live = dict.fromkeys(outputs)
        left = [row for row in reversed(self._left) if _reached(row[0], live)]
        hosts = [step for step in reversed(self.hosts) if _reached(step.node, live)]
        self._left, self.hosts = left[::-1], hosts[::-1]
        made = {name for node in (*self.rest, *(h.node for h in hosts)) for name in node.outputs}
        self.late = made - {""}
        return [name for name in live if name not in self.late]

    def _leave(self, node: OnnxNode, demands: tuple[str, ...]) -> None:
        self._left.append((node, demands))
        self.late.update(name for name in node.outputs if name)


def _reached(node: OnnxNode, live: dict[str, None]) -> bool:
    """True where a node makes a live value; what it reads is live then too."""
    if not any(name in live for name in node.outputs):
        return False
    live.update(dict.fromkeys(reads(node)))
    return True


def pruned(graph: Graph) -> Graph:
    """The graph without the inputs that nothing reads."""
    used = {name for node in graph.nodes for name in node.operands} | set(graph.outputs.values())
    inputs = {name: spec for name, spec in graph.inputs.items() if name in used}
    gone = graph.inputs.keys() - inputs.keys()
    specs = {name: spec for name, spec in graph.specs.items() if name not in gone}
    return replace(graph, inputs=inputs, specs=specs)
