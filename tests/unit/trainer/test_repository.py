"""Pinning a version of a repository to a commit, against repositories on disk."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from trainer import repository
from trainer.errors import InputError


def git(root: Path, *words: str) -> str:
    settings = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main"]
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    command = ["git", *settings, "-C", str(root), *words]
    return subprocess.run(command, check=True, env=environment, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A clone of a repository with two commits, a branch, and a lightweight and an annotated tag on the first."""
    origin, clone = tmp_path / "origin", tmp_path / "clone"
    origin.mkdir()
    git(origin, "init", "--quiet")
    for number in ("1", "2"):
        (origin / "a.py").write_text(number)
        git(origin, "add", "--all")
        git(origin, "commit", "--quiet", "--message", number)
    git(origin, "tag", "light", "HEAD~1")
    git(origin, "tag", "--annotate", "--message", "x", "heavy", "HEAD~1")
    git(origin, "branch", "old", "HEAD~1")
    git(tmp_path, "clone", "--quiet", origin.as_uri(), str(clone))
    return clone


def commits(checkout: Path) -> tuple[str, str]:
    return git(checkout, "rev-parse", "HEAD~1"), git(checkout, "rev-parse", "HEAD")


def test_the_default_is_the_commit_of_the_checkout_and_its_origin(checkout: Path) -> None:
    found = repository.pin(checkout, "", "")
    assert found["commit"] == commits(checkout)[1] and found["url"] == git(checkout, "remote", "get-url", "origin")
    assert found["lines"] == [] and repository.commit_of(checkout) == found["commit"]


@pytest.mark.parametrize("version", ["old", "light", "heavy"])
def test_branches_and_tags_are_those_of_the_remote(checkout: Path, version: str) -> None:
    assert repository.pin(checkout, "", version)["commit"] == commits(checkout)[0]
    git(checkout, "branch", "here_only")
    with pytest.raises(InputError, match="has no branch or tag 'here_only'; name another .*worktree"):
        repository.pin(checkout, "", "here_only")


def test_a_full_commit_needs_no_look_up_and_a_short_one_is_completed(checkout: Path) -> None:
    first = commits(checkout)[0]
    assert repository.pin(checkout, "https://nowhere.invalid/x.git", first)["commit"] == first
    assert repository.pin(checkout, "", first[:8])["commit"] == first
    with pytest.raises(InputError, match="has no branch or tag '00000000'"):
        repository.pin(checkout, "", "00000000")


def test_a_name_of_a_branch_and_a_tag_is_refused_unless_they_agree(checkout: Path) -> None:
    origin = checkout.parent / "origin"
    git(origin, "tag", "old", "old")
    assert repository.pin(checkout, "", "old")["commit"] == commits(checkout)[0]
    git(origin, "tag", "--force", "old", "main")
    with pytest.raises(InputError, match="'old' is a branch and a tag"):
        repository.pin(checkout, "", "old")


def test_local_edits_are_named(checkout: Path) -> None:
    for name in ("a.py", "b.py", "c.py", "d.py"):
        (checkout / name).write_text("edited")
    (line,) = repository.pin(checkout, "", "")["lines"]
    assert line.startswith("warning: local edits are not trained with ('a.py', 'b.py', 'c.py' and 1 more)")
    assert repository.commit_of(checkout) == ""


SECRET = [
    "https://user:hunter2@example.org/x.git",
    "https://hunter2@example.org/x.git",
    "ssh://git:hunter2@example.org/x.git",
]


@pytest.mark.parametrize("url", SECRET)
def test_a_url_with_a_password_is_refused_without_showing_it(checkout: Path, url: str) -> None:
    with pytest.raises(InputError, match="example.org/x.git holds a password or token.*deploy key") as caught:
        repository.pin(checkout, url, "")
    assert "hunter2" not in str(caught.value)
    git(checkout, "remote", "set-url", "origin", url)
    with pytest.raises(InputError, match="holds a password or token"):
        repository.pin(checkout, "", "")


@pytest.mark.parametrize(
    "url", ["https://example.org/x.git", "ssh://git@example.org/x.git", "git@example.org:x.git", "/x"]
)
def test_other_urls_are_taken(url: str) -> None:
    assert repository.checked_url(url) == url


@pytest.mark.parametrize("url", ["--upload-pack=touch x", "ext::sh -c x", "https://example.org/a b"])
def test_urls_that_are_options_or_commands_are_refused(url: str) -> None:
    with pytest.raises(InputError, match="checkout_git_url is"):
        repository.checked_url(url)


@pytest.mark.parametrize("version", ["-x", "main..old", "HEAD~1", "a b", "*"])
def test_versions_that_are_no_names_are_refused(checkout: Path, version: str) -> None:
    with pytest.raises(InputError, match="checkout_git_version|no branch or tag"):
        repository.pin(checkout, "", version)


def test_a_remote_that_cannot_be_read_is_named(checkout: Path) -> None:
    with pytest.raises(InputError, match="'old' cannot be looked up in .*gone.*name a full commit"):
        repository.pin(checkout, (checkout / "gone").as_uri(), "old")


def test_a_folder_without_origin_or_commit_is_refused(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    with pytest.raises(InputError, match="has no remote called origin; name the checkout_git_url"):
        repository.pin(tmp_path, "", "")
    with pytest.raises(InputError, match="has no commit; name a checkout_git_version"):
        repository.pin(tmp_path, "https://example.org/x.git", "")
    assert repository.commit_of(tmp_path) == ""
