"""The named errors of the trainer and the exit codes they end with (design: 0 done, 2..7 below)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping


class TrainerError(Exception):
    """A failure with one sentence for the user: what is wrong, the value found, what to do.

    `lines` carries single findings that are printed above the sentence, all at once.
    """

    exit_code = 5

    def __init__(self, message: str, lines: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.lines = list(lines)


class InputError(TrainerError):
    """Wrong configuration or input."""

    exit_code = 2


class NotReady(TrainerError):
    """An earlier gate is closed."""

    exit_code = 3


class HostUnfit(TrainerError):
    """The host cannot do the work."""

    exit_code = 4


class TrainingFailed(TrainerError):
    """Training or evaluation broke."""

    exit_code = 5


class GateMissed(TrainerError):
    """A stage ran to its end and its scores are below the gate's targets."""

    exit_code = 6


class Interrupted(TrainerError):
    """Lost, locked or interrupted."""

    exit_code = 7


# The worker reports failures by name over a pipe; the supervisor turns them back into exit codes.
KINDS: Mapping[str, type[TrainerError]] = {
    kind.__name__: kind for kind in (InputError, NotReady, HostUnfit, TrainingFailed, GateMissed, Interrupted)
}


@contextlib.contextmanager
def refused_by_disk(what: str, action: str) -> Iterator[None]:
    """What the disk says becomes HostUnfit: `what` cannot be done (the disk's words in brackets), and what to do."""
    try:
        yield
    except OSError as problem:
        raise HostUnfit(f"{what} ({problem.strerror or problem}); {action}") from None
