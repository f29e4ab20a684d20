"""The probe script and the parsing of its answer.

The files in recorded/ are invented: answers of the probe for several driver generations and broken drivers, written
after the formats that those drivers are known to print. None was recorded on such a machine.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from filter_plugins.gpu_host import gpu_host_facts

RECORDED = Path(__file__).parent / "recorded"
PROBE = Path(__file__).parents[3] / "roles" / "gpu_host" / "files" / "probe.sh"


def recorded(name: str) -> str:
    return (RECORDED / f"{name}.txt").read_bytes().decode()


def facts_of(name: str) -> dict[str, Any]:
    return gpu_host_facts(recorded(name))


@pytest.mark.parametrize(
    ("name", "gpus", "driver", "cuda"),
    [
        ("a100_driver_470", [("NVIDIA A100-SXM4-40GB", 40536, "")], "470.161.03", "11.4"),
        ("rtx2080_driver_525", [("NVIDIA GeForce RTX 2080", 7982, "7.5")], "525.60.13", "12.0"),
        ("rtx3080_driver_535", [("NVIDIA GeForce RTX 3080", 10240, "8.6")], "535.183.01", "12.2"),
        ("rtx4090_driver_550", [("NVIDIA GeForce RTX 4090", 24564, "8.9")], "550.54.14", "12.4"),
        (
            "a100_pair_driver_570",
            [("NVIDIA A100 80GB PCIe", 81920, "8.0"), ("NVIDIA A100 80GB PCIe", 81920, "8.0")],
            "570.124.06",
            "12.8",
        ),
        ("gh200_driver_575", [("NVIDIA GH200 480GB", 97871, "9.0")], "575.57.08", "12.9"),
        ("h200_driver_580", [("NVIDIA H200", 143771, "9.0")], "580.159.03", "13.0"),
        ("gb10_driver_580", [("NVIDIA GB10", None, "12.1")], "580.95.05", "13.0"),
        ("v100_driver_580", [("Tesla V100-SXM2-32GB", 32768, "7.0")], "580.65.06", "13.0"),
    ],
)
def test_driver_generations(name: str, gpus: list[Any], driver: str, cuda: str) -> None:
    gpu = facts_of(name)["gpu"]
    found = [(d["name"], d["memory_mib"], d["capability"]) for d in gpu["devices"]]
    assert (gpu["tool"], gpu["driver"], gpu["cuda"], found) == ("works", driver, cuda, gpus)
    assert gpu["lost"] == []


def test_newer_header_names_the_cuda_of_the_user_mode_driver() -> None:
    text = recorded("h200_driver_580").replace("CUDA Version: 13.0", "CUDA UMD Version: 13.2")
    assert gpu_host_facts(text)["gpu"]["cuda"] == "13.2"


def test_mig_slices() -> None:
    device = facts_of("a100_mig_driver_550")["gpu"]["devices"][0]
    assert device["mig"]
    assert [(s["profile"], s["memory_gb"]) for s in device["slices"]] == [
        ("3g.20gb", 20),
        ("1g.5gb", 5),
    ]


@pytest.mark.parametrize(
    ("name", "tool"),
    [
        ("not_installed", "absent"),
        ("hang", "hangs"),
        ("driver_not_loaded", "fails"),
        ("version_mismatch", "fails"),
        ("no_devices", "fails"),
        ("gpu_lost", "fails"),
        ("crash", "fails"),
        ("one_of_two", "works"),
    ],
)
def test_broken_drivers(name: str, tool: str) -> None:
    assert facts_of(f"broken_{name}")["gpu"]["tool"] == tool


def test_a_lost_gpu_stands_beside_the_healthy_one() -> None:
    gpu = facts_of("broken_one_of_two")["gpu"]
    assert len(gpu["devices"]) == 1
    assert gpu["lost"] == ["Unable to determine the device handle for GPU 0000:81:00.0: Unknown Error"]


def test_noise_of_the_login_and_of_a_terminal_is_ignored() -> None:
    noisy = recorded("rtx4090_driver_550")
    assert "\r\n" in noisy and "Welcome!" in noisy
    ours = "\n".join(line for line in noisy.split("\r\n") if line.startswith("gpu_host|"))
    assert gpu_host_facts(noisy) == gpu_host_facts(ours)
    assert gpu_host_facts(noisy)["complete"]


@pytest.mark.parametrize("keep", [0, 1, 10, 40])
def test_an_answer_that_is_cut_off_is_not_complete(keep: int) -> None:
    lines = recorded("rtx3080_driver_535").strip().split("\n")
    assert not gpu_host_facts("\n".join(lines[:keep]))["complete"]
    assert gpu_host_facts("\n".join(lines))["complete"]


KEYS = sorted({t.split("|")[1] for t in recorded("a100_mig_driver_550").split("\n") if "|" in t})


@given(st.lists(st.tuples(st.sampled_from(KEYS), st.text(alphabet="09.-|, \tMGBIgmaxE[]/%٣²"))))
def test_nothing_that_a_host_prints_is_an_error(lines: list[tuple[str, str]]) -> None:
    text = "\n".join(f"gpu_host|{key}|{value}" for key, value in lines)
    assert gpu_host_facts(f"gpu_host|begin|1\n{text}\ngpu_host|end|1")["gpu"]["tool"]


def test_control_characters_of_the_host_do_not_reach_the_terminal() -> None:
    text = recorded("rtx3080_driver_535").replace("GeForce", "Ge\x1b[2JForce")
    assert "\x1b" not in gpu_host_facts(text)["gpu"]["devices"][0]["name"]


@pytest.mark.parametrize(
    ("limits", "usable", "limited_by"),
    [
        (["max"], 128832, "machine"),  # v2 without a limit
        (["9223372036854771712"] * 2, 128832, "machine"),  # v1 without a limit
        ([], 128832, "machine"),
        (["34359738368"], 32768, "cgroup"),
        (["max", "34359738368", "17179869184", "max"], 16384, "cgroup"),  # the smallest holds
        (["1099511627776"], 128832, "machine"),  # a limit above what the machine has
    ],
)
def test_memory_is_limited_by_the_cgroup(limits: list[str], usable: int, limited_by: str) -> None:
    lines = [t for t in recorded("rtx4090_driver_550").split("\r\n") if "|memory.limit|" not in t]
    place = next(n for n, t in enumerate(lines) if "|memory.total|" in t)
    lines[place:place] = [f"gpu_host|memory.limit|{limit} " for limit in limits]
    memory = gpu_host_facts("\n".join(lines))["memory"]
    assert (memory["usable_mib"], memory["limited_by"]) == (usable, limited_by)


@pytest.mark.parametrize(
    ("line", "cpus"),
    [
        ("gpu_host|cpu.max|1600000 100000 ", 16.0),
        ("gpu_host|cpu.max|max 100000 ", 128.0),
        ("gpu_host|cpu.quota|1250000 ", 12.5),
        ("gpu_host|cpu.quota|-1 ", 128.0),
    ],
)
def test_processors_are_limited_by_the_quota(line: str, cpus: float) -> None:
    text = recorded("rtx3080_driver_535").replace("gpu_host|cpu.quota|1200000 ", line)
    assert gpu_host_facts(text)["system"]["cpus"] == cpus


@pytest.mark.parametrize(
    ("row", "free_mib", "mount"),
    [
        ("/dev/sda1 1000000 200000 800000 20% /", 781, "/"),
        ("nfs01.example:/export/a/very/long/name 1000000 200000 800000 20% /mnt/x", 781, "/mnt/x"),
        ("/dev/mapper/very--long--name\n 1000000 200000 800000 20% /data", 781, "/data"),
        ("//nas/My Share 1000000 200000 800000 20% /mnt/My Share", 781, "/mnt/My Share"),
        ("/dev/sda1 1000000 1000000 0 100% /", 0, "/"),
        ("/dev/sda1 1000000 1050000 -50000 105% /", 0, "/"),
        ("none - - - - /mnt/odd", None, "/mnt/odd"),
    ],
)
def test_free_disk_space(row: str, free_mib: int | None, mount: str) -> None:
    key = "gpu_host|disk.project_root.blocks|"
    other = [t for t in recorded("rtx3080_driver_535").split("\n") if not t.startswith(key)]
    rows = [key + part for part in ("Filesystem 1024-blocks …\n" + row).split("\n")]
    disk = gpu_host_facts("\n".join(other[:3] + rows + other[3:]))["disks"]["project_root"]
    assert (disk["free_mib"], disk["mount"]) == (free_mib, mount)


def test_a_file_system_without_inodes_of_its_own_has_no_limit() -> None:
    assert facts_of("a100_pair_driver_570")["disks"]["project_root"]["free_inodes"] is None
    assert facts_of("rtx3080_driver_535")["disks"]["project_root"]["free_inodes"] == 26201155


def test_pythons() -> None:
    system, newer = facts_of("a100_driver_470")["pythons"]
    assert (system["version"], system["makes_venv"]) == ("3.8.10", False)
    assert (newer["version"], newer["makes_venv"]) == ("3.11.9", True)
    own = facts_of("h200_driver_580")["pythons"][0]
    assert (own["origin"], own["torch"], own["torch_cuda"]) == ("venv", "2.13.0+cu130", "13.0")


def probe(
    tmp_path: Path, smi: str | None, seconds: int = 30, words: tuple[str, ...] = (), **places: Path
) -> dict[str, Any]:
    """Run the real script with sh and a PATH whose nvidia-smi is the given shell text."""
    tools = tmp_path / "bin"
    tools.mkdir(exist_ok=True)
    if smi is not None:
        (tools / "nvidia-smi").write_text(f"#!/bin/sh\n{smi}\n")
        (tools / "nvidia-smi").chmod(0o755)
    root = places.get("root", tmp_path / "none" / "such")
    venv = places.get("venv", root / "venv")
    done = subprocess.run(
        ["sh", str(PROBE), str(root), str(venv), "", str(seconds), "20", *words],
        env={"PATH": f"{tools}:/usr/bin:/bin", "HOME": str(tmp_path), "LANG": "de_DE.UTF-8"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    facts = gpu_host_facts(done.stdout)
    assert facts["complete"]
    return facts


WORKING = """case "$*" in
*compute_cap*) echo "0, 8.9" ;;
*query-gpu*) echo "0, NVIDIA GeForce RTX 4090, 550.54.14, 24564, 24210, [N/A]" ;;
-L) echo "must not be asked without MIG" ;;
*) echo "| NVIDIA-SMI 550.54.14    Driver Version: 550.54.14    CUDA Version: 12.4 |" ;;
esac"""


def test_probe_of_a_working_driver(tmp_path: Path) -> None:
    gpu = probe(tmp_path, WORKING)["gpu"]
    assert (gpu["tool"], gpu["driver"], gpu["cuda"]) == ("works", "550.54.14", "12.4")
    assert gpu["devices"][0]["capability"] == "8.9"


def test_probe_of_a_failing_driver(tmp_path: Path) -> None:
    gpu = probe(tmp_path, 'echo "Failed to initialize NVML: Unknown Error"; exit 255')["gpu"]
    assert (gpu["tool"], gpu["status"]) == ("fails", "255")
    assert gpu["message"] == "Failed to initialize NVML: Unknown Error"


def test_probe_of_a_hanging_driver_comes_back(tmp_path: Path) -> None:
    began = time.monotonic()
    facts = probe(tmp_path, "exec sleep 59", seconds=1)
    assert time.monotonic() - began < 20
    assert facts["gpu"]["tool"] == "hangs"
    assert facts["disks"]["project_root"]["free_mib"] is not None


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine has a driver")
def test_probe_without_a_driver(tmp_path: Path) -> None:
    assert probe(tmp_path, None)["gpu"]["tool"] == "absent"


def test_probe_of_folders_with_odd_names(tmp_path: Path) -> None:
    root = tmp_path / 'a folder\'s "name" $HOME'
    root.mkdir()
    disk = probe(tmp_path, WORKING, root=root / "deep" / "er")["disks"]["project_root"]
    assert (disk["existing"], disk["writable"]) == (str(root), True)


@pytest.mark.parametrize(
    ("make", "state"),
    [
        (lambda venv: None, "absent"),
        (lambda venv: venv.mkdir(), "empty"),
        (lambda venv: (venv.mkdir(), (venv / "thesis.tex").touch()), "other"),
        (lambda venv: venv.touch(), "other"),
        (lambda venv: (venv.mkdir(), (venv / "pyvenv.cfg").touch()), "broken"),
    ],
)
def test_probe_of_the_venv_folder(tmp_path: Path, make: Any, state: str) -> None:
    make(tmp_path / "venv")
    assert probe(tmp_path, WORKING, venv=tmp_path / "venv")["venv"]["state"] == state


def test_probe_reads_torch_without_importing_it(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    package = next((tmp_path / "venv" / "lib").glob("python3.*")) / "site-packages" / "torch"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    (package / "version.py").write_text(
        "from typing import Optional\n__version__ = '2.13.0+cu130'\ncuda: Optional[str] = '13.0'\n"
    )
    python = probe(tmp_path, WORKING, venv=tmp_path / "venv")["pythons"][0]
    assert (python["torch"], python["torch_cuda"]) == ("2.13.0+cu130", "13.0")
    assert (python["origin"], python["has_pip"]) == ("venv", False)


def test_probe_leaves_nothing_behind(tmp_path: Path) -> None:
    scratch = probe(tmp_path, "exec sleep 59", seconds=1)["scratch"]
    assert scratch and not Path(scratch).exists()


def fake_python(path: Path, prefix: str, version: str = "3.12.3", torch: str = "", base: str = "") -> None:
    """An interpreter that answers the probe's questions; its torch sees a GPU, and says that it was tried."""
    path.parent.mkdir(parents=True)
    fields = [version, "yes", "yes", torch, "12.8" if torch else "", prefix, base or prefix, "own" if torch else ""]
    row = "\\t".join(fields)
    path.write_text(
        f"#!/bin/sh\ncase \"$*\" in *'import torch'*) touch {path}.tried; echo gpu_host=yes ;; "
        f"*) printf '{row}\\n' ;; esac\n"
    )
    path.chmod(0o755)


