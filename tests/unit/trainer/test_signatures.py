"""Known failures: each cause from a recorded log line, and nothing from its harmless twin."""

from __future__ import annotations

import pytest

from tests.unit.trainer.known_causes import TRACE, kinds
from trainer.signatures import SIGNATURES

# kind, a line that a failing run printed, a nearly identical line that tells of no such failure
CASES = [
    ("cuda memory",
     ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.32 GiB. GPU 0 has a total"
     " capacity of 23.65 GiB of which 1.20 GiB is free."),
     "GPU 0 max memory 23 GiB of 23.65 GiB, 1.20 GiB is free, no CUDA out of memory so far"),
    ("cuda memory", "RuntimeError: CUDA error: out of memory",
     "RuntimeError: CUDA error in a row: the answer speaks of 'out of memory'"),
    ("cuda memory",
     ("2026-11-22 10:00:01,123 - trainer.worker - ERROR - CUDA out of memory. Tried to allocate"
     " 20 MiB"),
     ('2026-11-22 10:00:01,123 - trainer.worker - INFO - {"response": "CUDA out of memory. Tried to'
     ' allocate 20 MiB"}')),
    ("cuda memory",
     "[rank0]: RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`",
     "[rank0]: note: CUBLAS_WORKSPACE_CONFIG is set, CUBLAS_STATUS_ALLOC_FAILED not seen"),
    ("host memory",
     ("Nov 22 10:01:07 gpu kernel: Memory cgroup out of memory: Killed process 4242 (python)"
     " total-vm:41233492kB, anon-rss:16233492kB"),
     "Nov 22 10:01:07 gpu kernel: Memory cgroup stats: limit 17179869184, usage 1717986918"),
    ("host memory", "[ 8123.456789] Out of memory: Killed process 991 (python3), UID 0",
     "Out of memory: what a process does when it is killed, is explained in section 3"),
    ("host memory",
     ("RuntimeError: [enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't"
     " allocate"
     " memory: you tried to allocate 16777216000 bytes."),
     "DefaultCPUAllocator: 16777216000 bytes in use"),
    ("host memory", "MemoryError", "MemoryErrors: 0"),
    ("no space",
     "OSError: [Errno 28] No space left on device: 'outputs/adapter/.adapter_style.new'",
     "37 GB of space left on device /dev/sda1"),
    ("no space",
     ("safetensors_rust.SafetensorError: Error while serializing: I/O error: No space left on device"
     " (os error 28)"),
     '{"id": "row-3", "response": "OSError: [Errno 28] No space left on device"}'),
    ("no space", "tar: models/base/model.safetensors: Cannot write: No space left on device",
     "    tar: model.safetensors: Cannot write: No space left on device"),
    ("download failed",
     ("requests.exceptions.ConnectionError: (MaxRetryError(\"HTTPSConnectionPool("
     "host='huggingface.co',"
     ""
     " port=443): Max retries exceeded with url: /Qwen/Qwen3-8B/resolve/main/config.json\"))"),
     ("'(MaxRetryError(\"HTTPSConnectionPool(host='huggingface.co', port=443): Max retries"
     " exceeded\"))'"
     " thrown while requesting HEAD config.json")),
    ("download failed", "httpx2.ConnectError: [Errno -3] Temporary failure in name resolution",
     ("WARNING: httpx2.ConnectError: [Errno -3] Temporary failure in name resolution, retrying"
     " in 1 s")),
    ("download failed", "httpx.ReadTimeout: The read operation timed out",
     "Retrying after the read operation timed out [retry 1/5]: done"),
    ("download failed",
     ("huggingface_hub.errors.LocalEntryNotFoundError: An error happened while trying to locate the"
     " file on the Hub and we cannot find the requested files in the local cache."),
     "All files were found in the local cache; the Hub was not asked"),
    ("download failed",
     ("OSError: We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find"
     " them in the cached files."),
     "Connected to 'https://huggingface.co' to load the files"),
    ("download failed",
     ("huggingface_hub.errors.HfHubHTTPError: 504 Server Error: Gateway Time-out for url:"
     " https://x/y"),
     "Downloaded 504 of 504 files from https://x/y"),
    ("offline",
     ("huggingface_hub.errors.OfflineModeIsEnabled: Cannot reach https://huggingface.co/api/models:"
     " offline mode is enabled. To disable it, please unset the `HF_HUB_OFFLINE` environment"
     " variable."),
     "note: offline mode is enabled, the model is in the cache"),
    ("wrong qwen id",
     ("OSError: Qwen/Qwen3-8B-Instruct is not a local folder and is not a valid model identifier"
     " listed on 'https://huggingface.co/models'"),
     "base model Qwen/Qwen3-8B-Instruct is not a published name, using Qwen/Qwen3-8B"),
    ("model missing",
     ("OSError: Qwen/Qwen3-9B is not a local folder and is not a valid model identifier listed on"
     " 'https://huggingface.co/models'"),
     "models/base is a local folder and needs no model identifier"),
    ("model missing",
     ("OSError: models/base does not appear to have a file named config.json. Checkout"
     " 'https://huggingface.co/models/base/tree/main' for available files."),
     "models/base has a file named config.json"),
    ("model closed",
     "huggingface_hub.errors.GatedRepoError: 403 Client Error. (Request ID: Root=1-67)",
     "Model 403 of the list is gated for nobody"),
    ("tokenizer missing",
     ("ValueError: Cannot use chat template functions because tokenizer.chat_template is not set and"
     " no template argument was passed!"),
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
     ("/venv/torch/cuda/__init__.py:174: UserWarning: CUDA initialization: The NVIDIA driver on your"
     " system is too old (found version 11040)."),
     ("/venv/torch/cuda/__init__.py:174: UserWarning: CUDA initialization: Found no NVIDIA driver on"
     " your system.")),
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
     ("RuntimeError: \n        CUDA Setup failed despite GPU being available. Please run the"
     " following"
     " command to get more information:"),
     "CUDA SETUP: loading binary libbitsandbytes_cuda124.so"),
    ("bitsandbytes",
     ("RuntimeError: None of the available devices `available_devices = None` are supported by the"
     " bitsandbytes version you have installed: `bnb_supported_devices = {'cuda'}`."),
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
    assert {s.kind for s in SIGNATURES} == {case[0] for case in CASES} | outside
