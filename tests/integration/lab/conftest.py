"""Hosts for the tests of the remote path: `world` (one lab for all of them), `box` (a fresh host for each test)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

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
