"""What a model repository holds at one commit, asked of Hugging Face (or a mirror of it) or ModelScope. No torch."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import urlencode

from trainer import digest
from trainer.errors import HostUnfit

SOURCES = ("hub", "modelscope")
TITLES = {"hub": "Hugging Face", "modelscope": "ModelScope"}
LISTING_SECONDS = 15.0
COMMIT = re.compile(r"[0-9a-f]{40}")
# Weights, tokenizer, configuration and chat template of the top folder: never pickles or code.
_WANTED = re.compile(
    r"(?!consolidated|adapter_)[A-Za-z0-9][\w.-]*\.(?:safetensors|json|jinja|tiktoken)|merges\.txt|vocab\.txt|tokenizer\.model"
)


class SourceFailed(Exception):
    """One source could not give what was asked: `kind` is missing, revision, refused, other, unreachable or damaged."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


@dataclass(frozen=True)
class RemoteFile:
    """One file as its repository publishes it: size in bytes, sha256 of its content or else its git blob id."""

    size: int
    sha256: str | None = None
    blob_id: str | None = None


@dataclass(frozen=True)
class Listing:
    """The wanted files of a repository at one commit, and where they lie."""

    source: str
    endpoint: str
    name: str
    revision: str
    commit: str
    files: Mapping[str, RemoteFile]
    architectures: tuple[str, ...] = field(default=())

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files.values())

    @property
    def identity(self) -> str:
        """sha256 over source, name, commit and the published hashes: what a result is bound to."""
        files = {name: asdict(file) for name, file in self.files.items()}
        return digest.of_value([self.source, self.name, self.commit, files])

    def url(self, path: str) -> str:
        """The address of one file at this very commit."""
        if self.source == "hub":
            return f"{self.endpoint}/{self.name}/resolve/{self.commit}/{path}"
        at = self.commit if COMMIT.fullmatch(self.commit) else self.revision
        return f"{self.endpoint}/api/v1/models/{self.name}/repo?{urlencode({'Revision': at, 'FilePath': path})}"

    def holds(self, other: Listing) -> bool:
        """Whether all files of `other` are here with the same content, as far as both publish it."""
        for name, file in other.files.items():
            mine = self.files.get(name)
            if mine is None or mine.size != file.size:
                return False
            if mine.sha256 and file.sha256 and mine.sha256 != file.sha256:
                return False
        return True


def as_record(listing: Listing) -> dict[str, Any]:
    """Plain data of a listing, for a JSON file."""
    return {**asdict(listing), "architectures": list(listing.architectures)}


def of_record(record: Mapping[str, Any]) -> Listing:
    """The listing that `as_record` gave."""
    files = {name: RemoteFile(**file) for name, file in record["files"].items()}
    return Listing(**{**record, "files": files, "architectures": tuple(record["architectures"])})


def endpoint_of(source: str, hf_endpoint: str) -> str:
    """The address of a source: the parameter, else what the host's environment names, else the public one."""
    if source == "modelscope":
        return (os.environ.get("MODELSCOPE_ENDPOINT") or "https://www.modelscope.cn").rstrip("/")
    given = "" if hf_endpoint == "auto" else hf_endpoint
    return (given or os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def look_up(
    source: str, endpoint: str, name: str, revision: str, token: str | None, timeout: float = LISTING_SECONDS
) -> Listing:
    """The listing of a repository; SourceFailed with the reason, HostUnfit where the client is not installed."""
    try:
        import httpx2
        from huggingface_hub import constants
    except ImportError as problem:
        raise HostUnfit(
            f"the base model {name!r} cannot be looked up ({problem}); install requirements/trainer.txt on the host"
        ) from None
    if constants.is_offline_mode():
        raise SourceFailed("unreachable", "HF_HUB_OFFLINE forbids the network")
    ask = _look_up_hub if source == "hub" else _look_up_modelscope
    try:
        listing = ask(endpoint, name, revision, token, timeout)
    except httpx2.TimeoutException:
        raise SourceFailed("unreachable", f"no answer within {timeout:g} s") from None
    except (httpx2.HTTPError, OSError, ValueError, KeyError, TypeError) as problem:
        raise SourceFailed("unreachable", brief(problem)) from None
    if not any(path.endswith(".safetensors") for path in listing.files):
        raise SourceFailed("missing", "it holds no safetensors weights")
    return listing


def brief(problem: Exception) -> str:
    """The first line of an exception's text, or its name."""
    lines = str(problem).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(problem).__name__


def _look_up_hub(endpoint: str, name: str, revision: str, token: str | None, timeout: float) -> Listing:
    from huggingface_hub import HfApi, errors

    # False, not None: the client must not take a token that lies elsewhere on the host.
    api = HfApi(endpoint=endpoint, token=token or False)
    try:
        info = api.model_info(name, revision=revision, files_metadata=True, timeout=timeout)
    except errors.RevisionNotFoundError:
        raise SourceFailed("revision", f"it has no revision {revision!r}") from None
    except errors.GatedRepoError:
        raise SourceFailed("refused", "the model is gated") from None
    except errors.RepositoryNotFoundError:  # the hub does not tell a private repository from none
        raise SourceFailed("missing", "there is no such model, or it is private") from None
    except errors.HfHubHTTPError as problem:
        code = problem.response.status_code
        if code in (401, 403):
            raise SourceFailed("refused", f"access was refused ({code})") from None
        raise SourceFailed("unreachable", f"it answered {code}") from None
    files = {
        item.rfilename: RemoteFile(int(item.size or 0), item.lfs.sha256 if item.lfs else None, item.blob_id)
        for item in info.siblings or []
        if _WANTED.fullmatch(item.rfilename)
    }
    found = (info.config or {}).get("architectures") or []
    return Listing("hub", endpoint, name, revision, str(info.sha), files, tuple(map(str, found)))


def _look_up_modelscope(endpoint: str, name: str, revision: str, token: str | None, timeout: float) -> Listing:
    """ModelScope's file list; a token of the hub is none of its business."""
    from huggingface_hub import get_session

    revision = "master" if revision == "main" else revision  # its default branch
    query = urlencode({"Revision": revision, "Recursive": "True"})
    answer = get_session().get(f"{endpoint}/api/v1/models/{name}/repo/files?{query}", timeout=timeout)
    if answer.status_code == 404:
        raise SourceFailed("missing", "there is no such model, or it is private")
    if answer.status_code in (401, 403):
        raise SourceFailed("refused", f"access was refused ({answer.status_code})")
    if answer.status_code >= 400:
        raise SourceFailed("unreachable", f"it answered {answer.status_code}")
    data = answer.json().get("Data") or {}
    if data.get("Files") is None:  # this is how it answers for a revision that it does not have
        raise SourceFailed("revision", f"it has no revision {revision!r}")
    blobs = [item for item in data["Files"] if item.get("Type") == "blob"]
    files = {
        item["Path"]: RemoteFile(int(item["Size"]), item["Sha256"]) for item in blobs if _WANTED.fullmatch(item["Path"])
    }
    head = data.get("LatestCommitter") or {}
    short = str(head.get("Id") or head.get("ShortId") or "")
    # The list names its commit by the first digits only; a file of that commit tells it in full.
    known = [str(item.get("Revision") or "") for item in blobs]
    whole = [commit for commit in (short, *known) if COMMIT.fullmatch(commit) and short and commit.startswith(short)]
    content = digest.of_value({path: file.sha256 for path, file in files.items()})[:24]
    return Listing("modelscope", endpoint, name, revision, whole[0] if whole else f"content-{content}", files)
