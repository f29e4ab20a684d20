"""Judges a folder of bundles with the Python that runs it.

`python -m tests.unit.trainer.bundle.verdicts FOLDER WORK`: FOLDER holds cases.json (see hostile.write_all), WORK is an
empty folder to apply them in, each into a fresh project root between canaries; one that is refused also into a root
with a release in use. Prints one JSON line for each: {"name", "verify", "apply", "again", "lines", "changed", "staged",
"tree"}. A verdict is the source id, or the kind of the error and its sentence. `lines`: the warnings; `changed`: what
is not as it was outside of the project roots and in them, but for what an accepted bundle brings; `staged`: what is
left in staging; `tree`: name, mode, links and sha256 of the files in use.

Python 3.8 with the standard library alone, like what it judges.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer import content
from trainer.bundle import apply, verify
from trainer.bundle.reader import Caps
from trainer.errors import TrainerError
from trainer.state import Layout


def judged(action: Callable[[], str]) -> dict[str, str]:
    """What an action says: a source id, or what it raised."""
    try:
        return {"source_id": action()}
    except TrainerError as problem:
        return {"error": type(problem).__name__, "sentence": str(problem)}
    except Exception as problem:
        return {"error": "crash", "sentence": repr(problem)}


def snapshot(*folders: Path) -> dict[str, list[Any]]:
    """Everything in some folders: kind and mode, and for files links, time and content."""
    found: dict[str, list[Any]] = {}
    waiting = [str(folder) for folder in folders]
    while waiting:
        folder = waiting.pop()
        found[folder] = [oct(os.lstat(folder).st_mode)]
        for entry in os.scandir(folder):
            state = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(state.st_mode):
                waiting.append(entry.path)
                continue
            found[entry.path] = [oct(state.st_mode), state.st_nlink, state.st_mtime_ns, state.st_ino]
            if stat.S_ISLNK(state.st_mode):
                found[entry.path].append(os.readlink(entry.path))
            elif stat.S_ISREG(state.st_mode):
                found[entry.path].append(sha256(entry.path))
    return found


def sha256(path: str) -> str:
    with open(path, "rb") as stream:
        return hashlib.sha256(stream.read()).hexdigest()


def tree_of(root: Path) -> list[list[Any]]:
    """[name, mode, links, sha256] of each file of the tree in use."""
    found = snapshot(root)
    rows = []
    for path, (mode, *rest) in sorted(found.items()):
        name = os.path.relpath(path, str(root))
        if rest and name != content.RECORD:
            rows.append([name, mode, rest[0], rest[3]])
    return rows


def applied(row: dict[str, Any], root: Path) -> str:
    """Apply one bundle; the source id."""
    caps, bundle = Caps(**row["caps"]), Path(row["bundle"])
    request = apply.Request(Layout(root), bundle, without_sha256=row["without_sha256"], caps=caps)
    return str(apply.apply(request)["source_id"])


def judge(row: dict[str, Any], outside: Path, work: Path, in_use: Path) -> dict[str, Any]:
    """Verify one bundle, then apply it to a fresh root and, when it is refused, to one with a release `in_use`."""
    caps, bundle = Caps(**row["caps"]), Path(row["bundle"])
    guard = work / row["name"]
    root = guard / "guard" / "project"
    root.mkdir(parents=True)
    for folder in (guard, guard / "guard", root):
        (folder / "canary").write_text("alive\n")
    before = snapshot(guard, outside)

    def verified() -> str:
        target = verify.Hashed()
        found = verify.check(bundle, without_sha256=row["without_sha256"], caps=caps, target=target)
        lines.extend(found.lines)
        return content.source_id(found.entries)

    lines: list[str] = []
    answer: dict[str, Any] = {"name": row["name"], "verify": judged(verified), "lines": lines}
    answer["apply"] = judged(lambda: applied(row, root))
    after, used = snapshot(guard, outside), root / "code"
    inside = str(root) + os.sep if used.exists() else None
    answer["changed"] = changed(before, after, inside, str(work))
    if "error" in answer["apply"]:
        before = snapshot(in_use)
        answer["again"] = judged(lambda: applied(row, in_use))
        answer["changed"] += changed(before, snapshot(in_use), None, str(work))
    answer["tree"] = tree_of(used.resolve()) if used.exists() else []
    answer["staged"] = [path.name for path in (root / "releases").glob(".*") if path.name != ".lock"]
    return answer


def changed(
    before: dict[str, list[Any]], after: dict[str, list[Any]], except_below: str | None, work: str
) -> list[str]:
    """The paths that differ, but for those below a folder that were not there before."""
    differ = [path for path in set(before) | set(after) if before.get(path) != after.get(path)]
    new = [path for path in differ if except_below and path.startswith(except_below) and path not in before]
    return sorted(path.replace(work, "<work>") for path in set(differ) - set(new))


def main(folder: Path, work: Path) -> None:
    """Judge every bundle of a folder, the last of which is harmless."""
    rows = json.loads((folder / "cases.json").read_text(encoding="utf-8"))
    in_use = work / "in_use"
    in_use.mkdir()
    applied(rows[-1], in_use)
    for row in rows:
        answer = json.dumps(judge(row, folder / "outside", work, in_use), sort_keys=True)
        print(answer.replace(json.dumps(str(work))[1:-1], "<work>"), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
