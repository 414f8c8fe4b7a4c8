"""Fixtures of real containers."""

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from agent.compute.lxc.driver import LxcDriver
from tests import runs
from tests.unit.lxc.containers import UNMAPPED, Guest, open_driver


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that containers may reach: pytest's own is closed to all but its user."""
    path = Path(tempfile.mkdtemp(prefix="lxc-", dir=runs.current().folder))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)


@pytest.fixture(params=["privileged", "unprivileged"])
def mode(request: pytest.FixtureRequest) -> str:
    if request.param == "unprivileged" and UNMAPPED:
        pytest.skip(UNMAPPED)
    return str(request.param)


@pytest.fixture
async def driver(folder: Path) -> AsyncIterator[LxcDriver]:
    made = open_driver(folder)
    await made.open()
    yield made
    await made.emergency_kill(["c1"])
    await made.undefine("c1")
    await made.close()


@pytest.fixture
async def guest(driver: LxcDriver, folder: Path, mode: str) -> Guest:
    return Guest(driver, folder, mode)
