"""Traces as Chrome and Perfetto read them."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from crossdock.runtime.trace import Slice, chrome_trace


def bars(trace: dict[str, Any]) -> list[dict[str, Any]]:
    return [e for e in trace["traceEvents"] if e["ph"] == "X"]


def track_names(trace: dict[str, Any]) -> dict[tuple[int, int], str]:
    return {
        (e["pid"], e["tid"]): e["args"]["name"]
        for e in trace["traceEvents"]
        if e["name"] == "thread_name"
    }


def test_a_slice_is_a_complete_event_in_microseconds() -> None:
    trace = chrome_trace([Slice("p", "q", "conv", 0.5, 0.25, "launch", {"op": "conv2d"})])
    (bar,) = bars(trace)
    assert (bar["ts"], bar["dur"], bar["name"], bar["cat"]) == (5e5, 2.5e5, "conv", "launch")
    assert bar["args"] == {"op": "conv2d"}


def test_every_track_is_named_and_ordered_as_first_seen() -> None:
    trace = chrome_trace(
        [
            Slice("predicted", "cpu:0/compute", "a", 1.0, 1.0),
            Slice("measured", "cpu:0/compute", "a", 0.0, 1.0),
            Slice("predicted", "cuda:0/upload", "b", 0.0, 1.0),
        ]
    )
    events = trace["traceEvents"]
    processes = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert processes == {1: "predicted", 2: "measured"}
    assert track_names(trace) == {
        (1, 1): "cpu:0/compute",
        (1, 2): "cuda:0/upload",
        (2, 1): "cpu:0/compute",
    }
    assert {e["name"] for e in events if e["ph"] == "M"} == {
        "process_name",
        "process_sort_index",
        "thread_name",
        "thread_sort_index",
    }


def test_overlapping_slices_of_a_track_get_tracks_of_their_own() -> None:
    trace = chrome_trace([Slice("p", "q", "a", 0.0, 2.0), Slice("p", "q", "b", 1.0, 2.0)])
    assert len({b["tid"] for b in bars(trace)}) == 2
    assert set(track_names(trace).values()) == {"q"}


def test_a_wait_is_an_arrow_from_one_slice_to_the_other() -> None:
    trace = chrome_trace(
        [
            Slice("p", "q", "a", 0.0, 1.0, id="0"),
            Slice("p", "r", "b", 1.0, 1.0, id="1", after=("0", "gone")),
        ]
    )
    start, end = (e for e in trace["traceEvents"] if e["ph"] in "sf")
    assert (start["ph"], start["tid"]) == ("s", 1)
    assert (end["ph"], end["tid"], end["bp"], end["ts"]) == ("f", 2, "e", 1e6)
    assert start["id"] == end["id"]


def test_the_trace_is_json_and_carries_its_metadata() -> None:
    trace = chrome_trace([Slice("p", "q", "a", 0.0, 1.0)], {"model": "m.onnx"})
    assert json.loads(json.dumps(trace)) == trace
    assert trace["otherData"] == {"model": "m.onnx"}


TIMES = st.floats(0.0, 10.0)


@given(st.lists(st.tuples(st.sampled_from("pq"), st.sampled_from("ab"), TIMES, TIMES)))
def test_no_two_bars_of_a_track_overlap(rows: list[tuple[str, str, float, float]]) -> None:
    trace = chrome_trace([Slice(p, t, "x", start, long) for p, t, start, long in rows])
    assert len(bars(trace)) == len(rows)
    assert set(track_names(trace)) == {(b["pid"], b["tid"]) for b in bars(trace)}
    ends: dict[tuple[int, int], float] = {}
    for bar in sorted(bars(trace), key=lambda b: (b["ts"], b["ts"] + b["dur"])):
        key = (bar["pid"], bar["tid"])
        # Times are rounded to a nanosecond, each by up to half of one.
        assert bar["ts"] >= ends.get(key, 0.0) - 0.003
        ends[key] = bar["ts"] + bar["dur"]
