"""Array functions keep to their namespace: names that cupy has, no array of numpy's mixed in."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from crossdock.kernels.reference import evaluate
from tests.cases import CASES, Case, by_op, naming

NAMES = frozenset(
    (Path(__file__).resolve().parents[1] / "fakes" / "cupy_names.txt").read_text().split()
)


MODULES = {"fft": ("fft", "ifft"), "linalg": ("det",)}
"""Functions of cupy's modules that array code may use."""


class Foreign(np.ndarray):
    """An array of another library: numpy's own functions and plain arrays do not take it."""

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        _refuse_plain(ufunc.__name__, (*inputs, *kwargs.get("out", ())))
        bare = [_bare(x) for x in inputs]
        if "out" in kwargs:
            kwargs["out"] = tuple(_bare(x) for x in kwargs["out"])
        return _wrapped(getattr(ufunc, method)(*bare, **kwargs))

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        raise TypeError(f"numpy.{func.__name__} was called on another library's array")

    def __getitem__(self, key: Any) -> Any:
        _refuse_plain("indexing", key if isinstance(key, tuple) else (key,))
        return _wrapped(self.view(np.ndarray)[_bare(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        _refuse_plain("assignment", (*(key if isinstance(key, tuple) else (key,)), value))
        self.view(np.ndarray)[_bare(key)] = _bare(value)


class Namespace:
    """What ``run`` gets as ``xp``: functions under cupy's names, on Foreign arrays."""

    def __getattr__(self, name: str) -> Any:
        if name not in NAMES:
            raise AttributeError(f"cupy has no {name!r}")
        function = getattr(np, name)
        if name in MODULES:
            return SimpleNamespace(
                **{part: self._call(part, getattr(function, part)) for part in MODULES[name]}
            )
        return self._call(name, function)

    def _call(self, name: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if name != "asarray":
                _refuse_plain(name, args)
            with np.errstate(all="ignore"):
                plain = {key: _bare(value) for key, value in kwargs.items()}
                return _wrapped(function(*(_bare(a) for a in args), **plain))

        return call


def _bare(value: Any) -> Any:
    if isinstance(value, Foreign):
        return value.view(np.ndarray)
    if isinstance(value, tuple | list):
        return type(value)(_bare(v) for v in value)
    return value


def _wrapped(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(_wrapped(v) for v in value)
    if isinstance(value, np.ndarray | np.generic):
        return np.asarray(value).view(Foreign)
    return value


def _refuse_plain(what: str, values: Any) -> None:
    for value in values:
        if isinstance(value, tuple | list):
            _refuse_plain(what, value)
        elif type(value) is np.ndarray:
            raise TypeError(f"{what} got an array of numpy's among another library's")


@pytest.mark.parametrize("cases", by_op(CASES))
def test_array_code_keeps_to_its_namespace(cases: list[Case]) -> None:
    for case in cases:
        with naming(case):
            graph, feeds = case.build()
            outputs = evaluate(graph, feeds, xp=Namespace())
            assert all(isinstance(array, Foreign) for array in outputs.values())
            case.check({name: array.view(np.ndarray) for name, array in outputs.items()})


def test_the_namespace_refuses_what_cupy_would() -> None:
    xp = Namespace()
    x = xp.asarray(np.ones(3))
    with pytest.raises(AttributeError, match="cupy has no 'einsum_path'"):
        xp.einsum_path("i->", x)
    with pytest.raises(TypeError, match="concatenate was called"):
        np.concatenate((x, x))
    with pytest.raises(TypeError, match="add got an array of numpy's"):
        _ = x + np.ones(3)
    with pytest.raises(TypeError, match="indexing got an array of numpy's"):
        _ = x[np.array([0, 1])]
