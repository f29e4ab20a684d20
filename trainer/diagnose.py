"""From a failed stage's log to its causes: a table of signatures, the issues found, ISSUES.md.

A line counts only where a failure is told: an error line (`SomeError: …`, `error: …`) or a line of
a known machine form (kernel messages, `Killed`, a progress line). So an answer or a training row
that talks about running out of memory, printed as JSON, in quotes or indented, names nothing. A
printed answer that imitates an error line to the letter, from the line's start on, cannot be told
apart.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from trainer import state
from trainer.report import encodable, render, shorten

LAST_LINES, TAIL_CHARS, SYMPTOM_CHARS, LINE_CHARS = 8, 150, 400, 4000
OWN_KINDS = ("InputError", "NotReady", "HostUnfit")  # refusals whose sentence is the diagnosis


@dataclass(frozen=True)
class Issue:
    """One finding; `severity` is error, warning or info, `time` ISO 8601 in UTC."""

    time: str
    phase: str
    stage: str
    severity: str
    symptom: str
    cause: str
    action: str


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
        "Look at the rate in the log: raise the stage's time limit if it was merely slow; if it"
        " stood still, the last phase in the log tells where.",
        error=r"(?i)\bstage\b.{0,40}\b(?:timed out|time ?limit|timeout)\b",
        kinds=("timeout", "stage timeout", "timed out"), hides=("killed", "terminated"),
    ),
    Signature(
        "gate missed", "The adapter was trained, but its scores lie below the gate's targets.",
        "Read `Rows that missed something` in the stage's eval_report; add rows of the types that"
        " fail or train longer (`-e trainer_hp_num_train_epochs=…`). Later stages stay closed.",
        error=r"(?i)\bmissed (?:its|the) gate\b|\bgate\b.{0,40}\bmissed\b",
        kinds=("gate missed", "missed"),
    ),
    Signature(
        "empty answers", "The model answered with nothing: most often a chat template or stop token"
        " that differs between training and generation, or a learning rate that broke the model.",
        "Look at predictions_<stage>.jsonl, check the base model's chat template, lower"
        " `-e trainer_hp_learning_rate=…`.",
        error=r"\banswered 0(?:\.\d+)? <|\b[1-9]\d* of \d+ answers? (?:is|are|was|were) empty"
        r"|\ball answers are empty",
        line=r"[1-9]\d* of \d+ answers? (?:is|are|was|were) empty|all answers are empty",
        kinds=("empty answers",),
    ),
    Signature(
        "cuda memory", "The GPU's memory ran out.",
        f"{_SMALLER}; keep `use_qlora` on, look with `nvidia-smi` for other programs on the GPU, or"
        " take a GPU with more memory.",
        error=r"(?:^|: )(?:CUDA|HIP)(?: driver)?(?: error)?:? out of memory\b"
        r"|CUBLAS_STATUS_ALLOC_FAILED",
        line=r"CUDA out of memory\. Tried to allocate \d",
        kinds=("cuda memory", "cuda out of memory"),
    ),
    Signature(
        "host memory", "The host's memory ran out, and the kernel or Python stopped the program (in"
        " a container the cgroup's limit counts, not /proc/meminfo).",
        "Take a machine with 16 GB of memory or more, stop other programs on it, train fewer or"
        f" shorter rows at once; {_AGAIN}",
        error=r"DefaultCPUAllocator: (?:can't allocate|not enough) memory|Unable to allocate \d"
        r"|\[Errno 12\]|DataLoader worker \(pid.*is killed by signal: Killed",
        line=_KERNEL + r"(?:(?:Memory cgroup out|Out) of memory: Kill(?:ed)? process \d+"
        r"|oom-kill:constraint=)|MemoryError$|oom_kill [1-9]",
        kinds=("host memory", "memory error"), hides=("killed",),
    ),
    Signature(
        "shared memory", "A bus error: mostly /dev/shm (shared memory) or the disk behind a mapped"
        " file is full.",
        "Look at `df -h /dev/shm .`; give the container more shared memory.",
        error=r"\bBus error\b|insufficient shared memory",
        line=r"Bus error(?: \(core dumped\))?$", signals=(7,),
    ),
    Signature(
        "no space", "The disk is full, or its inodes are used up (`df -h .` and `df -i .` tell"
        " which).",
        'Clean the caches: `pip cache purge; rm -rf "${HF_HOME:-$HOME/.cache/huggingface}"` (models'
        f" are downloaded again), or point HF_HOME to the data disk; {_AGAIN}",
        error=r"No space left on device|Disk quota exceeded|PytorchStreamWriter failed writing",
        line=r"[\w./-]+: .{0,300}No space left on device$",
        kinds=("no space",),
    ),
    Signature(
        "driver mismatch", "The NVIDIA driver in the kernel and its libraries have different"
        " versions, or the driver does not answer.",
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
        "no gpu", "The program sees no GPU: none is attached, CUDA_VISIBLE_DEVICES hides it, or the"
        " container was started without it.",
        "See whether `nvidia-smi` lists a GPU and CUDA_VISIBLE_DEVICES is unset; without a GPU use"
        " the embedded host.",
        error=r"no CUDA-capable device is detected|No CUDA GPUs are available"
        r"|Found no NVIDIA driver|Torch not compiled with CUDA enabled",
    ),
    Signature(
        "device assert", "A check failed on the GPU: almost always a token id or label beyond the"
        " vocabulary, that is a tokenizer which does not belong to the model.",
        "Check that tokenizer and model have the same source; `CUDA_LAUNCH_BLOCKING=1` shows the"
        " place.",
        error=r"device-side assert triggered",
        line=r"\S+: \w+: block: \[\d+,\d+,\d+\], thread: \[\d+,\d+,\d+\] Assertion",
    ),
    Signature(
        "gpu fault", "The GPU or its driver failed during the work (Xid, ECC, an illegal access,"
        " fallen off the bus).",
        "Run again once: one fault may be chance. If it comes back, the card is faulty; `dmesg |"
        f" grep Xid` gives the number. {_DRIVER}",
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
        "Turn it off with `-e trainer_hp_use_qlora=false` (needs more GPU memory), or provision"
        " again so that bitsandbytes fits torch's CUDA; `python -m bitsandbytes` tells more.",
        error=r"CUDA Setup failed despite|supported by the bitsandbytes version you have installed"
        r"|libbitsandbytes_\w+|compiled without GPU support|A GPU is needed for quantization"
        r"|(?:requires|install|metadata was found for|module named).{0,60}\bbitsandbytes\b"
        r"|CPU-only version of bitsandbytes|bitsandbytes native library|'cquantize",
        line=r"\s+CUDA Setup failed despite GPU being available"
        r"|Error named symbol not found at line \d+ in file",
    ),
    Signature(
        "wrong qwen id", "`Qwen/Qwen3-8B-Instruct` is not a published Qwen model: the post-trained"
        " one is called `Qwen/Qwen3-8B`.",
        "Run again with `-e trainer_hp_model_name_or_path=Qwen/Qwen3-8B`.",
        error=r"Qwen3-8B-Instruct\b.*(?:is not a|not exist|not found)|not found.*Qwen3-8B-Instruct",
        line=r"Repository Not Found for url: \S*/Qwen3-8B-Instruct\b", hides=("model missing",),
    ),
    Signature(
        "model closed", "The model is gated or private, and this machine's token may not read it.",
        "Ask for access on the model's page and set HF_TOKEN on the host, or name an open model by"
        f" {_MODEL}.",
        error=r"^403 Client Error|Access to model \S+ is restricted|gated repo|Invalid user token",
        line=r"(?:[\w.]+\.)?GatedRepoError: |Cannot access gated repo", hides=("model missing",),
    ),
    Signature(
        "weights broken", "A model file is incomplete or damaged, mostly by a download that broke"
        " off.",
        f"Delete this model from the cache and let it be downloaded again; {_AGAIN}",
        error=r"Error while deserializing header|PytorchStreamReader failed"
        r"|Consistency check failed: file should be of size",
    ),
    Signature(
        "tokenizer missing", "The model's tokenizer or its chat template is missing or unreadable.",
        f"Name an instruction-tuned model with {_MODEL}, or complete its folder (tokenizer.json,"
        " tokenizer_config.json, chat_template.jinja).",
        error=r"tokenizer\.chat_template is not set|has no chat template|Can't load tokenizer for "
        r"|Couldn't instantiate the backend tokenizer",
    ),
    Signature(
        "offline", "Downloads are switched off (HF_HUB_OFFLINE); the model is not in the cache.",
        "Unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE, or bring the model to the host first.",
        error=r"offline mode is enabled|outgoing traffic has been disabled",
        hides=("download failed",),
    ),
    Signature(
        "model missing", "There is no such model: the folder or id is wrong, or files are missing"
        " in it.",
        f"Correct {_MODEL}: a folder on the host with config.json and *.safetensors, or an id as"
        " the model's page spells it.",
        error=r"is not a local folder and is not a valid model identifier|^404 Client Error"
        r"|Repo id must|Incorrect path_or_model_id|does not appear to have a file named"
        r"|no file named \S*model|[Mm]odel: ?\S+,? not exists?",
        line=r"Repository Not Found for url: |(?:[\w.]+\.)?RepositoryNotFoundError: ",
        kinds=("model missing",),
    ),
    Signature(
        "download failed", "A download failed: the model's host cannot be reached from this"
        " machine, or the connection broke off.",
        "Take the model from ModelScope: `USE_MODELSCOPE=1` or `-e trainer_hp_use_modelscope=true`;"
        f" or set HF_ENDPOINT to a mirror; {_AGAIN}",
        error=r"couldn't connect to 'https?://|HTTPS?ConnectionPool\(host=|Max retries exceeded"
        r"|trying to locate the files? on the Hub|Temporary failure in name resolution"
        r"|Name or service not known|Network is unreachable|CERTIFICATE_VERIFY_FAILED"
        r"|Connection (?:reset by peer|refused|aborted)|Remote end closed connection"
        r"|peer closed connection|Server disconnected|(?:read|handshake) operation timed out"
        r"|UNEXPECTED_EOF_WHILE_READING|\b(?:5\d\d Server|429 Client) Error|Server error '5\d\d"
        r"|Client error '429|IncompleteRead\(|CAS service error"
        r"|(?i:failed to download|download failed)",
        line=r"(?:[a-z_][\w.]*\.)?(?:Connect(?:ion)?Error|ConnectTimeout|ReadTimeout|ReadError"
        r"|PoolTimeout|(?:Proxy|SSL|RemoteProtocol|ChunkedEncoding|LocalEntryNotFound|MaxRetry"
        r"|XetDownload|NameResolution)Error)(?::|$)",
        kinds=("download failed",),
    ),
    Signature(
        "loss not finite", "The loss became NaN or infinite: the training has diverged.",
        "Lower the learning rate (`-e trainer_hp_learning_rate=5e-5`), train in bfloat16 or float32"
        " and not in float16, and look for rows with broken text.",
        error=r"(?i)\bloss[ :=]+(?:is |was |became |of )?(?:not finite|" + _NOT_FINITE + ")"
        r"|probability tensor contains either `inf`, `nan`|non-finite loss",
        line=r"(?i)(?:[^\"'{}]{0,80}\bstep[ =:]+\d+[^\"'{}]{0,80}?\b)?(?:train_|eval_)?loss[ =:]+"
        + _NOT_FINITE + r"|\{(?:[\"']\w+[\"']: [\"']?[-\w.:+ ]*[\"']?, )*[\"'](?:train_|eval_)?loss"
        r"[\"']: [\"']?" + _NOT_FINITE,
        kinds=("nan loss", "loss not finite"),
    ),
    Signature(
        "permission", "A file or folder may not be read or written by this user, or the disk is"
        " mounted read-only.",
        "Look at `ls -ld` of the path named; give it to the training user, or choose a project"
        " folder on the data disk.",
        error=r"\[Errno (?:1|13|30)\]|Permission denied|Read-only file system",
        line=r"[\w./-]+: .{0,300}(?:Permission denied|Read-only file system)$",
    ),
    Signature(
        "package missing", "A Python package is missing or has another version than this code"
        " expects.",
        f"Provision the host again, which installs the pinned versions; {_AGAIN}",
        error=r"^No module named |^cannot import name |No package metadata was found for",
    ),
    Signature(
        "killed", "Signal 9, which no program can catch: mostly the kernel's OOM killer when memory"
        " runs out; a person or the provider can send it too. The log cannot tell which.",
        "Look for `oom_kill` in the cgroup's memory.events and for `Out of memory` in dmesg; if it"
        " was memory, take a machine with 16 GB or more.",
        line=r"Killed$|\S+: line \d+: +\d+ Killed\b", signals=(9,),
    ),
    Signature(
        "terminated", "The machine or somebody ended the program from outside (shutdown, reboot,"
        " end of the rental).",
        f"See that the machine is up and paid for; {_AGAIN}", signals=(1, 2, 15),
    ),
    Signature(
        "crashed", "The program crashed in native code (segmentation fault, abort, illegal"
        " instruction): mostly libraries that do not fit each other, the driver or the processor.",
        "Provision again; if it comes back, try another driver or image.",
        line=r"(?:Segmentation fault|Aborted|Illegal instruction)(?: \(core dumped\))?$"
        r"|Fatal Python error: ",
        signals=(4, 6, 8, 11),
    ),
)
# fmt: on

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_BAR = re.compile(r"^.{0,200}?\d+%\|[^|]{0,200}\| *[\d.]+\w?/[\d.]+\w? \[[^\]]{0,80}\]")
# What loggers put before a message: a time, a [part], `name - `. The level is for _LEVEL; WARNING
# is none, because retries that went well in the end are told there.
_PREFIX = re.compile(
    r"(?:\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)?[ :-]*"
    r"|\[(?! *\d+\.\d+\] |ERROR|CRITICAL|FATAL)[^\]\"]{1,60}\]:? *|[a-z_][\w.]* - )*"
)
_LEVEL = re.compile(r"(?:(?:error|fatal)(?=:)|\[?(?:ERROR|CRITICAL|FATAL)\b)\]?[ :-]+")
_CLASS = re.compile(r"(?:[A-Za-z_]\w*\.)*(?:_?[A-Z]\w*(?:Error|Exception|Timeout)|(?<=\.)[A-Z]\w+|gaierror)(?::\s+|$)")
_SECRETS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"(?i)((?:proxy-)?authorization[\"']?\s*[:=]\s*[\"']?)[^\"'\n\r}]+"), r"\1***"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{6,}"), r"\1 ***"),
    (re.compile(r"(://)[^/\s@\"']+@"), r"\1***@"),
    (
        re.compile(
            r"(?i)([\w-]{0,40}(?:passw(?:or)?d|passphrase|secret|(?<!pad_)(?<!eos_)(?<!bos_)(?<!unk_)token"
            r"|api[_-]?key|access[_-]?key|signature|credential)[\"']?\s*[=:]\s*)"
            r"(\"[^\"]*\"|'[^']*'|[^\s,;&\"']+)"
        ),
        r"\1***",
    ),
    # long enough that hf_transfer and ms-marco stay readable
    (re.compile(r"\b(?:hf_[A-Za-z0-9]{10,}|gh[pos]_\w{16,}|github_pat_\w{16,})"), "***"),
    (re.compile(r"\b(?:sk-[\w-]{16,}|ms-[0-9a-f-]{20,})"), "***"),
    (re.compile(r"\bAKIA[A-Z0-9]{12,}"), "***"),
)


def redact(text: str) -> str:
    """`text` without tokens, passwords, Authorization headers and credentials in addresses."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def clean_lines(log_text: str) -> list[str]:
    """The lines of a log without ANSI escapes and progress bars; a redraw after \\r is a line."""
    lines = re.split(r"\r\n|\n|\r", _ANSI.sub("", log_text))
    bare = (_BAR.sub("", line[:LINE_CHARS]).rstrip() for line in lines)
    return [line for line in bare if line]


