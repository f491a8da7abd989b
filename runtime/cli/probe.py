"""``crossdock probe``: every device proved and measured, and every link between them."""

from __future__ import annotations

import click
from rich.table import Table

from crossdock.devices.machine import DeviceProfile, LinkProfile, Machine, Rates, Status
from crossdock.runtime.cli import options
from crossdock.runtime.cli.output import Output, add_row, make_table
from crossdock.runtime.cli.text import rate, seconds, short, size

STYLES = {Status.PASS: "bold green", Status.FAIL: "bold red", Status.ABSENT: "dim"}


@click.command()
@click.option("--quick", is_flag=True, help="Few samples: seconds instead of up to a minute.")
@click.option("--refresh", is_flag=True, help="Measure again, whatever is kept.")
@options.json_option
@click.pass_context
def probe(ctx: click.Context, quick: bool, refresh: bool, json_to: str | None) -> None:
    """Find, prove and measure the devices of this machine; exit status 1 if one fails."""
    from crossdock.devices.probe import probe as measure

    output = Output(json_to)
    with output.progress("looking for devices") as tick:
        machine = measure(
            quick,
            refresh=refresh,
            progress=lambda text, fraction: tick(text, round(fraction * 1000), 1000),
        )
    show(machine, output)
    output.json(machine.to_json())
    ctx.exit(1 if any(d.status is Status.FAIL for d in machine.devices) else 0)


def show(machine: Machine, output: Output) -> None:
    """Print a machine's devices, speeds and links."""
    output.table(_devices(machine))
    for line in (*_shared(machine), *_versions(machine)):
        output.line(line)
    for device in machine.devices:
        if device.status is not Status.PASS:
            output.line(*_complaint(device))
    if any(device.status is not Status.PASS for device in machine.devices):
        output.line()
    measured = [(d.id, d.rates) for d in machine.devices if d.rates is not None]
    if measured:
        output.table(_speeds(measured))
        output.table(_costs(measured))
    if machine.links:
        output.table(_links(machine.links))
    kind = "quick" if machine.quick else "full"
    output.line(
        f"{machine.cpu}, {machine.cores} cores; {kind} probe of {machine.created}, "
        f"{seconds(machine.seconds)}"
    )


def _versions(machine: Machine) -> list[str]:
    """What fits together or does not, for devices that have a compiler apart from their driver."""
    return [
        f"{d.id}: {d.info.driver}; compute capability {d.info.details['compute_capability']}, "
        f"NVRTC {d.info.details['nvrtc']}"
        + (f", no cuBLAS: {missing}" if (missing := d.info.details.get("no cublas")) else "")
        + (f", cuDNN {version}" if (version := d.info.details.get("cudnn")) else "")
        + (f", no cuDNN: {missing}" if (missing := d.info.details.get("no cudnn")) else "")
        for d in machine.devices
        if d.info is not None and "nvrtc" in d.info.details
    ]


def _devices(machine: Machine) -> Table:
    table = make_table(
        "Devices", ("device", "", "name", "physical device", "group", ">units", ">memory")
    )
    for device in machine.devices:
        info = device.info
        about = ("", "", "", "", "") if info is None else (
            short(info.name, 48),
            info.physical_id,
            info.resource_group,
            info.compute_units,
            size(info.memory_bytes),
        )  # fmt: skip
        add_row(table, ((device.id, "bold"), (device.status.value, STYLES[device.status]), *about))
    return table


def _shared(machine: Machine) -> list[str]:
    """A line for each card or processor that there are several ways to."""
    ways: dict[str, list[str]] = {}
    for device in machine.devices:
        if device.info is not None:
            ways.setdefault(device.info.physical_id, []).append(device.id)
    return [
        f"{' and '.join(names)} are one device ({physical}): they share its memory and its units"
        for physical, names in ways.items()
        if len(names) > 1
    ]


def _complaint(device: DeviceProfile) -> tuple[tuple[str, str] | str, ...]:
    fix = f"; {device.fix}" if device.fix else ""
    return (f"{device.id} {device.status.value}: ", STYLES[device.status]), f"{device.reason}{fix}"


def _speeds(measured: list[tuple[str, Rates]]) -> Table:
    """A row a device, a column an op class and dtype that any device was measured for."""
    keys = list(dict.fromkeys(key for _, rates in measured for key in rates.flops))
    table = make_table("Compute", ("device", *(f">{key.replace(':', ' ')}" for key in keys)))
    for name, rates in measured:
        flops = rates.flops_by_class()
        add_row(table, ((name, "bold"), *(rate(flops.get(key), "FLOP") for key in keys)))
    return table


def _costs(measured: list[tuple[str, Rates]]) -> Table:
    sizes = sorted({point.nbytes for _, rates in measured for point in rates.bandwidth})
    columns = ("device", ">launch", ">launch alone", ">allocate 1 MiB",
               *(f">copy {size(n)}" for n in sizes))  # fmt: skip
    table = make_table("Memory and launches", columns)
    for name, rates in measured:
        by_size = {point.nbytes: point.bytes_per_s.median for point in rates.bandwidth}
        add_row(
            table,
            (
                (name, "bold"),
                seconds(rates.launch()),
                seconds(rates.launch_alone_s.median),
                seconds(rates.allocation_s.median),
                *(rate(by_size.get(n), "B") for n in sizes),
            ),
        )
    return table


def _links(links: tuple[LinkProfile, ...]) -> Table:
    sizes = sorted({n for link in links for n, _ in link.pairs()})
    columns = ("from", "to", ">latency", *(f">{size(n)}" for n in sizes), ">duplex", "how")
    table = make_table("Links", columns)
    for link in links:
        by_size = dict(link.pairs())
        staged = " staged through " + ", ".join(link.route[1:-1]) if link.route[2:] else ""
        add_row(
            table,
            (
                (link.src, "bold"),
                (link.dst, "bold"),
                seconds(link.latency_s.median),
                *(rate(by_size.get(n), "B") for n in sizes),
                "-" if link.duplex is None else f"{link.duplex.median:.2f}",
                link.how or f"{'zero-copy' if link.zero_copy else 'copy'}{staged}",
            ),
        )
    return table
