"""The nine models of the onnx wheel, as the benchmarks have them."""

from __future__ import annotations

from tests.models.scripts import script

_light = script("bench", "light")
NAMES = sorted(_light.NAMES)
path, with_weights = _light.path, _light.with_weights
