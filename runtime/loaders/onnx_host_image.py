"""ONNX ImageDecoder: pictures in a file's bytes as arrays, by Pillow."""

from __future__ import annotations

import importlib
import io
from typing import Any

import numpy as np

from crossdock.runtime.errors import LoadError, UnsafeModel
from crossdock.runtime.loaders.onnx_host import HostCall, HostValue, host_op
from crossdock.runtime.loaders.onnx_model import shown
from crossdock.runtime.tensor import Array

FORMATS = ("BMP", "JPEG", "JPEG2000", "TIFF", "PNG", "WEBP", "PPM")
"""Pillow's names of the formats that ONNX lists; PPM stands for all portable ones."""

MAX_PIXELS = 1 << 28
"""Pixels that a picture may have, whatever its file claims."""

_MODES = {"RGB": "RGB", "BGR": "RGB", "Grayscale": "L"}


def _pillow() -> Any:
    try:
        return importlib.import_module("PIL.Image")
    except ImportError as error:
        raise LoadError("ImageDecoder needs Pillow: pip install pillow") from error


@host_op("ImageDecoder", since=20)
def decode(call: HostCall) -> HostValue:
    """The picture, uint8 [height, width, channels]; [0, 0, channels] where it cannot be read."""
    data = call.array()
    if data.dtype != np.uint8 or data.ndim != 1:
        raise call.malformed(f"an encoded stream of {data.dtype}{list(data.shape)}")
    pixels = call.node.get_str("pixel_format", "RGB")
    mode = _MODES.get(pixels)
    if mode is None:
        raise call.malformed(f"pixel_format {shown(pixels)} is none of {', '.join(_MODES)}")
    picture = _read(call, data.tobytes(), mode)
    return picture[:, :, ::-1].copy() if pixels == "BGR" else picture


def _read(call: HostCall, data: bytes, mode: str) -> Array:
    pillow = _pillow()
    channels = len(mode)
    try:
        with pillow.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UnsafeModel(f"{call.node}: a picture of {image.width} by {image.height}")
            array: Array = np.array(image.convert(mode), np.uint8)
    except pillow.DecompressionBombError as error:
        raise UnsafeModel(f"{call.node}: {error}") from error
    except (OSError, SyntaxError, ValueError, EOFError):
        # What Pillow raises for streams that are cut short, broken, or of no format it was given.
        return np.zeros((0, 0, channels), np.uint8)
    return array.reshape(array.shape[0], array.shape[1], channels)