def test_probe_finds_conda_its_environments_pyenv_and_the_path_of_the_login(tmp_path: Path) -> None:
    fake_python(tmp_path / "miniconda3" / "bin" / "python3", "/c", torch="2.8.0+cu128")
    fake_python(tmp_path / "miniconda3" / "envs" / "ml" / "bin" / "python3", "/c/envs/ml")
    fake_python(tmp_path / ".pyenv" / "versions" / "3.13.0" / "bin" / "python3", "/p", "3.13.0")
    fake_python(tmp_path / "profile" / "bin" / "python3.12", "/l")
    fake_python(tmp_path / "profile" / "again" / "python3", "/l")  # the same Python under another name
    (tmp_path / ".profile").write_text(
        f'echo "Welcome to the box"; PATH="{tmp_path}/profile/bin:{tmp_path}/profile/again:$PATH"\n'
    )
    found = {p["prefix"]: p for p in probe(tmp_path, WORKING)["pythons"] if not p["path"].startswith("/usr")}
    origins = {prefix: p["origin"] for prefix, p in found.items() if not prefix.startswith("/root")}
    assert origins == {"/c": "conda", "/c/envs/ml": "conda", "/p": "pyenv", "/l": "login"}
    assert (found["/c"]["torch"], found["/c"]["torch_sees"]) == ("2.8.0+cu128", "yes")
    assert found["/c/envs/ml"]["torch_sees"] == ""


