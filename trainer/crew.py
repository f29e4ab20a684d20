"""The processes that carry out one job together: who they are, what each of them does, what they agree on.

One process alone is the rule: `ALONE` answers at once. Several are started by torchrun, join with `joined`, and
call the same methods in the same order. Torch is imported by those that join, never with this module.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from trainer.errors import HostUnfit, Interrupted, TrainingFailed

T = TypeVar("T")
MEETING_VARIABLE = "STAGEGATE_MEETING"  # where the processes find each other, when not where torchrun says
JOIN_SECONDS = 600.0  # imports on a slow machine whose disk is cold take minutes
TOGETHER_SECONDS = 3600.0  # for what all reach within minutes of each other: steps, shares of the questions
STAGE_SECONDS = 30 * 86400.0  # while the first process works for all of them; the stage's own timeout ends it
# What tells libraries that they are one of several. They are not to know: accelerate would choose devices, wrap
# models and exchange values on its own account, and one exchange that not all take part in stops them all.
TORCHRUN_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
GLOO, TIMED_OUT = "/gloo/", "Timed out"  # in its errors, which have no type of their own
NEWS_SECONDS = 3.0  # in which all that wait for the same thing notice that it failed


class PeerGone(Interrupted):
    """Another process of the crew ended in the middle of something; its own error says why, not this one."""


class Crew:
    """One process among `size`, the `rank`-th from 0; this class is the crew of one, which needs no torch."""

    rank = 0
    size = 1

    @property
    def is_first(self) -> bool:
        """Whether this process speaks and writes for all."""
        return self.rank == 0

    @property
    def name(self) -> str:
        return of_rank(self.rank, self.size)

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's share of the items: every `size`-th from its own rank on."""
        return [items[index] for index in range(self.rank, len(items), self.size)]

    def in_shares(self, items: Sequence[Any], work: Callable[[list[Any]], list[T]]) -> list[T]:
        """One result of `work` for each item, in the order of the items; each process works on its own share."""
        found: list[Any] = [None] * len(items)
        for rank, part in enumerate(self.gather(work(self.share(items)))):
            found[rank :: self.size] = part
        return found

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any of the processes."""
        return bool(flag)

    def add_up(self, tensors: Sequence[Any]) -> None:
        """Replace each tensor by its sum over the processes, the same bits in each of them."""

    def spread(self, tensors: Sequence[Any]) -> None:
        """Replace each tensor by that of the first process."""

    def gather(self, value: T) -> list[T]:
        """The values (python objects) of all processes, by rank, in each of them."""
        return [value]

    def broadcast(self, value: T) -> T:
        """The first process's value (a python object), however long it takes to come."""
        return value

    def once(self, make: Callable[[], T]) -> T:
        """What `make` returns in the first process; the others do not call it and wait."""
        made: Any = make() if self.is_first else None
        result: T = self.broadcast(made)
        return result

    def in_turn(self, make: Callable[[], T]) -> T:
        """What `make` returns, first in the first process: what it leaves on the disk, the others find."""
        made = [make()] if self.is_first else []
        self.broadcast(None)
        return made[0] if made else make()

    def one_by_one(self, make: Callable[[], T]) -> T:
        """What `make` returns in this process; never two processes are in it at a time."""
        for rank in range(self.size):
            if rank == self.rank:
                made = make()
            self.barrier()
        return made

    def ask(self, work: Callable[..., list[T]], items: Sequence[Any], *words: Any) -> list[T]:
        """`in_shares` with `work(share, *words)`, asked for by the first process alone while the others `serve`."""
        self.broadcast((items, words))
        return self.in_shares(items, lambda share: work(share, *words))

    def serve(self, work: Callable[..., list[Any]]) -> None:
        """In the others: do their shares of all that the first process asks for, until it lets them go."""
        while (asked := self.broadcast(None)) is not None:
            items, words = asked
            self.in_shares(items, lambda share, words=words: work(share, *words))  # type: ignore[misc]

    def let_go(self) -> None:
        """In the first: it will ask for nothing more, `serve` ends."""
        self.broadcast(None)

    def barrier(self) -> None:
        """Go on when all have come here."""

    @contextlib.contextmanager
    def in_step(self) -> Iterator[None]:
        """Around a model that itself exchanges weights with the other processes: PeerGone when one has ended."""
        yield

    def leave(self) -> None:
        """End what connects the processes, when all have done their work."""


ALONE = Crew()


