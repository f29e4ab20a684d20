"""Which commit is meant: a version of a remote repository pinned to a full commit, and what it leaves out. No torch.

This runs on the controller. Nothing here asks for a password: what cannot be read without one is refused.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from trainer.errors import InputError

COMMIT = re.compile(r"[0-9a-f]{40}")
SHORT_COMMIT = re.compile(r"[0-9a-f]{7,39}")
LOOK_UP_SECONDS = 120
WORKTREE = "or use checkout_source=worktree"


def pin(root: Path, url: str, version: str) -> dict[str, Any]:
    """{"url", "commit", "version", "lines"}: the repository and the full commit that are meant.

    `url` (default: origin of the checkout `root`), `version` (branch, tag, commit; default: HEAD of `root`).
    InputError when the URL holds a password or the version is not there.
    """
    url = checked_url(url or _origin(root))
    if version in ("", "HEAD"):
        version = _local(root, "HEAD")
        if not version:
            raise InputError(f"{str(root)!r} has no commit; name a checkout_git_version, {WORKTREE}")
    if version.startswith("-") or re.search(r"[\s\\~^:?*\[\x00-\x1f]", version):
        raise InputError(f"checkout_git_version is {version!r}; give a branch, a tag or a commit")
    commit = version if COMMIT.fullmatch(version) else _remote(root, url, version)
    return {"url": url, "commit": commit, "version": version, "lines": _edits(root)}


def checked_url(url: str) -> str:
    """The URL, when it can be shown: InputError when it holds a password or names a strange transport."""
    parts = urlsplit(url) if "://" in url else None
    if parts and (parts.password is not None or (parts.scheme in ("http", "https") and parts.username is not None)):
        shown = f"{parts.scheme}://…@{parts.netloc.rpartition('@')[2]}{parts.path}"
        raise InputError(
            f"the repository URL {shown} holds a password or token, which would be seen in logs and process lists; "
            f"use a deploy key or agent forwarding with the ssh form of the URL, {WORKTREE}"
        )
    if url.startswith("-") or "::" in url.partition("://")[0] or re.search(r"[\x00-\x20]", url):
        raise InputError(f"checkout_git_url is {url!r}; give an https://, ssh:// or user@host:path URL")
    return url


def commit_of(root: Path) -> str:
    """The commit that the tree of a checkout is, or "" when it has local edits or no commit."""
    return "" if _changed(root) else _local(root, "HEAD")


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    """git that never asks."""
    quiet = {
        "GIT_TERMINAL_PROMPT": "0", "GIT_ASKPASS": "/bin/false", "SSH_ASKPASS": "/bin/false", "LC_ALL": "C",
        "GIT_SSH_COMMAND": os.environ.get("GIT_SSH_COMMAND", "ssh") + " -o BatchMode=yes -o ConnectTimeout=30",
        "GIT_ALLOW_PROTOCOL": "file:git:http:https:ssh",
    }  # fmt: skip
    try:
        return subprocess.run(
            ["git", *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            env={**os.environ, **quiet}, timeout=LOOK_UP_SECONDS, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        raise InputError("git is not installed here; install it") from None
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(words, 124, "", f"no answer within {LOOK_UP_SECONDS} s")


def _origin(root: Path) -> str:
    done = _run("-C", str(root), "remote", "get-url", "origin")
    if done.returncode:
        raise InputError(f"{str(root)!r} has no remote called origin; name the checkout_git_url, {WORKTREE}")
    return done.stdout.strip()


def _local(root: Path, version: str) -> str:
    done = _run("-C", str(root), "rev-parse", "--verify", "--quiet", "--end-of-options", f"{version}^{{commit}}")
    return done.stdout.strip() if done.returncode == 0 else ""


def _remote(root: Path, url: str, version: str) -> str:
    """The commit of a branch or tag of the remote repository, or of a short commit that this checkout knows."""
    branch, tag = f"refs/heads/{version}", f"refs/tags/{version}"
    done = _run("-C", str(root), "ls-remote", "--", url, branch, tag, f"{tag}^{{}}")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"git ended with {done.returncode}"])[0]
        raise InputError(
            f"{version!r} cannot be looked up in {url} ({last}); "
            f"name a full commit, which needs no look-up from here, {WORKTREE}"
        )
    found = {name: commit for commit, _, name in (row.partition("\t") for row in done.stdout.splitlines())}
    tagged = found.get(f"{tag}^{{}}") or found.get(tag)  # an annotated tag is an object of its own
    if tagged and branch in found and tagged != found[branch]:
        raise InputError(f"{version!r} is a branch and a tag of {url}, of different commits; name the commit")
    known = tagged or found.get(branch)
    if not known and SHORT_COMMIT.fullmatch(version):
        known = _local(root, version)
    if not known:
        raise InputError(f"{url} has no branch or tag {version!r}; name another checkout_git_version, {WORKTREE}")
    return known


def _changed(root: Path) -> list[str]:
    """The files that differ from the last commit, untracked ones included."""
    done = _run("-C", str(root), "status", "--porcelain", "-z", "--no-renames", "--untracked-files=all", ".")
    return [] if done.returncode else [row[3:] for row in done.stdout.split("\0") if row]


def _edits(root: Path) -> list[str]:
    """A line that names local edits, which a commit does not hold."""
    names = _changed(root)
    if not names:
        return []
    shown = ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return [f"warning: local edits are not trained with ({shown}); commit and push them, {WORKTREE}"]
