"""Diagnoses: each cause from a recorded log line, and nothing from its harmless twin."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from trainer import diagnose as doctor

KINDS = {signature.cause: signature.kind for signature in doctor.SIGNATURES}
TRACE = 'Traceback (most recent call last):\n  File "worker.py", line 90, in run\n    train(job)\n'


def kinds(log: str, *, signal: int | None = None, kind: str | None = None) -> list[str]:
    """The kinds that a log is diagnosed with; `unknown` where no signature matched."""
    issues = doctor.diagnose(log, exit_signal=signal, error_kind=kind)
    return [KINDS.get(issue.cause, "unknown") for issue in issues]


# kind, a line that a failing run printed, a nearly identical line that tells of no such failure
CASES = [
    ("cuda memory",
     "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.32 GiB. GPU 0 has a total"
     " capacity of 23.65 GiB of which 1.20 GiB is free.",
     "GPU 0 max memory 23 GiB of 23.65 GiB, 1.20 GiB is free, no CUDA out of memory so far"),
    ("cuda memory", "RuntimeError: CUDA error: out of memory",
     "RuntimeError: CUDA error in a row: the answer speaks of 'out of memory'"),
    ("cuda memory",
     "2026-11-22 10:00:01,123 - trainer.worker - ERROR - CUDA out of memory. Tried to allocate"
     " 20 MiB",
     '2026-11-22 10:00:01,123 - trainer.worker - INFO - {"response": "CUDA out of memory. Tried to'
     ' allocate 20 MiB"}'),
    ("cuda memory",
     "[rank0]: RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`",
     "[rank0]: note: CUBLAS_WORKSPACE_CONFIG is set, CUBLAS_STATUS_ALLOC_FAILED not seen"),
    ("host memory",
     "Nov 22 10:01:07 gpu kernel: Memory cgroup out of memory: Killed process 4242 (python)"
     " total-vm:41233492kB, anon-rss:16233492kB",
     "Nov 22 10:01:07 gpu kernel: Memory cgroup stats: limit 17179869184, usage 1717986918"),
    ("host memory", "[ 8123.456789] Out of memory: Killed process 991 (python3), UID 0",
     "Out of memory: what a process does when it is killed, is explained in section 3"),
    ("host memory",
     "RuntimeError: [enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't"
     " allocate"
     " memory: you tried to allocate 16777216000 bytes.",
     "DefaultCPUAllocator: 16777216000 bytes in use"),
    ("host memory", "MemoryError", "MemoryErrors: 0"),
    ("no space",
     "OSError: [Errno 28] No space left on device: 'outputs/adapter/.adapter_style.new'",
     "37 GB of space left on device /dev/sda1"),
    ("no space",
     "safetensors_rust.SafetensorError: Error while serializing: I/O error: No space left on device"
     " (os error 28)",
     '{"id": "row-3", "response": "OSError: [Errno 28] No space left on device"}'),
    ("no space", "tar: models/base/model.safetensors: Cannot write: No space left on device",
     "    tar: model.safetensors: Cannot write: No space left on device"),
    ("download failed",
     "requests.exceptions.ConnectionError: (MaxRetryError(\"HTTPSConnectionPool("
     "host='huggingface.co',"
     ""
     " port=443): Max retries exceeded with url: /Qwen/Qwen3-8B/resolve/main/config.json\"))",
     "'(MaxRetryError(\"HTTPSConnectionPool(host='huggingface.co', port=443): Max retries"
     " exceeded\"))'"
     " thrown while requesting HEAD config.json"),
    ("download failed", "httpx2.ConnectError: [Errno -3] Temporary failure in name resolution",
     "WARNING: httpx2.ConnectError: [Errno -3] Temporary failure in name resolution, retrying"
     " in 1 s"),
    ("download failed", "httpx.ReadTimeout: The read operation timed out",
     "Retrying after the read operation timed out [retry 1/5]: done"),
    ("download failed",
     "huggingface_hub.errors.LocalEntryNotFoundError: An error happened while trying to locate the"
     " file on the Hub and we cannot find the requested files in the local cache.",
     "All files were found in the local cache; the Hub was not asked"),
    ("download failed",
     "OSError: We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find"
     " them in the cached files.",
     "Connected to 'https://huggingface.co' to load the files"),
    ("download failed",
     "huggingface_hub.errors.HfHubHTTPError: 504 Server Error: Gateway Time-out for url:"
     " https://x/y",
     "Downloaded 504 of 504 files from https://x/y"),
    ("offline",
     "huggingface_hub.errors.OfflineModeIsEnabled: Cannot reach https://huggingface.co/api/models:"
     " offline mode is enabled. To disable it, please unset the `HF_HUB_OFFLINE` environment"
     " variable.",
     "note: offline mode is enabled, the model is in the cache"),
    ("wrong qwen id",
     "OSError: Qwen/Qwen3-8B-Instruct is not a local folder and is not a valid model identifier"
     " listed on 'https://huggingface.co/models'",
     "base model Qwen/Qwen3-8B-Instruct is not a published name, using Qwen/Qwen3-8B"),
    ("model missing",
     "OSError: Qwen/Qwen3-9B is not a local folder and is not a valid model identifier listed on"
     " 'https://huggingface.co/models'",
     "models/base is a local folder and needs no model identifier"),
    ("model missing",
     "OSError: models/base does not appear to have a file named config.json. Checkout"
     " 'https://huggingface.co/models/base/tree/main' for available files.",
     "models/base has a file named config.json"),
    ("model closed",
     "huggingface_hub.errors.GatedRepoError: 403 Client Error. (Request ID: Root=1-67)",
     "Model 403 of the list is gated for nobody"),
    ("tokenizer missing",
     "ValueError: Cannot use chat template functions because tokenizer.chat_template is not set and"
     " no template argument was passed!",
     "tokenizer.chat_template is set; template: chatml"),
    ("tokenizer missing",
     "error: the tokenizer of 'models/base' has no chat template; use another model",
     "the tokenizer of 'models/base' has a chat template"),
    ("weights broken",
     "safetensors_rust.SafetensorError: Error while deserializing header: header too large",
     "safetensors header: 1234 bytes"),
    ("loss not finite",
     "{'loss': 'nan', 'grad_norm': 'nan', 'learning_rate': '9e-05', 'epoch': '0.5'}",
     "{'loss': '2.31', 'grad_norm': 'nan', 'learning_rate': '9e-05', 'epoch': '0.5'}"),
    ("loss not finite", "style: step 12/84, loss nan, 2.1 s a step",
     "style: step 12/84, loss nan-safe, 2.1 s"),
    ("loss not finite", "step 13/84 loss -inf", "step 13/84 loss 0.31 info: done"),
    ("loss not finite", "error: the loss became nan at step 7; lower the learning rate",
     "the text of row 7 says that a loss became nan at step 7"),
    ("loss not finite",
     "RuntimeError: probability tensor contains either `inf`, `nan` or element < 0",
     "probability tensors contain neither `inf` nor `nan`"),
    ("empty answers", "5 of 28 answers are empty", "0 of 28 answers are empty"),
    ("driver mismatch", "Failed to initialize NVML: Driver/library version mismatch",
     "NVML: driver and library version 550.54"),
    ("driver mismatch",
     "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.",
     "NVIDIA-SMI 550.54.15  Driver Version: 550.54.15  CUDA Version: 12.4"),
    ("driver too old",
     "RuntimeError: CUDA error: CUDA driver version is insufficient for CUDA runtime version",
     "CUDA driver version is 12.4, runtime version 12.4"),
    ("driver too old",
     "/venv/torch/cuda/__init__.py:174: UserWarning: CUDA initialization: The NVIDIA driver on your"
     " system is too old (found version 11040).",
     "/venv/torch/cuda/__init__.py:174: UserWarning: CUDA initialization: Found no NVIDIA driver on"
     " your system."),
    ("no gpu", "RuntimeError: No CUDA GPUs are available", "CUDA GPUs are available: 1"),
    ("no gpu", "RuntimeError: CUDA error: no CUDA-capable device is detected",
     "1 CUDA-capable device is detected"),
    ("device assert", "torch.AcceleratorError: CUDA error: device-side assert triggered",
     "Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions."),
    ("gpu fault",
     "[12345.678901] NVRM: Xid (PCI:0000:01:00): 79, pid=1234, GPU has fallen off the bus.",
     "[12345.678901] NVRM: loading NVIDIA UNIX x86_64 Kernel Module  550.54.15"),
    ("gpu fault", "RuntimeError: CUDA error: unspecified launch failure",
     "no unspecified launch failure was seen"),
    ("bitsandbytes",
     "RuntimeError: \n        CUDA Setup failed despite GPU being available. Please run the"
     " following"
     " command to get more information:",
     "CUDA SETUP: loading binary libbitsandbytes_cuda124.so"),
    ("bitsandbytes",
     "RuntimeError: None of the available devices `available_devices = None` are supported by the"
     " bitsandbytes version you have installed: `bnb_supported_devices = {'cuda'}`.",
     "cpu is supported by the bitsandbytes version you have installed"),
    ("permission", "PermissionError: [Errno 13] Permission denied: 'outputs/state/plan.json'",
     "permission to read outputs/state/plan.json granted"),
    ("package missing", "ModuleNotFoundError: No module named 'trl'",
     "module 'trl' is not needed here"),
    ("timeout", "error: stage style ran into its time limit of 3600 s",
     "stage style, time limit 3600 s"),
    ("gate missed",
     "trainer.errors.GateMissed: stage style missed its gate: key point coverage 0.71 < 0.90",
     "stage style passed its gate: key point coverage 0.91"),
    ("killed", "Killed", "Killed processes: 0"),
    ("killed", "run.sh: line 3:  4242 Killed                  python -m trainer",
     "Killed is the word in row 3"),
    ("crashed", "Fatal Python error: Segmentation fault", "Segmentation fault handler installed"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "line", "twin"), CASES)
def test_a_signature_is_known_and_its_harmless_twin_is_not(kind: str, line: str, twin: str) -> None:
    assert kinds(f"loading\n{TRACE}{line}\n") == [kind]
    assert kinds(f"loading\n{twin}\ndone\n") == ["unknown"]


def test_every_signature_has_a_case_or_is_told_from_outside() -> None:
    outside = {"cancelled", "terminated", "shared memory", "gpu not supported"}
    assert {s.kind for s in doctor.SIGNATURES} == {case[0] for case in CASES} | outside


@pytest.mark.parametrize(
    ("signal", "kind", "expected"),
    [
        (9, None, ["killed"]),
        (15, None, ["terminated"]),
        (11, None, ["crashed"]),
        (7, None, ["shared memory"]),
        (9, "timeout", ["timeout"]),
        (9, "cancelled", ["cancelled"]),
        (None, "GateMissed", ["gate missed"]),
        (None, "missed", ["gate missed"]),
        (None, "empty_answers", ["empty answers"]),
        (None, "lost", ["unknown"]),
        (40, None, ["unknown"]),
        (None, None, ["unknown"]),
    ],
)  # fmt: skip
def test_signal_and_recorded_kind_name_a_cause(
    signal: int | None, kind: str | None, expected: list[str]
) -> None:
    assert kinds("step 3/84 loss 1.2\n", signal=signal, kind=kind) == expected


def test_a_kernel_message_settles_who_sent_signal_nine() -> None:
    kernel = "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),task=python,pid=4242"
    assert kinds(f"step 3\n{kernel}\nKilled\n", signal=9) == ["host memory"]


def test_a_cause_that_is_told_a_thousand_times_is_named_once() -> None:
    line = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.32 GiB."
    issues = doctor.diagnose(f"{line}\n" * 1000, exit_signal=None, error_kind=None)
    assert len(issues) == 1
    assert "(seen 1000 times)" in issues[0].symptom
    assert (
        "per_device_train_batch_size=1 -e trainer_hp_gradient_accumulation_steps=16"
        in issues[0].action
    )


def test_different_causes_are_all_named_in_the_order_of_the_log() -> None:
    log = (
        "step 3/84 loss nan\nOSError: [Errno 28] No space left on device: 'x'\nstep 4/84 loss nan\n"
    )
    assert kinds(log) == ["loss not finite", "no space"]


def test_a_wrong_id_hides_the_general_message_about_it() -> None:
    log = (
        "huggingface_hub.errors.RepositoryNotFoundError: 404 Client Error. (Request ID: Root=1)\n"
        "Repository Not Found for url: https://huggingface.co/Qwen/Qwen3-8B-Instruct/resolve/main/c\n"
        ""
    )
    issues = doctor.diagnose(log, exit_signal=None, error_kind="InputError")
    assert [KINDS[issue.cause] for issue in issues] == ["wrong qwen id"]
    assert "Qwen/Qwen3-8B`" in issues[0].action
    assert kinds(log.replace("8B-Instruct", "9B")) == ["model missing"]


def test_escapes_and_progress_bars_are_stripped() -> None:
    log = (
        "\r  4%|▍         | 1/28 [00:01<00:30,  1.1s/it]\r  7%|▋         | 2/28 [00:02<00:29]"
        "\x1b[31mtorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1 GiB\x1b[0m\n"
    )
    issue = doctor.diagnose(log, exit_signal=None, error_kind=None)[0]
    assert issue.symptom == "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1 GiB"


def test_unknown_says_so_with_the_last_lines() -> None:
    log = (
        "".join(f"line {n}\n" for n in range(50)) + TRACE + "ZeroDivisionError: division by zero\n"
    )
    (issue,) = doctor.diagnose(
        log, exit_signal=None, error_kind=None, stage="style", phase="training"
    )
    assert issue.cause.startswith("Unknown")
    assert "ZeroDivisionError: division by zero" in issue.symptom
    assert "line 3 " not in issue.symptom
    assert (issue.stage, issue.phase, issue.severity) == ("style", "training", "error")
    (healthy,) = doctor.diagnose("step 1\n", exit_signal=None, error_kind=None)
    assert healthy.severity == "info"


def test_a_refusal_of_the_trainer_is_told_in_its_own_words() -> None:
    log = "checking\nerror: unknown parameter 'learning_rat'; did you mean learning_rate?\n"
    (issue,) = doctor.diagnose(log, exit_signal=None, error_kind="InputError")
    assert issue.symptom == "error: unknown parameter 'learning_rat'; did you mean learning_rate?"
    assert "own sentence" in issue.cause


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("token hf_AbCdEfGhIjKlMnOpQrStUv rejected", "hf_AbCd"),
        ("Authorization: Bearer abcdef123456", "abcdef"),
        ("{'authorization': 'Basic dXNlcjpwYXNz'}", "dXNlcjpwYXNz"),
        ("ssh failed with password=geheim7, again", "geheim7"),
        ('password: "two words"', "two words"),
        ("HF_TOKEN=abc123 python", "abc123"),
        ("https://user:geheim7@mirror/x", "geheim7"),
        ("GET /x?X-Amz-Signature=deadbeef&y=1", "deadbeef"),
    ],
)
def test_secrets_are_redacted(text: str, secret: str) -> None:
    assert secret not in doctor.redact(text)
    issue = doctor.diagnose(f"error: {text}\n", exit_signal=None, error_kind=None)[0]
    assert secret not in json.dumps(asdict(issue))


@pytest.mark.parametrize(
    "text",
    [
        "tokens: 4096",
        "pad_token=<|endoftext|>",
        "max_new_tokens=320",
        "https://mirror/x",
        "hf_transfer and hf_hub_download",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert doctor.redact(text) == text


def make_issue(symptom: str = "boom", **changes: str) -> doctor.Issue:
    values = {
        "time": "2026-11-22T10:00:00+00:00",
        "phase": "training",
        "stage": "style",
        "severity": "error",
        "symptom": symptom,
        "cause": "a cause",
        "action": "run `x -e a=1`",
    }
    return doctor.Issue(**{**values, **changes})


def test_issues_are_appended_and_rendered_again(tmp_path: Path) -> None:
    doctor.append_issues(tmp_path, [make_issue("first")])
    doctor.append_issues(
        tmp_path, [make_issue("second"), make_issue("Authorization: Bearer abcdef123")]
    )
    lines = (tmp_path / "issues.jsonl").read_text(encoding="utf-8").splitlines()
    assert [set(json.loads(line)) for line in lines] == [set(asdict(make_issue()))] * 3
    text = (tmp_path / "ISSUES.md").read_text(encoding="utf-8")
    assert text.index("second") < text.index("first")
    assert "- Action: run `x -e a=1`" in text
    assert "abcdef123" not in text + lines[2]


def test_a_torn_line_is_named_and_swallows_nothing(tmp_path: Path) -> None:
    doctor.append_issues(tmp_path, [make_issue("first")])
    path = tmp_path / "issues.jsonl"
    path.write_bytes(path.read_bytes() + b'{"time": "2026')
    doctor.append_issues(tmp_path, [make_issue("second")])
    issues, problems = doctor.read_issues(path)
    assert [issue.symptom for issue in issues] == ["first", "second"]
    assert problems == ["issues.jsonl, line 2, is not an issue record and is left out"]
    assert problems[0] in (tmp_path / "ISSUES.md").read_text(encoding="utf-8")


def test_hostile_symptoms_do_not_break_issues_md() -> None:
    text = doctor.render_issues([make_issue("a\n## b <script> | `c`", cause="see <img src=x>")])
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "# Issues",
        "## style: error",
    ]
    assert "<script" not in text
    assert "<img" not in text
    assert "None." in doctor.render_issues([])