def diagnose(
    log_text: str,
    *,
    exit_signal: int | None,
    error_kind: str | None,
    stage: str = "",
    phase: str = "",
    time: str | None = None,
) -> list[Issue]:
    """The causes that a failed stage's log, signal and recorded kind of error name; never empty.

    Each cause is named once, in the order of the log (what kind and signal say comes first);
    without a known one the answer is an issue that says so and gives the last lines.
    """
    lines = clean_lines(log_text)
    when = time or state.now()
    found = _told_outside(exit_signal, error_kind)
    for line, times in Counter(lines).items():
        signature = _match(line)
        if signature:
            first, count = found.get(signature.kind, ("", 0))
            found[signature.kind] = (first if count else line, count + times)
    hidden = {kind for s in SIGNATURES if s.kind in found for kind in s.hides}
    by_kind = {s.kind: s for s in SIGNATURES}
    issues = []
    for kind, seen in found.items():
        if kind not in hidden:
            it = by_kind[kind]
            symptom = _symptom(*seen)
            issues.append(Issue(when, phase, stage, it.severity, symptom, it.cause, it.action))
    return issues or [_unknown(lines, exit_signal, error_kind, when, phase, stage)]


def _told_outside(exit_signal: int | None, error_kind: str | None) -> dict[str, tuple[str, int]]:
    """kind -> (symptom, 0): causes that need no log line."""
    kind = re.sub(r"(?<=[a-z])(?=[A-Z])|[_-]", " ", error_kind or "").lower().strip()
    found: dict[str, tuple[str, int]] = {}
    for signature in SIGNATURES:
        if kind and kind in signature.kinds:
            found[signature.kind] = (f"the stage ended with: {kind}", 0)
        elif exit_signal in signature.signals:
            found[signature.kind] = (f"the program was ended by signal {exit_signal}", 0)
    return found


