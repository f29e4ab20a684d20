"""The filter ssh_failure: captured words of ssh (OpenSSH 8.2 to 9.9, Linux and macOS) and what they mean."""

from __future__ import annotations

import pytest

from filter_plugins.ssh_failures import FilterModule, ssh_failure

CHANGED = """@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
IT IS POSSIBLE THAT SOMEONE IS DOING SOMETHING NASTY!
The fingerprint for the ECDSA key sent by the remote host is
SHA256:K6y2EQTElzNgEw49qXbv9PROpnc5IWLY85XRLtMcir4.
Offending ECDSA key in /home/me/.ssh/known_hosts:1
Host key for [203.0.113.7]:2299 has changed and you have requested strict checking.
Host key verification failed.
"""
UNKNOWN = """No ED25519 host key is known for [203.0.113.7]:2299 and you have requested strict checking.
Host key verification failed.
"""
# A jump host's key is judged first, the host behind it only notices that nobody came.
JUMP = (
    UNKNOWN + "kex_exchange_identification: Connection closed by remote host\nConnection closed by UNKNOWN port 65535\n"
)
PREFIXES = (
    "",
    "Failed to connect to the host via ssh: ",
    'Data could not be sent to remote host "x". Make sure this host can be reached over ssh: ',
)


@pytest.mark.parametrize(
    ("said", "kind", "part"),
    [
        (CHANGED, "changed key", "of [203.0.113.7]:2299 is not the one that was trusted"),
        (UNKNOWN, "unknown key", "of [203.0.113.7]:2299 is not trusted yet; run `make trust`"),
        (JUMP, "unknown key", "make trust"),
        (
            "Using a SSH password instead of a key is not possible because Host Key checking is enabled.",
            "unknown key",
            "trust",
        ),
        (
            "ssh: Could not resolve hostname gpu.example.org: Name or service not known",
            "name",
            "gpu.example.org cannot be",
        ),
        (
            "ssh: Could not resolve hostname gpu: nodename nor servname provided, or not known",
            "name",
            "name gpu cannot",
        ),
        ("ssh: connect to host 203.0.113.7 port 2299: Connection refused", "refused", "203.0.113.7 port 2299 refuses"),
        (
            "ssh: connect to host 2001:db8::1 port 22: No route to host",
            "no route",
            "2001:db8::1 port 22 (No route to host)",
        ),
        ("ssh: connect to host box port 22: Connection timed out", "timeout", "box port 22 does not answer"),
        ("ssh: connect to host box port 22: Operation timed out", "timeout", "box port 22 does not answer"),
        (
            "Connection timed out during banner exchange\nConnection to 203.0.113.7 port 22 timed out",
            "timeout",
            "answer",
        ),
        (
            "root@203.0.113.7: Permission denied (publickey,password).",
            "login",
            "of root@203.0.113.7 (it takes: publickey,",
        ),
        ("Permission denied, please try again.\nroot@box: Permission denied (password).", "login", "REMOTE_PASSWORD"),
        ("Received disconnect from 203.0.113.7 port 22:2: Too many authentication failures", "too many keys", "agent"),
        (
            "@ WARNING: UNPROTECTED PRIVATE KEY FILE! @\nroot@box: Permission denied (publickey).",
            "key file",
            "chmod 600",
        ),
        (
            '"System is booting up. Unprivileged users are not permitted to log in yet."\nu@b: Permission denied (x).',
            "booting",
            "System is booting up",
        ),
        ("kex_exchange_identification: read: Connection reset by peer", "dropped", "Connection reset by peer"),
        ("Shared connection to 203.0.113.7 closed.", "dropped", "Shared connection"),
        ("mux_client_request_session: read from master failed: Broken pipe", "dropped", "was lost"),
        ("Timeout, server 203.0.113.7 not responding.", "dropped", "not responding"),
        ("client_loop: send disconnect: Broken pipe", "dropped", "was lost"),
        (
            "Unable to negotiate with 203.0.113.7 port 22: no matching host key type found. Their offer: ssh-rsa",
            "algorithms",
            "no host key type in common",
        ),
        (
            "ControlPath too long ('/home/x/.ansible/cp/0123456789' >= 108 bytes)",
            "socket",
            "ANSIBLE_SSH_CONTROL_PATH_DIR",
        ),
        (
            "/home/me/.ssh/config: line 3: Bad configuration option: prot",
            "configuration",
            "Bad configuration option: prot",
        ),
        ("exec request failed on channel 0", "shell", "login shell"),
        ("something new", "unknown", "(something new)"),
        ("", "unknown", "ssh gave no reason"),
    ],
)
def test_what_ssh_says_becomes_one_sentence(said: str, kind: str, part: str) -> None:
    for text in (prefix + said for prefix in PREFIXES):
        found = ssh_failure(text)
        assert found["kind"] == kind
        assert part in str(found["sentence"])
        assert "\n" not in str(found["sentence"]) and "{" not in str(found["sentence"])
        assert found["exit_code"] == 4


@pytest.mark.parametrize("kind_said", [CHANGED, UNKNOWN, "root@box: Permission denied (publickey)."])
def test_what_waiting_cannot_help_lasts(kind_said: str) -> None:
    assert ssh_failure(kind_said)["lasts"] is True


@pytest.mark.parametrize(
    "said",
    [
        "ssh: connect to host box port 22: Connection refused",
        "ssh: Could not resolve hostname box: Temporary failure in name resolution",
        "ssh: connect to host box port 22: Connection timed out",
        "Shared connection to box closed.",
        "something new",
    ],
)
def test_what_an_outage_looks_like_may_pass(said: str) -> None:
    assert ssh_failure(said)["lasts"] is False


def test_it_is_registered() -> None:
    assert FilterModule().filters() == {"ssh_failure": ssh_failure}
