"""Which commit of a base model is used, and where it comes from. No torch.

`models/<org>--<name>/pins.json` holds what each revision resolved to, with the published hash of every file: later
stages and runs use the same commit, whatever the branch names by then.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer import base, config, credentials
from trainer.config import Parameters
from trainer.errors import HostUnfit, InputError, TrainerError
from trainer.repositories import (
    COMMIT,
    SOURCES,
    TITLES,
    Listing,
    SourceFailed,
    as_record,
    endpoint_of,
    look_up,
    of_record,
)
from trainer.state import SCHEMA, Layout, now, read_json, write_json

MOVED_SECONDS = 5.0  # whether a branch has moved is worth a short question only
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
_HELP = "set hf_endpoint to a mirror, use_modelscope to true, or model_name_or_path to a local folder"
_MISSING = "correct model_name_or_path, or set use_modelscope to true for one that is published there only"
_TOKEN = "accept its terms on the hub and give a token (trainer_hf_token, or HF_TOKEN in the environment)"


def is_remote(name: str) -> bool:
    """Whether a base model's name is that of a repository; InputError when it is neither that nor a folder."""
    if name == base.NAME or Path(name).expanduser().is_dir():
        return False
    if name.startswith((".", "~")) or Path(name).is_absolute():
        raise InputError(f"the base model {name!r} is not a folder of this host; correct model_name_or_path")
    if not _NAME.fullmatch(name):
        hint = config.suggestion(name, [base.NAME])
        raise InputError(f"the base model {name!r} is no folder of this host and no id such as Qwen/Qwen3-8B{hint}")
    return True


def sources(parameters: Parameters) -> list[str]:
    """The sources in the order in which they are tried."""
    if parameters.model_sources == "auto":
        return list(reversed(SOURCES)) if parameters.use_modelscope else list(SOURCES)
    return [name.strip() for name in parameters.model_sources.split(",")]


def resolve(parameters: Parameters, layout: Layout, *, remember: bool = True) -> Listing:
    """The commit to use: the one that was pinned before, else what the first source that answers names now.

    Errors: InputError (no such model or revision, refused), HostUnfit (no source can be reached).
    """
    if known := pinned(parameters, layout):
        return known
    failures: list[tuple[str, str, SourceFailed]] = []
    use_network(parameters)
    for source in sources(parameters):
        endpoint = endpoint_of(source, parameters.hf_endpoint)
        try:
            found = look_up(source, endpoint, parameters.model_name_or_path, parameters.model_revision, token(layout))
        except SourceFailed as problem:
            failures.append((source, endpoint, problem))
            if parameters.model_sources == "auto" and source == "hub" and problem.kind != "unreachable":
                break  # the hub's no is an answer: a copy under that name elsewhere may be anything
            continue
        if remember:
            _remember(layout, found, _key(parameters))
        return found
    raise none_left(parameters, layout, failures)


def pinned(parameters: Parameters, layout: Layout) -> Listing | None:
    """The commit that was resolved before, None where none was; asks nobody."""
    known = _pins(layout, parameters.model_name_or_path).get(_key(parameters))
    return of_record(known) if known else None


def none_left(
    parameters: Parameters, layout: Layout, failures: Sequence[tuple[str, str, SourceFailed]]
) -> TrainerError:
    """What to say when every source failed: each one's own reason, and the remedy that fits them."""
    name = parameters.model_name_or_path
    kinds = {problem.kind for _, _, problem in failures}
    told = ", ".join(f"{TITLES[source]} ({endpoint}): {problem}" for source, endpoint, problem in failures)
    sentence = f"the base model {name!r} could not be had; " + re.sub(r"://[^/\s@]+@", "://***@", told)
    if "refused" in kinds:
        return InputError(f"{sentence}; {_TOKEN}")
    if failures[0][2].kind in ("missing", "revision"):  # a later source may be out of reach besides
        if "missing" in kinds:
            return InputError(f"{sentence}; {_nearest(parameters, layout) or _MISSING}")
        return InputError(f"{sentence}; correct model_revision")
    return HostUnfit(f"{sentence}; {_HELP}")


def _nearest(parameters: Parameters, layout: Layout) -> str:
    """`did you mean x?` when the hub knows the name without the ending that people add from habit."""
    shorter = re.sub(r"(?i)-(?:instruct|chat)$", "", parameters.model_name_or_path)
    if shorter != parameters.model_name_or_path:
        for source in sources(parameters):
            with contextlib.suppress(SourceFailed):
                endpoint = endpoint_of(source, parameters.hf_endpoint)
                look_up(source, endpoint, shorter, "main", token(layout), MOVED_SECONDS)
                return f"did you mean {shorter}?"
    return ""


def moved(parameters: Parameters, layout: Layout) -> str:
    """A sentence when the branch of the pinned revision names another commit by now; else, or unanswered, empty."""
    pin = resolve(parameters, layout, remember=False)
    if COMMIT.fullmatch(parameters.model_revision) or _key(parameters) not in _pins(layout, pin.name):
        return ""
    use_network(parameters)
    endpoint = endpoint_of(pin.source, parameters.hf_endpoint)
    try:
        there = look_up(pin.source, endpoint, pin.name, pin.revision, token(layout), MOVED_SECONDS)
    except SourceFailed:
        return ""
    if there.commit == pin.commit:
        return ""
    return (
        f"{pin.name}: {pin.revision} moved from {pin.commit} to {there.commit}; the pinned {pin.commit[:12]} is used "
        f"(for the new one set model_revision to {there.commit})"
    )


def use_network(parameters: Parameters) -> None:
    """Take the proxy variables that a provider's shell file exports (network_environment_file) into this process."""
    path = Path(parameters.network_environment_file)
    if parameters.network_environment_file == "none" or not path.is_file():
        return
    script = '. "$1" >/dev/null 2>&1 </dev/null; env -0'
    try:
        found = subprocess.run(["bash", "-c", script, "bash", str(path)], capture_output=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return
    pairs = (item.partition("=") for item in found.stdout.decode(errors="replace").split("\0"))
    os.environ.update({name: value for name, _, value in pairs if name.lower() in _PROXIES})


def described(parameters: Parameters, layout: Layout) -> dict[str, Any]:
    """Where the base came from, for a report; empty for a local or the embedded one."""
    if not is_remote(parameters.model_name_or_path):
        return {}
    pin = resolve(parameters, layout)
    return {"base_source": pin.source, "base_revision": parameters.model_revision, "base_commit": pin.commit}


def token(layout: Layout) -> str | None:
    """The hub's token, which no other source gets."""
    return credentials.get(layout, "hf_token")


def home(layout: Layout, name: str) -> Path:
    """The folder of a model's pins and copies."""
    return layout.models / name.replace("/", "--")


def _pins(layout: Layout, name: str) -> dict[str, Any]:
    record = read_json(home(layout, name) / "pins.json")
    return dict(record["revisions"]) if record else {}


def _key(parameters: Parameters) -> str:
    """What a pin is for. A source that was asked in another's place stays while the order is the same."""
    return f"{','.join(sources(parameters))} {parameters.model_revision}"


def _remember(layout: Layout, found: Listing, key: str) -> None:
    path = home(layout, found.name) / "pins.json"
    pins = {**_pins(layout, found.name), key: as_record(found)}
    write_json(path, {"schema": SCHEMA, "pinned_at": now(), "revisions": pins})
