"""`make bench`: every benchmark of the trainer that needs no GPU and no root, one after the other, as one document.

    python benchmarks/suite.py [--output benchmarks/results/cpu.md] [--only line,training] [--long]

The settings end within some twenty-five minutes on two quiet cores; --long takes more rounds and a million rows. What
each benchmark prints is shown as it comes and written as soon as it is complete. One that fails is named, the others
run, and the exit code is 5.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import REPOSITORY, embedded_base

# {benchmark: (options, options of --long)}
SUITE: dict[str, tuple[list[str], list[str]]] = {
    "line": (["--rounds", "1"], ["--rounds", "3"]),
    "training": (["--rounds", "2", "--steps", "16"], ["--rounds", "5", "--steps", "32"]),
    "generation": (["--rounds", "1", "--rows", "24"], ["--rounds", "3"]),
    "rows": (["--sizes", "10000", "100000"], []),
}
TITLE = """# Measured without a GPU

Made by `make bench`, with nothing else running. What is compared and how: ../README.md."""


def run(name: str, options: list[str]) -> tuple[int, str]:
    """The exit code of a benchmark and what it printed, which is shown meanwhile."""
    command = [sys.executable, str(REPOSITORY / "benchmarks" / f"{name}.py"), *options]
    lines: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8", cwd=REPOSITORY) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    return process.returncode, "".join(lines).strip()


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--output", type=Path, default=REPOSITORY / "benchmarks" / "results" / "cpu.md")
    parser.add_argument("--only", default=",".join(SUITE), help=f"of {', '.join(SUITE)}")
    parser.add_argument("--long", action="store_true", help="more rounds, and a million rows")
    given = parser.parse_args(words)
    chosen = [name.strip() for name in given.only.split(",")]
    if wrong := [name for name in chosen if name not in SUITE]:
        print(f"error: there is no benchmark {wrong[0]!r}; give some of {', '.join(SUITE)}", file=sys.stderr)
        return 2
    print("the embedded base:", embedded_base().name, file=sys.stderr)  # built now, so that no benchmark waits for it
    parts, failed = [TITLE], []
    for name in chosen:
        began = time.monotonic()
        code, text = run(name, SUITE[name][given.long])
        print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr)
        if code:
            failed.append(name)
            text += (
                f"\n\n`benchmarks/{name}.py` ended with exit code {code}: what it had measured by then stands above."
            )
        parts.append(text.strip())
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    if failed:
        print(f"error: {', '.join(failed)} failed; what they say stands above", file=sys.stderr)
    return 5 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
