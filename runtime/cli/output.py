"""Where a command's results go: tables to stdout, JSON where asked, everything else to stderr."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from crossdock.runtime.cli.text import clean
from crossdock.runtime.errors import LoadError

WIDE = 200
"""Columns of a table that goes to a file or a pipe, where nothing wraps."""

Tick = Callable[[str, int, int], None]


class Output:
    """What a command prints.

    ``json_to`` is the value of ``--json``: a file, "-" for stdout (then tables are left out, so
    that stdout holds the JSON alone), or None. Raises LoadError for a file in no folder.
    """

    def __init__(self, json_to: str | None = None) -> None:
        check_place(json_to if json_to != "-" else None)
        self._json_to = json_to
        self._out = _console(sys.stdout)
        self._err = _console(sys.stderr)
        self.quiet = json_to == "-"

    def table(self, table: Table, note: str = "") -> None:
        """Print a table, what its columns mean, and an empty line."""
        if self.quiet:
            return
        self._out.print(table)
        if note:
            self._out.print(Text(clean(note), style="dim"))
        self._out.print()

    def line(self, *parts: Any) -> None:
        """Print a line to stdout; ``parts`` are strings, or (text, style) pairs."""
        if not self.quiet:
            self._out.print(styled(*parts))

    def note(self, text: str) -> None:
        """Print a line to stderr."""
        self._err.print(Text(clean(text), style="dim", overflow="fold"))

    def json(self, data: Any) -> None:
        """Write JSON data where ``--json`` says; numbers that JSON lacks become null."""
        if self._json_to is None:
            return
        text = json.dumps(finite(data), indent=2, allow_nan=False, ensure_ascii=False)
        if self._json_to == "-":
            sys.stdout.write(text + "\n")
        else:
            write_text(self._json_to, text + "\n")

    @contextmanager
    def progress(self, what: str) -> Iterator[Tick]:
        """Show a bar on stderr while something takes long; nothing where that is no terminal."""
        if not self._err.is_terminal:
            yield lambda _text, _done, _total: None
            return
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self._err, transient=True) as bars:
            task = bars.add_task(clean(what), total=None)

            def tick(text: str, done: int, total: int) -> None:
                bars.update(task, description=clean(text), completed=done, total=total or None)

            yield tick


def _console(stream: IO[str]) -> Console:
    """A console that takes a pipe for a wide page, and marks nothing up by itself."""
    wide = None if stream.isatty() or os.environ.get("COLUMNS") else WIDE
    return Console(file=stream, width=wide, highlight=False, markup=False, emoji=False)


def styled(*parts: Any) -> Text:
    """A text from strings and (text, style) pairs, all made harmless."""
    text = Text(overflow="fold")
    for part in parts:
        body, style = part if isinstance(part, tuple) else (part, "")
        # Blanks at the ends separate the parts, so only what is between them is cleaned.
        body = str(body)
        core = clean(body)
        lead = " " * (len(body) - len(body.lstrip(" ")))
        trail = " " * (len(body) - len(body.rstrip(" "))) if core else ""
        text.append(f"{lead}{core}{trail}", style=style)
    return text


def make_table(title: str, columns: Sequence[str]) -> Table:
    """An empty table; a column whose name starts with ">" holds numbers and is flushed right."""
    table = Table(
        title=Text(clean(title), style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
    )
    for name in columns:
        right = name.startswith(">")
        table.add_column(
            Text(name.removeprefix(">")),
            justify="right" if right else "left",
            no_wrap=right,
            overflow="fold",
        )
    return table


def add_row(table: Table, cells: Iterable[Any], style: str = "") -> None:
    """Add a row; a cell is a Text, a (text, style) pair, or anything that prints."""
    table.add_row(*(c if isinstance(c, Text) else styled(c) for c in cells), style=style)


def finite(data: Any) -> Any:
    """The same plain data with NaN and infinities as None, keys as strings, tuples as lists."""
    if isinstance(data, dict):
        return {str(k): finite(v) for k, v in data.items()}
    if isinstance(data, list | tuple):
        return [finite(v) for v in data]
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return data


def check_place(*paths: str | None) -> None:
    """Raise LoadError for a file that could not be written, before any work is done for it."""
    for path in paths:
        if path is not None and (Path(path).is_dir() or not Path(path).absolute().parent.is_dir()):
            raise LoadError(f"{path}: cannot be written: it is a folder, or its folder is missing")


def write_text(path: str | Path, text: str) -> None:
    """Write a file; raises LoadError naming it where that fails."""
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise LoadError(
            f"{path}: cannot be written: {error.strerror or error}; name another file"
        ) from error
