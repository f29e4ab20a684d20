"""trainer/outlook.py: the command's table, its disk and its verdict."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trainer import copies, device, outlook, throughput
from trainer.cli import main
from trainer.device import Device
from trainer.estimate import weight_bytes
from trainer.shape import of_name
from trainer.throughput import Speed

QWEN3_8B = of_name("Qwen/Qwen3-8B")
assert QWEN3_8B is not None
H200 = Device("cuda", "NVIDIA H200", 1, 150_754_820_096, True, (9, 0), False, False, 16)
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(
    tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """`estimate` on a host of this device: (exit code, standard output, standard error)."""

    def run(*words: str, found: Device = H200, free: int = 10**12) -> tuple[int, str, str]:
        monkeypatch.setattr(device, "told", lambda: found)
        monkeypatch.setattr(copies, "free_bytes", lambda folder: free)
        monkeypatch.setattr(throughput, "of_processor", lambda cores: Speed(1e11, 1e10, "measured here", ahead=False))
        words = ("estimate", "--project-root", str(tmp_path), "--data-root", str(tiny_data), *words)
        code = main(words)
        out = capsys.readouterr()
        return code, out.out, out.err

    return run


def test_the_table_fits_a_terminal_and_says_that_nothing_is_started(command: Command, tmp_path: Path) -> None:
    code, out, _ = command()
    assert code == 0 and list(tmp_path.iterdir()) == [], "it only looks"
    lines = out.splitlines()
    assert max(map(len, lines)) <= outlook.WIDTH
    assert lines[0].startswith("Qwen/Qwen3-8B (8.2B weights) on NVIDIA H200 (150.8 GB); nothing is started")
    (head,) = [line for line in lines if line.startswith("stage  ")]
    assert head.split() == ["stage", "rows", "tokens", "steps", "memory", "of", "time"]
    rows = {line.split()[0]: line for line in lines[lines.index(head) + 1 :] if line}
    assert [rows[name].split()[1] for name in ("sample", "style", "writing", "all")] == ["2", "3", "2", "5"]
    assert all(re.search(r"\d+\.\d GB +150\.8 GB +\S", rows[name]) for name in ("sample", "style", "writing", "all"))
    assert "together" in rows and "unknown" not in out
    assert "estimated from the characters" in out and "as NVIDIA tells" in " ".join(out.split())


def test_shares_of_the_base_are_told_with_what_a_device_then_holds(command: Command) -> None:
    small = replace(H200, name="NVIDIA A4000", memory_bytes=16 * 10**9, count=4)
    asked = ("--set", "use_qlora=false", "--stages", "style", "--json")
    code, out, _ = command(*asked, found=small)
    (stage,) = json.loads(out)["stages"]
    whole = weight_bytes(QWEN3_8B, quantised=False, dtype_bytes=2)
    assert code == 0 and stage["unfit"] == "" and stage["memory_bytes"] < 0.9 * 16e9 < whole
    assert stage["training_memory"]["weights"] == -(-whole // 4) and stage["training_memory"]["gathered"] > 0
    told = {choice["name"]: choice["value"] for choice in stage["choices"]}
    assert told["shard_base"] is True and stage["seconds"] is None, "what connects the cards is not known"
    code, out, _ = command(*asked[:-1], found=small)
    assert code == 0 and "bfloat16 weights in shares, computing in bfloat16" in " ".join(out.split())
    code, out, _ = command(*asked, found=replace(small, count=1))
    assert code == 0 and "set use_qlora to true" in json.loads(out)["stages"][0]["unfit"]


@pytest.mark.parametrize("names", ["style", "sample,all"])
def test_stages_parameters_and_json_are_as_in_the_other_commands(command: Command, names: str) -> None:
    code, out, _ = command("--stages", names, "--set", "num_train_epochs=4", "--json")
    found = json.loads(out)
    assert code == 0 and [stage["stage"] for stage in found["stages"]] == names.split(",")
    assert found["stages"][0]["steps"] == 4  # a step an epoch: eight rows and more would make two
    assert found["device"]["name"] == "NVIDIA H200" and found["unfit"] == [] and found["impossible"] == ""
    assert found["lines"][0].startswith("Qwen/Qwen3-8B")
    one = found["stages"][0]["seconds"]
    assert (
        found["seconds"]
        == pytest.approx(found["start_seconds"] + sum(stage["seconds"] for stage in found["stages"]), abs=0.3)
        and found["seconds"] > one
    )


def test_a_wrong_parameter_is_refused_as_everywhere(command: Command) -> None:
    code, _, err = command("--set", "learning_rat=1")
    assert code == 2 and "did you mean learning_rate?" in err
    assert command("--set", "learning_rate=1")[0] == 0


def test_disk_counts_the_download_the_copy_and_what_a_plan_writes(command: Command, tmp_path: Path) -> None:
    _, out, _ = command("--json")
    room = json.loads(out)["disk"]
    assert room["download"] == weight_bytes(QWEN3_8B, quantised=False, dtype_bytes=2)
    assert room["prepared"] == weight_bytes(QWEN3_8B, quantised=True, dtype_bytes=2)
    adapter = 2 * 43_646_976  # rank 16, all linear modules, in bfloat16
    assert room["checkpoints"] == 3 * 3 * adapter and room["adapters"] == 5 * adapter
    parts = ("download", "prepared", "checkpoints", "adapters", "logs")
    assert room["needed"] == sum(room[name] for name in parts) and room["free"] == 10**12
    _, out, _ = command("--json", "--set", "save_steps=0", "--set", "save_seconds=0", "--stages", "style")
    alone = json.loads(out)["disk"]
    assert alone["checkpoints"] == 0 and alone["adapters"] == 2 * adapter
    (tmp_path / "models" / "prepared-0123456789abcdef").mkdir(parents=True)
    assert json.loads(command("--json")[1])["disk"]["prepared"] == 0, "made once"
    assert json.loads(command("--json", "--set", "use_qlora=false")[1])["disk"]["prepared"] == 0, "not needed"


def test_a_local_base_needs_no_download(command: Command, tiny_base: Path) -> None:
    code, out, _ = command("--set", f"model_name_or_path={tiny_base}", "--set", "use_qlora=false", "--json")
    found = json.loads(out)
    assert code == 0 and found["disk"]["download"] == 0 and found["base"]["here"]
    assert {stage["counted"] for stage in found["stages"]} == {"counted"}


def test_what_does_not_fit_says_what_to_change_and_is_no_failure(command: Command) -> None:
    small = replace(H200, name="NVIDIA GeForce RTX 3090", memory_bytes=18 * 10**9)
    code, out, err = command("--set", "use_qlora=false", found=small)
    assert code == 0 and err == ""
    assert out.count("does not fit: stage") == 4 and "set use_qlora to true" in " ".join(out.split())
    code, out, _ = command(found=small)
    assert code == 0 and "does not fit" not in out


def test_what_cannot_fit_at_all_ends_with_4(command: Command) -> None:
    tiny = replace(H200, name="NVIDIA T400", memory_bytes=4 * 10**9)
    code, out, err = command(found=tiny)
    assert code == 4 and "does not fit: stage sample" in out, "the table all the same"
    assert err.startswith("error: stage sample: training needs") and "take a card of 8 GB" in err
    code, out, _ = command("--json", found=tiny)
    assert code == 4 and json.loads(out)["impossible"].startswith("stage sample")
    assert command(found=replace(tiny, memory_bytes=12 * 10**9))[0] == 0


@pytest.mark.parametrize(("free", "code"), [(10**9, 4), (10**11, 0)])
def test_a_full_disk_is_told_with_what_it_takes(command: Command, tmp_path: Path, free: int, code: int) -> None:
    found, out, err = command(free=free)
    assert found == code
    assert (f"GB below {tmp_path}, where 1.0 GB are free; make room there" in err) == (code == 4)


def test_an_unknown_architecture_and_device_are_said_to_be_unknown(command: Command) -> None:
    strange = replace(H200, name="NVIDIA H9000")
    code, out, _ = command("--set", "model_name_or_path=example/model", found=strange)
    assert code == 0
    assert "download of the base unknown" in " ".join(out.split())
    assert "the architecture of the base is not known" in " ".join(out.split())
    assert "the device's speed is not known" in " ".join(out.split())
    assert re.search(r"^sample .* unknown +150\.8 GB +unknown$", out, re.MULTILINE)


def test_a_host_whose_memory_is_not_told_is_not_judged(command: Command) -> None:
    code, out, _ = command(found=replace(H200, memory_bytes=0))
    assert code == 0 and "memory unknown" in out and "does not fit" not in out


def test_several_cards_are_told(command: Command) -> None:
    assert "2 x NVIDIA H200" in command(found=replace(H200, count=2))[1]


def test_it_needs_no_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; sys.modules['torch'] = None; from trainer.cli import main;"
        f"sys.exit(main(['estimate', '--project-root', {str(tmp_path)!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[3], capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 4), done.stderr  # 4: this machine may be too small for 8 billion weights
    assert done.stdout.startswith("Qwen/Qwen3-8B")


def test_other_commands_tell_it_in_one_line(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer import plan as plans
    from trainer.state import Layout

    monkeypatch.setattr(copies, "free_bytes", lambda folder: 10**12)
    plan = plans.from_request({"data_root": str(tiny_data), "stages": ["style"]})
    monkeypatch.setattr(device, "told", lambda: H200)
    line = outlook.brief(plan, Layout(tmp_path))
    assert re.fullmatch(r"estimated: [\d.]+ GB of 150.8 GB memory, .+ s, [\d.]+ GB of disk; see `.+ estimate`", line)
    monkeypatch.setattr(device, "told", lambda: replace(H200, memory_bytes=4 * 10**9))
    assert "does not fit: stage style: training needs" in outlook.brief(plan, Layout(tmp_path))
    monkeypatch.setattr(device, "told", lambda: replace(H200, name="NVIDIA H9000"))
    strange = plans.from_request({"data_root": str(tiny_data), "overrides": {"model_name_or_path": "example/model"}})
    assert "memory unknown, time unknown" in outlook.brief(strange, Layout(tmp_path))
    wrong = plans.from_request({"overrides": {"model_name_or_path": str(tmp_path / "none")}})
    assert outlook.brief(wrong, Layout(tmp_path)) == "", "the command that asked has said it"


@pytest.mark.parametrize(
    ("number", "words"), [(0, "0"), (999, "999"), (4100, "4.1k"), (33_000_000, "33.0M"), (8_190_735_360, "8.2B")]
)
def test_counts_are_short(number: int, words: str) -> None:
    assert outlook._count(number) == words


def test_an_answer_without_faults_is_not_refused() -> None:
    answer: dict[str, Any] = {"impossible": ""}
    outlook.refuse(answer)
