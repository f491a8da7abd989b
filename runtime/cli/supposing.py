"""The options that change what is planned for: another machine, or one that is otherwise."""

from __future__ import annotations

from typing import Any

import click

from crossdock.runtime.cli import options
from crossdock.runtime.cli.planning import Asked


def supposing(command: Any) -> Any:
    """Add the options; the command gets them as ``machine`` and ``asked``."""

    def gather(*args: Any, **given: Any) -> Any:
        given["asked"] = Asked(
            given.pop("without"), given.pop("link"), dict(given.pop("memory")), given.pop("cores")
        )
        return command(*args, **given)

    return options.gathered(
        command,
        gather,
        click.option("--machine", metavar="F.json|NAME",
                     help="Plan for the machine of a profile (probe --json), or one that is "
                     "shipped."),
        click.option("--cores", type=click.IntRange(1), metavar="N",
                     help="Plan with so many processor cores."),
        click.option("--without", metavar="ID", multiple=True, help="Plan without a device."),
        click.option("--link", **options.pairs("A:B=GB/s", options.gigabytes_per_second),
                     help="Plan with this bandwidth between two devices; A->B for one direction."),
        click.option("--memory", **options.pairs("ID=BYTES", options.nbytes),
                     help="Memory budget of a device, such as 512Mi or 2G; weights beyond it are "
                     "brought by each run, or ops go elsewhere."),
    )  # fmt: skip
