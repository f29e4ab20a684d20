"""The program that is carried beside a bundle: verify, apply and roll back in one file for Python 3.8. No torch,
controller only.

A zip archive that Python runs as it is (the standard library's "zipapp" form): a start that says in one sentence when
the Python is too old, `trainer.bundle.command`, and the modules that the two import.
"""

from __future__ import annotations

import ast
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

# What a build needs and no host; `command` does without them.
CONTROLLER_ONLY = frozenset(
    f"trainer.bundle.{name}"
    for name in (
        "application", "build", "compress", "exclusions", "leaks", "packing", "placing", "provenance", "reading",
        "tarball", "tree", "whitelist",
    )
)  # fmt: skip
PACKAGES = Path(__file__).resolve().parents[2]
EPOCH = (1980, 1, 1, 0, 0, 0)  # the oldest time that a zip archive can name
SHEBANG = b"#!/usr/bin/env python3\n"
# Read as a whole by the oldest Python around before its first line runs, so: words that every Python knows.
MAIN = '''\
"""Applies a bundle: python3 NAME.apply.pyz apply --bundle NAME.tar.gz --project-root DIR"""
import os
import sys

if sys.version_info < (3, 8):
    sys.stderr.write("error: this is Python %d.%d, and Python 3.8 or newer is needed; " % sys.version_info[:2])
    sys.stderr.write("start it with a newer one, as in: python3.11 %s --help\\n" % os.path.basename(sys.argv[0]))
    sys.exit(4)


def main():
    from pathlib import Path

    from trainer.arguments import Parser
    from trainer.bundle import command
    from trainer.errors import TrainerError

    try:
        Parser.program = "python3 " + os.path.basename(sys.argv[0])
        parser = Parser(prog="bundle", description="Verify a bundle, apply it, or take it back.", allow_abbrev=False)
        command.add_arguments(parser)
        arguments = parser.parse_args()
        root = getattr(arguments, "project_root", None) or os.environ.get("TRAIN_SYNC_PROJECT_ROOT") or "."
        return command.run(arguments, Path(root).expanduser().resolve())
    except TrainerError as problem:
        for line in problem.lines:
            sys.stderr.write(line + "\\n")
        sys.stderr.write("error: %s\\n" % problem)
        return problem.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted\\n")
        return 7
    except BrokenPipeError:  # the reader went away
        sys.stdout = open(os.devnull, "w")
        return 0
    except OSError as problem:
        sys.stderr.write("error: %s: %s\\n" % (problem.strerror or problem, problem.filename or ""))
        return 2


sys.exit(main())
'''


def build() -> bytes:
    """The program's bytes: the same for the same modules."""
    packed = io.BytesIO()
    packed.write(SHEBANG)
    with zipfile.ZipFile(packed, "a", zipfile.ZIP_STORED) as archive:
        _add(archive, "__main__.py", MAIN.encode())
        for name, path in sorted(modules().items()):
            place = name.replace(".", "/") + ("/__init__.py" if path.name == "__init__.py" else ".py")
            _add(archive, place, path.read_bytes())
    return packed.getvalue()


def modules() -> dict[str, Path]:
    """{name: file} of the modules of the trainer that the program imports, directly or not, and of their packages."""
    found: dict[str, Path] = {}
    waiting = list(imported(MAIN.encode(), "__main__"))
    while waiting:
        name = waiting.pop()
        path = _file_of(name)
        if path is None or name in found or name in CONTROLLER_ONLY:
            continue
        found[name] = path
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        waiting += [*imported(path.read_bytes(), package), package.rpartition(".")[0], package]
    return found


def imported(code: bytes, package: str) -> Iterator[str]:
    """What a module of a package may import, wherever it does so: modules, and what may be one or something in one."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def _file_of(name: str) -> Path | None:
    """The file of a module of the trainer, None for any other name."""
    if name.partition(".")[0] != "trainer":
        return None
    stem = PACKAGES.joinpath(*name.split("."))
    return next((path for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.is_file()), None)


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    info = zipfile.ZipInfo(name, EPOCH)
    info.create_system = 3  # Unix, wherever it is built
    info.external_attr = 0o100644 << 16
    archive.writestr(info, data, zipfile.ZIP_STORED)
