"""Inputs from files and from a seed; every refusal names the file and the flag that mends it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from crossdock.runtime.builder import GraphBuilder
from crossdock.runtime.cli.inputs import generate, only_for, prepare
from crossdock.runtime.cli.options import Feeding
from crossdock.runtime.errors import FeedError
from crossdock.runtime.graph import Graph
from crossdock.runtime.tensor import Array, TensorSpec


def graph() -> Graph:
    b = GraphBuilder("two")
    x = b.input("x", ("N", 4))
    i = b.input("i=0", ("N",), "int32")
    return b.build({"y": b.relu(x), "j": b.neg(i)})


def feeds(given: Feeding, said: list[str] | None = None) -> dict[str, Array]:
    note = [] if said is None else said
    return prepare("m.onnx", graph(), given, note.append)[1]


def test_generated_inputs_depend_on_the_seed_alone_and_are_told_of() -> None:
    said: list[str] = []
    first = feeds(Feeding(dims={"N": 3}), said)
    again = feeds(Feeding(dims={"N": 3}))
    other = feeds(Feeding(dims={"N": 3}, seed=1))
    assert first["x"].shape == (3, 4)
    assert first["x"].dtype == np.float32
    np.testing.assert_array_equal(first["x"], again["x"])
    assert not np.array_equal(first["x"], other["x"])
    assert len(said) == 2
    assert "'x': float32[3,4] generated (seed 0)" in said[0]


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "uint8", "bool"])
def test_generated_data_is_of_the_type_and_small(dtype: str) -> None:
    made = generate(TensorSpec(dtype, (5, 3)), np.random.default_rng(0))
    assert made.dtype == dtype
    assert 0 <= made.min() <= made.max() <= 1


def test_a_shape_gives_the_size_of_every_input_that_shares_the_dimension() -> None:
    assert feeds(Feeding(shapes={"x": (2, 4)}))["i=0"].shape == (2,)


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_a_file_gives_an_input_and_the_sizes(tmp_path: Path, suffix: str) -> None:
    array = np.arange(8, dtype=np.float32).reshape(2, 4)
    path = tmp_path / f"a.{suffix}"
    if suffix == "npy":
        np.save(path, array)
    else:
        np.savez(path, other=np.zeros(1), x=array)
    got = feeds(Feeding((f"x={path}",)))
    np.testing.assert_array_equal(got["x"], array)
    assert got["i=0"].shape == (2,)


def test_a_name_that_holds_a_sign_is_found(tmp_path: Path) -> None:
    path = tmp_path / "i=1.npy"
    np.save(path, np.array([5, 6], np.int32))
    np.testing.assert_array_equal(feeds(Feeding((f"i=0={path}",)))["i=0"], [5, 6])


def test_a_file_alone_gives_all_inputs_by_name(tmp_path: Path) -> None:
    path = tmp_path / "all.npz"
    np.savez(path, **{"x": np.ones((1, 4), np.float32), "i=0": np.array([7], np.int32)})
    got = feeds(Feeding((str(path),)))
    np.testing.assert_array_equal(got["i=0"], [7])


def test_a_number_fills_an_input() -> None:
    got = feeds(Feeding(("x=0.5", "i=0=7"), dims={"N": 2}))
    np.testing.assert_array_equal(got["x"], np.full((2, 4), 0.5, np.float32))
    np.testing.assert_array_equal(got["i=0"], np.array([7, 7], np.int32))


@pytest.mark.parametrize("number", ["0.5", "3000000000", "inf", "nan"])
def test_a_number_that_the_type_does_not_have_is_refused(number: str) -> None:
    with pytest.raises(FeedError, match=r"the model wants int32\[1\]"):
        feeds(Feeding((f"i=0={number}",), dims={"N": 1}))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (Feeding(), r"'x' is float32\[N,4\], without sizes for 'N'; give --dim N=SIZE, or --shape"),
        (Feeding(dims={"M": 1}), r"--dim M: no such dimension \(open dimensions: N\)"),
        (Feeding(shapes={"z": (1,)}), r"--shape: the model has no input 'z'; it has x \(float32"),
        (Feeding(shapes={"x": (1, 5)}), r"wants float32\[N,4\]"),
        (Feeding(shapes={"x": (2, 4)}, dims={"N": 3}), "wants"),
        (Feeding(("z=none.npy",)), "no input 'z'"),
        (Feeding(("x=none.npy",)), r"--input none\.npy"),
    ],
)
def test_what_cannot_be_bound_names_model_and_flag(given: Feeding, said: str) -> None:
    with pytest.raises(FeedError, match=said) as caught:
        feeds(given)
    assert str(caught.value).startswith("m.onnx: ")


def test_a_file_of_another_type_is_refused_with_the_conversion(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.ones((1, 4)))
    with pytest.raises(FeedError, match=r"holds float64.*\.astype\('float32'\)"):
        feeds(Feeding((f"x={path}",)))


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(FeedError, match="--input"):
        feeds(Feeding((f"x={path}",)))


def test_options_for_another_model_are_left_out() -> None:
    b = GraphBuilder("other")
    other = b.build({"y": b.relu(b.input("z", ("M",)))})
    given = Feeding(("z=z.npy", "x=x.npy"), {"z": (1,)}, {"M": 1, "N": 2, "none": 3})
    kept = only_for(graph(), given, [graph(), other])
    assert (kept.files, kept.shapes) == (("x=x.npy",), {})
    assert kept.dims == {"N": 2, "none": 3}
