"""The commands that hand files over: the source to a host, results from a host to the controller. No torch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from trainer import arrival, artifacts, content, courier, listing, publication, release, repository, source, steps
from trainer.answers import Arguments, answer, training_root
from trainer.errors import InputError, NotReady
from trainer.state import Layout


def show_source(arguments: Arguments, root: Path) -> int:
    """hash, pin, pack: of the checkout that this code is; verify, publish: of the tree in the current folder."""
    here = steps.code_root()
    if arguments.action == "pack":
        if arguments.output is None:
            raise InputError("source pack needs --output FILE, the archive to write; - is standard output")
        if str(arguments.output) == "-":
            source.pack(here, sys.stdout.buffer)
            return 0
        with arguments.output.open("wb") as stream:
            found = source.pack(here, stream)
    elif arguments.action == "pin":
        found = repository.pin(here, arguments.url, arguments.revision)
    elif arguments.action == "verify":
        found = _verified(Path.cwd(), arguments)
    elif arguments.action == "publish":
        found = release.publish(Layout(root), Path.cwd(), arguments.expect, arguments.commit)
    else:
        found = {**source.describe(here), "commit": repository.commit_of(here)}
    words = [*found.get("lines", []), found.get("source_id") or found["commit"]]
    answer(arguments, found if arguments.json else {"lines": words})
    return 0


def _verified(folder: Path, arguments: Arguments) -> dict[str, Any]:
    record = content.read_record(folder)
    if record is None:
        return {"source_id": content.verify(folder, arguments.expect), "commit": ""}
    record = content.check_release(folder, arguments.expect or record["source_id"])
    if arguments.commit and arguments.commit != record["commit"]:
        raise InputError(f"the code in {folder} is of commit {record['commit'] or 'unknown'}, not {arguments.commit}")
    return {"source_id": record["source_id"], "commit": record["commit"]}


def collect(arguments: Arguments, root: Path) -> int:
    layout = training_root(root)
    if not layout.plan.exists():
        raise NotReady(f"nothing was trained in {root} yet, so there is nothing to collect; run a stage first")
    answer(arguments, artifacts.collect(layout, arguments.anew))
    return 0


def export(arguments: Arguments, root: Path) -> int:
    layout, export_id, token = Layout(root), arguments.export_id, arguments.token
    if arguments.end:
        answer(arguments, artifacts.end_export(layout, export_id, token))
    else:
        piece = (arguments.files, arguments.offset, arguments.most_bytes)
        answer(arguments, artifacts.export(layout, export_id, *piece, token))
    return 0


def receive(arguments: Arguments, root: Path) -> int:
    caps = listing.Caps(arguments.max_file_bytes, arguments.max_total_bytes)
    order = arrival.Order(arguments.host_root, arguments.export_id, arguments.output_dir.resolve(), caps)
    pipe = courier.Pipe()
    pipe.answer(arrival.receive(order, pipe))
    return 0


def imported(arguments: Arguments, root: Path) -> int:
    answer(arguments, publication.imported(arguments.output_dir.resolve()))
    return 0
