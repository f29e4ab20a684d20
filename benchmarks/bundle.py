"""How fast a bundle is built and applied, beside tar and sha256sum.

    python benchmarks/bundle.py [--mib 1024] [--files 10000] [--rounds 5] [--folder /dev/shm]

Three trees: one file of random bytes, one of JSONL text (both of --mib), and --files files of 2 KiB. In each round
every way works on the same tree, one after the other, so that a slow minute of the machine meets all of them: `bundle
build` beside `tar -czf`, and `bundle apply` into an empty project root beside `tar -xzf` with `sha256sum -c`. A build
also hashes, looks for secrets and checks that nothing changed; an apply also checks the outer sha256 and keeps what is
there. All commands start anew and count as a whole. The folder needs five times --mib.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
WORDS = [
    "".join(random.Random(number).choices("etaoinshrdlu电场势能", k=2 + number % 9)) for number in range(4000)
]  # of text with about the redundancy of chat samples
SMALL_BYTES = 2048


def random_file(folder: Path, mib: int, files: int) -> None:
    with (folder / "weights.bin").open("wb") as stream:
        for _ in range(mib):
            stream.write(os.urandom(1 << 20))


def text_file(folder: Path, mib: int, files: int) -> None:
    source, left = random.Random(1), mib << 20
    with (folder / "rows.jsonl").open("wb") as stream:
        while left > 0:
            rows = (f'{{"id": "{source.getrandbits(60)}", "content": "{words(source, 80)}"}}' for _ in range(500))
            data = ("\n".join(rows) + "\n").encode()[:left]
            left -= stream.write(data)


def small_files(folder: Path, mib: int, files: int) -> None:
    source = random.Random(2)
    for number in range(files):
        data = words(source, SMALL_BYTES // 4).encode()[:SMALL_BYTES].ljust(SMALL_BYTES)
        path = folder / f"{number % 100:02}" / f"sample_{number}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)


def words(source: random.Random, count: int) -> str:
    return " ".join(source.choices(WORDS, k=count))


TREES: dict[str, Callable[[Path, int, int], None]] = {
    "{mib} MiB of random bytes": random_file,
    "{mib} MiB of JSONL text": text_file,
    "{files} files of 2 KiB": small_files,
}


def timed(*commands: list[str | Path], cwd: Path) -> float:
    """Seconds of commands that must end well."""
    began = time.monotonic()
    for command in commands:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stdout[-2000:] + done.stderr[-2000:])
    return time.monotonic() - began


def measure(folder: Path) -> dict[str, float]:
    """One round on the tree in folder/source; seconds by way. Leaves nothing but the tree."""
    trainer: list[str | Path] = [sys.executable, "-m", "trainer", "bundle"]
    ours, theirs, unpacked = folder / "x.tar.gz", folder / "y.tar.gz", folder / "unpacked"
    unpacked.mkdir()
    found = {
        "bundle build": timed([*trainer, "build", "--source", folder / "source", "--output", ours], cwd=REPOSITORY),
        "tar -czf": timed(["tar", "-czf", theirs, "data"], cwd=folder / "source"),
    }
    theirs.unlink()
    root = folder / "root"
    apply: list[str | Path] = [*trainer, "apply", "--bundle", ours, "--project-root", root]
    found["bundle apply"] = timed(apply, cwd=REPOSITORY)
    shutil.rmtree(root)
    check: list[str | Path] = ["sha256sum", "--quiet", "-c", "SYNC_MANIFEST.sha256"]
    found["tar -xzf, sha256sum -c"] = timed(["tar", "-xzf", ours], check, cwd=unpacked)
    shutil.rmtree(unpacked)
    for path in folder.glob("x.*"):
        path.unlink()
    return found


def table(title: str, rounds: list[dict[str, float]]) -> str:
    """The markdown table of a tree: each way, and its ratio to the one it stands beside."""
    rows = [f"{title}, {len(rounds)} rounds", "", "| way | min s | median s | max s | ratio (median of the pairs) |"]
    rows.append("|---|---|---|---|---|")
    names = list(rounds[0])
    for place, name in enumerate(names):
        values = [found[name] for found in rounds]
        beside = names[place | 1]  # ours and theirs come in pairs
        ratio = statistics.median(found[name] / found[beside] for found in rounds)
        figures = " | ".join(f"{value:.2f}" for value in (min(values), statistics.median(values), max(values)))
        rows.append(f"| {name} | {figures} | {ratio:.2f} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"))
    arguments = parser.parse_args()
    for title, make in TREES.items():
        with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="stagegate_") as name:
            data = Path(name) / "source" / "data"
            data.mkdir(parents=True)
            (data.parent / ".bundleinclude").write_text("data/\n", encoding="utf-8")
            make(data, arguments.mib, arguments.files)
            time.sleep(3)  # what was written just now would be read twice
            rounds = [measure(Path(name)) for _ in range(arguments.rounds)]
        print(table(title.format(mib=arguments.mib, files=arguments.files), rounds) + "\n", flush=True)


if __name__ == "__main__":
    main()