def _error_message(line: str) -> tuple[str, str | None]:
    """The line without a logger's prefix, and its message when it is an error line."""
    bare = _strip(_PREFIX, line)
    told = _strip(_LEVEL, bare)
    message = _strip(_CLASS, told)
    return told, message if len(message) < len(bare) else None


def _strip(pattern: re.Pattern[str], line: str) -> str:
    match = pattern.match(line)
    return line[match.end() :] if match else line


def _match(line: str) -> Signature | None:
    bare, message = _error_message(line)
    for signature in SIGNATURES:
        if signature.line and re.match(signature.line, bare):
            return signature
        if message and signature.error and re.search(signature.error, message):
            return signature
    return None


def _symptom(line: str, count: int) -> str:
    text = shorten(redact(line), SYMPTOM_CHARS)
    return f"{text} (seen {count} times)" if count > 1 else text


def _unknown(lines: Sequence[str], signal: int | None, kind: str | None, when: str, phase: str, stage: str) -> Issue:
    """What is said when no signature matched: that it is unknown, with the last lines."""
    errors = [line for line in lines if _error_message(line)[1] is not None]
    ending = [f"signal {signal}"] if signal is not None else []
    ending += [f"recorded error: {kind}"] if kind else []
    last = [shorten(redact(line), TAIL_CHARS) for line in lines[-LAST_LINES:]]
    tail = " / ".join(last) or "the log is empty"
    symptom = "; ".join([*ending, f"last lines: {tail}"])
    cause = "Unknown: the log holds no known signature."
    if kind in OWN_KINDS and errors:
        cause = "The trainer stopped by itself; its own sentence says why."
        symptom = errors[-1]
    elif not ending and not errors:
        cause = "Unknown: neither the log nor the way it ended tells of a failure."
    severity = "error" if ending or errors else "info"
    action = "Read the stage's whole log from its first error on."
    text = shorten(redact(symptom), LAST_LINES * TAIL_CHARS + SYMPTOM_CHARS)
    return Issue(when, phase, stage, severity, text, cause, action)


