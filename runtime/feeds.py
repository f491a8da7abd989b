"""Feeds of a run: an array for each input, of its type and shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from crossdock.runtime.device_array import DeviceArray
from crossdock.runtime.errors import FeedError
from crossdock.runtime.graph import Graph
from crossdock.runtime.intake import Intake
from crossdock.runtime.tensor import Array, TensorSpec, to_numpy


def arrays_of(
    graph: Graph, feeds: Mapping[str, Any], intake: Intake
) -> dict[str, Array | DeviceArray]:
    """The feeds as arrays, in the order of the inputs; raises FeedError naming the input.

    Those on devices of the session that ``intake`` takes for stay there.
    """
    if not isinstance(feeds, Mapping):
        raise FeedError(
            f"graph {graph.name!r:.80}: feeds maps input names to arrays, not "
            f"{type(feeds).__name__}"
        )
    unknown = [n for n in feeds if n not in graph.inputs]
    missing = [n for n in graph.inputs if n not in feeds]
    if unknown or missing:
        raise FeedError(
            f"graph {graph.name!r:.80}: "
            + "; ".join(
                [f"no input is named {', '.join(map(repr, unknown))}"] * bool(unknown)
                + [f"input {', '.join(map(repr, missing))} is not fed"] * bool(missing)
            )
            + f"; its inputs are {', '.join(f'{n}: {s}' for n, s in graph.inputs.items())}"
        )
    return {n: _checked(n, spec, intake.take(n, feeds[n])) for n, spec in graph.inputs.items()}


def _checked(name: str, spec: TensorSpec, value: Any) -> Array | DeviceArray:
    try:
        array = value if isinstance(value, DeviceArray) else np.asarray(value)
        if array.dtype == to_numpy(spec.dtype) and array.shape == spec.shape:
            return array
        have = TensorSpec.of(cast("Array", array))
    except Exception as error:  # whatever the library that the array is of raises
        raise FeedError(f"input {name!r:.80} wants {spec}: {error}") from error
    if have.dtype != spec.dtype:
        raise FeedError(
            f"input {name!r:.80} wants {spec}, got {have}; convert it with .astype({spec.dtype!r})"
        )
    fits = have.rank == spec.rank and all(
        isinstance(want, str) or want == got
        for want, got in zip(spec.shape, have.shape, strict=True)
    )
    if not fits:
        raise FeedError(f"input {name!r:.80} wants {spec}, got {have}")
    return array
