"""Writes constraints.txt and trainer.lock anew from the direct requirements: `make lock`, `make lock ARGS=--upgrade`.

Versions that still fit stay, unless --upgrade is given. uv reads the index's metadata and installs nothing, so it needs
neither a GPU nor gigabytes; the lock holds the hashes of all files of a version, for every Python and processor.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
# torch and what only its CUDA builds bring: their files differ by host, so that one hash would be wrong elsewhere.
BY_HOST = re.compile(r"(?:torch|triton|nvidia-[\w.-]+|cuda-[\w.-]+)==")
HEAD = """\
# Everything that a training host needs beside torch, with the hashes of all files of each version; made by `make lock`.
# Left out, as it differs by host (versions: what the public index has for {torch} on Linux):
{left_out}
"""
CONSTRAINTS_HEAD = "# Every version that a working environment was tested with; made by `make lock`.\n"


def compiled(*arguments: str) -> list[str]:
    """Blocks of uv's answer, each a requirement with its hashes."""
    command = ["uv", "pip", "compile", "--no-config", "--quiet", "--universal", "--python-version=3.11", "--no-header"]
    done = subprocess.run(
        [sys.executable, "-m", *command, "--no-annotate", *arguments],
        cwd=FOLDER, stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        sys.exit("error: the requirements could not be resolved; look at the lines above")
    return re.findall(r"(?m)^\S.*(?:\n[ \t]+\S.*)*", done.stdout)


def for_linux(block: str) -> bool:
    """Whether a Linux machine may need it."""
    return not re.search(r"sys_platform == '(?:win32|emscripten|darwin)'", block.partition("\n")[0])


def pin(block: str) -> str:
    """`name==version`, without marker and hashes."""
    return re.split(r"[ ;\\\n]", block, maxsplit=1)[0]


def main(arguments: list[str]) -> None:
    """Write both files; `arguments` go to uv (--upgrade, --upgrade-package=…)."""
    constraints = FOLDER / "constraints.txt"
    kept = [] if "--upgrade" in arguments else [f"--constraint={constraints}"]
    every = [block for block in compiled(*kept, *arguments, "dev.txt") if for_linux(block)]
    pins = [p for p in map(pin, every) if p.startswith("torch==") or not BY_HOST.match(p)]
    constraints.write_text(CONSTRAINTS_HEAD + "\n".join(sorted(pins, key=str.lower)) + "\n", encoding="utf-8")

    blocks = [b for b in compiled("--generate-hashes", f"--constraint={constraints}", "trainer.txt") if for_linux(b)]
    locked = [block for block in blocks if not BY_HOST.match(block)]
    left_out = [pin(block) for block in blocks if BY_HOST.match(block)]
    torch = next(name for name in left_out if name.startswith("torch=="))
    head = HEAD.format(torch=torch, left_out="\n".join(f"#   {name}" for name in left_out))
    (FOLDER / "trainer.lock").write_text(head + "\n".join(locked) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
