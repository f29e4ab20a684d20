"""Filter that names why SSH did not reach a host: one kind and one sentence from what ssh wrote."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

HOST_UNFIT = 4
ANSIBLES_WORDS = re.compile(r"^(Failed to connect to the host via \w+:|Data could not be sent .*over ssh:)")


@dataclass(frozen=True)
class Failure:
    """One way to fail. `pattern`: what ssh writes; `sentence`: filled from its groups; `lasts`: waiting cannot help."""

    kind: str
    pattern: str
    sentence: str
    lasts: bool = False


# The order matters: what ssh writes first is the cause, what follows (a closed connection) only its effect.
CLASSES = (
    Failure(
        "changed key",
        r"(?s)REMOTE HOST IDENTIFICATION HAS CHANGED(?:.*Host key for (?P<where>\S+) has changed)?",
        "the host key{of_where} is not the one that was trusted: this is another machine, one that was set up anew, or "
        "somebody in between; `make trust` shows the old and the new fingerprint and asks before it replaces anything",
        lasts=True,
    ),
    Failure(
        "revoked key", r"REVOKED HOST KEY", "the host key is marked as revoked in known_hosts; do not log in", True
    ),
    Failure(
        "unknown key",
        r"No (?P<type>\S+) host key is known for (?P<where>\S+) and|Host key verification failed|"
        r"read_passphrase: can't open /dev/tty|Host Key checking is enabled",
        "the host key{of_where} is not trusted yet; run `make trust`, which shows its fingerprint and asks",
        lasts=True,
    ),
    Failure(
        "name",
        r"Could not resolve hostname (?P<where>\S+?):",
        "the name {where} cannot be resolved; look for a typing error, and whether this machine is online",
    ),
    Failure(
        "booting",
        r"(?P<reason>System is booting up|System is going down|Unprivileged users are not permitted)",
        "the host lets nobody in at the moment ({reason})",
    ),
    Failure(
        "key file",
        r"UNPROTECTED PRIVATE KEY FILE|Permissions \S+ for '(?P<path>[^']+)' are too open",
        "ssh refuses a private key that others can read; chmod 600 the key file",
        lasts=True,
    ),
    Failure(
        "too many keys",
        r"Too many authentication failures",
        "the host gave up after too many keys of the ssh agent; name one with ansible_ssh_private_key_file, or set "
        "IdentitiesOnly in ~/.ssh/config",
        lasts=True,
    ),
    Failure(
        "login",
        r"(?P<where>\S+): Permission denied \((?P<methods>[^)]*)\)|Permission denied, please try again",
        "the host accepts no key and no password of {where_or_user}{methods_hint}; look at REMOTE_USER and "
        "REMOTE_PASSWORD (or ansible_password, ansible_ssh_private_key_file)",
        lasts=True,
    ),
    Failure(
        "refused",
        r"connect to (?:host )?(?P<where>\S+) port (?P<port>\d+): Connection refused",
        "{where} port {port} refuses the connection; the box may be switched off, or have another port after a restart",
    ),
    Failure(
        "no route",
        r"connect to (?:host )?(?P<where>\S+) port (?P<port>\d+): (?P<reason>No route to host|Network is unreachable)",
        "there is no way to {where} port {port} ({reason}); look at the address, and whether this machine is online",
    ),
    Failure(
        "timeout",
        r"connect to (?:host )?(?P<where>\S+) port (?P<port>\d+): (?:Connection|Operation) timed out|"
        r"Connection timed out during banner exchange|Connection to (?P<where2>\S+) port (?P<port2>\d+) timed out",
        "{where_port} does not answer; the box may be switched off, or a firewall drops the connection",
    ),
    Failure(
        "algorithms",
        r"no matching (?P<reason>[a-z ]+) found",
        "this ssh and the host have no {reason} in common; allow an older one in ~/.ssh/config, or update the host",
        lasts=True,
    ),
    Failure(
        "socket",
        r"ControlPath too long|path \S+ too long for Unix domain socket",
        "the path of ssh's socket is too long; name a short folder of your own in ANSIBLE_SSH_CONTROL_PATH_DIR",
        lasts=True,
    ),
    Failure(
        "configuration",
        r"(?P<reason>Bad configuration option: \S+|Bad owner or permissions on \S+|keyword \S+ extra arguments|"
        r"unix_listener: cannot bind\b.*)",
        "ssh of this machine cannot work ({reason}); look at ~/.ssh/config",
        lasts=True,
    ),
    Failure(
        "shell",
        r"(?P<reason>This account is currently not available|exec request failed on channel \d+|"
        r"shell request failed on channel \d+)",
        "the host accepts the login and runs no command ({reason}); look at the login shell of the user there",
        lasts=True,
    ),
    Failure(
        "dropped",
        r"kex_exchange_identification|Connection (?:reset|closed) by|Broken pipe|Shared connection to \S+ closed|"
        r"mux_client|client_loop|Timeout, server|Connection to \S+ closed|[Rr]ead from (?:remote host|master)|"
        r"Connection aborted",
        "the connection was lost ({last})",
    ),
)


def ssh_failure(text: str) -> dict[str, object]:
    """What ssh's words mean: {"kind", "sentence", "lasts", "exit_code"}.

    `lasts` tells that asking again without a change cannot succeed; an unknown message keeps ssh's last line
    and may pass.
    """
    said = ANSIBLES_WORDS.sub("", str(text)).strip()
    last = (said.splitlines() or ["ssh gave no reason"])[-1].strip()
    for item in CLASSES:
        if match := re.search(item.pattern, said):
            sentence = item.sentence.format(**_words(match, last))
            return {"kind": item.kind, "sentence": sentence, "lasts": item.lasts, "exit_code": HOST_UNFIT}
    sentence = f"the host cannot be reached ({last})"
    return {"kind": "unknown", "sentence": sentence, "lasts": False, "exit_code": HOST_UNFIT}


def _words(match: re.Match[str], last: str) -> dict[str, str]:
    found = {name: text.rstrip(".,") for name, text in match.groupdict().items() if text}
    where = found.get("where") or found.get("where2", "")
    port = found.get("port") or found.get("port2", "")
    methods = found.get("methods", "")
    return {
        **found,
        "last": last,
        "of_where": f" of {where}" if where else "",
        "where_or_user": where or "this user",
        "where_port": f"{where} port {port}" if where and port else "the host",
        "methods_hint": f" (it takes: {methods})" if methods else "",
    }


class FilterModule:
    """Registers the filter with Ansible."""

    def filters(self) -> dict[str, Callable[..., object]]:
        """Filter names and their functions."""
        return {"ssh_failure": ssh_failure}
