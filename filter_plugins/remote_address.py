"""Filter that reads where a host is from REMOTE_HOST, REMOTE_PORT and REMOTE_USER, however they were pasted."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from typing import Any

HOST_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?\.?")
IPV6 = re.compile(r"[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(%[A-Za-z0-9_.-]+)?")
USER = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.@+-]*\$?")
PASTE = "paste the whole ssh command that the provider shows, or set REMOTE_HOST, REMOTE_PORT and REMOTE_USER"


def remote_address(host: Any, port: Any = "", user: Any = "") -> dict[str, Any]:
    """{"host", "port" (None: as ssh decides), "user" ("": as ssh decides), "findings"} of the given values.

    `host` may be a name, an address (IPv6 with or without brackets), `user@host:port`, `ssh://…`, or a whole
    `ssh -p 12345 root@host`. With findings (sentences) the rest is empty: nothing may be connected to.
    """
    given = {"port": str(port if port is not None else "").strip(), "user": str(user or "").strip()}
    text = str(host or "").strip()
    if not text:
        return _refused(f"REMOTE_HOST is not set: {PASTE}")
    try:
        found = _command(text) if re.match(r"ssh\s", text) else _target(text)
    except ValueError as problem:
        return _refused(f"REMOTE_HOST is {text!r}, {problem}: {PASTE}")
    findings = []
    for name, value in given.items():
        if value and found[name] and value != found[name]:
            findings.append(f"REMOTE_{name.upper()} is {value!r} and REMOTE_HOST says {found[name]!r}; set one of them")
        found[name] = found[name] or value
    if found["port"] and not (found["port"].isascii() and found["port"].isdigit() and 0 < int(found["port"]) < 65536):
        findings.append(f"REMOTE_PORT is {found['port']!r}; give a number from 1 to 65535")
    if found["user"] and not USER.fullmatch(found["user"]):
        findings.append(f"REMOTE_USER is {found['user']!r}; give the name of a user on the host")
    if not (HOST_NAME.fullmatch(found["host"]) or IPV6.fullmatch(found["host"])):
        findings.append(f"REMOTE_HOST names the host {found['host']!r}, which is no name and no address: {PASTE}")
    if findings:
        return _refused(*findings)
    return {**found, "port": int(found["port"]) if found["port"] else None, "findings": []}


def _refused(*findings: str) -> dict[str, Any]:
    return {"host": "", "port": None, "user": "", "findings": list(findings)}


def _command(text: str) -> dict[str, str]:
    """Host, port and user of a pasted ssh command; ValueError says which part is not understood."""
    words = shlex.split(text)[1:]
    options: dict[str, str] = {}
    targets = []
    while words:
        word = words.pop(0)
        if not word.startswith("-"):
            targets.append(word)
        elif word[:2] in ("-p", "-l"):
            options[word[:2]] = word[2:] or (words.pop(0) if words else "")
        else:
            raise ValueError(f"whose option {word} belongs into ~/.ssh/config")
    if len(targets) != 1:
        raise ValueError("an ssh command without one host")
    found = _target(targets[0])
    return {
        "host": found["host"],
        "port": found["port"] or options.get("-p", ""),
        "user": found["user"] or options.get("-l", ""),
    }


def _target(text: str) -> dict[str, str]:
    """Parts of `[ssh://][user@]host[:port]`; several colons without brackets are an IPv6 address."""
    if re.search(r"\s", text):
        raise ValueError("with spaces in it")
    rest = text.removeprefix("ssh://").rstrip("/") if text.startswith("ssh://") else text
    user, _, place = rest.rpartition("@")
    bracketed = re.fullmatch(r"\[([^\]]+)\](?::(.*))?", place)
    if bracketed:
        return {"host": bracketed[1], "port": bracketed[2] or "", "user": user}
    if place.count(":") == 1:
        name, _, port = place.partition(":")
        return {"host": name, "port": port, "user": user}
    return {"host": place, "port": "", "user": user}


class FilterModule:
    """Registers the filter with Ansible."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Filter names and their functions."""
        return {"remote_address": remote_address}
