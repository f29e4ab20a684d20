"""Build a bundle: the files that a whitelist selects, in one archive with its checksums and the program that applies
it. No torch, controller only."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from trainer import content
from trainer.bundle import application, packing, placing, provenance, reading, tree, whitelist
from trainer.bundle.names import checked, shown
from trainer.bundle.progress import Progress
from trainer.bundle.reader import Caps
from trainer.config import raise_findings
from trainer.errors import InputError, Interrupted

CHECKOUT = Path(__file__).resolve().parents[2]
DEFAULT_FOLDER = Path("outputs", "bundles")
DEFAULT_NAME = "stagegate-{source_id}.tar.gz"
MOST_FINDINGS = 50  # shown at once


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bundle build`."""
    parser.add_argument("--source", type=Path, default=CHECKOUT, metavar="DIR", help="default: this checkout")
    parser.add_argument(
        "--output", type=Path, default=None, metavar="FILE.tar.gz",
        help=f"default: {DEFAULT_FOLDER / DEFAULT_NAME.format(source_id='ID')} in the project root",
    )  # fmt: skip
    parser.add_argument(
        "--whitelist", type=Path, default=None, metavar="FILE",
        help=f"what goes in (default: {whitelist.NAME} in the source)",
    )  # fmt: skip


def run(arguments: argparse.Namespace, root: Path) -> dict[str, Any]:
    """Build as the options say; `root` is the folder of the default output."""
    output = arguments.output
    if output is None:
        folder = root / DEFAULT_FOLDER
        with placing.refused_by_disk(folder):
            folder.mkdir(parents=True, exist_ok=True)
        output = folder / DEFAULT_NAME
    progress = Progress("packing")
    try:
        with _ended_by_signals():
            return build(arguments.source.expanduser(), output.expanduser(), arguments.whitelist, progress)
    finally:
        progress.close()


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """TERM and HUP end a build as Ctrl-C does: it removes what it made."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise Interrupted(f"stopped by {signal.Signals(number).name}: nothing was built; run it again")

    wanted = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]
    for number in wanted:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in wanted:
            signal.signal(number, signal.SIG_DFL)


def build(source: Path, output: Path, selection: Path | None, progress: Callable[[int, int], None]) -> dict[str, Any]:
    """Write the bundle `output` and the three files beside it. `selection`: the whitelist, None for that in the source.

    A `{source_id}` in the name of the output becomes the id that the tree has after an apply. Returns {"changed"
    (False: the same files lay there), "bundle", "source_id", "files", "bytes", "packed_bytes", "commit", "made_at",
    "left_out", "lines"}. InputError when the source is not to be packed, all findings at once, or changes meanwhile;
    HostUnfit when the disk refuses. Whatever happens, the files under the names of the output are those of one bundle,
    or lack its checksum.
    """
    source, output = _resolved(source), Path(os.path.abspath(output))
    chosen = whitelist.load(selection or source / whitelist.NAME)
    checked(os.fsencode(output.name), "the output")
    placing.check_places(output)
    is_output = _recognised(source, output)
    looked_at = time.time()
    found = tree.look(source, chosen, is_output, Caps())
    _refuse(found)
    origin = provenance.of(source, found.files)
    with placing.refused_by_disk(output.parent), placing.making(output.parent) as made:
        with (made / "archive").open("wb") as stream:
            packed = packing.pack(source, found.files, origin, stream, progress)
        _check_unchanged(found, tree.look(source, chosen, is_output, Caps()))
        reading.check_fresh(source, found.files, packed.digests, looked_at)
        source_id = content.source_id(packed.entries)
        output = output.with_name(output.name.replace("{source_id}", source_id))
        _write_others(made, output, packed)
        packed_bytes = (made / output.name).stat().st_size
        is_new = placing.place(made, output)
    return {
        "changed": is_new,
        "bundle": str(output),
        "source_id": source_id,
        "files": len(found.files),
        "bytes": sum(stamp.size_bytes for stamp in found.files.values()),
        "packed_bytes": packed_bytes,
        "commit": origin.commit,
        "made_at": origin.made_at,
        "left_out": list(found.left_out),
        "lines": _lines(output, found, packed_bytes, origin.lines),
    }


def _resolved(source: Path) -> Path:
    if not source.is_dir():
        raise InputError(f"the source {str(source)!r} is not a folder; name a source tree with --source")
    return source.resolve()


def _recognised(source: Path, output: Path) -> Callable[[str], bool]:
    """Whether a path of the source is one of the files that this build writes, or a folder of such a build."""
    folder = output.parent.resolve()
    if folder != source and source not in folder.parents:
        return lambda name: False
    prefix = "" if folder == source else folder.relative_to(source).as_posix() + "/"
    own = {prefix + name for name in placing.names_of(output).values()}
    return lambda name: name in own or name.startswith(prefix + placing.MAKING)


def _refuse(found: tree.Tree) -> None:
    """InputError with what was found, of very many findings with the first ones."""
    more = len(found.findings) - MOST_FINDINGS
    shortened = found.findings[:MOST_FINDINGS]
    if more > 0:
        shortened.insert(0, f"{more} more findings like these are not shown")
    raise_findings(shortened)


def _check_unchanged(before: tree.Tree, after: tree.Tree) -> None:
    changes = tree.changes(before, after)
    if changes:
        more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
        raise reading.Changed(f"{reading.AGAIN} ({', '.join(changes[:3])}{more})")


def _write_others(made: Path, output: Path, packed: packing.Packed) -> None:
    """Name the archive in the folder `made` and write the other files beside it."""
    names = placing.names_of(output)
    os.rename(made / "archive", made / names["bundle"])
    (made / names["manifest"]).write_bytes(packed.manifest)
    (made / names["application"]).write_bytes(application.build())
    (made / names["sha256"]).write_bytes(f"{packed.sha256}  {output.name}\n".encode())


def _lines(output: Path, found: tree.Tree, packed_bytes: int, notes: list[str]) -> list[str]:
    left_out = [f"left out: {shown(name)}, {kind}" for name, kind in found.left_out.items()]
    if len(left_out) > MOST_FINDINGS:
        left_out = [*left_out[:MOST_FINDINGS], f"left out: {len(left_out) - MOST_FINDINGS} more"]
    size = f"{packed_bytes / (1 << 20):.1f} MiB" if packed_bytes >= 1 << 20 else f"{packed_bytes} bytes"
    return [*left_out, *notes, f"{output}: {len(found.files)} files, {size}"]
