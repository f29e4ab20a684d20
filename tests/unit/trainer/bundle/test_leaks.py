"""Secrets in contents. The samples are put together here: this file itself holds none."""

from __future__ import annotations

import pytest

from trainer.bundle import leaks
from trainer.bundle.leaks import WINDOW, Scanner

LETTERS = b"aB3dE6gH9jK2mN5pQ8rS1tU4vW7xY0zAbCdEfGhIjKlMnOpQr"
KEY = b"-----BEGIN " + b"OPENSSH PRIVATE KEY-----\n"
SAMPLES = [
    (KEY, KEY.replace(b"-----\n", b"----- is how it begins")),
    (b"-----BEGIN " + b"PRIVATE KEY-----\\nMIIE", b"-----BEGIN " + b"PUBLIC KEY-----\\nMIIE"),
    (b"-----BEGIN " + b"PGP PRIVATE KEY BLOCK-----\r\n", b"-----BEGIN " + b"CERTIFICATE-----\r\n"),
    (b"PuTTY-User-Key-File-" + b"3: ssh", b"PuTTY-User-Key-File-" + b"x"),
    (b"hf_" + LETTERS[:30], b"hf_" + LETTERS[:29]),
    (b"ghp_" + LETTERS[:36], b"ghp_" + LETTERS[:35]),
    (b"github_pat_" + LETTERS[:22] + b"_" + LETTERS[:40], b"github_pat_" + LETTERS[:22]),
    (b"glpat-" + LETTERS[:20], b"glpat-" + LETTERS[:19]),
    (b"AKIA" + b"ABCDEFGH12345678", b"AKIA" + b"abcdefgh12345678"),
    (b"LTAI" + LETTERS[:20], b"LTAI" + LETTERS[:15]),
    (b"AIza" + LETTERS[:35], b"AIza" + LETTERS[:34]),
    (b"xoxb-" + b"123456789012-abcdefgh", b"xoxb-" + b"12"),
]


def scan(*pieces: bytes) -> list[tuple[int, str]]:
    scanner = Scanner()
    for piece in pieces:
        scanner.feed(piece)
    return scanner.close()


@pytest.mark.parametrize(("secret", "harmless"), SAMPLES)
def test_a_secret_is_found_with_its_line_and_what_looks_like_it_is_not(secret: bytes, harmless: bytes) -> None:
    for text, expected in ((secret, [3]), (harmless, [])):
        content = b"one\ntwo\nthree = '" + text + b"'\n"
        assert [line for line, _ in scan(content)] == expected
        assert [line for line, _ in scan(b"\n\n" + text)] == expected  # at the end of a file


@pytest.mark.parametrize(("secret", "harmless"), SAMPLES)
@pytest.mark.parametrize("least", [0, leaks.LEAST_BYTES])
def test_a_secret_across_the_border_of_two_pieces_is_found_once(
    least: int, secret: bytes, harmless: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaks, "LEAST_BYTES", least)
    before, after = b"a\n" * 500, b"\nb" * 500
    for cut in range(len(before) - 2, len(before) + len(secret) + 2):
        content = before + secret + after
        assert [line for line, _ in scan(content[:cut], content[cut:])] == [501]
    assert scan(*(bytes([byte]) for byte in before + secret + after)) == scan(before + secret + after)


def test_a_word_that_only_ends_like_a_token_is_none() -> None:
    token = b"hf_" + LETTERS[:34]
    for place in (0, WINDOW, 3 * WINDOW, leaks.LEAST_BYTES):
        assert scan(b"." * place + b"x" + token, b"." * WINDOW) == []
        assert len(scan(b"." * place + token, b"." * WINDOW)) == 1


def test_every_secret_of_a_file_is_told() -> None:
    content = b"\n".join(secret for secret, _ in SAMPLES)
    assert len(scan(content)) == len(SAMPLES)
