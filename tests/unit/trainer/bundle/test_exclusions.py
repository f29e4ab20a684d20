"""What is never packed, by its name."""

from __future__ import annotations

import pytest

from trainer.bundle import exclusions


@pytest.mark.parametrize(
    ("name", "harmless"),
    [
        ("__pycache__", "pycache"), ("a.pyc", "a.py"), (".mypy_cache", "mypy_cache.md"), (".git", "git.md"),
        (".venv", "venv.md"), (".ssh", "ssh.md"), ("server.pem", "pem.md"), ("host.KEY", "keys.py"),
        ("id_rsa", "my_id.py"), ("ID_ED25519.pub", "ed25519.md"), (".env", "env.py"), (".env.local", "environment"),
        (".netrc", "netrc.md"), (".pypirc", "pypirc.md"), (".npmrc", "npmrc.md"), (".vault_pass", "vault.py"),
        ("vault_password.txt", "vaults.txt"), ("prod-vault-pass", "vault-passage"), (".secrets", "secrets.md"),
        (".DS_Store", "DS_Store.md"), ("._rows.jsonl", "_rows.jsonl"), ("a.py~", "a~b.py"), (".a.py.swp", "a.swp.md"),
        (".#a.py", "#a.py"), ("#a.py#", "#a.py"), ("x.egg-info", "egg-info.md"), (".cache", "cache.py"),
    ],
)  # fmt: skip
def test_a_name_is_never_packed_and_one_that_looks_like_it_is(name: str, harmless: str) -> None:
    for is_folder in (False, True):
        assert exclusions.kind(name, is_folder=is_folder, at_top=False)
    assert exclusions.kind(harmless, is_folder=False, at_top=True) == ""


@pytest.mark.parametrize("name", ["outputs", "checkpoints", "venv"])
def test_folders_of_results_are_left_out_anywhere_and_files_of_that_name_are_not(name: str) -> None:
    assert exclusions.kind(name, is_folder=True, at_top=False)
    assert exclusions.kind(name, is_folder=False, at_top=True) == ""


@pytest.mark.parametrize("name", [".stagegate", "releases", "backups"])
def test_folders_of_a_host_are_left_out_at_the_top(name: str) -> None:
    assert exclusions.kind(name, is_folder=True, at_top=True) == "a host's own folder"
    assert exclusions.kind(name, is_folder=True, at_top=False) == ""


def test_a_path_is_what_one_of_its_folders_is() -> None:
    assert exclusions.kind_of_path(["a", ".git", "config"]) == "a repository"
    assert exclusions.kind_of_path(["a", "releases", "b"]) == ""
