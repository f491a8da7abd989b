"""ONNX graphs whose shapes hang on values: converted and run stage by stage.

A run converts what it can, has the stage's graph run, runs the host ops that are ready on numpy
values, and converts the rest with what is known then, until the outputs are there. Stages are kept
by what they hang on: the specs of what goes in, and the values demanded so far. So a run with the
shapes and shape-like values of an earlier one converts nothing.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from crossdock.runtime.errors import MalformedModel, UnsupportedModel
from crossdock.runtime.graph import Graph, StageCall, StageRunner
from crossdock.runtime.limits import Budget
from crossdock.runtime.loaders.onnx_check import free_names
from crossdock.runtime.loaders.onnx_convert import convert, convert_stage, only_host
from crossdock.runtime.loaders.onnx_cut import NO_FORM
from crossdock.runtime.loaders.onnx_feeds import checked, outward
from crossdock.runtime.loaders.onnx_host import HostCall, HostValue, run_entry
from crossdock.runtime.loaders.onnx_model import OnnxGraph, OnnxModel, OnnxValue, Opaque, shown
from crossdock.runtime.loaders.onnx_stage import (
    Constant,
    HostStep,
    Inner,
    Kind,
    Scope,
    Stage,
    kind_of,
)
from crossdock.runtime.lru import LruCache
from crossdock.runtime.tensor import Array, TensorSpec

STAGES_KEPT = 64
"""Converted stages that an opened graph keeps, those of loop bodies included."""


def graph_of(model: OnnxModel, specs: Mapping[str, TensorSpec]) -> Graph:
    """The graph of a checked model for static input specs, staged where it cannot be one graph."""
    made = convert(model, specs, model.graph.constants)
    return made if isinstance(made, Graph) else staged_graph(model, specs, made)


def staged_graph(
    model: OnnxModel, specs: Mapping[str, TensorSpec] | None = None, first: Stage | None = None
) -> Graph:
    """A graph to be run in stages; without ``specs`` they are those of what is fed."""
    outputs = {value.name: output_spec(value) for value in model.graph.outputs}
    fixed = specs is not None
    declared = {
        value.name: TensorSpec(value.dtype, value.dims())
        for value in model.graph.free_inputs
        if value.dtype and value.shape is not None
    }
    inputs = dict(specs) if specs is not None else declared
    return Graph(
        inputs=inputs,
        outputs={name: name for name in outputs},
        nodes=(),
        specs={**outputs, **inputs},
        name=model.graph.name or "graph",
        staged=OnnxStaged(model, inputs if fixed else {}, first),
    )


def output_spec(value: OnnxValue) -> TensorSpec:
    """An output's spec as declared; float32 where its type is not."""
    return TensorSpec(value.dtype or "float32", value.dims())


