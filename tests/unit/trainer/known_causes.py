"""The kinds that a log is diagnosed with, for the tests of the table and of the diagnosis."""

from __future__ import annotations

from trainer.diagnose import diagnose
from trainer.signatures import SIGNATURES

KINDS = {signature.cause: signature.kind for signature in SIGNATURES}


TRACE = 'Traceback (most recent call last):\n  File "worker.py", line 90, in run\n    train(job)\n'


def kinds(log: str, *, signal: int | None = None, kind: str | None = None) -> list[str]:
    """The kinds that a log is diagnosed with; `unknown` where no signature matched."""
    issues = diagnose(log, exit_signal=signal, error_kind=kind)
    return [KINDS.get(issue.cause, "unknown") for issue in issues]
