"""Comparisons, logic and choice: results are uint8, 0 or 1; any value but 0 counts as true."""

from __future__ import annotations

from typing import Any

from crossdock.kernels.ops_elementwise import broadcast_pair
from crossdock.kernels.ops_rules import ANY, TRUTH, broadcast, entry, like, of, some
from crossdock.kernels.ops_work import pointwise
from crossdock.kernels.spec import Attrs, Specs
from crossdock.runtime.tensor import TensorSpec


def _compare(name: str, expr: str, dtypes: frozenset[str] = ANY) -> None:
    pair = broadcast_pair(name)
    function = _FUNCTIONS.get(name, name)

    def infer(specs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:
        return tuple(spec.with_dtype("uint8") for spec in pair(specs, attrs))

    def run(xp: Any, a: Any, b: Any) -> Any:
        return getattr(xp, function)(a, b).astype("uint8")

    entry(
        name,
        {"a": of(dtypes), "b": like("a")},
        infer=infer,
        run=run,
        work=pointwise(),
        expr=expr,
    )


_FUNCTIONS = {
    "greater_or_equal": "greater_equal",
    "lesser": "less",
    "lesser_or_equal": "less_equal",
}

_compare("equal", "{0} == {1}")
_compare("not_equal", "{0} != {1}")
_compare("greater", "{0} > {1}")
_compare("greater_or_equal", "{0} >= {1}")
_compare("lesser", "{0} < {1}")
_compare("lesser_or_equal", "{0} <= {1}")
_compare("logical_and", "{0} != 0 && {1} != 0", TRUTH)
_compare("logical_or", "{0} != 0 || {1} != 0", TRUTH)
_compare("logical_xor", "({0} != 0) != ({1} != 0)", TRUTH)


def _test(name: str, function: str, expr: str, dtypes: frozenset[str]) -> None:
    def infer(specs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:  # noqa: ARG001 - Infer
        return (some(specs[0]).with_dtype("uint8"),)

    def run(xp: Any, a: Any) -> Any:
        return getattr(xp, function)(a).astype("uint8")

    entry(name, {"a": of(dtypes)}, infer=infer, run=run, work=pointwise(), expr=expr)


_test("logical_not", "logical_not", "{0} == 0", TRUTH)
_test("is_nan", "isnan", "isnan({0})", ANY)
_test("is_infinite", "isinf", "isinf({0})", ANY)


def _where_infer(specs: Specs, attrs: Attrs) -> tuple[TensorSpec, ...]:  # noqa: ARG001 - Infer
    condition, a, b = (some(s) for s in specs)
    shapes = {"condition": condition.shape, "true_value": a.shape, "false_value": b.shape}
    return (a.with_shape(broadcast("where", shapes)),)


entry(
    "where",
    {"condition": of(TRUTH), "true_value": of(ANY), "false_value": like("true_value")},
    infer=_where_infer,
    run=lambda xp, condition, a, b: xp.where(condition != 0, a, b),
    work=pointwise(),
    expr="{0} != 0 ? {1} : {2}",
)
