"""Options that commands share, and the values written NAME=VALUE."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from crossdock.kernels.precision import HIGHEST, POLICIES
from crossdock.runtime import passes
from crossdock.runtime.config import MEASURE_SECONDS
from crossdock.runtime.errors import PlanError
from crossdock.runtime.fallback import ALLOW, WORDS, Fallback
from crossdock.runtime.graph import Graph
from crossdock.runtime.plan import Constraints
from crossdock.runtime.sites import Sites, sites_of
from crossdock.scheduler.objective import Objective

if TYPE_CHECKING:
    from crossdock.runtime.session import Where

Command = TypeVar("Command", bound=Callable[..., Any])

BYTE_SUFFIXES = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGT", start=1):
    BYTE_SUFFIXES |= {
        _letter: 1000**_power,
        f"{_letter}B": 1000**_power,
        f"{_letter}I": 1024**_power,
        f"{_letter}IB": 1024**_power,
    }


def pairs(form: str, read: Callable[[str], Any]) -> dict[str, Any]:
    """Settings of an option that takes NAME=VALUE any number of times; gives (name, value) pairs.

    A value is split at its last ``=`` (a name may hold one); one that ``read`` refuses with
    ValueError fails with the form that is wanted.
    """

    def split(
        _ctx: click.Context, _param: click.Parameter, given: Sequence[str]
    ) -> list[tuple[str, Any]]:
        made = []
        for text in given:
            name, sign, value = text.rpartition("=")
            try:
                if not sign or not name:
                    raise ValueError(text)
                made.append((name, read(value)))
            except ValueError:
                raise click.BadParameter(f"{text!r} is not of the form {form}") from None
        return made

    return {"metavar": form, "multiple": True, "callback": split}


def dims(text: str) -> tuple[int, ...]:
    """``1,3,48,320`` or ``1x3x48x320`` as sizes; an empty text is a scalar's shape."""
    parts = [p for p in text.replace("x", ",").split(",") if p.strip()]
    sizes = tuple(int(p) for p in parts)
    if any(s < 0 for s in sizes):
        raise ValueError(text)
    return sizes


def count(text: str) -> int:
    """A size of a dimension."""
    value = int(text)
    if value < 0:
        raise ValueError(text)
    return value


def nbytes(text: str) -> int:
    """Bytes: a number, with K, M, G or T (1000), or Ki, Mi, Gi or Ti (1024)."""
    body = text.strip().upper()
    digits = body.rstrip("BIKMGT ")
    factor = BYTE_SUFFIXES.get(body[len(digits) :].strip())
    amount = float(digits)
    if factor is None or not 0 <= amount * factor < 1 << 63:
        raise ValueError(text)
    return int(amount * factor)


def objective(text: str) -> Objective:
    """An objective: a term, or weights such as ``latency=0.5,energy=0.5``; raises PlanError."""
    parts = [part.partition("=") for part in text.split(",")]
    if all(not sign for _, sign, _ in parts):
        return Objective.of(text)
    weights: dict[str, object] = {}
    for name, _, weight in parts:
        try:
            weights[name.strip()] = float(weight)
        except ValueError:
            weights[name.strip()] = weight
    return Objective.of(weights)


def watts(text: str) -> tuple[float, float]:
    """Watts of a device, ``IDLE:ACTIVE``."""
    idle, active = (float(part) for part in text.split(":"))
    if not 0 <= idle <= active < 1e9:
        raise ValueError(text)
    return idle, active


def share(text: str) -> float:
    """A share, 0 to 1, or per cent with a sign."""
    value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    if not 0 <= value <= 1:
        raise ValueError(text)
    return value


def gigabytes_per_second(text: str) -> float:
    """A bandwidth in GB/s, greater than zero."""
    value = float(text)
    if not 0 < value < 1e9:
        raise ValueError(text)
    return value


class Seconds(click.FloatRange):
    """A range of seconds; click's takes NaN, which no comparison refuses."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number, or click's error."""
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail(f"{value!r} is no number of seconds.", param, ctx)
        return number


