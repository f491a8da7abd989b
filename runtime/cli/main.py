"""The entry point: runs a command, and turns what went wrong into one line and an exit status.

=====  =========================================================
0      done
1      it failed while running (or stdout was closed early)
2      bad input: a file, an option, a device that is not here
130    interrupted
=====  =========================================================
"""

from __future__ import annotations

import importlib.util
import os
import sys
import traceback
import warnings
from collections.abc import Sequence

from crossdock.runtime.errors import (
    Error,
    FeedError,
    GraphError,
    LoadError,
    PlanError,
    Unavailable,
)

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130
BAD = (LoadError, GraphError, PlanError, FeedError, Unavailable)
"""Errors that the caller can mend by giving something else."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status.

    Args:
        argv: the arguments without the program's name (None: the process's own).
    """
    args, debug = _without_debug(list(sys.argv[1:] if argv is None else argv))
    missing = [name for name in ("click", "rich") if importlib.util.find_spec(name) is None]
    if missing:
        return _say(f"needs {' and '.join(missing)}: pip install crossdock[cli]", FAILED)
    try:
        with warnings.catch_warnings():
            if not debug and not sys.warnoptions:
                warnings.simplefilter("ignore")
            status = _invoke(args)
            sys.stdout.flush()
            return status
    except BrokenPipeError:
        # Python flushes stdout once more at exit, which would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        return _say("interrupted", INTERRUPTED)
    except Exception as error:  # noqa: BLE001 - the last place that can turn it into a line
        if debug:
            traceback.print_exc()
        return _failed(error)


def _without_debug(args: list[str]) -> tuple[list[str], bool]:
    """Take ``--debug`` out, wherever it stands before a lone ``--``."""
    end = args.index("--") if "--" in args else len(args)
    head = [a for a in args[:end] if a != "--debug"]
    return head + args[end:], len(head) < end


def _invoke(args: list[str]) -> int:
    import click

    from crossdock.runtime.cli.app import app

    try:
        status = app.main(args, prog_name="crossdock", standalone_mode=False)
    except click.Abort:
        raise KeyboardInterrupt from None
    except click.ClickException as error:
        where = getattr(error, "ctx", None)
        command = where.command_path if where is not None else "crossdock"
        text = error.format_message().rstrip(".")
        return _say(f"{text}; `{command} --help` lists what there is", BAD_INPUT)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else FAILED
    return status if isinstance(status, int) else 0


def _failed(error: Exception) -> int:
    if isinstance(error, BAD):
        return _say(str(error), BAD_INPUT)
    if isinstance(error, Error):
        return _say(str(error), FAILED)
    if isinstance(error, MemoryError):
        return _say("out of host memory; use a smaller batch or shape", FAILED)
    kind = type(error).__name__
    return _say(f"{kind}: {error} (a bug; --debug shows where)", FAILED)


def _say(message: str, status: int) -> int:
    """Print one line to stderr and hand the status on."""
    line = " ".join(message.split())
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)
    sys.stderr.write(f"crossdock: {shown}\n")
    return status
