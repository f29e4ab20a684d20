"""From a failed stage's log to its causes, by the table of `signatures`.

A line counts only where a failure is told: an error line (`SomeError: …`, `error: …`) or a line of
a known machine form (kernel messages, `Killed`, a progress line). So an answer or a training row
that talks about running out of memory, printed as JSON, in quotes or indented, names nothing. A
printed answer that imitates an error line to the letter, from the line's start on, cannot be told
apart.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from trainer import state
from trainer.issues import Issue, append_issues, read_issues, redact, render_issues
from trainer.markdown import shorten
from trainer.signatures import SIGNATURES, Signature

# A diagnosis is made to be kept: its callers find the record and its files here too.
__all__ = ["Issue", "append_issues", "clean_lines", "diagnose", "read_issues", "redact", "render_issues"]

LAST_LINES, TAIL_CHARS, SYMPTOM_CHARS, LINE_CHARS = 8, 150, 400, 4000
OWN_KINDS = ("InputError", "NotReady", "HostUnfit")  # refusals whose sentence is the diagnosis

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_BAR = re.compile(r"^.{0,200}?\d+%\|[^|]{0,200}\| *[\d.]+\w?/[\d.]+\w? \[[^\]]{0,80}\]")
# What loggers put before a message: a time, a [part], `name - `. The level is for _LEVEL; WARNING
# is none, because retries that went well in the end are told there.
_PREFIX = re.compile(
    r"(?:\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)?[ :-]*"
    r"|\[(?! *\d+\.\d+\] |ERROR|CRITICAL|FATAL)[^\]\"]{1,60}\]:? *|[a-z_][\w.]* - )*"
)
_LEVEL = re.compile(r"(?:(?:error|fatal)(?=:)|\[?(?:ERROR|CRITICAL|FATAL)\b)\]?[ :-]+")
_CLASS = re.compile(r"(?:[A-Za-z_]\w*\.)*(?:_?[A-Z]\w*(?:Error|Exception|Timeout)|(?<=\.)[A-Z]\w+|gaierror)(?::\s+|$)")


def clean_lines(log_text: str) -> list[str]:
    """The lines of a log without ANSI escapes and progress bars; a redraw after \\r is a line."""
    lines = re.split(r"\r\n|\n|\r", _ANSI.sub("", log_text))
    bare = (_BAR.sub("", line[:LINE_CHARS]).rstrip() for line in lines)
    return [line for line in bare if line]


def diagnose(
    log_text: str,
    *,
    exit_signal: int | None,
    error_kind: str | None,
    stage: str = "",
    phase: str = "",
    time: str | None = None,
) -> list[Issue]:
    """The causes that a failed stage's log, signal and recorded kind of error name; never empty.

    Each cause is named once, in the order of the log (what kind and signal say comes first);
    without a known one the answer is an issue that says so and gives the last lines.
    """
    lines = clean_lines(log_text)
    when = time or state.now()
    found = _told_outside(exit_signal, error_kind)
    for line, times in Counter(lines).items():
        signature = _match(line)
        if signature:
            first, count = found.get(signature.kind, ("", 0))
            found[signature.kind] = (first if count else line, count + times)
    hidden = {kind for s in SIGNATURES if s.kind in found for kind in s.hides}
    by_kind = {s.kind: s for s in SIGNATURES}
    issues = []
    for kind, seen in found.items():
        if kind not in hidden:
            it = by_kind[kind]
            symptom = _symptom(*seen)
            issues.append(Issue(when, phase, stage, it.severity, symptom, it.cause, it.action))
    return issues or [_unknown(lines, exit_signal, error_kind, when, phase, stage)]


def _told_outside(exit_signal: int | None, error_kind: str | None) -> dict[str, tuple[str, int]]:
    """kind -> (symptom, 0): causes that need no log line."""
    kind = re.sub(r"(?<=[a-z])(?=[A-Z])|[_-]", " ", error_kind or "").lower().strip()
    found: dict[str, tuple[str, int]] = {}
    for signature in SIGNATURES:
        if kind and kind in signature.kinds:
            found[signature.kind] = (f"the stage ended with: {kind}", 0)
        elif exit_signal in signature.signals:
            found[signature.kind] = (f"the program was ended by signal {exit_signal}", 0)
    return found


def _error_message(line: str) -> tuple[str, str | None]:
    """The line without a logger's prefix, and its message when it is an error line."""
    bare = _strip(_PREFIX, line)
    told = _strip(_LEVEL, bare)
    message = _strip(_CLASS, told)
    return told, message if len(message) < len(bare) else None


def _strip(pattern: re.Pattern[str], line: str) -> str:
    match = pattern.match(line)
    return line[match.end() :] if match else line


def _match(line: str) -> Signature | None:
    bare, message = _error_message(line)
    for signature in SIGNATURES:
        if signature.line and re.match(signature.line, bare):
            return signature
        if message and signature.error and re.search(signature.error, message):
            return signature
    return None


def _symptom(line: str, count: int) -> str:
    text = shorten(redact(line), SYMPTOM_CHARS)
    return f"{text} (seen {count} times)" if count > 1 else text


def _unknown(lines: Sequence[str], signal: int | None, kind: str | None, when: str, phase: str, stage: str) -> Issue:
    """What is said when no signature matched: that it is unknown, with the last lines."""
    errors = [line for line in lines if _error_message(line)[1] is not None]
    ending = [f"signal {signal}"] if signal is not None else []
    ending += [f"recorded error: {kind}"] if kind else []
    last = [shorten(redact(line), TAIL_CHARS) for line in lines[-LAST_LINES:]]
    tail = " / ".join(last) or "the log is empty"
    symptom = "; ".join([*ending, f"last lines: {tail}"])
    cause = "Unknown: the log holds no known signature."
    if kind in OWN_KINDS and errors:
        cause = "The trainer stopped by itself; its own sentence says why."
        symptom = errors[-1]
    elif not ending and not errors:
        cause = "Unknown: neither the log nor the way it ended tells of a failure."
    severity = "error" if ending or errors else "info"
    action = "Read the stage's whole log from its first error on."
    text = shorten(redact(symptom), LAST_LINES * TAIL_CHARS + SYMPTOM_CHARS)
    return Issue(when, phase, stage, severity, text, cause, action)