@dataclass(frozen=True)
class Placing:
    """The options that say where a model may run."""

    devices: tuple[str, ...] = ()
    policy: str = "auto"
    pin: Mapping[str, str] | None = None
    forbid: Mapping[str, tuple[str, ...]] | None = None
    threads: int | None = None
    expected_runs: int = 1000
    measure: float = MEASURE_SECONDS
    objective: str = "latency"
    watts: Mapping[str, tuple[float, float]] | None = None
    max_share: Mapping[str, float] | None = None
    residency: Mapping[str, tuple[str, ...]] | None = None
    fallback: Fallback = ALLOW
    skip_passes: tuple[str, ...] = ()
    precision: str = HIGHEST
    feeds_on: tuple[tuple[str | None, str], ...] = ()
    outputs: Where | None = None

    def sites(self, graph: Graph) -> Sites:
        """Where the inputs of a graph lie, and which outputs stay; raises PlanError."""
        return sites_of(graph, self.lying(graph), self.outputs or "host")

    def lying(self, graph: Graph) -> dict[str, str]:
        """The device of each input that is said to lie on one: what is said of it by name first."""
        told: dict[str, str] = {}
        for name, device in self.feeds_on:
            told |= dict.fromkeys(graph.fed, device) if name is None else {}
        return told | {name: device for name, device in self.feeds_on if name is not None}

    def besides(self, inputs: Collection[str]) -> Placing:
        """The same but for where some inputs lie."""
        kept = tuple(pair for pair in self.feeds_on if pair[0] not in inputs)
        return replace(self, feeds_on=kept)

    def constraints(self) -> Constraints:
        """As the planner takes them."""
        return Constraints(
            self.pin or {},
            self.forbid or {},
            max_share=self.max_share or {},
            residency=self.residency or {},
        )

    @property
    def budget(self) -> bool | float:
        """The budget for measuring as ``compile`` takes it."""
        return self.measure if self.measure > 0 else False


@dataclass(frozen=True)
class Feeding:
    """The options that say what goes into a model."""

    files: tuple[str, ...] = ()
    shapes: Mapping[str, tuple[int, ...]] | None = None
    dims: Mapping[str, int] | None = None
    seed: int = 0


def fallback(text: str) -> Fallback:
    """A contract: ``allow``, ``forbid``, or ``ops=A|B,share=0.05,bytes=1M`` or some of them."""
    if text in WORDS:
        return WORDS[text]
    given: dict[str, str] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        given[name.strip()] = value.strip()
    try:
        if not given.keys() <= {"ops", "share", "bytes"} or not all(given.values()):
            raise ValueError(text)
        return Fallback(
            tuple(given["ops"].split("|")) if "ops" in given else None,
            float(given["share"]) if "share" in given else None,
            nbytes(given["bytes"]) if "bytes" in given else None,
        )
    except (ValueError, PlanError):
        raise click.BadParameter(
            f"{text!r} is not allow, forbid or of the form ops=A|B,share=0.05,bytes=1M",
            param_hint="'--fallback'",
        ) from None


def _lying(
    _ctx: click.Context, param: click.Parameter, given: Sequence[str]
) -> tuple[tuple[str | None, str], ...]:
    """Pairs of an input's name, None for all of them, and the device that it lies on."""
    found: list[tuple[str | None, str]] = []
    for text in given:
        name, sign, device = text.rpartition("=")
        if not device or (sign and not name):
            raise click.BadParameter(f"{text!r} is not of the form {param.metavar}")
        found.append((name if sign else None, device))
    return tuple(found)


