"""Whose torch is used, and which driver and GPU it needs; each refusal beside a similar host that is accepted."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from filter_plugins.gpu_host import gpu_host_facts
from filter_plugins.gpu_host_torch import gpu_host_index_cuda, gpu_host_torch

RECORDED = Path(__file__).parent / "recorded"
ROLE = Path(__file__).parents[3] / "roles" / "gpu_host"
MINIMUMS = yaml.safe_load((ROLE / "vars" / "main.yml").read_text(encoding="utf-8"))["__gpu_host_driver_minimums"]
WANTED = {
    "mode": "auto",
    "requirement": "torch==2.13.0",
    "min": "2.6",
    "cuda": "12.4",
    "python_min": "3.11",
    "python_path": "",
    "driver_minimums": MINIMUMS,
}
CONDA = {
    "origin": "conda",
    "path": "/root/miniconda3/bin/python3",
    "version": "3.12.3",
    "makes_venv": True,
    "has_pip": True,
    "torch": "2.8.0+cu128",
    "torch_cuda": "12.8",
    "torch_place": "own",
    "torch_sees": "yes",
    "prefix": "/root/miniconda3",
    "base": "/root/miniconda3",
}
VENV = {**CONDA, "origin": "venv", "path": "/v/bin/python", "prefix": "/v", "torch_place": "outside", "torch_sees": ""}


def facts_of(name: str, *pythons: dict[str, Any], **venv: Any) -> dict[str, Any]:
    facts = gpu_host_facts((RECORDED / f"{name}.txt").read_bytes().decode())
    facts["pythons"] = list(pythons)
    facts["venv"].update(venv)
    return facts


def checks(found: list[dict[str, str]], severity: str = "error") -> list[str]:
    return [f["check"] for f in found if f["severity"] == severity]


def decide(*pythons: dict[str, Any], host: str = "rtx4090_driver_550", **changes: Any) -> dict[str, Any]:
    venv = changes.pop("venv", {})
    return gpu_host_torch(facts_of(host, *pythons, **venv), {**WANTED, **changes})


def test_a_good_torch_of_the_provider_is_used_and_the_line_says_why() -> None:
    made = decide(CONDA)
    assert (made["source"], made["python"], made["version"]) == ("provider", CONDA["path"], "2.8.0+cu128")
    assert "2.8.0+cu128 of /root/miniconda3" in made["why"] and "sees the GPU" in made["why"]
    assert made["findings"] == made["blocking"] == []


@pytest.mark.parametrize(
    ("change", "good"),
    [
        ({"torch": "2.6.0+cu124"}, True),
        ({"torch": "2.5.1+cu124"}, False),
        ({"torch": "2.10.0+cu128"}, True),  # numbers are compared, not text
        ({"torch": "3.0.0+cu128"}, False),
        ({"torch": ""}, False),
        ({"torch_cuda": "12.8"}, True),
        ({"torch_cuda": "13.0"}, False),  # needs a newer driver than 550
        ({"torch_cuda": "none"}, False),
        ({"torch_sees": "no"}, False),
        ({"torch_sees": "status 1: ImportError: libcudart.so.12"}, False),
        ({"torch_sees": "no answer in 90 s"}, False),
        ({"version": "3.11.0"}, True),
        ({"version": "3.10.14"}, False),
        ({"makes_venv": False}, False),
        ({"prefix": "/venv/main", "base": "/usr"}, False),  # a venv's packages are not seen by another venv
    ],
)
def test_good_enough(change: dict[str, Any], good: bool) -> None:
    made = decide({**CONDA, **change})
    assert made["source"] == ("provider" if good else "install")
    assert good or made["version"] == "2.13.0"


def test_without_a_gpu_any_build_will_do_that_can_be_imported() -> None:
    cpu = {**CONDA, "torch": "2.8.0+cpu", "torch_cuda": "none", "torch_sees": "no"}
    assert decide(cpu, host="broken_not_installed")["source"] == "provider"
    assert decide(cpu)["source"] == "install"
    assert decide({**cpu, "torch_sees": "status 1: "}, host="broken_not_installed")["source"] == "install"


def test_the_reason_names_every_torch_that_was_refused() -> None:
    other = {**CONDA, "path": "/opt/conda/bin/python3", "prefix": "/opt/conda", "base": "/opt/conda", "torch": "2.3.0"}
    why = decide({**CONDA, "torch_sees": "no"}, other)["why"]
    assert "/root/miniconda3/bin/python3: torch 2.8.0+cu128 does not see the GPU" in why
    assert "/opt/conda/bin/python3: torch 2.3.0 is older than 2.6" in why
    assert decide({**CONDA, "torch": "2.3.0"}, {**other, "torch": "2.7.0"})["python"] == "/opt/conda/bin/python3"


def test_the_words_of_the_input() -> None:
    assert decide(CONDA, mode="install")["source"] == "install"
    assert decide(CONDA, mode="provider")["source"] == "provider"
    refused = decide({**CONDA, "torch": "2.3.0"}, mode="provider")
    assert checks(refused["blocking"]) == ["torch"] and "older than 2.6" in refused["blocking"][0]["message"]
    assert decide(CONDA, requirement="")["source"] == "none"


def test_an_interpreter_that_is_asked_for_is_the_only_candidate() -> None:
    given = {**CONDA, "origin": "given", "path": "/opt/python", "torch": ""}
    assert decide(CONDA, given, python_path="/opt/python")["source"] == "install"
    assert decide(CONDA, {**given, "torch": "2.7.0"}, python_path="/opt/python")["python"] == "/opt/python"


def test_a_venv_stays_what_it_is() -> None:
    standing = {"state": "venv", "stamp": "a1"}
    assert decide(VENV, venv=standing)["source"] == "provider"
    own = {**VENV, "torch_place": "own", "torch": "2.13.0+cu126", "torch_cuda": "12.6"}
    made = decide(own, CONDA, venv=standing)
    assert (made["source"], made["cuda"], made["findings"]) == ("install", "12.6", [])
    refused = decide(own, mode="provider", venv=standing)
    assert "has a torch of its own" in refused["blocking"][0]["message"]
    assert decide({**VENV, "torch_cuda": "13.0"}, venv=standing)["source"] == "install"


def test_a_half_made_venv_takes_the_torch_of_the_python_below_it_only() -> None:
    half = {**VENV, "torch": "", "torch_place": ""}
    standing = {"state": "venv", "stamp": ""}
    assert decide(half, CONDA, venv=standing)["source"] == "provider"
    assert decide({**half, "base": "/usr"}, CONDA, venv=standing)["source"] == "install"


@pytest.mark.parametrize(
    ("driver", "cuda", "refused"),
    [
        ("470.161.03", "11.8", False),
        ("450.80.02", "11.8", False),
        ("450.80.01", "11.8", True),
        ("525.60.13", "12.8", False),
        ("525.60.12", "12.8", True),
        ("580.65.06", "13.0", False),
        ("580.65.05", "13.0", True),
        ("575.57.08", "13.0", True),
        ("575.57.08", "12.9", False),
        ("590.44.01", "12.4", False),
        ("1000.10", "13.0", False),  # numbers are compared, not text
    ],
)
def test_driver_against_the_cuda_of_torch(driver: str, cuda: str, refused: bool) -> None:
    facts = facts_of("rtx4090_driver_550")
    facts["gpu"].update(driver=driver, cuda="")
    made = gpu_host_torch(facts, {**WANTED, "cuda": cuda})
    assert checks(made["findings"]) == (["driver"] if refused else [])


def test_an_old_driver_is_one_finding_with_what_was_found_what_is_needed_and_two_remedies() -> None:
    (finding,) = decide(cuda="13.0")["findings"]
    for value in ("550.54.14", "offers CUDA 12.4", "580.65.06", "torch 2.13.0", "CUDA 13.0"):
        assert value in finding["message"]
    for value in ("gpu_host_torch_index_url", "builds for CUDA 12", "newer driver"):
        assert value in finding["remedy"]
    facts = facts_of("rtx4090_driver_550")
    facts["gpu"].update(driver="440.10", cuda="10.2")
    (finding,) = gpu_host_torch(facts, {**WANTED, "cuda": "13.0"})["findings"]
    assert "gpu_host_torch_index_url" not in finding["remedy"], "no build of torch is old enough"


@pytest.mark.parametrize(
    ("url", "cuda"),
    [
        ("https://example.org/whl/cu126", "12.6"),
        ("https://example.org/whl/cu118/", "11.8"),
        ("https://example.org/simple", "13.0"),
        ("https://example.org/cu126/simple", "13.0"),
        ("", "13.0"),
    ],
)
def test_the_cuda_of_an_index_is_read_from_its_address(url: str, cuda: str) -> None:
    assert gpu_host_index_cuda(url, "13.0") == cuda


def test_forward_compatibility_makes_an_old_driver_a_warning() -> None:
    facts = facts_of("a100_driver_470")
    facts["gpu"]["cuda"] = "12.4"
    assert checks(gpu_host_torch(facts, WANTED)["findings"]) == []
    assert checks(gpu_host_torch(facts, WANTED)["findings"], "warning") == ["driver"]
    facts["gpu"]["cuda"] = "11.4"
    assert checks(gpu_host_torch(facts, WANTED)["findings"]) == ["driver"]


def test_unknown_cuda_of_the_future_is_a_warning() -> None:
    made = decide(host="gh200_driver_575", cuda="14.0")
    assert (checks(made["findings"]), checks(made["findings"], "warning")) == ([], ["driver"])


@pytest.mark.parametrize(
    ("installed", "cuda", "expected"),
    [
        ("2.13.0+cu130", "13.0", ["driver"]),  # satisfies the pin, so pip keeps it
        ("2.13.0+cu124", "12.4", []),
        ("2.12.0+cu130", "13.0", []),  # will be replaced by the pin, for CUDA 12.4
        ("2.13.0+cpu", "none", ["torch"]),
        ("2.12.0+cpu", "none", []),
    ],
)
def test_the_torch_in_the_venv(installed: str, cuda: str, expected: Any) -> None:
    own = {**VENV, "torch": installed, "torch_cuda": cuda, "torch_place": "own"}
    assert checks(decide(own, venv={"state": "venv"})["findings"]) == expected


@pytest.mark.parametrize(
    ("capability", "cuda", "refused"),
    [
        ("7.5", "13.0", False),
        ("7.0", "13.0", True),
        ("7.0", "12.6", False),
        ("12.0", "12.8", False),
        ("12.0", "12.6", True),
        ("9.0", "12.6", False),
        ("", "13.0", False),  # drivers before 510 do not say
    ],
)
def test_compute_capability(capability: str, cuda: str, refused: bool) -> None:
    facts = facts_of("v100_driver_580")
    facts["gpu"]["devices"][0]["capability"] = capability
    made = gpu_host_torch(facts, {**WANTED, "cuda": cuda})
    assert checks(made["findings"]) == (["capability"] if refused else [])


def test_the_oldest_torch_is_what_the_pinned_packages_ask_for() -> None:
    """The floors that the installed packages state for torch; transformers states its own as an extra."""
    floors = []
    for name in ("transformers", "trl", "peft", "accelerate", "bitsandbytes"):
        for row in importlib.metadata.requires(name) or []:
            package, _, marker = row.partition(";")
            if re.match(r"torch[<>=, ]", package) and marker.strip() in ("", 'extra == "torch"'):
                floors += re.findall(r">=([\d.]+)", package)
    oldest = max(floors, key=lambda text: [int(part) for part in text.split(".")])
    defaults = yaml.safe_load((ROLE / "defaults" / "main.yml").read_text(encoding="utf-8"))
    assert defaults["gpu_host_torch_min"] == oldest


def test_an_answer_that_is_cut_off_is_not_judged() -> None:
    assert gpu_host_torch(gpu_host_facts("gpu_host|begin|1\n"), WANTED)["findings"] == []
