"""``crossdock calibrate``: learn what kernels cost at shapes never measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from crossdock.devices import registry
from crossdock.runtime import calibrate as calibrating
from crossdock.runtime.calibrate import CALIBRATION_SECONDS, Calibrated, is_calibrated
from crossdock.runtime.cli import options
from crossdock.runtime.cli.output import Output, add_row, make_table
from crossdock.runtime.cli.text import seconds


@click.command()
@click.option(
    "--device",
    "devices",
    metavar="ID",
    multiple=True,
    help="A device to calibrate; may be given several times (default: every device).",
)
@click.option(
    "--threads", type=click.IntRange(1), metavar="N", help="Processor threads (default: all)."
)
@click.option(
    "--budget",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    default=CALIBRATION_SECONDS,
    show_default=True,
    help="Time for each device.",
)
@options.json_option
def calibrate(
    devices: tuple[str, ...], threads: int | None, budget: float, json_to: str | None
) -> None:
    """Time the kernels of each device at shapes like those of real networks.

    What is learnt is kept by device fingerprint and predicts shapes that were never measured.
    """
    output = Output(json_to)
    ids = list(dict.fromkeys(devices)) or [info.id for info in registry.devices()]
    made = _calibrate(ids, threads, budget, output)
    table = make_table("Calibration", ("device", ">kernels timed", ">time"))
    for found in made:
        add_row(table, ((found.device, "bold"), found.kernels, seconds(found.seconds)))
    output.table(table)
    output.json({"schema": "crossdock-calibration/1", "devices": [_json(x) for x in made]})


def calibrate_missing(ids: Sequence[str], threads: int | None, output: Output) -> None:
    """Calibrate the devices that never were."""
    missing = [name for name in ids if not is_calibrated(name, threads)]
    _calibrate(missing, threads, CALIBRATION_SECONDS, output)


def _calibrate(
    ids: Sequence[str], threads: int | None, budget: float, output: Output
) -> list[Calibrated]:
    made = []
    for name in ids:
        with output.progress(f"calibrating {name}") as tick:
            made.append(
                calibrating.calibrate(name, threads=threads, budget_s=budget, progress=tick)
            )
    return made


def _json(found: Calibrated) -> dict[str, Any]:
    return {"device": found.device, "kernels": found.kernels, "seconds": found.seconds}
