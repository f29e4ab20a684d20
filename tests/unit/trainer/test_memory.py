"""The kernel's count of kills and the limit, in both versions of cgroups."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer import memory


@pytest.fixture
def cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "OWN_CGROUP", tmp_path / "own")
    return tmp_path


def put(folder: Path, own: str, **files: str) -> None:
    """Files below the cgroup mount; `__` in a name is a slash."""
    (folder / "own").write_text(own, encoding="ascii")
    for name, text in files.items():
        path = folder / "cgroup" / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii")


EVENTS = "low 0\nhigh 0\nmax 9\noom 3\noom_kill 2\noom_group_kill 5\n"
CONTROL = "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n"


def test_version_2_tells_of_the_own_group(cgroups: Path) -> None:
    put(cgroups, "0::/box\n", box__memory_dot_events=EVENTS, box__memory_dot_max=f"{512 * 2**20}\n")
    assert (memory.kills(), memory.limit_mib()) == (2, 512)


def test_inside_a_container_the_mount_point_is_the_group(cgroups: Path) -> None:
    put(cgroups, "0::/docker/abc\n", memory_dot_events=EVENTS, memory_dot_max=f"{256 * 2**20}\n")
    assert (memory.kills(), memory.limit_mib()) == (2, 256)
    put(cgroups, "4:memory:/docker/abc\n0::/\n", memory__memory_dot_oom_control=CONTROL,
        memory__memory_dot_limit_in_bytes=f"{128 * 2**20}\n")  # fmt: skip
    assert memory.kills() == 4 and memory.limit_mib() == 128


def test_version_1_tells_of_the_own_group(cgroups: Path) -> None:
    put(cgroups, "9:cpu,cpuacct:/x\n4:memory:/box\n", memory__box__memory_dot_oom_control=CONTROL,
        memory__box__memory_dot_limit_in_bytes=f"{64 * 2**20}\n")  # fmt: skip
    assert (memory.kills(), memory.limit_mib()) == (4, 64)


@pytest.mark.parametrize("limit", ["max", "9223372036854771712", "nonsense"])
def test_no_limit_is_the_machines_memory(cgroups: Path, limit: str) -> None:
    put(cgroups, "4:memory:/box\n0::/box\n", memory__box__memory_dot_limit_in_bytes=limit, box__memory_dot_max=limit)
    found = memory.limit_mib()
    assert found is not None and found > 64
    put(cgroups, "0::/box\n", box__memory_dot_max=f"{2**20}\n")
    assert memory.limit_mib() == 1


def test_a_host_that_does_not_count_tells_nothing(cgroups: Path) -> None:
    assert memory.kills() is None
    put(cgroups, "4:memory:/box\n", memory__box__memory_dot_oom_control="oom_kill_disable 0\nunder_oom 0\n")
    assert memory.kills() is None, "kernels before 4.13"


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        ("0::/box\n", {"box__cpu_dot_max": "250000 100000\n"}, 2.5),
        ("0::/box\n", {"box__cpu_dot_max": "max 100000\n", "cpu_dot_max": "400000 100000\n"}, 4.0),
        ("0::/docker/abc\n", {"cpu_dot_max": "150000 100000"}, 1.5),
        ("5:cpu,cpuacct:/box\n0::/\n", {"cpu,cpuacct__box__cpu_dot_cfs_quota_us": "300000\n",
                                        "cpu,cpuacct__box__cpu_dot_cfs_period_us": "100000\n"}, 3.0),
        ("1:cpu:/docker/abc\n", {"cpu__cpu_dot_cfs_quota_us": "50000\n", "cpu__cpu_dot_cfs_period_us": "100000"}, 0.5),
        ("1:cpu:/\n", {"cpu__cpu_dot_cfs_quota_us": "-1\n", "cpu__cpu_dot_cfs_period_us": "100000\n"}, None),
        ("0::/box\n", {"box__cpu_dot_max": "max 100000\n"}, None),
        ("0::/box\n", {"box__cpu_dot_max": "nonsense\n"}, None),
        ("", {}, None),
    ],
)  # fmt: skip
def test_the_quota_of_cores_in_both_versions(
    cgroups: Path, own: str, files: dict[str, str], cores: float | None
) -> None:
    put(cgroups, own, **files)
    assert memory.core_quota() == cores
