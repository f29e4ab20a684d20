"""Copies of base models on this host: whole or not, fetched, verified. No torch.

`models/<org>--<name>/<commit>/` is a copy, whole when its manifest.json, written last, is there.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from trainer import digest, download, hub
from trainer.config import Parameters
from trainer.errors import HostUnfit
from trainer.repositories import TITLES, Listing, SourceFailed, endpoint_of, look_up
from trainer.state import SCHEMA, Layout, now, read_json, write_json

Say = Callable[[str], None]
MANIFEST = "manifest.json"
SPARE_BYTES = 64 << 20


def location(layout: Layout, listing: Listing) -> Path:
    """The folder of the copy of a listing's commit."""
    return hub.home(layout, listing.name) / listing.commit


def is_complete(layout: Layout, listing: Listing) -> bool:
    """Whether the copy is whole: sizes and times as in its manifest, or else the content as published."""
    told = _manifest(layout, listing)
    folder = location(layout, listing)
    return told is not None and all(
        _stamp(folder / name) == told[name] or download.matches(folder / name, file)
        for name, file in listing.files.items()
    )


def fetch(parameters: Parameters, layout: Layout, say: Say = print, phase: Say = lambda name: None) -> Path:
    """The folder of the base model's copy, which is fetched first when it is not whole.

    `say` gets lines, `phase` hears `downloading` and then `loading`. Without a manifest every file is read again.
    Errors: those of `resolve`, HostUnfit when no source delivers or the disk is full.
    """
    listing = hub.resolve(parameters, layout)
    folder = location(layout, listing)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder.parent):
        if not is_complete(layout, listing):
            phase("downloading")
            (folder / MANIFEST).unlink(missing_ok=True)
            _complete(parameters, layout, listing, say)
            say(f"base model {listing.name}: whole and verified, commit {listing.commit}")
            phase("loading")
        if _manifest(layout, listing) != {name: _stamp(folder / name) for name in listing.files}:
            _write_manifest(folder, listing)
    if note := hub.moved(parameters, layout):
        say(note)
    return folder


def _complete(parameters: Parameters, layout: Layout, listing: Listing, say: Say) -> None:
    """Fetch what is not there with the published content."""
    folder = location(layout, listing)
    missing = {name: file for name, file in listing.files.items() if not download.matches(folder / name, file)}
    for name in missing:
        (folder / name).unlink(missing_ok=True)
    _check_space(folder, listing, missing)
    hub.use_network(parameters)
    try:
        _from_any(parameters, layout, listing, missing, say)
    except OSError as problem:
        if download.is_full_disk(problem):
            raise HostUnfit(_too_small(folder, listing, missing)) from None
        raise


def _from_any(parameters: Parameters, layout: Layout, pin: Listing, missing: dict[str, Any], say: Say) -> None:
    """Fetch the missing files from the pinned source, or from another one that holds the same content."""
    folder = location(layout, pin)

    def tell(there: int, total: int, rate: float) -> None:
        left = f", {(total - there) / rate / 60:.0f} min left" if rate > 0 and there < total else ""
        say(f"downloading {pin.name}: {size(there)} of {size(total)}, {size(int(rate))}/s{left}")

    failures: list[tuple[str, str, SourceFailed]] = []
    for source in [pin.source, *(name for name in hub.sources(parameters) if name != pin.source)]:
        endpoint = endpoint_of(source, parameters.hf_endpoint)
        token = hub.token(layout) if source == "hub" else None
        try:
            there = Listing(**{**pin.__dict__, "endpoint": endpoint})
            if source != pin.source:
                there = look_up(source, endpoint, pin.name, parameters.model_revision, token)
                if not there.holds(pin):
                    raise SourceFailed("other", f"its {there.revision} holds other files than the pinned commit")
            left = {name: file for name, file in missing.items() if not (folder / name).exists()}
            say(f"downloading {pin.name} from {TITLES[source]} ({endpoint}), commit {there.commit}")
            download.fetch_all(folder, left, there.url, token, tell, pin.size)
            return
        except SourceFailed as problem:
            failures.append((source, endpoint, problem))
            say(f"{TITLES[source]} ({endpoint}) failed: {problem}")
            if problem.kind == "refused":
                break
    raise hub.none_left(parameters, layout, failures)


def missing_bytes(layout: Layout, listing: Listing) -> int:
    """What is still to be fetched for a copy, as far as files that are there tell by their names."""
    return _needed(location(layout, listing), dict(listing.files))


def check_access(parameters: Parameters, layout: Layout, listing: Listing) -> None:
    """InputError when the files are refused (a gated model lists them all the same), HostUnfit on a small disk."""
    folder = location(layout, listing)
    _check_space(folder, listing, dict(listing.files))
    if listing.source == "hub" and "config.json" in listing.files:
        hub.use_network(parameters)
        try:
            download.probe(listing.url("config.json"), hub.token(layout))
        except SourceFailed as problem:
            raise hub.none_left(parameters, layout, [(listing.source, listing.endpoint, problem)]) from None


def size(count: int) -> str:
    """Bytes as people read them: 16.4 GB."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"


def _manifest(layout: Layout, listing: Listing) -> dict[str, Any] | None:
    """{file: stamp} of a copy that was whole once, None for any other."""
    record = read_json(location(layout, listing) / MANIFEST)
    if record is None or set(record["files"]) != set(listing.files):
        return None
    return {name: told["stamp"] for name, told in record["files"].items()}


def _stamp(path: Path) -> list[int]:
    try:
        status = path.stat()
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]


def _write_manifest(folder: Path, listing: Listing) -> None:
    files = {
        name: {"stamp": _stamp(folder / name), "sha256": file.sha256 or digest.of_file(folder / name)}
        for name, file in listing.files.items()
    }
    record = {"name": listing.name, "source": listing.source, "commit": listing.commit, "files": files}
    write_json(folder / MANIFEST, {"schema": SCHEMA, "completed_at": now(), **record})


def _check_space(folder: Path, listing: Listing, missing: dict[str, Any]) -> None:
    if missing and _needed(folder, missing) + SPARE_BYTES > free_bytes(folder):
        raise HostUnfit(_too_small(folder, listing, missing))


def free_bytes(folder: Path) -> int:
    """Bytes free where a folder lies or will lie."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(there).free


def _needed(folder: Path, missing: dict[str, Any]) -> int:
    parts = {name: download.partial(folder / name) for name in missing}
    there = {name: part.stat().st_size if part.exists() else 0 for name, part in parts.items()}
    return sum(max(file.size - there[name], 0) for name, file in missing.items() if not (folder / name).exists())


def _too_small(folder: Path, listing: Listing, missing: dict[str, Any]) -> str:
    return (
        f"the base model {listing.name} still needs {size(_needed(folder, missing))} in {folder.parent}, where "
        f"{size(free_bytes(folder))} are free; make room there or put the project root on a larger disk"
    )


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time fetches into a model's folder; another one waits and then finds it whole."""
    with (folder / ".lock").open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
