"""Markdown that untrusted text cannot break: escaping, tables, figures and the templates' environment.

What a template prints is escaped unless this module made it: a model's answers are untrusted text,
and a pipe, a newline or a tag in one must neither break a table nor reach a browser as HTML.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

ABSENT = "–"  # nothing was measured or recorded

# Underscores inside a word emphasise nothing in CommonMark, and parameter names stay readable.
_SPECIAL = re.compile(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])")
_TAG = re.compile(r"<(?! )")  # a `<` before a space opens no tag
_ENTITY = re.compile(r"&(?=[#A-Za-z])")
# What opens a list, a quote, a heading or a rule at the start of a line; "0.91" and "+0.21" do not.
_BLOCK = re.compile(r"^(?:[-+](?=\s|$)|[-=]+(?=\s*$)|[>#]|\d{1,9}(?=[.)](?:\s|$)))")
_BIDI = re.compile("[\u200e\u200f\u202a-\u202e\u2066-\u2069]")


class Markdown(str):
    """Text that is Markdown already; `escape` leaves it as it is."""


def escape(value: object) -> Markdown:
    """`value` as one line of Markdown that shows its characters only, also in a table cell."""
    if isinstance(value, Markdown):
        return value
    text = " ".join(plain(value).split())
    text = "".join(c for c in text if unicodedata.category(c) not in ("Cc", "Cs"))
    text = _BIDI.sub("", text)
    text = _SPECIAL.sub(lambda match: "\\" + match.group(), text)
    text = _TAG.sub("&lt;", _ENTITY.sub("&amp;", text))
    return Markdown(_BLOCK.sub(_escape_block, text))


def _escape_block(match: re.Match[str]) -> str:
    mark = match.group()
    return "\\" + mark if not mark.isdigit() else mark + "\\"


def prose(text: object) -> Markdown:
    """Like `escape`, for sentences that this project writes: `code` in backticks stays code."""
    line = "".join(c for c in " ".join(str(text).split()) if unicodedata.category(c) != "Cs")
    parts = re.split(r"(`[^`|]+`)", _BIDI.sub("", line))
    return Markdown("".join(p if re.fullmatch(r"`[^`|]+`", p) else _spaced(p) for p in parts))


def _spaced(part: str) -> str:
    bare = part.strip()
    return part.replace(bare, escape(bare)) if bare else part


def plain(value: object) -> str:
    """A parameter or figure as a person writes it: true, not set, a, b."""
    if value is None or value == "":
        return ABSENT
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return ", ".join(plain(item) for item in value) or "none"
    return str(value)


def shorten(text: object, limit: int) -> str:
    """`text` on one line of at most `limit` characters; an ellipsis shows that it goes on."""
    line = " ".join(str(text or "").split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> Markdown:
    """A table whose every row has as many columns as `head`; ValueError for a row that has not."""
    lines = [[escape(cell) for cell in row] for row in rows]
    if any(len(row) != len(head) for row in lines):
        raise ValueError(f"a table of {len(head)} columns got a row of another length")
    body = [[escape(cell) for cell in head], [Markdown("---")] * len(head), *lines]
    return Markdown("\n".join("| " + " | ".join(row) + " |" for row in body))


def figure(value: float | None, target: float = 1.0) -> str:
    """Three decimals, more where they would hide that `value` lies below 1 or below `target`."""
    if value is None:
        return ABSENT
    if not math.isfinite(value):
        return str(value)
    for digits in (3, 4, 5, 6):
        text = f"{value:.{digits}f}"
        if not any(value < edge <= float(text) for edge in (target, 1.0)):
            return text
    return repr(value)


def signed(value: float | None, base: float | None) -> str:
    """The difference of two figures with its sign."""
    return ABSENT if value is None or base is None else f"{value - base:+.3f}"


def interval(pair: Sequence[float] | None) -> str:
    """A 95 % interval: 0.612 to 0.934."""
    return ABSENT if not pair else f"{figure(pair[0])} to {figure(pair[1])}"


def score(entry: Mapping[str, Any] | None) -> str:
    """A figure with its n and interval, for one cell."""
    if not entry or entry.get("value") is None:
        return ABSENT
    return f"{figure(entry['value'])} (n={entry.get('n', 0)}; {interval(entry.get('ci95'))})"


def duration(seconds: float | None) -> str:
    """Seconds as a person reads them: 4.2 s, 3 min 05 s, 1 h 02 min."""
    if seconds is None or not math.isfinite(seconds):
        return ABSENT
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def quantity(value: float | None, unit: str) -> str:
    """A figure with its unit; bytes and seconds as people read them."""
    if value is None or not math.isfinite(value):
        return ABSENT
    if unit == "bytes":
        return f"{value / 1e9:.2f} GB"
    return duration(value) if unit == "seconds" else f"{value:.4g} {unit}" if value < 1000 else f"{value:,.0f} {unit}"


def label(metric: str) -> str:
    """The metric as words."""
    return metric.replace("_", " ")


def render(template: str, /, **context: Any) -> str:
    """A template of trainer/templates with escaped output and exactly one newline at the end."""
    return _environment().get_template(template).render(**context).rstrip("\n") + "\n"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        finalize=escape,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # `finalize` escapes, for Markdown
    )
    environment.globals["table"] = table
    environment.filters["prose"] = prose
    return environment
