"""A stage's rows as tokenised examples on disk: streamed into one Arrow file, mapped from there. No torch.

For files that are too large to be held. A folder `examples-<stage>-<key>` holds `examples.arrow` and, written last,
`manifest.json`; it gets that name when both are complete. The ids do not depend on max_length, so one folder serves
every limit, and the check before a plan leaves it to the plan's worker.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from heapq import merge
from importlib import metadata
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer import digest, encoding, fingerprint, process
from trainer.errors import HostUnfit, InputError, TrainingFailed
from trainer.lines import Finding, Findings, Lines, parse
from trainer.state import StateError, read_json, sync_file, sync_folder, write_json

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

EXAMPLES, MANIFEST = "examples.arrow", "manifest.json"
BLOCK_ROWS = 512  # what a process encodes at a time, and a record batch of the file
AHEAD = 2  # blocks that wait for each process
# A process takes some 3 s and 350 MB to start, and encodes some 8 MB of rows in that time.
BYTES_FOR_PROCESS = 16 << 20
MOST_PROCESSES = 8
Block = list[tuple[int, bytes]]  # line numbers and lines


@dataclass(frozen=True)
class Tokenised:
    """The examples of a file: one for each assistant turn, in the order of the file.

    Columns: input_ids and labels (int32 lists of equal length, labels IGNORED in the prompt), row_id, turn, line,
    length and trained_tokens. `refused` are the rows that the chat template does not render.
    """

    dataset: Dataset
    refused: list[Finding]

    def faults(self, file: str, max_length: int) -> list[Finding]:
        """What `encoding.encode` finds wrong: rows refused, examples too long, examples that train nothing."""
        findings = Findings(file)
        told = [item for item in self.refused if item.count == 1]
        findings.take(list(merge(told, self._examples_at_fault(file, max_length), key=lambda item: item.line)))
        findings.take([item for item in self.refused if item.count > 1])
        return findings.told()

    def _examples_at_fault(self, file: str, max_length: int) -> Iterator[Finding]:
        import pyarrow.compute as compute

        names = ["line", "row_id", "turn", "length", "trained_tokens"]
        for batch in self.dataset.data.table.select(names).to_batches():
            wrong = compute.or_(
                compute.greater(batch["length"], max_length),
                compute.less_equal(batch["trained_tokens"], encoding.SILENT),
            )
            for row in batch.filter(wrong).to_pylist():
                place = file, row["line"], row["row_id"], row["turn"]
                if found := encoding.fault(*place, row["length"], row["trained_tokens"], max_length):
                    yield found


def of_file(
    path: Path, shown: str, sha256: str, stage: str, tokenizer: PreTrainedTokenizerBase, cache: Path,
    *, enable_thinking: bool, processes: int | None = None,
) -> Tokenised:  # fmt: skip
    """The tokenised examples of a data file with this sha256: those in the cache, if they verify, or made now.

    Errors: InputError when the file is another one by now, HostUnfit without room on the disk.
    """
    key = _key(sha256, tokenizer, enable_thinking)
    folder = cache / f"examples-{stage}-{key[:16]}"
    with _alone(cache, stage):
        if not _is_sound(folder, key):
            lines = Lines(path, shown)
            wanted = processes_for(path) if processes is None else processes
            with _fresh(folder) as fresh:
                refused = _write(fresh / EXAMPLES, lines, tokenizer, enable_thinking, wanted)
                if lines.sha256 != sha256:
                    raise InputError(f"{shown} changed while it was read; submit the plan again")
                _seal(fresh, key, refused)
            _remove_others(cache, stage, folder)
        return _mapped(folder, shown)


def processes_for(path: Path) -> int:
    """How many processes are worth their start for a file of this size: one does it alone on a few cores.

    Two thirds of the work are the tokenizer's, whose threads take all cores; processes speed up the rest, too.
    """
    cores = len(os.sched_getaffinity(0))
    return max(1, min(cores // 2, MOST_PROCESSES, path.stat().st_size // BYTES_FOR_PROCESS))


def _key(sha256: str, tokenizer: PreTrainedTokenizerBase, enable_thinking: bool) -> str:
    """sha256 over all that the ids depend on."""
    core = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else sorted(tokenizer.get_vocab().items())
    return digest.of_value(
        {
            "data": sha256,
            "tokenizer": [type(tokenizer).__name__, digest.of_value(core), str(tokenizer.eos_token)],
            "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
            "template": tokenizer.chat_template,
            "enable_thinking": enable_thinking,
            "modules": fingerprint.of_modules(("encoding", "lines", "tokenised")),
            "libraries": [metadata.version(name) for name in ("tokenizers", "transformers", "jinja2")],
        }
    )


def _is_sound(folder: Path, key: str) -> bool:
    """Whether the folder holds what its manifest says, made from the same inputs."""
    try:
        told = read_json(folder / MANIFEST) or {"key": ""}
        return bool(told["key"] == key and digest.of_file(folder / EXAMPLES) == told["sha256"])
    except (OSError, StateError, KeyError):
        return False


@contextlib.contextmanager
def _alone(cache: Path, stage: str) -> Iterator[None]:
    """Whoever comes while another process makes a stage's examples waits, and takes them then.

    A crew takes turns anyway; `trainer check` and the look of a new submission at the data belong to none.
    """
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"examples-{stage}.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _fresh(folder: Path) -> Iterator[Path]:
    """An empty folder beside its later name, which it gets when all went well; HostUnfit when the disk is full."""
    fresh = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        yield fresh
        shutil.rmtree(folder, ignore_errors=True)  # damaged, or it would have been taken
        fresh.rename(folder)
        sync_folder(folder.parent)
    except OSError as problem:
        free = shutil.disk_usage(folder.parent).free >> 20
        raise HostUnfit(
            f"the tokenised rows cannot be written to {folder.parent} ({problem.strerror or problem}, {free} MiB free);"
            " make room there: they take about twice the data file"
        ) from problem
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _seal(folder: Path, key: str, refused: Findings) -> None:
    sync_file(folder / EXAMPLES)
    kept = [asdict(item) for item in refused.told()]
    write_json(
        folder / MANIFEST, {"schema": 1, "key": key, "sha256": digest.of_file(folder / EXAMPLES), "refused": kept}
    )


def _remove_others(cache: Path, stage: str, kept: Path) -> None:
    """Remove what was made for the stage before, and what a process that was killed left unfinished."""
    for folder in cache.glob(f"examples-{stage}-*"):
        if folder != kept:
            shutil.rmtree(folder, ignore_errors=True)
    for folder in cache.glob(f".examples-{stage}-*"):
        shutil.rmtree(folder, ignore_errors=True)


def _mapped(folder: Path, shown: str) -> Tokenised:
    from datasets import Dataset

    told = read_json(folder / MANIFEST) or {"refused": []}
    refused = [Finding(**{**item, "file": shown}) for item in told["refused"]]
    return Tokenised(Dataset.from_file(str(folder / EXAMPLES)), refused)


def _schema() -> pyarrow.Schema:
    import pyarrow as pa

    ids, number = pa.list_(pa.int32()), pa.int32()
    return pa.schema(
        [("input_ids", ids), ("labels", ids), ("row_id", pa.string()), ("turn", number), ("line", pa.int64()),
         ("length", number), ("trained_tokens", number)]
    )  # fmt: skip


def _write(
    path: Path, lines: Lines, tokenizer: PreTrainedTokenizerBase, enable_thinking: bool, processes: int
) -> Findings:
    """Write the examples of all lines as an Arrow stream; returns the findings on rows that the template refuses."""
    import pyarrow as pa

    refused, schema = Findings(lines.shown), _schema()
    with path.open("wb") as stream, pa.ipc.new_stream(stream, schema) as writer:
        for serialised, findings in _encoded(_blocks(lines), tokenizer, enable_thinking, processes):
            writer.write_batch(pa.ipc.read_record_batch(pa.py_buffer(serialised), schema))
            refused.take(findings)
    return refused


def _blocks(lines: Lines) -> Iterator[Block]:
    waiting = lines.raw()
    while block := list(islice(waiting, BLOCK_ROWS)):
        yield block


def _encoded(
    blocks: Iterable[Block], tokenizer: PreTrainedTokenizerBase, enable_thinking: bool, processes: int
) -> Iterator[tuple[bytes, list[Finding]]]:
    """The blocks encoded, in their order; with several processes at most AHEAD for each of them are on the way."""
    if processes < 2:
        _begin(tokenizer, enable_thinking)
        yield from map(encode_block, blocks)
        return
    # Not forked: a copy of a process with threads and a GPU would hold locks that nobody gives back.
    pool: Executor = ProcessPoolExecutor(processes, get_context("spawn"), _begin_child, (tokenizer, enable_thinking))
    under_way: deque[Future[tuple[bytes, list[Finding]]]] = deque()
    with pool:
        try:
            for block in blocks:
                under_way.append(pool.submit(encode_block, block))
                if len(under_way) > AHEAD * processes:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        except BrokenProcessPool as problem:
            raise TrainingFailed(
                "a process that tokenises rows was ended, most often because the memory ran out; free memory and "
                "submit the plan again"
            ) from problem


_with: dict[str, Any] = {}  # the tokenizer of this process and how prompts are rendered


def _begin_child(tokenizer: PreTrainedTokenizerBase, enable_thinking: bool) -> None:
    process.die_with_parent()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread each: the processes share the cores
    _begin(tokenizer, enable_thinking)


def _begin(tokenizer: PreTrainedTokenizerBase, enable_thinking: bool) -> None:
    _with.update(tokenizer=tokenizer, enable_thinking=enable_thinking)


def encode_block(block: Block) -> tuple[bytes, list[Finding]]:
    """A block's examples as a serialised record batch, and the findings on rows that the template refuses.

    A line that is no row gives nothing: the survey of the file has told it, and nothing is trained then.
    """
    import pyarrow as pa

    nowhere, refused = Findings(""), []
    rows = ((number, row) for number, line in block if (row := parse(number, line, nowhere)) is not None)
    columns: dict[str, list[Any]] = {name: [] for name in _schema().names}
    for line, found in encoding.encode_rows(rows, _with["tokenizer"], enable_thinking=_with["enable_thinking"]):
        if isinstance(found, str):
            refused.append(encoding.refusal("", line, found))
            continue
        for one in found:
            values = (one.input_ids, one.labels, one.row_id, one.turn, line, len(one.input_ids), one.trained_tokens)
            for column, value in zip(columns.values(), values, strict=True):
                column.append(value)
    return pa.record_batch(columns, _schema()).serialize().to_pybytes(), refused
