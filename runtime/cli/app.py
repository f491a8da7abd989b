"""The command group. A command's module is imported when the command is used."""

from __future__ import annotations

import importlib

import click

COMMANDS = {
    "accuracy": "predicted against measured time, for models on this machine",
    "bench": "run the benchmark suites of a checkout",
    "calibrate": "learn what kernels cost at shapes never measured",
    "devices": "list the devices",
    "explain": "say for each op, or one, what was considered and why it runs where it does",
    "ops": "list how each device runs each op and element type, and why",
    "plan": "plan a model, for this machine or one that is not here",
    "plan diff": "say what differs between two saved plans",
    "probe": "prove and measure every device and link",
    "profile": "time each op of a model beside the limits of its device",
    "run": "run a model",
    "sweep": "predict latency over batches and device sets, and where a set breaks even",
    "verify": "check every kernel on every device against a float64 reference",
}
"""Commands with their short help; each is a module here with a click command of its name, and of
two words a module with an underscore between them."""


class _Group(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        name = cmd_name.replace(" ", "_")
        module = importlib.import_module(f"crossdock.runtime.cli.{name}")
        command: click.Command = getattr(module, name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if " ".join(args[:2]) in COMMANDS:
            args = [" ".join(args[:2]), *args[2:]]
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from crossdock import __version__

        click.echo(f"crossdock {__version__}")
        ctx.exit()


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_version,
    help="Print the version.",
)
@click.option("--debug", is_flag=True, expose_value=False, help="Print tracebacks and warnings.")
def app() -> None:
    """Run each op of a model on the device where it finishes first."""
