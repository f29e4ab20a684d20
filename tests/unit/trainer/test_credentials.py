"""Secrets: kept closed, for as long as a plan may need them, and shown by nothing."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from trainer import credentials, plan, process, recovery
from trainer.errors import InputError, NotReady
from trainer.ledger import Ledger
from trainer.state import Layout

TOKEN = "hf_canary0123456789"


@pytest.fixture(autouse=True)
def _no_token_of_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def kept(layout: Layout) -> bool:
    return (layout.root / ".secrets").exists()


@pytest.mark.parametrize("given", [TOKEN, f"{TOKEN}\n", json.dumps({"value": TOKEN})])
def test_a_secret_is_kept_where_only_its_owner_reads_it(layout: Layout, given: str) -> None:
    layout.root.mkdir(parents=True)
    old = os.umask(0)
    try:
        credentials.put(layout, "hf_token", given)
    finally:
        os.umask(old)
    path = layout.root / ".secrets" / "hf_token"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert credentials.get(layout, "hf_token") == TOKEN
    assert [item.name for item in path.parent.iterdir()] == ["hf_token"]


@pytest.mark.parametrize("given", ["", "  \n", "short", "two\nlines-of-it", "with a blank", '{"value": ""}', "{broken"])
def test_what_cannot_be_a_token_is_refused_without_showing_it(layout: Layout, given: str) -> None:
    with pytest.raises(InputError) as caught:
        credentials.put(layout, "hf_token", given)
    assert not given.strip() or given.strip() not in str(caught.value)
    assert not (layout.root / ".secrets" / "hf_token").exists()


def test_an_unknown_name_is_set_right(layout: Layout) -> None:
    with pytest.raises(InputError, match="there is no secret 'hf_tokn'; did you mean hf_token"):
        credentials.put(layout, "hf_tokn", TOKEN)


def test_a_link_in_the_way_is_replaced_and_not_followed(layout: Layout, tmp_path: Path) -> None:
    (layout.root / ".secrets").mkdir(parents=True)
    (tmp_path / "elsewhere").write_text("mine", encoding="utf-8")
    (layout.root / ".secrets" / "hf_token").symlink_to(tmp_path / "elsewhere")
    credentials.put(layout, "hf_token", TOKEN)
    assert (tmp_path / "elsewhere").read_text(encoding="utf-8") == "mine"
    assert not (layout.root / ".secrets" / "hf_token").is_symlink()


def test_the_host_may_have_a_token_of_its_own(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    assert credentials.get(layout, "hf_token") is None
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_host")
    assert credentials.get(layout, "hf_token") == "hf_of_the_host"
    credentials.put(layout, "hf_token", TOKEN)
    assert credentials.get(layout, "hf_token") == TOKEN
    assert credentials.known(layout) == [TOKEN, "hf_of_the_host"]


def test_forgetting_removes_everything_and_masks_what_was_logged(layout: Layout) -> None:
    assert not credentials.forget(layout)
    credentials.put(layout, "hf_token", TOKEN)
    (layout.root / ".secrets" / ".hf_token.1.tmp").write_text(TOKEN, encoding="utf-8")  # of a `put` that was killed
    layout.logs.mkdir(parents=True)
    log = layout.logs / "train_style_1.log"
    log.write_text(f"Authorization: Bearer {TOKEN}\nstep 1 {TOKEN}{TOKEN}\n", encoding="utf-8")
    size = log.stat().st_size
    assert credentials.forget(layout) and not kept(layout)
    assert TOKEN not in log.read_text(encoding="utf-8") and "step 1 **" in log.read_text(encoding="utf-8")
    assert log.stat().st_size == size, "whoever appends to it is not disturbed"


def test_a_running_plan_keeps_its_secret(layout: Layout) -> None:
    credentials.put(layout, "hf_token", TOKEN)
    with process.locked(layout.lock):
        assert not credentials.forget_unless_running(layout) and kept(layout)
    assert credentials.forget_unless_running(layout) and not kept(layout)


def test_text_is_scrubbed_of_what_is_known(layout: Layout) -> None:
    credentials.put(layout, "hf_token", TOKEN)
    assert credentials.scrub(f"a {TOKEN} b", credentials.known(layout)) == "a *** b"
    assert credentials.scrub("a b", credentials.known(layout)) == "a b"


def test_a_plan_takes_its_secret_along_whatever_its_end(line: Any) -> None:
    credentials.put(line.layout, "hf_token", TOKEN)
    record = line.record_plan("sample", status="running")
    ledger = Ledger(line.layout, plan.of_record(record), record)
    assert kept(line.layout)
    ledger.close()
    assert not kept(line.layout)


def test_a_lost_plan_and_a_cancelled_one_take_theirs_along(line: Any) -> None:
    credentials.put(line.layout, "hf_token", TOKEN)
    line.record_plan("sample", status="running")
    assert recovery.mark_lost(line.layout) and not kept(line.layout)
    credentials.put(line.layout, "hf_token", TOKEN)
    line.record_plan("sample", status="submitted")
    recovery.cancel(line.layout)
    assert not kept(line.layout)


def ask(line: Any, monkeypatch: pytest.MonkeyPatch, *words: str, given: str = "") -> int:
    """`python -m trainer …` in this process."""
    import io

    from trainer import cli

    monkeypatch.setattr("sys.stdin", io.StringIO(given))
    return cli.main(["--project-root", str(line.layout.root), *words])


def test_the_command_reads_standard_input_and_refuses_an_argument_unseen(
    line: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(line, monkeypatch, "secret", "put", "--name", "hf_token", TOKEN) == 2
    shown = capsys.readouterr()
    assert "never from an argument" in shown.err and TOKEN not in shown.err + shown.out and not kept(line.layout)
    assert ask(line, monkeypatch, "params", "--set", f"hf_token={TOKEN}") == 2
    shown = capsys.readouterr()
    assert "there is no parameter 'hf_token'" in shown.err and TOKEN not in shown.err + shown.out
    assert ask(line, monkeypatch, "secret", "put", given=TOKEN) == 0 and kept(line.layout)
    assert ask(line, monkeypatch, "secret", "forget", "--json") == 0 and not kept(line.layout)
    shown = capsys.readouterr()
    assert TOKEN not in shown.err + shown.out and json.loads(shown.out)["changed"] is True


def test_a_submission_that_starts_no_plan_takes_the_secret_along(
    line: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def submit(*names: str) -> int:
        credentials.put(line.layout, "hf_token", TOKEN)
        return ask(line, monkeypatch, "submit", "--input", "-", "--json", given=json.dumps(line.request(*names)))

    assert submit("writing") == NotReady.exit_code, "its gate is closed"
    assert not kept(line.layout)
    line.finish()
    assert submit() == 0 and json.loads(capsys.readouterr().out)["action"] == "none"
    assert not kept(line.layout)
    line.layout.stage("style").unlink()
    assert submit("sample", "style") == 0 and kept(line.layout), "the plan that was started may need it"