def append_issues(folder: Path, issues: Iterable[Issue]) -> None:
    """Append to folder/issues.jsonl (one JSON a line, fsynced) and render ISSUES.md from it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "issues.jsonl"
    records = [{name: redact(str(text)) for name, text in asdict(issue).items()} for issue in issues]
    text = encodable("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in records))
    with path.open("ab+") as stream:
        # a line torn by a crash must not swallow the next one
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - 1))
        torn = stream.read(1) not in (b"", b"\n")
        stream.write(("\n" * torn + text).encode())
        stream.flush()
        os.fsync(stream.fileno())
    known, problems = read_issues(path)
    state.write_text(folder / "ISSUES.md", render_issues(known, problems))


def read_issues(path: Path) -> tuple[list[Issue], list[str]]:
    """The issues of an issues.jsonl and a sentence for each unreadable line; no file, no issues."""
    issues, problems = [], []
    names = [field.name for field in fields(Issue)]
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            record = json.loads(line) if line.strip() else None
        except ValueError:
            record = ()
        if isinstance(record, Mapping) and set(names) <= set(record):
            issues.append(Issue(**{name: str(record[name]) for name in names}))
        elif record is not None:
            problems.append(f"{path.name}, line {number}, is not an issue record and is left out")
    return issues, problems


def render_issues(issues: Sequence[Issue], problems: Sequence[str] = ()) -> str:
    """ISSUES.md: every issue with symptom, cause and action, the newest first."""
    return render("issues.md.j2", issues=list(reversed(issues)), problems=problems)
