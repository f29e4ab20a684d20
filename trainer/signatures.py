"""The table of known failures: how each cause shows itself in a log, and what helps."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Signature:
    """How one cause shows itself.

    `error` is searched in the message of error lines, `line` matched at the start of any line;
    `kinds` (of the recorded error) and `signals` name the cause by themselves. `hides`: kinds that
    are only this cause's consequences.
    """

    kind: str
    cause: str
    action: str
    error: str = ""
    line: str = ""
    severity: str = "error"
    kinds: tuple[str, ...] = ()
    signals: tuple[int, ...] = ()
    hides: tuple[str, ...] = ()


_SMALLER = "Run again with `-e trainer_hp_per_device_train_batch_size=1 -e trainer_hp_gradient_accumulation_steps=16`"
_AGAIN = "then run the playbook again: stages that have passed are not repeated."
_DRIVER = "The driver belongs to the host: take another machine or image, or ask the provider;"
_MODEL = "`-e trainer_hp_model_name_or_path=…`"
_KERNEL = r"(?:.{0,60}\bkernel: )?(?:\[ *\d+\.\d+\] )?"
_NOT_FINITE = r"[-+]?(?:nan|inf(?:inity)?)(?![-\w])"

# From the most specific to the most general: a line that one signature claims is not given to the
# next. Where a regex is spelt after one library's wording, the tests hold the recorded line.
# fmt: off
SIGNATURES: tuple[Signature, ...] = (
    Signature(
        "cancelled", "Somebody cancelled the plan.",
        "Nothing is broken: run the playbook to go on.",
        kinds=("cancelled",), severity="info", hides=("killed", "terminated"),
    ),
    Signature(
        "timeout", "The stage ran past its time limit and was stopped by the supervisor.",
        "Look at the rate in the log: raise the stage's time limit if it was merely slow; if it stood still, the "
        "last phase in the log tells where.",
        error=r"(?i)\bstage\b.{0,40}\b(?:timed out|time ?limit|timeout)\b",
        kinds=("timeout", "stage timeout", "timed out"), hides=("killed", "terminated"),
    ),
    Signature(
        "gate missed", "The adapter was trained, but its scores lie below the gate's targets.",
        "Read `Rows that missed something` in the stage's eval_report; add rows of the types that fail or train "
        "longer (`-e trainer_hp_num_train_epochs=…`). Later stages stay closed.",
        error=r"(?i)\bmissed (?:its|the) gate\b|\bgate\b.{0,40}\bmissed\b", kinds=("gate missed", "missed"),
    ),
    Signature(
        "empty answers", "The model answered with nothing: most often a chat template or stop token that differs "
        "between training and generation, or a learning rate that broke the model.",
        "Look at predictions_<stage>.jsonl, check the base model's chat template, lower `-e "
        "trainer_hp_learning_rate=…`.",
        error=r"\banswered 0(?:\.\d+)? <|\b[1-9]\d* of \d+ answers? (?:is|are|was|were) empty"
        r"|\ball answers are empty",
        line=r"[1-9]\d* of \d+ answers? (?:is|are|was|were) empty|all answers are empty", kinds=("empty answers",),
    ),
    Signature(
        "cuda memory", "The GPU's memory ran out.",
        f"{_SMALLER}; keep `use_qlora` on, look with `nvidia-smi` for other programs on the GPU, or take a GPU with "
        "more memory.",
        error=r"(?:^|: )(?:CUDA|HIP)(?: driver)?(?: error)?:? out of memory\b|CUBLAS_STATUS_ALLOC_FAILED",
        line=r"CUDA out of memory\. Tried to allocate \d", kinds=("cuda memory", "cuda out of memory"),
    ),
    Signature(
        "host memory", "The host's memory ran out, and the kernel or Python stopped the program (in a container "
        "the cgroup's limit counts, not /proc/meminfo).",
        "Take a machine with 16 GB of memory or more, stop other programs on it, train fewer or shorter rows at "
        f"once; {_AGAIN}",
        error=r"DefaultCPUAllocator: (?:can't allocate|not enough) memory|Unable to allocate \d"
        r"|\[Errno 12\]|DataLoader worker \(pid.*is killed by signal: Killed",
        line=_KERNEL + r"(?:(?:Memory cgroup out|Out) of memory: Kill(?:ed)? process \d+"
        r"|oom-kill:constraint=)|MemoryError$|oom_kill [1-9]", kinds=("host memory", "memory error"), hides=("killed",),
    ),
    Signature(
        "shared memory", "A bus error: mostly /dev/shm (shared memory) or the disk behind a mapped file is full.",
        "Look at `df -h /dev/shm .`; give the container more shared memory.",
        error=r"\bBus error\b|insufficient shared memory", line=r"Bus error(?: \(core dumped\))?$", signals=(7,),
    ),
    Signature(
        "no space", "The disk is full, or its inodes are used up (`df -h .` and `df -i .` tell which).",
        'Clean the caches: `pip cache purge; rm -rf "${HF_HOME:-$HOME/.cache/huggingface}"` (models'
        f" are downloaded again), or point HF_HOME to the data disk; {_AGAIN}",
        error=r"No space left on device|Disk quota exceeded|PytorchStreamWriter failed writing",
        line=r"[\w./-]+: .{0,300}No space left on device$", kinds=("no space",),
    ),
    Signature(
        "driver mismatch", "The NVIDIA driver in the kernel and its libraries have different versions, or the "
        "driver does not answer.",
        f"{_DRIVER} after an update a restart of the machine loads the right one.",
        error=r"Driver/library version mismatch|\bError 80[34]: ",
        line=r"Failed to initialize NVML: |NVIDIA-SMI has failed because"
        r"|\S+: UserWarning: CUDA initialization: .*\bError 80[34]: ",
    ),
    Signature(
        "driver too old", "The NVIDIA driver is older than the CUDA of the installed torch.",
        f"{_DRIVER} or install a torch built for an older CUDA.",
        error=r"CUDA driver version is insufficient|NVIDIA driver on your system is too old",
        line=r"\S+: UserWarning: CUDA initialization: The NVIDIA driver on your system is too old",
    ),
    Signature(
        "no gpu", "The program sees no GPU: none is attached, CUDA_VISIBLE_DEVICES hides it, or the container was "
        "started without it.",
        "See whether `nvidia-smi` lists a GPU and CUDA_VISIBLE_DEVICES is unset; without a GPU use the embedded "
        "host.",
        error=r"no CUDA-capable device is detected|No CUDA GPUs are available"
        r"|Found no NVIDIA driver|Torch not compiled with CUDA enabled",
    ),
    Signature(
        "device assert", "A check failed on the GPU: almost always a token id or label beyond the vocabulary, that "
        "is a tokenizer which does not belong to the model.",
        "Check that tokenizer and model have the same source; `CUDA_LAUNCH_BLOCKING=1` shows the place.",
        error=r"device-side assert triggered",
        line=r"\S+: \w+: block: \[\d+,\d+,\d+\], thread: \[\d+,\d+,\d+\] Assertion",
    ),
    Signature(
        "gpu fault", "The GPU or its driver failed during the work (Xid, ECC, an illegal access, fallen off the "
        "bus).",
        "Run again once: one fault may be chance. If it comes back, the card is faulty; `dmesg | grep Xid` gives "
        f"the number. {_DRIVER}",
        error=r"unspecified launch failure|an illegal memory access was encountered"
        r"|uncorrectable ECC error|CUDA error: unknown error|CUBLAS_STATUS_EXECUTION_FAILED",
        line=_KERNEL + r"NVRM: (?:Xid \(|GPU .{0,60}fallen off the bus)"
        r"|Unable to determine the device handle for GPU.*(?:lost|Unknown Error)",
    ),
    Signature(
        "gpu not supported", "The installed torch has no code for this model of GPU.",
        "Install a torch that supports the card, or take another GPU.",
        error=r"no kernel image is available for execution on the device",
    ),
    Signature(
        "bitsandbytes", "bitsandbytes cannot use this machine's GPU or CUDA: 4-bit loading fails.",
        "Turn it off with `-e trainer_hp_use_qlora=false` (needs more GPU memory), or provision again so that "
        "bitsandbytes fits torch's CUDA; `python -m bitsandbytes` tells more.",
        error=r"CUDA Setup failed despite|supported by the bitsandbytes version you have installed"
        r"|libbitsandbytes_\w+|compiled without GPU support|A GPU is needed for quantization"
        r"|(?:requires|install|metadata was found for|module named).{0,60}\bbitsandbytes\b"
        r"|CPU-only version of bitsandbytes|bitsandbytes native library|'cquantize",
        line=r"\s+CUDA Setup failed despite GPU being available|Error named symbol not found at line \d+ in file",
    ),
    Signature(
        "wrong qwen id", "`Qwen/Qwen3-8B-Instruct` is not a published Qwen model: the post-trained one is called "
        "`Qwen/Qwen3-8B`.",
        "Run again with `-e trainer_hp_model_name_or_path=Qwen/Qwen3-8B`.",
        error=r"Qwen3-8B-Instruct\b.*(?:is not a|not exist|not found)|not found.*Qwen3-8B-Instruct",
        line=r"Repository Not Found for url: \S*/Qwen3-8B-Instruct\b", hides=("model missing",),
    ),
    Signature(
        "model closed", "The model is gated or private, and this machine's token may not read it.",
        f"Ask for access on the model's page and set HF_TOKEN on the host, or name an open model by {_MODEL}.",
        error=r"^403 Client Error|Access to model \S+ is restricted|gated repo|Invalid user token",
        line=r"(?:[\w.]+\.)?GatedRepoError: |Cannot access gated repo", hides=("model missing",),
    ),
    Signature(
        "weights broken", "A model file is incomplete or damaged, mostly by a download that broke off.",
        f"Delete this model from the cache and let it be downloaded again; {_AGAIN}",
        error=r"Error while deserializing header|PytorchStreamReader failed"
        r"|Consistency check failed: file should be of size",
    ),
    Signature(
        "tokenizer missing", "The model's tokenizer or its chat template is missing or unreadable.",
        f"Name an instruction-tuned model with {_MODEL}, or complete its folder (tokenizer.json, "
        "tokenizer_config.json, chat_template.jinja).",
        error=r"tokenizer\.chat_template is not set|has no chat template|Can't load tokenizer for "
        r"|Couldn't instantiate the backend tokenizer",
    ),
    Signature(
        "offline", "Downloads are switched off (HF_HUB_OFFLINE); the model is not in the cache.",
        "Unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE, or bring the model to the host first.",
        error=r"offline mode is enabled|outgoing traffic has been disabled", hides=("download failed",),
    ),
    Signature(
        "model missing", "There is no such model: the folder or id is wrong, or files are missing in it.",
        f"Correct {_MODEL}: a folder on the host with config.json and *.safetensors, or an id as the model's page "
        "spells it.",
        error=r"is not a local folder and is not a valid model identifier|^404 Client Error"
        r"|Repo id must|Incorrect path_or_model_id|does not appear to have a file named"
        r"|no file named \S*model|[Mm]odel: ?\S+,? not exists?",
        line=r"Repository Not Found for url: |(?:[\w.]+\.)?RepositoryNotFoundError: ", kinds=("model missing",),
    ),
    Signature(
        "download failed", "A download failed: the model's host cannot be reached from this machine, or the "
        "connection broke off.",
        "Take the model from ModelScope: `USE_MODELSCOPE=1` or `-e trainer_hp_use_modelscope=true`; or set "
        f"HF_ENDPOINT to a mirror; {_AGAIN}",
        error=r"couldn't connect to 'https?://|HTTPS?ConnectionPool\(host=|Max retries exceeded"
        r"|trying to locate the files? on the Hub|Temporary failure in name resolution"
        r"|Name or service not known|Network is unreachable|CERTIFICATE_VERIFY_FAILED"
        r"|Connection (?:reset by peer|refused|aborted)|Remote end closed connection"
        r"|peer closed connection|Server disconnected|(?:read|handshake) operation timed out"
        r"|UNEXPECTED_EOF_WHILE_READING|\b(?:5\d\d Server|429 Client) Error|Server error '5\d\d"
        r"|Client error '429|IncompleteRead\(|CAS service error|(?i:failed to download|download failed)",
        line=r"(?:[a-z_][\w.]*\.)?(?:Connect(?:ion)?Error|ConnectTimeout|ReadTimeout|ReadError"
        r"|PoolTimeout|(?:Proxy|SSL|RemoteProtocol|ChunkedEncoding|LocalEntryNotFound|MaxRetry"
        r"|XetDownload|NameResolution)Error)(?::|$)", kinds=("download failed",),
    ),
    Signature(
        "loss not finite", "The loss became NaN or infinite: the training has diverged.",
        "Lower the learning rate (`-e trainer_hp_learning_rate=5e-5`), train in bfloat16 or float32 and not in "
        "float16, and look for rows with broken text.",
        error=r"(?i)\bloss[ :=]+(?:is |was |became |of )?(?:not finite|" + _NOT_FINITE + ")"
        r"|probability tensor contains either `inf`, `nan`|non-finite loss",
        line=r"(?i)(?:[^\"'{}]{0,80}\bstep[ =:]+\d+[^\"'{}]{0,80}?\b)?(?:train_|eval_)?loss[ =:]+" + _NOT_FINITE +
        r"|\{(?:[\"']\w+[\"']: [\"']?[-\w.:+ ]*[\"']?, )*[\"'](?:train_|eval_)?loss[\"']: [\"']?" + _NOT_FINITE,
        kinds=("nan loss", "loss not finite"),
    ),
    Signature(
        "permission", "A file or folder may not be read or written by this user, or the disk is mounted read-only.",
        "Look at `ls -ld` of the path named; give it to the training user, or choose a project folder on the data "
        "disk.",
        error=r"\[Errno (?:1|13|30)\]|Permission denied|Read-only file system",
        line=r"[\w./-]+: .{0,300}(?:Permission denied|Read-only file system)$",
    ),
    Signature(
        "package missing", "A Python package is missing or has another version than this code expects.",
        f"Provision the host again, which installs the pinned versions; {_AGAIN}",
        error=r"^No module named |^cannot import name |No package metadata was found for",
    ),
    Signature(
        "killed", "Signal 9, which no program can catch: mostly the kernel's OOM killer when memory runs out; a "
        "person or the provider can send it too. The log cannot tell which.",
        "Look for `oom_kill` in the cgroup's memory.events and for `Out of memory` in dmesg; if it was memory, "
        "take a machine with 16 GB or more.",
        line=r"Killed$|\S+: line \d+: +\d+ Killed\b", signals=(9,),
    ),
    Signature(
        "terminated", "The machine or somebody ended the program from outside (shutdown, reboot, end of the "
        "rental).",
        f"See that the machine is up and paid for; {_AGAIN}",
        signals=(1, 2, 15),
    ),
    Signature(
        "crashed", "The program crashed in native code (segmentation fault, abort, illegal instruction): mostly "
        "libraries that do not fit each other, the driver or the processor.",
        "Provision again; if it comes back, try another driver or image.",
        line=r"(?:Segmentation fault|Aborted|Illegal instruction)(?: \(core dumped\))?$|Fatal Python error: ",
        signals=(4, 6, 8, 11),
    ),
)
# fmt: on