def test_probe_tries_torch_only_where_a_venv_can_see_it_and_only_until_the_venv_is_finished(tmp_path: Path) -> None:
    conda = tmp_path / "miniconda3" / "bin" / "python3"
    inner = tmp_path / "miniconda3" / "envs" / "v" / "bin" / "python3"
    fake_python(conda, "/c", torch="2.8.0+cu128")
    fake_python(inner, "/v", torch="2.8.0+cu128", base="/c")
    probe(tmp_path, WORKING)
    assert Path(f"{conda}.tried").exists() and not Path(f"{inner}.tried").exists()
    Path(f"{conda}.tried").unlink()
    venv = tmp_path / "venv"
    fake_python(venv / "bin" / "python", str(venv))
    (venv / "pyvenv.cfg").write_text("include-system-site-packages = true\n")
    (venv / "gpu_host").mkdir()
    (venv / "gpu_host" / "stamp").write_text("a1\n")
    facts = probe(tmp_path, WORKING, venv=venv)
    assert [p["origin"] for p in facts["pythons"]] == ["venv"] and facts["venv"]["system_site"]
    assert not Path(f"{conda}.tried").exists()


def test_probe_tells_markers_names_of_variables_and_data_disks_but_no_values(tmp_path: Path) -> None:
    words = ("marker", str(tmp_path), "marker", "/no/such", "variable", "LANG", "variable", "NO_SUCH", "disk", "~")
    facts = probe(tmp_path, WORKING, words=words)
    assert facts["provider"] == {"markers": [str(tmp_path)], "variables": ["LANG"]}
    (disk,) = facts["data_disks"]
    assert (disk["path"], disk["existing"], disk["writable"]) == (str(tmp_path), str(tmp_path), True)
    assert facts["disks"]["system"]["mount"] == "/"
