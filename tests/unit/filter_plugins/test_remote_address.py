"""The filter remote_address: every way in which an address is pasted, and those that are refused."""

from __future__ import annotations

from typing import Any

import pytest

from filter_plugins.remote_address import FilterModule, remote_address


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (("gpu.example.org",), ("gpu.example.org", None, "")),
        (("gpu.example.org", "2222", "me"), ("gpu.example.org", 2222, "me")),
        (("gpu.example.org", 22), ("gpu.example.org", 22, "")),
        ((" 203.0.113.7 ", " 2222 "), ("203.0.113.7", 2222, "")),
        (("root@203.0.113.7",), ("203.0.113.7", None, "root")),
        (("root@203.0.113.7:2222",), ("203.0.113.7", 2222, "root")),
        (("root@203.0.113.7:2222", "2222", "root"), ("203.0.113.7", 2222, "root")),
        (("2001:db8::1", "2222"), ("2001:db8::1", 2222, "")),
        (("fe80::1%eth0",), ("fe80::1%eth0", None, "")),
        (("me@[2001:db8::1]:2222",), ("2001:db8::1", 2222, "me")),
        (("ssh://me@gpu.example.org:2222/",), ("gpu.example.org", 2222, "me")),
        (("ssh -p 12345 root@connect.<region>.seetacloud.com".replace("<region>", "eu"),),
         ("connect.eu.seetacloud.com", 12345, "root")),
        (("ssh gpu.example.org -p12345 -l me",), ("gpu.example.org", 12345, "me")),
        (("ssh  box",), ("box", None, "")),
        (("box_1",), ("box_1", None, "")),
        (("me@example.org@gate.example.org",), ("gate.example.org", None, "me@example.org")),
    ],
)  # fmt: skip
def test_the_address_is_found(given: tuple[Any, ...], found: tuple[Any, ...]) -> None:
    address = remote_address(*given)
    assert (address["host"], address["port"], address["user"]) == found
    assert address["findings"] == []


@pytest.mark.parametrize(
    ("given", "part"),
    [
        (("",), "REMOTE_HOST is not set"),
        ((None,), "REMOTE_HOST is not set"),
        (("gpu example.org",), "with spaces in it"),
        (("gpu.example.org", "port22"), "REMOTE_PORT is 'port22'; give a number"),
        (("gpu.example.org", "0"), "REMOTE_PORT is '0'"),
        (("gpu.example.org", "65536"), "REMOTE_PORT is '65536'"),
        (("gpu.example.org", "２２"), "REMOTE_PORT"),
        (("root@203.0.113.7:2222", "2223"), "REMOTE_PORT is '2223' and REMOTE_HOST says '2222'"),
        (("root@203.0.113.7", "", "me"), "REMOTE_USER is 'me' and REMOTE_HOST says 'root'"),
        (("gpu.example.org", "", "-oProxyCommand=x"), "REMOTE_USER is '-oProxyCommand=x'"),
        (("-oProxyCommand=x",), "no name and no address"),
        (("gpu.example.org;reboot",), "no name and no address"),
        (("ssh -p 12345",), "without one host"),
        (("ssh -p 12345 root@a b",), "without one host"),
        (("ssh -i key.pem root@gpu.example.org",), "option -i belongs into ~/.ssh/config"),
        (("ssh 'root@gpu.example.org",), "No closing quotation"),
        (("connect.<region>.seetacloud.com",), "no name and no address"),
    ],
)
def test_what_is_no_address_is_refused(given: tuple[Any, ...], part: str) -> None:
    address = remote_address(*given)
    assert part in "; ".join(address["findings"])
    assert (address["host"], address["port"], address["user"]) == ("", None, "")


def test_all_findings_come_at_once() -> None:
    assert len(remote_address("gpu.example.org", "x", "a b")["findings"]) == 2


def test_it_is_registered() -> None:
    assert FilterModule().filters() == {"remote_address": remote_address}
