"""Whether a worker still moves: it reports, uses the processor, or the GPU works. No torch.

Durations are of the monotonic clock. Time in which the looking itself stood still (a frozen or sleeping machine)
does not count: nobody knows what the worker did in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

LEAST_SHARE = 0.01  # of one core: a process that only waits wakes up now and then, too
LEAST_GPU_PERCENT = 1
LOOKS = 20  # in the time that makes a stall
MOST_SECONDS_BETWEEN = 15.0


class StallWatch:
    """Follows one worker through one job.

    `processor_seconds`: what it and everything below it used so far; `gpu_load`: as in `trainer.gpu`.
    """

    def __init__(
        self, limit_seconds: float, processor_seconds: Callable[[], float], gpu_load: Callable[[], dict[str, Any]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.limit_seconds = limit_seconds
        self.between_seconds = min(limit_seconds / LOOKS, MOST_SECONDS_BETWEEN)
        self.processor_seconds = processor_seconds
        self.gpu_load = gpu_load
        self.clock = clock
        self.looked_at = self.moved_at = clock()
        self.used_seconds = 0.0
        self.told_at: float | None = None
        self.stalled_since: float | None = None

    def reported(self) -> None:
        """A report came."""
        self.moved_at = self.clock()

    def look(self) -> tuple[str, float] | None:
        """("stalled", seconds without a sign), told again after each further limit; ("moving", seconds); or None."""
        now = self.clock()
        if now - self.looked_at >= self.between_seconds:
            self._look_at_processor(now)
        since = self.stalled_since
        if since is not None and self.moved_at > since:
            self.stalled_since = self.told_at = None
            return "moving", self.moved_at - since
        quiet_seconds = now - self.moved_at
        told_lately = self.told_at is not None and now - self.told_at < self.limit_seconds
        if quiet_seconds < self.limit_seconds or told_lately:
            return None
        self.told_at, self.stalled_since = now, self.moved_at
        return "stalled", quiet_seconds

    def _look_at_processor(self, now: float) -> None:
        passed_seconds = now - self.looked_at
        before, self.used_seconds = self.used_seconds, self.processor_seconds()
        used_seconds = self.used_seconds - before
        self.looked_at = now
        # Less than before: a process ended, which is news as well. nvidia-smi takes its time: ask when it matters.
        if (
            used_seconds < 0
            or used_seconds >= LEAST_SHARE * passed_seconds
            or (
                now - self.moved_at >= self.limit_seconds / 2
                and self.gpu_load().get("gpu_percent", 0) >= LEAST_GPU_PERCENT
            )
        ):
            self.moved_at = now
        elif self.stalled_since is None and passed_seconds > 2 * self.between_seconds + 5.0:
            self.moved_at = min(self.moved_at + passed_seconds, now)
