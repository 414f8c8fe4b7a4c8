"""What a killed run of the tests left is found by the next one and taken away; what a run that goes on made is left alone."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.machine import cgroup_folders, process_runs, set_frozen
from tests import runs
from tests.runs import MARK, Run
from tests.unit.lxc.containers import NEEDS

ROOT = os.geteuid() == 0
TESTS = Path(__file__).parents[1]

MADE = """
import os, subprocess, sys
from pathlib import Path
from tests import runs

def run(*words):
    subprocess.run(words, check=True)

def test_that_hangs(tmp_path):
    here = runs.current()
    subprocess.run(["setsid", "--fork", "sleep", "1000"], stderr=subprocess.DEVNULL)
    (tmp_path / "file").touch()
    if os.geteuid() == 0:
        for folder in (here.folder, tmp_path):
            (folder / "mounted").mkdir()
            run("mount", "-t", "tmpfs", "none", str(folder / "mounted"))
        run("ip", "link", "add", f"gt{here.id}", "type", "bridge")
        run("ip", "netns", "add", f"gt{here.id}-n")
    print("ready", here.folder, tmp_path, file=sys.__stderr__, flush=True)
    sys.stdin.read()
"""


class Pytest:
    """Another run of the tests, of one test that hangs after it has made something of each kind."""

    def __init__(self, folder: Path) -> None:
        file = folder / "test_hangs.py"
        file.write_text(MADE)
        words = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-s",
            "-p",
            "no:cacheprovider",
            "-c",
            str(TESTS.parent / "pyproject.toml"),
        ]
        self.process = subprocess.Popen(
            [*words, "-p", "tests.conftest", str(file)],
            cwd=TESTS.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )
        assert self.process.stderr is not None
        said = next(line.split() for line in self.process.stderr if line.startswith("ready"))
        self.run, self.tmp_path = Run(Path(said[1])), Path(said[2])

    def kill(self) -> None:
        """Kill it and its process group, as a time limit does."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[Pytest]:
    made = Pytest(tmp_path)
    yield made
    made.kill()
    made.run.clear()


def test_a_killed_run_is_cleared_up_after_and_one_that_goes_on_is_left_alone(hanging: Pytest, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    killed = Pytest(tmp_path / "other")
    sleeper = next(iter(killed.run.processes()))
    killed.kill()
    assert process_runs(sleeper)
    with runs.begin() as (run, cleared):
        assert run.folder.exists()
        found = [
            line for line in cleared if killed.run.id in line or str(sleeper) in line or str(killed.tmp_path) in line
        ]
    assert len(found) == (5 if ROOT else 1), cleared
    assert not process_runs(sleeper)
    assert not [*killed.run.links(), *killed.run.mounts(), *killed.run.processes()]
    assert not killed.run.folder.exists()
    assert not killed.tmp_path.exists()
    assert not run.folder.exists()

    assert hanging.process.poll() is None
    assert hanging.run.processes()
    assert (hanging.tmp_path / "file").exists()
    assert len([*hanging.run.links(), *hanging.run.mounts()]) == (4 if ROOT else 0)


def test_a_folder_that_was_given_to_another_run_is_left_alone(tmp_path: Path) -> None:
    dead, lives = Run(tmp_path / "gugus-test-dead"), Run(tmp_path / "gugus-test-lives")
    shared = tmp_path / "pytest-1"
    for folder in (dead.folder, lives.folder, shared):
        folder.mkdir()
    dead.note_folder(shared)
    lives.note_folder(shared)
    dead.clear()
    assert not dead.folder.exists()
    assert shared.exists()


def test_a_lab_of_a_run_that_goes_on_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "HOME", tmp_path)
    with runs.begin() as (one, _), runs.begin() as (other, _):
        one.take_lab("no-such-lab")
        with pytest.raises(RuntimeError, match=f"has the lab no-such-lab .*{one.id}"):
            other.take_lab("no-such-lab")
        assert (one.labs, other.labs) == (["no-such-lab"], [])
        shutil.rmtree(one.folder / "labs")
        other.take_lab("no-such-lab")


CONTAINER = """
import asyncio, sys
from pathlib import Path
from tests.unit.lxc.containers import Guest, open_driver

async def main(folder):
    driver = open_driver(folder)
    await driver.open()
    guest = Guest(driver, folder, "privileged")
    await guest.define()
    await driver.start("c1", 1)
    print(await guest.pid(), flush=True)
    await asyncio.sleep(1000)

asyncio.run(main(Path(sys.argv[1])))
"""


@pytest.mark.parametrize("frozen", [False, True])
@NEEDS[0]
@NEEDS[1]
def test_a_container_of_a_killed_run_goes_with_its_control_groups(frozen: bool) -> None:
    folder = runs.HOME / f"{runs.PREFIX}{os.urandom(4).hex()}"
    folder.mkdir(mode=0o755)
    run = Run(folder)
    with subprocess.Popen(
        [sys.executable, "-c", CONTAINER, str(folder)],
        cwd=TESTS.parent,
        env={**os.environ, MARK: run.id},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        init = int(process.stdout.readline())
        process.kill()
    try:
        groups = {name for pid in run.processes() for name in runs._lxc_cgroups(pid)}
        assert {name.split(".")[1] for name in groups} == {"payload", "monitor"}
        for name in groups:
            if "payload" in name and frozen:
                set_frozen(name, True)
        assert process_runs(init)
    finally:
        run.clear()
    assert not process_runs(init)
    assert not [name for name in groups if cgroup_folders(name)]
    assert not folder.exists()
    assert not (runs.LXC_LOCKS / str(folder).lstrip("/")).exists()
