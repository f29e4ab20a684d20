"""The action plugin stagegate_trust: known_hosts files before and after, and what has to be confirmed."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from plugin_files import load

plugin = load("stagegate_trust")
PLACE = "[203.0.113.7]:2222"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Two keys that PLACE shows."""
    folder = tmp_path_factory.mktemp("keys")
    made = []
    for number in range(2):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / f"{number}")], check=True)
        words = (folder / f"{number}.pub").read_text().split()
        made.append(plugin.Key(f"{PLACE} {words[0]} {words[1]}"))
    return made


def is_known(file: Path, place: str = PLACE) -> bool:
    return (
        subprocess.run(["ssh-keygen", "-F", place, "-f", str(file)], capture_output=True, check=False).returncode == 0
    )


@pytest.mark.parametrize("hashed", [False, True])
def test_key_is_added_to_what_is_there(tmp_path: Path, keys: list[Any], hashed: bool) -> None:
    known = tmp_path / "known_hosts"
    other = keys[1].line.replace(PLACE, "gpu.example.org")
    known.write_text(other)  # without a newline at its end
    known.chmod(0o640)
    plugin.pin(known, PLACE, keys[:1], hashed)
    assert known.read_text().splitlines()[0] == other
    assert is_known(known) and plugin.old_fingerprints(known, PLACE) == [keys[0].shown]
    assert (PLACE in known.read_text()) is not hashed
    assert known.stat().st_mode & 0o777 == 0o640
    assert [path.name for path in tmp_path.iterdir()] == ["known_hosts"]


def test_first_key_makes_the_file_for_its_owner_alone(tmp_path: Path, keys: list[Any]) -> None:
    known = tmp_path / "ssh" / "known_hosts"
    assert plugin.old_fingerprints(known, PLACE) == []
    plugin.pin(known, PLACE, keys[:1], False)
    assert known.stat().st_mode & 0o777 == 0o600 and known.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("hashed", [False, True])
def test_changed_key_takes_the_old_ones_place(tmp_path: Path, keys: list[Any], hashed: bool) -> None:
    known, linked = tmp_path / "dotfiles", tmp_path / "known_hosts"
    linked.symlink_to(known)
    plugin.pin(linked, PLACE, keys[:1], hashed)
    plugin.pin(linked, PLACE, keys[1:], hashed)
    assert plugin.old_fingerprints(linked, PLACE) == [keys[1].shown]
    assert linked.is_symlink()


def test_introduction_warns_of_a_changed_key_only(keys: list[Any]) -> None:
    assert not any("attack" in line for line in plugin.introduction(keys[:1], []))
    told = "\n".join(plugin.introduction(keys[:1], [keys[1].shown]))
    assert keys[0].fingerprint in told and keys[1].fingerprint in told and "attack" in told


class Asked(plugin.ActionModule):  # type: ignore[misc, name-defined]
    """The plugin with an answer instead of a terminal."""

    def __init__(self, answer: str) -> None:
        self.answer = answer
        self._task = SimpleNamespace(check_mode=False)

    def _ask(self, question: str) -> str:
        return self.answer


def test_new_key_wants_a_yes(keys: list[Any]) -> None:
    assert Asked("YES")._chosen(keys, "", False) == keys
    for answer in ("", "y", "no"):
        with pytest.raises(plugin.Refused) as refused:
            Asked(answer)._chosen(keys, "", False)
        assert refused.value.code == 7


def test_changed_key_wants_its_fingerprint(keys: list[Any]) -> None:
    assert Asked(keys[0].fingerprint)._chosen(keys, "", True) == keys[:1]
    assert Asked(keys[0].fingerprint.removeprefix("SHA256:"))._chosen(keys, "", True) == keys[:1]
    for answer in ("yes", "", "SHA256:"):
        with pytest.raises(plugin.Refused):
            Asked(answer)._chosen(keys, "", True)


def test_wished_fingerprint_asks_nobody_and_takes_that_key_alone(keys: list[Any]) -> None:
    assert Asked("no")._chosen(keys, keys[1].fingerprint, True) == keys[1:]
    with pytest.raises(plugin.Refused) as refused:
        Asked("yes")._chosen(keys[:1], keys[1].fingerprint, False)
    assert refused.value.code == 2 and keys[1].fingerprint in str(refused.value)
