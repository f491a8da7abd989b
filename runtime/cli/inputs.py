"""What a model is fed: arrays from files, and seeded ones for the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from crossdock.runtime.cli.options import Feeding
from crossdock.runtime.errors import Error, FeedError, GraphError, LoadError, PlanError
from crossdock.runtime.graph import Graph
from crossdock.runtime.loaders import load
from crossdock.runtime.loaders.tensors import load_tensors
from crossdock.runtime.tensor import FLOATS, Array, TensorSpec, to_numpy


@contextmanager
def about(path: str) -> Iterator[None]:
    """Name the file in errors of our tree that do not."""
    try:
        yield
    except (GraphError, LoadError, FeedError, PlanError) as error:
        if str(path) in str(error):
            raise
        raise type(error)(f"{path}: {error}") from error


def load_model(path: str) -> Graph:
    """Load a model; every error names the file."""
    with about(path):
        return load(path)


def prepare(
    path: str, graph: Graph, given: Feeding, say: Callable[[str], None]
) -> tuple[Graph, dict[str, Array]]:
    """Bind a graph's symbols and make its feeds.

    Args:
        path: of the model, for messages.
        graph: as loaded.
        given: the options.
        say: told which inputs were generated.

    Returns:
        The static graph, and an array for each of its inputs.

    Raises:
        FeedError: no such input, a shape that does not fit, or a symbol without a size; the
            message names the flag that gives it.
    """
    with about(path):
        files, numbers = _read(graph, given)
        bound = bind(graph, given, files)
        feeds: dict[str, Array] = {}
        rng = np.random.default_rng(given.seed)
        sizes = known_sizes(graph, given, files)
        for name, kind in bound.fed.items():
            array = files.get(name)
            if array is None:
                spec = bound.inputs.get(name)
                if spec is None:
                    raise FeedError(
                        f"input {name!r} is a {kind} whose shape, or type, leaves open what to "
                        f"feed; give --input {name}=FILE.npy, or run the model from Python"
                    )
                spec = spec.bind(sizes)
                if name in numbers:
                    array = _filled(name, spec, numbers[name])
                else:
                    array = generate(spec, rng)
                    say(f"input {name!r}: {spec} generated (seed {given.seed})")
            feeds[name] = array
        return bound, feeds


def bind(graph: Graph, given: Feeding, files: Mapping[str, Array] | None = None) -> Graph:
    """Give every symbol its size: from ``--dim``, ``--shape`` and the files."""
    symbols = _symbols(graph)
    unknown = [d for d in given.dims or {} if d not in symbols]
    if unknown:
        there = ", ".join(symbols) or "none"
        raise FeedError(f"--dim {unknown[0]}: no such dimension (open dimensions: {there})")
    for name in given.shapes or {}:
        _check_name(graph, name, "--shape")
    sizes = known_sizes(graph, given, files or {})
    for name, spec in graph.inputs.items():
        missing = [d for d in spec.shape if isinstance(d, str) and d not in sizes]
        if missing:
            flags = " ".join(f"--dim {d}=SIZE" for d in dict.fromkeys(missing))
            form = ",".join(str(sizes.get(d, d) if isinstance(d, str) else d) for d in spec.shape)
            raise FeedError(
                f"input {name!r} is {spec}, without sizes for "
                f"{', '.join(map(repr, dict.fromkeys(missing)))}; give {flags}, or --shape "
                f"{name}={form} with sizes, or --input {name}=FILE.npy"
            )
    if graph.staged is not None:
        return graph
    return graph.bind(dict(given.dims or {}), _shapes(given, files or {}))


def known_sizes(graph: Graph, given: Feeding, files: Mapping[str, Array]) -> dict[str, int]:
    """Sizes by symbol, from ``--dim``, ``--shape`` and the files."""
    sizes = dict(given.dims or {})
    for name, shape in _shapes(given, files).items():
        spec = graph.inputs.get(name)
        if spec is not None:
            sizes.update(_sizes(spec, shape))
    return sizes


def _shapes(given: Feeding, files: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = dict(given.shapes or {})
    shapes.update({name: array.shape for name, array in files.items()})
    return shapes


def _symbols(graph: Graph) -> list[str]:
    """Names of open dimensions, a staged graph's too."""
    dims = (d for spec in graph.inputs.values() for d in spec.shape)
    return list(dict.fromkeys(d for d in dims if isinstance(d, str)))


