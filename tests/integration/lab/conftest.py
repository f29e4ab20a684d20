"""Hosts for the tests of the remote path: `world` (one lab for all of them), `box` (a fresh host for each test)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.lab.remote import Remote, prepare
from tests.lab import Host, Lab, available


@pytest.fixture(scope="session", autouse=True)
def allowed() -> None:
    """Skip everything here where the machine cannot have a lab."""
    if reason := available():
        pytest.skip(reason)


@pytest.fixture(scope="session")
def world(allowed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab with two hosts that stay whole: what tests do to them must be harmless to others, or undone."""
    with Lab(tmp_path_factory.mktemp("lab"), hosts=2) as lab:
        yield lab


@pytest.fixture
def box(world: Lab) -> Iterator[Host]:
    """A fresh host of the lab, to be broken; it goes with its disk after the test."""
    host = world.add()[0]
    yield host
    world.remove(host)


@pytest.fixture(scope="session")
def provisioned(
    world: Lab, tiny_base: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """The image of a host that has the trainer's environment, its code, a small base model and rows."""
    folder = tmp_path_factory.mktemp("provisioned")
    host = world.add(python="miniconda")[0]
    prepare(host, tiny_base, tiny_data)
    done = Remote(world, host, folder / "run").run(playbook="provision")
    assert done.returncode == 0, done.stdout + done.stderr
    # A layer of a host may not lie on the file system of the layer below it.
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="stagegate_") as elsewhere:
        image = host.snapshot(Path(elsewhere) / "image")
        world.remove(host)
        yield image


@pytest.fixture
def remote(world: Lab, provisioned: Path, tmp_path: Path) -> Iterator[Remote]:
    """A controller and a provisioned host of its own, on which nothing was ever trained."""
    host = world.add(python="miniconda", image=provisioned)[0]
    yield Remote(world, host, tmp_path / "controller")
    world.remove(host)
