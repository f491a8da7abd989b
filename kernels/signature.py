"""How an op is called: operands and attributes by place and by name."""

from __future__ import annotations

import difflib
from typing import Any

from crossdock.kernels.ops_rules import bare
from crossdock.kernels.spec import OpSpec
from crossdock.runtime.errors import GraphError


def named_arguments(spec: OpSpec, args: tuple[Any, ...], options: dict[str, Any]) -> dict[str, Any]:
    """Positional and keyword arguments by name; raises GraphError for what does not fit."""
    positional = [bare(m) for m in spec.operands if not m.endswith("?")] + list(spec.params)
    known = {bare(m) for m in spec.operands} | spec.attrs.keys()
    if len(args) > len(positional):
        raise GraphError(
            f"{spec.name}: takes {len(positional)} positional arguments; {len(args)} were given; "
            f"{usage(spec)}"
        )
    given = dict(zip(positional, args, strict=False))
    for name, value in options.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else f"; {usage(spec)}"
            raise GraphError(f"{spec.name}: no option {name!r}{hint}")
        if name in given:
            raise GraphError(f"{spec.name}: {name} was given twice")
        given[name] = value
    for name in positional:
        if name not in given and name not in spec.attrs:
            raise GraphError(f"{spec.name}: {name} is missing; {usage(spec)}")
    return given


def usage(spec: OpSpec) -> str:
    """How to call an op."""
    needed = [bare(m) for m in spec.operands if not m.endswith("?")] + list(spec.params)
    options = [f"{bare(m)}=" for m in spec.operands if m.endswith("?")]
    options += [f"{name}=" for name in spec.attrs if name not in spec.params]
    return f"call {spec.name}({', '.join(needed + options)})"