def generate(spec: TensorSpec, rng: np.random.Generator) -> Array:
    """Data for an input: floats in [0, 1), integers and booleans 0 or 1 (valid indices)."""
    if spec.dtype in FLOATS:
        return np.asarray(rng.random(spec.dims), to_numpy(spec.dtype))
    return np.asarray(rng.integers(0, 2, spec.dims), to_numpy(spec.dtype))


def others_alone(graph: Graph, others: Sequence[Graph]) -> set[str]:
    """The inputs that others of several graphs have, and this one has not."""
    return {name for other in others for name in other.fed} - set(graph.fed)


def only_for(graph: Graph, given: Feeding, others: Sequence[Graph]) -> Feeding:
    """The options that concern a graph, where several graphs are given the same options.

    An option that concerns none of ``others`` stays, and is refused for what it is.
    """
    inputs = others_alone(graph, others)
    symbols = {d for g in others for d in _symbols(g)} - set(_symbols(graph))
    return Feeding(
        tuple(f for f in given.files if f.partition("=")[0] not in inputs),
        {n: shape for n, shape in (given.shapes or {}).items() if n not in inputs},
        {d: size for d, size in (given.dims or {}).items() if d not in symbols},
        given.seed,
    )


def _sizes(spec: TensorSpec, shape: tuple[int, ...]) -> dict[str, int]:
    return {d: n for d, n in zip(spec.shape, shape, strict=False) if isinstance(d, str)}


def _read(graph: Graph, given: Feeding) -> tuple[dict[str, Array], dict[str, float | int]]:
    """The arrays from files, and the numbers that fill whole inputs."""
    arrays: dict[str, Array] = {}
    numbers: dict[str, float | int] = {}
    for text in given.files:
        name, path = _split(graph, text)
        number = _number(path)
        if name is not None and number is not None:
            numbers[name] = number
            continue
        held = _tensors(path)
        if name is None:
            for key in held:
                _check_name(graph, key, f"--input {path}")
            arrays.update(held)
        elif name in held:
            arrays[name] = held[name]
        elif len(held) == 1:
            arrays[name] = next(iter(held.values()))
        else:
            raise FeedError(f"--input {text}: the file holds {', '.join(held)}, not {name!r}")
    for name, array in arrays.items():
        if name not in graph.inputs:
            continue
        want = graph.inputs[name].dtype
        if array.dtype != to_numpy(want):
            raise FeedError(
                f"--input {name}: the file holds {array.dtype}, the model wants "
                f"{graph.inputs[name]}; save it with .astype({want!r})"
            )
    return arrays, numbers


def _number(text: str) -> float | int | None:
    """A number, unless it is the name of a file."""
    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        return None if Path(text).exists() else value
    return None


def _filled(name: str, spec: TensorSpec, number: float) -> Array:
    """An input with one number everywhere; raises FeedError where its type has no such number."""
    try:
        if spec.dtype not in FLOATS and number != int(number):
            raise OverflowError
        return np.full(spec.dims, number, to_numpy(spec.dtype))
    except (OverflowError, ValueError) as error:
        raise FeedError(f"--input {name}={number}: the model wants {spec}") from error


def _split(graph: Graph, text: str) -> tuple[str | None, str]:
    """Name and file of an ``--input``; names and files may hold ``=``, so all places are tried."""
    for at, character in enumerate(text):
        if character == "=" and text[:at] in graph.fed:
            return text[:at], text[at + 1 :]
    if "=" in text and not Path(text).exists():
        _check_name(graph, text.partition("=")[0], "--input")
    return None, text


def _tensors(path: str) -> dict[str, Array]:
    try:
        return load_tensors(path)
    except Error as error:
        raise FeedError(f"--input {error}") from error


def _check_name(graph: Graph, name: str, flag: str) -> None:
    if name not in graph.fed:
        there = ", ".join(f"{n} ({s})" for n, s in graph.fed.items())
        raise FeedError(f"{flag}: the model has no input {name!r}; it has {there}")