def _grouped(pairs: Sequence[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    result: dict[str, tuple[str, ...]] = {}
    for name, value in pairs:
        result[name] = (*result.get(name, ()), value)
    return result


def _checked_passes(
    _ctx: click.Context, _param: click.Parameter, names: tuple[str, ...]
) -> tuple[str, ...]:
    passes.check(names)
    return names


no_pass = click.option(
    "--no-pass",
    metavar="NAME",
    multiple=True,
    callback=_checked_passes,
    help="A graph pass to leave out; may be given several times.",
)


def placing(command: Command) -> Command:
    """Add the options of ``Placing``; the command gets them as ``placing``."""

    def gather(*args: Any, **given: Any) -> Any:
        given["placing"] = Placing(
            devices=given.pop("device"),
            policy=given.pop("policy"),
            pin=dict(given.pop("pin")),
            forbid=_grouped(given.pop("forbid")),
            threads=given.pop("threads"),
            expected_runs=given.pop("expected_runs"),
            measure=given.pop("measure"),
            objective=given.pop("objective"),
            watts=dict(given.pop("watts")),
            max_share=dict(given.pop("max_share")),
            residency=_grouped(given.pop("residency")),
            fallback=given.pop("fallback"),
            skip_passes=given.pop("no_pass"),
            precision=given.pop("precision"),
            feeds_on=given.pop("feeds_on"),
            outputs=given.pop("outputs"),
        )
        return command(*args, **given)

    return gathered(
        command,
        gather,
        click.option("--device", metavar="ID", multiple=True, help="A device to place ops on; "
                     "may be given several times (default: every device). isolated:ID is a "
                     "device in a process of its own."),
        click.option("--policy", metavar="NAME", default="auto", show_default=True,
                     help="Placement policy."),
        click.option("--objective", metavar="NAME", default="latency", show_default=True,
                     help="What to place for: latency, throughput, energy, or weights such as "
                     "latency=0.5,energy=0.5."),
        click.option("--watts", **pairs("ID=IDLE:ACTIVE", watts),
                     help="Watts that a device draws when idle and when it computes."),
        click.option("--pin", **pairs("PATTERN=ID", str),
                     help="Keep an op (node name, op name or pattern) on a device."),
        click.option("--forbid", **pairs("PATTERN=ID", str),
                     help="Keep an op off a device."),
        click.option("--max-share", **pairs("ID=SHARE", share),
                     help="Largest share of the ops' predicted time on a device, 0 to 1."),
        click.option("--residency", **pairs("PATTERN=ID", str),
                     help="A device that an op's result, or an input, may live on; others may not "
                     "see it."),
        click.option("--threads", type=click.IntRange(1), metavar="N",
                     help="Processor threads (default: all)."),
        click.option("--expected-runs", type=click.IntRange(1), metavar="N", default=1000,
                     show_default=True, help="Runs over which uploads of weights are spread."),
        click.option("--measure", type=Seconds(0), metavar="SECONDS",
                     default=MEASURE_SECONDS, show_default=True,
                     help="Longest time to take for measuring kernels not measured before; "
                     "0 for none."),
        click.option("--fallback", metavar="CONTRACT", default="allow", show_default=True,
                     callback=lambda _ctx, _param, text: fallback(text),
                     help="Ops that may run on the host because no device asked for can: allow, "
                     "forbid, or any of ops=A|B, share=0.05 and bytes=1M, with commas between."),
        click.option("--precision", type=click.Choice(POLICIES), default=HIGHEST, show_default=True,
                     help="What products of float32 matrices may lose: high lets a device round "
                     "operands to TF32, fast to bfloat16 too; where it has such kernels, and they "
                     "are faster."),
        click.option("--feeds-on", metavar="DEVICE|NAME=DEVICE", multiple=True, callback=_lying,
                     help="The device that the inputs lie on before a run, or one of them; may be "
                     "given several times (default: the host). It need not be one to place ops "
                     "on."),
        click.option("--outputs", type=click.Choice(["host", "device"]),
                     help="Where the outputs of a run are to be: brought to the host, or left on "
                     "the devices that make them (default: the host, as for a model that runs in "
                     "stages)."),
        no_pass,
    )  # fmt: skip


def feeding(command: Command) -> Command:
    """Add the options of ``Feeding``; the command gets them as ``feeding``."""

    def gather(*args: Any, **given: Any) -> Any:
        given["feeding"] = Feeding(
            files=given.pop("input"),
            shapes=dict(given.pop("shape")),
            dims=dict(given.pop("dim")),
            seed=given.pop("seed"),
        )
        return command(*args, **given)

    return gathered(
        command,
        gather,
        click.option("--input", metavar="NAME=F.npy", multiple=True,
                     help="An input from a file: npy, or a tensor of its name in npz or "
                     "safetensors; or a number that fills it. Others are generated."),
        click.option("--shape", **pairs("NAME=1,3,224,224", dims),
                     help="Shape of an input."),
        click.option("--dim", **pairs("NAME=N", count),
                     help="Size of a named dimension."),
        click.option("--seed", type=click.IntRange(0), default=0, show_default=True,
                     help="Seed of generated inputs."),
    )  # fmt: skip


def json_option(command: Command) -> Command:
    """Add ``--json``; the command gets it as ``json_to``."""
    made: Command = click.option(
        "--json", "json_to", metavar="FILE", help="Write the result as JSON; - for stdout alone."
    )(command)
    return made


def gathered(
    command: Command, gather: Callable[..., Any], *options: Callable[[Any], Any]
) -> Command:
    """Add options whose values ``gather`` takes, joins, and hands on to the command."""
    # click keeps the options of the decorators below on the function; the wrapper hands them on.
    gather.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    gather.__doc__, gather.__name__ = command.__doc__, command.__name__
    for option in reversed(options):
        gather = option(gather)
    return cast(Command, gather)


def split_link(text: str, known: Collection[str]) -> tuple[str, str, bool]:
    """Ends of ``A:B`` (both directions) or ``A->B`` (one); device ids hold colons themselves.

    Raises:
        click.BadParameter: the ends are not two of the known devices.
    """
    first, arrow, second = text.partition("->")
    if arrow and first in known and second in known:
        return first, second, False
    for at, character in enumerate(text):
        if character == ":" and text[:at] in known and text[at + 1 :] in known:
            return text[:at], text[at + 1 :], True
    raise click.BadParameter(
        f"{text!r} is no pair A:B (or A->B) of the devices {', '.join(sorted(known))}",
        param_hint="'--link'",
    )
