"""Signals and pictures that a person knows the answer to: voiced sound, tones, pages, faces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
RATE = 16000
WINDOW, CONTEXT = 512, 64
SYLLABLE, PITCH = 0.12, 140.0
"""Seconds and Hz."""

VOWELS = {
    "a": (730, 1090, 2440), "i": (270, 2290, 3010), "u": (300, 870, 2240),
    "e": (530, 1840, 2480), "o": (570, 840, 2410),
}  # fmt: skip
"""Mean first three formants of men's vowels in Hz (Peterson & Barney 1952, table II)."""


def resonate(signal: Array, hertz: Array, width: float, rate: int) -> Array:
    """A two-pole resonator whose centre moves (Klatt 1980, equations 1 and 2)."""
    b = 2 * np.exp(-np.pi * width / rate) * np.cos(2 * np.pi * hertz / rate)
    c = -np.exp(-2 * np.pi * width / rate)
    out = np.zeros(len(signal) + 2)
    for i, x in enumerate(signal):
        out[i + 2] = (1 - b[i] - c) * x + b[i] * out[i + 1] + c * out[i]
    return out[2:]


def syllables(word: str, rate: int, pitch: float, rng: Any) -> Array:
    """Vowels that glide into one another, each with an onset: a glottal pulse train, resonating."""
    each = int(SYLLABLE * rate)
    n = each * len(word)
    t = np.arange(n) / rate
    f0 = pitch * (1 + 0.08 * np.sin(2 * np.pi * 1.7 * t) - 0.1 * t / t[-1])
    phase = np.cumsum(f0) / rate
    pulses = np.diff(np.floor(phase), prepend=0.0) + 0.02 * rng.standard_normal(n)
    # A pulse falls off at 12 dB an octave.
    source = resonate(resonate(pulses, np.zeros(n), 100, rate), np.zeros(n), 3000, rate)
    at = np.arange(len(word)) * each + each // 2
    for k, width in enumerate((60, 90, 150)):
        track = np.interp(np.arange(n), at, [VOWELS[v][k] for v in word])
        source = resonate(source, track, width, rate)
    swell = 0.25 + 0.75 * np.sin(np.pi * (np.arange(n) % each) / each) ** 0.7
    out = source * swell
    return out / np.abs(out).max()


def utterances(spans: Sequence[tuple[float, float]], seconds: float, rate: int = RATE) -> Array:
    """float32[n]: voiced sound in each span of seconds, faint noise elsewhere."""
    rng = np.random.default_rng(7)
    out = 0.0005 * rng.standard_normal(int(seconds * rate))
    for start, end in spans:
        word = "".join("aeiou"[3 * k % 5] for k in range(round((end - start) / SYLLABLE)))
        sound = syllables(word, rate, PITCH, rng)
        at = int(start * rate)
        out[at : at + len(sound)] += 0.5 * sound
    return out.astype(np.float32)


def windows(signal: Array, window: int = WINDOW, context: int = CONTEXT) -> Array:
    """float32[windows, context + window]: each window behind the end of the one before."""
    count = len(signal) // window
    padded = np.concatenate([np.zeros(context, np.float32), signal[: count * window]])
    return np.stack([padded[i * window : (i + 1) * window + context] for i in range(count)])
