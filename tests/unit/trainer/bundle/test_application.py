"""The program beside a bundle, on every Python of this machine."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path

import pytest

from tests.unit.trainer.bundle.sources import built, make
from trainer.bundle import application

ROOT = Path(__file__).resolve().parents[4]
OLDEST = (3, 8)
# Gone from, or not yet in, the standard library of one of 3.8 to 3.13.
NOT_EVERYWHERE = {
    "aifc", "asynchat", "asyncore", "audioop", "cgi", "cgitb", "chunk", "crypt", "distutils", "graphlib", "imghdr",
    "imp", "lib2to3", "mailcap", "msilib", "nis", "nntplib", "ossaudiodev", "pipes", "smtpd", "sndhdr", "spwd", "sunau",
    "telnetlib", "tomllib", "uu", "xdrlib", "zoneinfo",
}  # fmt: skip


@cache
def pythons() -> dict[tuple[int, int], str]:
    """{version: program} of what is installed here."""
    folders = [*Path("~/.pyenv/versions").expanduser().glob("*/bin"), *map(Path, os.environ["PATH"].split(os.pathsep))]
    found: dict[tuple[int, int], str] = {sys.version_info[:2]: sys.executable}
    for folder in folders:
        for program in sorted(folder.glob("python[23].[0-9]*")):
            version = program.name.removeprefix("python").split(".")
            if not all(map(str.isdigit, version)) or (int(version[0]), int(version[1])) in found:
                continue
            done = subprocess.run(
                [program, "-c", "print(1)"], capture_output=True, stdin=subprocess.DEVNULL, check=False
            )
            if done.stdout.strip() == b"1":  # a shim of a version that is not chosen prints something else
                found[int(version[0]), int(version[1])] = str(program)
    return dict(sorted(found.items()))


ABLE = [version for version in pythons() if version >= OLDEST]
TOO_OLD = [version for version in pythons() if version < OLDEST]


def shown(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    built(make(folder / "source"), folder / "x.tar.gz")
    return folder / "x.tar.gz"


def run(version: tuple[int, int], bundle: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [pythons()[version], "-I" if version >= (3, 4) else "-E", str(bundle.with_name("x.apply.pyz")), *words]
    return subprocess.run(
        command, cwd=bundle.parent, env={}, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("version", ABLE, ids=shown)
def test_it_verifies_and_applies(version: tuple[int, int], bundle: Path, tmp_path: Path) -> None:
    done = run(version, bundle, "verify", "--bundle", str(bundle), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    answer = json.loads(done.stdout)
    root = str(tmp_path / "root")
    for changed in (True, False):
        done = run(version, bundle, "apply", "--bundle", str(bundle), "--project-root", root, "--json")
        assert done.returncode == 0, done.stderr
        applied = json.loads(done.stdout)
        assert (applied["changed"], applied["source_id"]) == (changed, answer["source_id"])
    assert (tmp_path / "root" / "code" / "trainer" / "sub" / "b.py").read_text() == "b = 2\n"


@pytest.mark.parametrize("version", ABLE, ids=shown)
def test_its_errors_are_sentences_with_their_exit_codes(version: tuple[int, int], bundle: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "x.tar.gz"
    damaged.write_bytes(bundle.read_bytes()[:-1])
    damaged.with_name("x.tar.gz.sha256").write_bytes(bundle.with_name("x.tar.gz.sha256").read_bytes())
    for words, code, sentence in (
        (["verify", "--bundle", str(damaged)], 2, "error: the sha256 of "),
        (["aply"], 2, "error: there is no command 'aply'; did you mean apply?"),
        (["verify", "--bundel", "x"], 2, "error: there is no option --bundel"),
        (["build"], 2, "error: there is no command 'build'"),
        ([], 2, "error: the following arguments are required: ACTION; see `python3 x.apply.pyz --help`"),
    ):
        done = run(version, bundle, *words)
        assert done.returncode == code and done.stdout == ""
        assert done.stderr.splitlines()[-1].startswith(sentence), done.stderr


@pytest.mark.parametrize("version", TOO_OLD, ids=shown)
def test_a_python_that_is_too_old_is_told_so(version: tuple[int, int], bundle: Path) -> None:
    done = run(version, bundle, "verify", "--bundle", str(bundle))
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr == (
        f"error: this is Python {shown(version)}, and Python 3.8 or newer is needed; start it with a newer one, as in: "
        "python3.11 x.apply.pyz --help\n"
    )


def test_its_start_is_written_in_words_that_every_python_knows() -> None:
    for minor in (4, 5, 6, 7):  # the grammar that ast can still check by itself
        ast.parse(application.MAIN, feature_version=(3, minor))
    words = {type(node).__name__ for node in ast.walk(ast.parse(application.MAIN))}
    assert not words & {"JoinedStr", "AnnAssign", "NamedExpr", "Nonlocal", "YieldFrom", "Starred", "Await"}
    assert application.MAIN.isascii()
    functions = [node for node in ast.walk(ast.parse(application.MAIN)) if isinstance(node, ast.FunctionDef)]
    assert all(one.returns is None and not one.args.kwonlyargs for one in functions)


def test_it_needs_the_standard_library_alone_as_every_python_has_it() -> None:
    for name, path in application.modules().items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        tops = {word.partition(".")[0] for word in application.imported(path.read_bytes(), package)}
        assert tops <= (sys.stdlib_module_names - NOT_EVERYWHERE) | {"trainer"}, name


def test_it_holds_what_it_imports_and_nothing_of_the_controller(bundle: Path) -> None:
    with zipfile.ZipFile(bundle.with_name("x.apply.pyz")) as archive:
        names = archive.namelist()
        assert {one.compress_type for one in archive.infolist()} == {zipfile.ZIP_STORED}
        assert {one.date_time for one in archive.infolist()} == {application.EPOCH}
        assert archive.read("trainer/bundle/command.py") == (ROOT / "trainer" / "bundle" / "command.py").read_bytes()
    assert {"__main__.py", "trainer/__init__.py", "trainer/bundle/__init__.py", "trainer/arguments.py"} < set(names)
    assert not {"trainer/bundle/build.py", "trainer/config.py", "trainer/commands.py"} & set(names)


def test_its_bytes_are_the_same_each_time() -> None:
    assert application.build() == application.build()
    assert application.build().startswith(b"#!/usr/bin/env python3\n")


@pytest.mark.parametrize(
    ("code", "package", "expected"),
    [
        ("import os.path, json", "p", {"os.path", "json"}),
        ("from p import a", "p", {"p", "p.a"}),
        ("def f():\n    from . import b", "p.q", {"p.q", "p.q.b"}),
        ("from .c import d", "p.q", {"p.q.c", "p.q.c.d"}),
        ("from .. import e", "p.q", {"p", "p.e"}),
    ],
)
def test_imports_are_found_wherever_they_stand(code: str, package: str, expected: set[str]) -> None:
    assert set(application.imported(code.encode(), package)) == expected
