"""The hash-locked requirements against the pins, and the role's words about torch against both."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
LOCK = (ROOT / "requirements" / "trainer.lock").read_text(encoding="utf-8")
ROW = re.compile(r"(?m)^([A-Za-z0-9._-]+)==(\S+)(?: ; .*?)? \\\n((?: {4}--hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)")
LEFT_OUT = dict(re.findall(r"(?m)^# {3}([\w.-]+)==(\S+)$", LOCK))


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(name: str) -> dict[str, str]:
    text = (ROOT / "requirements" / name).read_text(encoding="utf-8")
    return {plain(package): version for package, version in re.findall(r"(?m)^([\w.-]+)==([^\s;#]+)", text)}


def locked() -> dict[str, str]:
    return {plain(match[1]): match[2] for match in ROW.finditer(LOCK)}


def test_every_row_of_the_lock_has_a_version_and_hashes() -> None:
    rows = [row for row in LOCK.splitlines() if row and not row.startswith((" ", "#"))]
    assert len(rows) == len(locked()) > 40


def test_the_lock_has_the_versions_of_the_constraints() -> None:
    constraints = pins("constraints.txt")
    assert {name: version for name, version in locked().items() if constraints.get(name) != version} == {}


def test_the_lock_has_every_direct_requirement_but_torch() -> None:
    direct = pins("trainer.txt")
    assert LEFT_OUT["torch"] == direct.pop("torch") == pins("constraints.txt")["torch"]
    assert {name: version for name, version in direct.items() if locked().get(name) != version} == {}


def test_what_differs_by_host_is_not_in_the_lock() -> None:
    assert [name for name in locked() if re.match(r"torch$|triton$|nvidia-|cuda-", name)] == []
    assert {"triton", "cuda-toolkit"} <= set(LEFT_OUT)


def test_no_requirement_file_names_an_index() -> None:
    for path in (ROOT / "requirements").iterdir():
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"https?://|--(?:extra-)?index-url|--find-links", text), path.name


def test_the_role_installs_the_pinned_torch() -> None:
    defaults = yaml.safe_load((ROOT / "roles" / "gpu_host" / "defaults" / "main.yml").read_text(encoding="utf-8"))
    assert defaults["gpu_host_torch_requirement"] == f"torch=={pins('trainer.txt')['torch']}"


def test_the_cuda_that_the_role_presumes_is_that_of_the_pinned_torch() -> None:
    defaults = yaml.safe_load((ROOT / "roles" / "gpu_host" / "defaults" / "main.yml").read_text(encoding="utf-8"))
    presumed = re.findall(r"gpu_host_index_cuda\('([\d.]+)'\)", defaults["gpu_host_torch_cuda"])
    assert presumed == [".".join(LEFT_OUT["cuda-toolkit"].split(".")[:2])]
