"""Values as they are written on the command line."""

from __future__ import annotations

import click
import pytest

from crossdock.runtime.cli import options


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("512", 512),
        ("512B", 512),
        ("2k", 2000),
        ("2Ki", 2048),
        ("1.5GiB", 3 << 29),
        ("1e9", 10**9),
        ("4 MB", 4_000_000),
    ],
)
def test_bytes(text: str, value: int) -> None:
    assert options.nbytes(text) == value


@pytest.mark.parametrize("text", ["", "lots", "-1", "1Q", "nan", "inf", "G", "1e30"])
def test_no_bytes(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        options.nbytes(text)


@pytest.mark.parametrize(
    ("text", "value"), [("1,3,48", (1, 3, 48)), ("1x3", (1, 3)), ("7", (7,)), ("", ())]
)
def test_dims(text: str, value: tuple[int, ...]) -> None:
    assert options.dims(text) == value


@pytest.mark.parametrize("text", ["a", "1,-1", "1.5"])
def test_no_dims(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        options.dims(text)


def test_a_pair_is_split_at_its_last_sign() -> None:
    read = options.pairs("NAME=N", options.count)["callback"]
    assert read(None, None, ["a=b=3"]) == [("a=b", 3)]
    for wrong in ("a", "=3", "a=", "a=x"):
        with pytest.raises(click.BadParameter, match="NAME=N"):
            read(None, None, [wrong])


KNOWN = ("cpu:0", "cuda:0", "sim:a:b")


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("cpu:0:cuda:0", ("cpu:0", "cuda:0", True)),
        ("cuda:0->cpu:0", ("cuda:0", "cpu:0", False)),
        ("sim:a:b:cpu:0", ("sim:a:b", "cpu:0", True)),
    ],
)
def test_a_link_names_two_devices(text: str, ends: tuple[str, str, bool]) -> None:
    assert options.split_link(text, KNOWN) == ends


@pytest.mark.parametrize("text", ["cpu:0", "cpu:0:cuda:1", "cpu:0->", "x->cpu:0"])
def test_no_link(text: str) -> None:
    with pytest.raises(click.BadParameter, match=r"cpu:0, cuda:0"):
        options.split_link(text, KNOWN)


@pytest.mark.parametrize("text", ["nan", "-1", "soon", "-inf"])
def test_no_seconds(text: str) -> None:
    with pytest.raises(click.BadParameter):
        options.Seconds(0).convert(text, None, None)


def test_seconds() -> None:
    assert options.Seconds(0).convert("0.5", None, None) == 0.5
