"""``crossdock devices``: what is here, without measuring."""

from __future__ import annotations

import click

from crossdock.devices import registry
from crossdock.devices.base import DeviceInfo
from crossdock.devices.codec import encode
from crossdock.runtime.cli import options
from crossdock.runtime.cli.output import Output, add_row, make_table
from crossdock.runtime.cli.text import short, size


@click.command()
@options.json_option
def devices(json_to: str | None) -> None:
    """List the devices, and why a kind of device has none."""
    output = Output(json_to)
    table = make_table(
        "Devices",
        ("device", "name", "vendor", ">units", ">memory", "shares compute with", "can do"),
    )
    found = registry.probe_all()
    infos = [info for probe in found for info in probe.devices]
    for info in infos:
        add_row(
            table,
            (
                (info.id, "bold"),
                short(info.name, 48),
                short(info.vendor, 24),
                info.compute_units,
                size(info.memory_bytes),
                _sharing(info, infos),
                " ".join(sorted(c.value for c in info.caps)),
            ),
        )
    output.table(table)
    for probe in found:
        if not probe.devices:
            fix = f"; {probe.fix}" if probe.fix else ""
            output.line((f"no {probe.kind}: ", "bold"), f"{probe.reason}{fix}")
    output.json({"schema": "crossdock-devices/1", "kinds": [encode(probe) for probe in found]})


def _sharing(info: DeviceInfo, infos: list[DeviceInfo]) -> str:
    others = [o.id for o in infos if o.resource_group == info.resource_group and o.id != info.id]
    return ", ".join(others) or "-"