class Joined(Crew):
    """A process of a crew of several.

    Tensors go by `backend` (nccl between GPUs, gloo between processes on a CPU); python objects, flags and
    barriers always by gloo, which notices at once that a peer has ended where nccl would wait for it. So
    every exchange between GPUs begins with one by gloo.
    """

    def __init__(self, rank: int, size: int, store: Any, backend: str) -> None:
        import torch.distributed as dist

        self.rank, self.size = rank, size
        self.store = store
        self.dist = dist
        self.count = 0
        wait = timedelta(seconds=TOGETHER_SECONDS)
        with self._together("the meeting", JOIN_SECONDS):
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=wait)
            self.control = dist.group.WORLD if backend == "gloo" else dist.new_group(backend="gloo", timeout=wait)
            self.patient = dist.new_group(backend="gloo", timeout=timedelta(seconds=STAGE_SECONDS))

    def any(self, flag: bool) -> bool:
        import torch

        found = torch.tensor([int(flag)], dtype=torch.int32)
        with self._together("a step's end"):
            self.dist.all_reduce(found, op=self.dist.ReduceOp.MAX, group=self.control)
        return bool(found.item())

    def add_up(self, tensors: Sequence[Any]) -> None:
        self._exchange(tensors, "the sum of the gradients", lambda flat, by: self.dist.all_reduce(flat, group=by))

    def spread(self, tensors: Sequence[Any]) -> None:
        self._exchange(tensors, "the first weights", lambda flat, by: self.dist.broadcast(flat, src=0, group=by))

    def _exchange(self, tensors: Sequence[Any], what: str, collective: Callable[[Any, Any], Any]) -> None:
        """Send the tensors through one flat buffer for each type, in place."""
        import torch

        kinds: dict[Any, list[Any]] = {}
        for tensor in tensors:
            kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
        with torch.no_grad():
            for same in kinds.values():
                flat = torch.cat([tensor.reshape(-1) for tensor in same])
                on_gpu = flat.device.type != "cpu"
                if on_gpu:
                    self.barrier()
                with self._together(what):
                    collective(flat, self.dist.group.WORLD if on_gpu else self.control)
                for tensor, piece in zip(same, flat.split([tensor.numel() for tensor in same]), strict=True):
                    tensor.copy_(piece.view_as(tensor))

    def gather(self, value: T) -> list[T]:
        found: list[Any] = [None] * self.size
        with self._together("the gathering of results"):
            self.dist.all_gather_object(found, value, group=self.control)
        return found

    def broadcast(self, value: T) -> T:
        found: list[Any] = [value]
        with self._together("the next work", STAGE_SECONDS):
            self.dist.broadcast_object_list(found, src=0, group=self.patient)
        result: T = found[0]
        return result

    def barrier(self) -> None:
        with self._together("a barrier"):
            self.dist.barrier(group=self.control)

    @contextlib.contextmanager
    def in_step(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as problem:
            if GLOO not in str(problem):
                raise
            if TIMED_OUT in str(problem):
                raise TrainingFailed(_missed([], self.size, "a pass of the model", TOGETHER_SECONDS)) from problem
            raise PeerGone(f"{self.name} was left alone in a pass of the model ({problem})") from problem

    def leave(self) -> None:
        self.barrier()
        self.dist.destroy_process_group()

    @contextlib.contextmanager
    def _together(self, what: str, limit_seconds: float | None = None) -> Iterator[None]:
        """Around what all do: TrainingFailed names who did not come in time, PeerGone means that one has ended."""
        limit_seconds = TOGETHER_SECONDS if limit_seconds is None else limit_seconds
        self.count += 1
        began = time.monotonic()
        try:
            yield
        except RuntimeError as problem:  # every error of torch.distributed is one
            if type(problem).__name__ == "OutOfMemoryError":
                raise
            if time.monotonic() - began < 0.9 * limit_seconds:
                raise PeerGone(f"{self.name} was left alone at {what} ({problem})") from problem
            raise TrainingFailed(_missed(self._missing(), self.size, what, limit_seconds)) from problem

    def _missing(self) -> list[int]:
        """Who does not wait for what this process waits for: the others notice its failure at the same moment."""
        marks = {rank: f"waited/{self.count}/{rank}" for rank in range(self.size)}
        with contextlib.suppress(RuntimeError):  # where the store is gone nobody can be named
            self.store.set(marks[self.rank], "1")
            return _wait_for(self.store, marks, NEWS_SECONDS)
        return []


def joined(device: str = "auto") -> Crew:
    """The crew that torchrun's environment tells of (RANK, WORLD_SIZE, LOCAL_RANK), else ALONE.

    `device`: `cpu`, `cuda`, or auto: cuda where torch finds one. On cuda the process's GPU is chosen by LOCAL_RANK.
    Nothing of the crew is left in the environment. Errors: HostUnfit where there is no GPU for it; TrainingFailed,
    which names the missing, when not all came within JOIN_SECONDS.
    """
    size = int(os.environ.get("WORLD_SIZE") or 1)
    if size < 2 or not os.environ.get("RANK"):
        return ALONE
    import torch
    import torch.distributed as dist

    rank = int(os.environ["RANK"])
    on_gpu = torch.cuda.is_available() if device == "auto" else device == "cuda"
    if on_gpu:
        own, count = int(os.environ.get("LOCAL_RANK") or rank), torch.cuda.device_count()
        if own >= count:
            raise HostUnfit(f"{of_rank(rank, size)} has no GPU: torch sees {count} of them; lower num_processes")
        torch.cuda.set_device(own)
    address = os.environ.get(MEETING_VARIABLE) or "env://"
    wait = timedelta(seconds=JOIN_SECONDS)
    store, rank, size = next(dist.rendezvous(address, rank, size, timeout=wait))
    store = dist.PrefixStore("crew", store)
    marks = {number: f"here/{number}" for number in range(size)}
    store.set(marks[rank], "1")
    if missing := _wait_for(store, marks, JOIN_SECONDS):
        raise TrainingFailed(_missed(missing, size, "the meeting", JOIN_SECONDS))
    crew = Joined(rank, size, store, "nccl" if on_gpu else "gloo")
    for name in TORCHRUN_VARIABLES:
        os.environ.pop(name, None)
    return crew


def of_rank(rank: int, size: int) -> str:
    """How people count: `process 1 of 2` is rank 0."""
    return f"process {rank + 1} of {size}"


def _wait_for(store: Any, marks: dict[int, str], seconds: float) -> list[int]:
    """The ranks whose mark is not in the store after so many seconds."""
    deadline = time.monotonic() + seconds
    while missing := [rank for rank, mark in marks.items() if not store.check([mark])]:
        if time.monotonic() >= deadline:
            break
        time.sleep(0.05)
    return missing


def _missed(missing: list[int], size: int, what: str, seconds: float) -> str:
    who = " and ".join(of_rank(rank, size) for rank in missing) or f"one of {size} processes"
    return f"{who} did not come to {what} within {seconds:g} s; look at the log for what holds it up"
