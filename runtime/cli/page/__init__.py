"""Pages that stand alone: a plan's timeline, graph and candidates, and the curves of a sweep.

A page loads nothing from anywhere: style and script are in it, and a content policy forbids the
rest. What a model says (names, shapes) is only ever data: it stands in a JSON block and reaches the
page as text, never as markup.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from crossdock.runtime.cli.page.data import page_data
from crossdock.runtime.executor import Outcome
from crossdock.runtime.explanation import Explanation
from crossdock.runtime.graph import Graph
from crossdock.runtime.plan import Plan

PLAN = ("common.js", "parts.js", "gantt.js", "graph.js", "why.js", "details.js", "main.js")
SWEEP = ("common.js", "parts.js", "curves.js", "sweep.js")
"""The scripts of a page; they read its data."""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
</body>
</html>
"""


def page(
    plan: Plan,
    graph: Graph,
    capacity: Mapping[str, int] | None = None,
    outcome: Outcome | None = None,
    explained: Sequence[Explanation] = (),
) -> str:
    """Render a plan; the arguments are those of ``page_data``."""
    data = page_data(plan, graph, capacity, outcome, explained)
    return render(data, f"{data['name']} - crossdock plan", PLAN)


def render(data: Mapping[str, Any], title: str, scripts: Sequence[str]) -> str:
    """A page of its own from plain data and the scripts that draw it."""
    style = _read("style.css")
    script = "\n".join(['"use strict";', *(_read(name) for name in scripts)])
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return _PAGE.format(
        policy=policy,
        title=html.escape(title),
        style=style,
        data=embed(data),
        script=script,
    )


def embed(data: Any) -> str:
    """JSON that may stand in a script element: nothing in it can end the element."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _read(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
