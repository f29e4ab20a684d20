from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import machine, suite


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of two benchmarks, the first of which breaks after its first table."""
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    (folder / "line.py").write_text("print('## Line'); raise SystemExit('error: broken')", encoding="utf-8")
    (folder / "rows.py").write_text("import sys; print('## Rows', *sys.argv[1:])", encoding="utf-8")
    monkeypatch.setattr(suite, "REPOSITORY", tmp_path)
    monkeypatch.setattr(suite, "SUITE", {"line": ([], []), "rows": (["--sizes", "10"], ["--sizes", "1000"])})
    monkeypatch.setattr(suite, "embedded_base", lambda: tmp_path / "base")
    return tmp_path


def test_one_document_of_all_benchmarks(scripts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = scripts / "results" / "cpu.md"
    assert suite.main(["--output", str(output), "--only", "rows"]) == 0
    assert output.read_text(encoding="utf-8") == f"{suite.TITLE}\n\n## Rows --sizes 10\n"
    assert "## Rows --sizes 10\n" in capsys.readouterr().out
    assert suite.main(["--output", str(output), "--only", "rows", "--long"]) == 0
    assert output.read_text(encoding="utf-8").endswith("## Rows --sizes 1000\n")


def test_a_benchmark_that_breaks_is_named_and_the_others_run(scripts: Path) -> None:
    output = scripts / "cpu.md"
    assert suite.main(["--output", str(output)]) == 5
    text = output.read_text(encoding="utf-8")
    assert "## Line\n\n`benchmarks/line.py` ended with exit code 1" in text and "## Rows --sizes 10" in text


def test_a_benchmark_that_is_not_there_is_refused(scripts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = scripts / "cpu.md"
    assert suite.main(["--output", str(output), "--only", "rows,lines"]) == 2
    assert capsys.readouterr().err == "error: there is no benchmark 'lines'; give some of line, rows\n"
    assert not output.exists()


def test_every_benchmark_of_the_suite_is_there() -> None:
    folder = machine.REPOSITORY / "benchmarks"
    assert [name for name in suite.SUITE if not (folder / f"{name}.py").is_file()] == []


def test_the_machine_is_told_with_date_and_commit() -> None:
    told = machine.described()
    assert told.startswith("Machine: ") and f"commit {machine.commit()}" in told
    assert f"{len(machine.os.sched_getaffinity(0))} cores" in told
