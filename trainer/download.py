"""Files over HTTP that go on where they broke off and count only when their content is the published one. No torch.

huggingface_hub 2.4 throws a partial file away when its download ends without success and compares sizes, not
hashes; for 16 GB over a line that breaks both matter, and one way serves Hugging Face and ModelScope alike.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path

from trainer.repositories import RemoteFile, SourceFailed, brief

PARALLEL = 4
ATTEMPTS = 5  # in a row without a new byte
RETRY_SECONDS = 1.0  # before the second attempt; doubled for each further one
CONNECT_SECONDS = 15.0
STALL_SECONDS = 60.0  # without a byte
PIECE_BYTES = 1 << 20
TELL_SECONDS = 10.0

Tell = Callable[[int, int, float], None]  # bytes there, bytes in all, bytes per second


class Stopped(Exception):
    """Another file failed; this one keeps what it has."""


class Progress:
    """Bytes that are there, counted by several threads."""

    def __init__(self, there: int, total: int) -> None:
        self.there, self.total = there, total
        self._begun, self._first = time.monotonic(), there
        self._lock = threading.Lock()
        self.stop = threading.Event()

    def add(self, count: int) -> None:
        with self._lock:
            self.there += count

    @property
    def rate(self) -> float:
        """Mean bytes per second since the beginning."""
        return max(self.there - self._first, 0) / max(time.monotonic() - self._begun, 1e-3)


def matches(path: Path, file: RemoteFile) -> bool:
    """Whether a file on disk has the published content, by its sha256 or else its git blob id."""
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    digest = hashlib.sha256() if file.sha256 else hashlib.sha1(usedforsecurity=False)
    if not file.sha256:
        if not file.blob_id:
            return False
        digest.update(f"blob {file.size}\0".encode())
    with path.open("rb") as stream:
        while piece := stream.read(PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest() == (file.sha256 or file.blob_id)


def partial(target: Path) -> Path:
    """Where a file lies until it is whole and verified."""
    return target.with_name(f"{target.name}.part")


def fetch_all(
    folder: Path, files: Mapping[str, RemoteFile], url: Callable[[str], str], token: str | None, tell: Tell, total: int
) -> None:
    """Fetch files into a folder, several at a time, each verified; `total` is the size of the whole model.

    Errors: SourceFailed (what arrived stays for the next try), OSError of the disk.
    """
    missing = sum(file.size - _have(partial(folder / name)) for name, file in files.items())
    progress = Progress(total - missing, total)
    with ThreadPoolExecutor(PARALLEL, thread_name_prefix="download") as pool:
        # The large ones first: small ones fill the gaps.
        order = sorted(files, key=lambda name: -files[name].size)
        waiting: set[Future[None]] = {
            pool.submit(fetch, folder / name, files[name], url(name), token, progress) for name in order
        }
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=TELL_SECONDS, return_when=FIRST_EXCEPTION)
                tell(progress.there, progress.total, progress.rate)
                for finished in done:
                    finished.result()
        finally:
            progress.stop.set()
            for future in waiting:
                future.cancel()


def fetch(target: Path, file: RemoteFile, url: str, token: str | None, progress: Progress) -> None:
    """One file to its place; a damaged one is fetched once more from its first byte."""
    for last in (False, True):
        _fill(partial(target), file, url, token, progress)
        if matches(partial(target), file):
            with partial(target).open("rb") as stream:
                os.fsync(stream.fileno())
            os.replace(partial(target), target)
            return
        partial(target).unlink()
        progress.add(-file.size)
        if last:
            raise SourceFailed("damaged", f"{target.name} arrived damaged twice (another content than published)")


def probe(url: str, token: str | None) -> None:
    """SourceFailed when a file of a repository is refused or out of reach; none of it is read."""
    import httpx2
    from huggingface_hub import get_session

    headers = {"Accept-Encoding": "identity", **({"Authorization": f"Bearer {token}"} if token else {})}
    try:
        answer = get_session().head(url, headers=headers, timeout=CONNECT_SECONDS, follow_redirects=False)
    except (httpx2.HTTPError, OSError) as problem:
        raise SourceFailed("unreachable", brief(problem)) from None
    _refuse(answer.status_code, url.rpartition("/")[2])


def _refuse(status: int, name: str) -> None:
    """SourceFailed for an answer that another try does not change."""
    if status in (401, 403):
        raise SourceFailed("refused", f"{name} was refused ({status})")
    if status in (404, 410):
        raise SourceFailed("missing", f"{name} is not there")


def _have(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _fill(part: Path, file: RemoteFile, url: str, token: str | None, progress: Progress) -> None:
    """Make the partial file as long as it must be, however often the line breaks while it still grows."""
    import httpx2

    if _have(part) > file.size:
        part.unlink()
    part.touch()
    failures = 0
    while (have := _have(part)) < file.size:
        if progress.stop.is_set():
            raise Stopped
        try:
            _receive(part, have, file.size, url, token, progress)
            why = "the connection ended early"
        except (httpx2.HTTPError, ConnectionError, TimeoutError) as problem:
            why = brief(problem)
        failures = 0 if _have(part) > have else failures + 1
        if failures >= ATTEMPTS:
            raise SourceFailed("unreachable", f"{part.stem} broke off at {have} of {file.size} bytes ({why})")
        if failures:
            progress.stop.wait(RETRY_SECONDS * 2 ** (failures - 1))


def _receive(part: Path, have: int, size: int, url: str, token: str | None, progress: Progress) -> None:
    """Append what one answer brings; the HTTP client drops the token when it is sent to another host."""
    import httpx2
    from huggingface_hub import get_session

    headers = {"Accept-Encoding": "identity", **({"Authorization": f"Bearer {token}"} if token else {})}
    if have:
        headers["Range"] = f"bytes={have}-"
    timeout = httpx2.Timeout(STALL_SECONDS, connect=CONNECT_SECONDS)
    with get_session().stream("GET", url, headers=headers, timeout=timeout, follow_redirects=True) as answer:
        _refuse(answer.status_code, part.stem)
        if answer.status_code >= 400:
            raise ConnectionError(f"it answered {answer.status_code}")
        begins = answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if have and not (answer.status_code == 206 and begins):  # it sends the whole file
            part.write_bytes(b"")
            progress.add(-have)
            have = 0
        with part.open("ab") as stream:
            for piece in answer.iter_bytes():  # as they come: collected pieces would be lost with the line
                if progress.stop.is_set():
                    raise Stopped
                piece = piece[: size - have]
                stream.write(piece)
                have += len(piece)
                progress.add(len(piece))


def is_full_disk(problem: OSError) -> bool:
    """Whether an error of the operating system says that there is no space left."""
    return problem.errno in (errno.ENOSPC, errno.EDQUOT)