class OnnxStaged:
    """A checked model to be run in stages; ``first`` is its first stage for ``specs``."""

    def __init__(
        self, model: OnnxModel, specs: Mapping[str, TensorSpec], first: Stage | None
    ) -> None:
        self.model = model
        self._specs = specs
        self._first = first
        self.inputs: Mapping[str, str] = {
            v.name: str(specs.get(v.name) or v.what) for v in model.graph.free_inputs
        }

    def checked(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """The feeds as host values; raises FeedError naming the input."""
        return checked(self.model, self._specs, feeds)

    def host_ops(self) -> list[tuple[str, str, str]]:
        """Name, op and reason of the nodes that the host runs whatever is fed."""
        fed = {v.name for v in self.model.graph.free_inputs}
        found = []
        for node in self.model.graph.nodes:
            read = {*node.inputs, *(n for g in node.subgraphs() for n in free_names(g))}
            if fed.isdisjoint(read):  # it may be worked out once and for all
                continue
            fed.update(filter(None, node.outputs))
            if only_host(self.model, node, self.model.opsets) is not None:
                found.append((node.label, node.op, NO_FORM))
        return found

    def open(self) -> OnnxStages:
        """Start with the first stage alone."""
        return OnnxStages(self.model, self._specs, self._first)


class OnnxStages:
    """The stages converted so far, and how to run them."""

    def __init__(
        self, model: OnnxModel, specs: Mapping[str, TensorSpec], first: Stage | None
    ) -> None:
        self.model = model
        self.scope = Scope.of(model.graph, model.opsets)
        self.kept: LruCache[bytes, Stage] = LruCache(STAGES_KEPT)
        self._trail: tuple[StageCall, ...] = ()
        self._held = _nbytes(model.graph.constants.values())
        self._start: tuple[bytes, Graph] | None = None
        if first is not None:
            key = _key(b"", specs)
            self.kept.put(key, first)
            if first.graph is not None:
                self._start = key, first.graph

    def first(self) -> tuple[bytes, Graph] | None:
        """Key and graph of the first stage, where it does not hang on what is fed."""
        return self._start

    def run(self, feeds: Mapping[str, Any], runner: StageRunner) -> dict[str, Any]:
        """Run all stages; the outputs by name, in order."""
        run = _Run(self, runner, Budget(self.model.limits, self._held + _nbytes(feeds.values())))
        values = run.scope(self.scope, dict(feeds), self.model.graph.constants, b"")
        made = {n for call in run.trail for n in (call.graph.outputs if call.graph else ())}
        alone = run.alone and made.issuperset(self.scope.outputs)
        self._trail = tuple(run.trail) if alone else ()
        return {n: outward(v) for n, v in zip(self.scope.outputs, values, strict=True)}

    def trail(self) -> tuple[StageCall, ...]:
        """The stages of the last run, where it was they alone that made its outputs; else none."""
        return self._trail


@dataclass
class _At:
    """Where a run of a scope is: the values there are, and those that are the same every time."""

    key: bytes
    values: dict[str, HostValue]
    constants: Mapping[str, Constant]

    def get(self, name: str) -> HostValue | None:
        """A name's value; None where an optional input was left out."""
        if name in self.values:
            return self.values[name]
        if name not in self.constants:
            raise MalformedModel(f"{shown(name)} is read, but nothing makes it")
        held = self.constants[name]
        if isinstance(held, Opaque):
            raise UnsupportedModel(f"a constant of type {held.what} is not supported")
        return held


@dataclass(frozen=True)
class _Body:
    """A subgraph of a node that runs now: what it has from around it does not change meanwhile."""

    scope: Scope
    inputs: tuple[str, ...]
    key: bytes
    values: Mapping[str, HostValue]
    constants: Mapping[str, Constant]


class _Run:
    """One run of a staged graph."""

    def __init__(self, stages: OnnxStages, runner: StageRunner, budget: Budget) -> None:
        self.stages = stages
        self.runner = runner
        self.budget = budget
        self.spent = 0.0
        self.trail: list[StageCall] = []
        self.alone = True
        """Whether all that ran were the stages of ``trail``."""

    def scope(
        self,
        scope: Scope,
        values: dict[str, HostValue],
        constants: Mapping[str, Constant],
        parent: bytes,
    ) -> list[HostValue | None]:
        """Run a graph on values of its inputs; the values of its outputs.

        ``constants`` hang on nothing but ``parent``, the key of the stage around.
        """
        kinds: Mapping[str, Kind] = {name: kind_of(value) for name, value in values.items()}
        at = _At(_key(parent, kinds), values, constants)
        while True:
            make = partial(self.made, scope, kinds, at.constants, inside=bool(parent))
            stage = self.stages.kept.get_or_make(at.key, make)
            self.stage(stage, at)
            if not stage.rest:
                return [at.get(name) for name in scope.outputs]
            kinds = self.onward(stage, at)
            scope = replace(scope, nodes=stage.rest)

    def made(
        self,
        scope: Scope,
        kinds: Mapping[str, Kind],
        constants: Mapping[str, Constant],
        *,
        inside: bool,
    ) -> Stage:
        """A stage that was not met before; inside of a loop they are counted."""
        if inside:
            self.budget.stage(f"graph {shown(scope.name)}")
        return convert_stage(self.stages.model, scope, kinds, constants)

    def stage(self, stage: Stage, at: _At) -> None:
        """Run a stage's graph and its host ops, and put their results among the values."""
        self.runner.check()
        if stage.graph is not None:
            feeds = {name: _array(at.values[name]) for name in stage.feeds}
            began = time.perf_counter()
            made = self.runner.run(at.key, stage.graph, feeds)
            self.spent += time.perf_counter() - began
            at.values.update(made)
        at.constants = stage.constants
        self.alone = self.alone and not stage.hosts
        if self.alone:
            demanded = {name: _fixed(_array(at.values[name])) for name in stage.demands}
            self.trail.append(StageCall(at.key, stage.graph, stage.feeds, demanded))
        for step in stage.hosts:
            self.runner.check()
            results = self.inner(step, step.inner, at) if step.inner else self.host(step, at)
            for name, value in zip(step.node.outputs, results, strict=False):
                if name and value is not None:
                    at.values[name] = value

    def onward(self, stage: Stage, at: _At) -> dict[str, Kind]:
        """Go on to the next stage: forget what it does not need, make demanded values constants."""
        hosted = [n for step in stage.hosts for n in step.node.outputs if n in at.values]
        kinds = {**stage.kinds, **{name: kind_of(at.values[name]) for name in hosted}}
        demanded = {name: _array(at.values[name]) for name in stage.demands}
        for name in demanded:
            kinds.pop(name, None)
        at.key = _key(at.key, {name: kinds[name] for name in hosted if name in kinds}, demanded)
        at.constants = {**at.constants, **{n: _fixed(v) for n, v in demanded.items()}}
        at.values = {name: at.values[name] for name in kinds}
        return kinds

    # --- host ---

    def host(self, step: HostStep, at: _At) -> list[HostValue | None]:
        """Run a node's host function, timed without what its subgraphs take."""
        node = step.node
        self.runner.may(node.label, node.op, step.why)
        inputs = tuple(at.get(name) if name else None for name in node.inputs)
        body = partial(self.body, step, at, {})
        call = HostCall(node, step.opset, inputs, body, self.runner.check, self.budget)
        assert step.entry is not None
        before, began = self.spent, time.perf_counter()
        results = run_entry(step.entry, call)
        own = time.perf_counter() - began - (self.spent - before)
        self.spent += own
        self.runner.host(node.label, node.op, step.why, max(own, 0.0))
        return results

    def body(
        self,
        step: HostStep,
        at: _At,
        opened: dict[int, _Body],
        graph: OnnxGraph,
        inputs: Sequence[HostValue],
    ) -> list[HostValue]:
        """Run a subgraph of a node on values of its inputs."""
        if len(inputs) != len(graph.inputs):
            raise MalformedModel(
                f"{step.node}: its body has {len(graph.inputs)} inputs, it gives {len(inputs)}"
            )
        found = opened.get(id(graph))
        if found is None:
            index = next(i for i, g in enumerate(step.node.subgraphs()) if g is graph)
            key = _key(at.key, {}, label=f"{step.node.label}/{index}")
            names = tuple(v.name for v in graph.inputs)
            found = _Body(Scope.of(graph, step.opsets), names, key, *self._captured(graph, at))
            opened[id(graph)] = found
        values = {**found.values, **dict(zip(found.inputs, inputs, strict=True))}
        results = self.scope(found.scope, values, found.constants, found.key)
        if any(value is None for value in results):
            raise MalformedModel(f"{step.node}: its body gives no value for an output")
        return [value for value in results if value is not None]

    def inner(self, step: HostStep, inner: Inner, at: _At) -> list[HostValue | None]:
        """Run a function or a branch."""
        key = _key(at.key, {}, label=step.node.label)
        if inner.graph is not None:
            values, constants = self._captured(inner.graph, at)
            return self.scope(inner.scope, values, constants, key)
        values, constants = {}, {}
        given = [*step.node.inputs, *[""] * (len(inner.inputs) - len(step.node.inputs))]
        for name, outer in zip(inner.inputs, given, strict=True):
            if outer in at.values:
                values[name] = at.values[outer]
            else:
                constants[name] = at.constants[outer] if outer else None
        return self.scope(inner.scope, values, constants, key)

    def _captured(
        self, graph: OnnxGraph, at: _At
    ) -> tuple[dict[str, HostValue], dict[str, Constant]]:
        """What a subgraph reads from around it: values, and constants beside its own."""
        values: dict[str, HostValue] = {}
        constants: dict[str, Constant] = dict(graph.constants)
        for name in free_names(graph):
            if name in at.values:
                values[name] = at.values[name]
            else:
                constants[name] = at.constants[name]
        return values, constants


def _nbytes(values: Iterable[object]) -> int:
    """Bytes of the tensors among some values."""
    return sum(value.nbytes for value in values if isinstance(value, np.ndarray))


def _array(value: HostValue) -> Array:
    assert isinstance(value, np.ndarray), value
    return value


def _fixed(array: Array) -> Array:
    """An array to be kept as a constant: a copy that nobody writes to."""
    held = np.array(array)
    held.flags.writeable = False
    return held


def _key(
    parent: bytes,
    kinds: Mapping[str, Kind],
    demanded: Mapping[str, Array] | None = None,
    label: str = "",
) -> bytes:
    """The key of what follows a key: BLAKE2b over it, kinds of values, and values."""
    h = hashlib.blake2b(parent, digest_size=16)
    h.update(label.encode())
    for name, kind in kinds.items():
        h.update(f"\0{name}\0{kind}".encode())
    for name, array in (demanded or {}).items():
        h.update(f"\1{name}\0{TensorSpec.of(array)}".encode())
        h.update(np.ascontiguousarray(array).tobytes())
    return h.digest()
