"""Source trees to build bundles from, and what stands in an archive."""

from __future__ import annotations

import gzip
import os
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.bundle import whitelist
from trainer.bundle.build import build

TEXTS = {
    "README.md": "# x\n", "data/rows.jsonl": '{"id": 1}\n', "trainer/a.py": "a = 1\n", "trainer/sub/b.py": "b = 2\n",
}  # fmt: skip
WHITELIST = "trainer/\ndata/\nREADME.md\n"


def make(root: Path, texts: Mapping[str, str | bytes] = TEXTS, entries: str = WHITELIST) -> Path:
    """A source tree with these files and this whitelist."""
    for name, text in {**texts, whitelist.NAME: entries}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return root


def built(source: Path, output: Path, **more: Any) -> dict[str, Any]:
    """The answer of a build."""
    return build(source, output, more.get("whitelist"), more.get("progress", lambda done, total: None))


def packed_names(output: Path) -> list[str]:
    with tarfile.open(output) as archive:
        return archive.getnames()


def unpacked(output: Path) -> bytes:
    return gzip.decompress(output.read_bytes())


def commit(root: Path, when: str = "2026-03-04T05:06:07Z") -> str:
    """Make a tree a clone with one commit; returns its name."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("GIT_")},
        "GIT_AUTHOR_DATE": when, "GIT_COMMITTER_DATE": when, "GIT_CONFIG_GLOBAL": os.devnull,
    }  # fmt: skip
    identity = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "commit.gpgsign=false"]
    for words in (["init", "--quiet"], ["add", "--all"], [*identity, "commit", "--quiet", "--message", "one"]):
        subprocess.run(["git", *words], cwd=root, env=environment, check=True, stdin=subprocess.DEVNULL)
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, env=environment, check=True, capture_output=True)
    return done.stdout.decode().strip()
