"""What the lab does to the machine it runs on: commands, cgroups, mounts, links and firewall tables.

Invariant: every command and every wait is bounded in time, and everything that is made here has an inverse that may be
repeated.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from lab.plan import LabError

#: Seconds that an ordinary command of the machine may take; they take milliseconds, so this is a hang.
COMMAND_SECONDS = 20.0
#: Seconds between two looks at something that is waited for.
POLL_SECONDS = 0.02

CGROUP_ROOT = Path("/sys/fs/cgroup")


def run(command: Sequence[str], *, text: str = "", seconds: float = COMMAND_SECONDS) -> str:
    """Run ``command`` with ``text`` on its standard input and return its output.

    Raises LabError with what it wrote on standard error when it fails, is missing, or takes longer than ``seconds``.
    """
    words = " ".join(command)
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        raise LabError(f"`{words}` took longer than {seconds:g} s and was stopped") from None
    except OSError as error:
        raise LabError(
            f"`{words}` could not run: {error.strerror}; is its Debian package installed? (packages.txt)"
        ) from None
    if done.returncode:
        raise LabError(f"`{words}` failed ({done.returncode}): {(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout


def run_detached(command: Sequence[str], output: IO[str], folder: Path) -> None:
    """Run a command, in ``folder``, that leaves a process behind which writes to ``output``."""
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        cwd=folder,
        timeout=COMMAND_SECONDS,
        check=False,
    )
    if done.returncode:
        raise LabError(f"`{' '.join(command)}` failed ({done.returncode}); see {output.name}")


def bound_to_us(command: Sequence[str]) -> list[str]:
    """The command that runs ``command`` and that the kernel kills when we end, however that comes (util-linux's setpriv)."""
    return ["setpriv", "--pdeathsig", "KILL", *command]


def wait_for(condition: Callable[[], bool], seconds: float, poll: float = POLL_SECONDS) -> bool:
    """Wait until ``condition`` holds, at most ``seconds``; tells whether it does."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(poll)
    return True


def unified_cgroups() -> bool:
    """Whether the machine has cgroup v2 only (Debian's default), not the v1 hierarchies."""
    return (CGROUP_ROOT / "cgroup.controllers").exists()


def cgroup_folders(name: str) -> list[Path]:
    """The top folder of the cgroup ``name`` in every hierarchy where it exists."""
    roots = [CGROUP_ROOT, *(path for path in CGROUP_ROOT.iterdir() if path.is_dir())]
    return [root / name for root in roots if (root / name).is_dir()]


def freezer(name: str) -> Path:
    """The folder that freezes the cgroup ``name``."""
    return (CGROUP_ROOT if unified_cgroups() else CGROUP_ROOT / "freezer") / name


def cgroup_pids(name: str) -> set[int]:
    """Every process in the cgroup ``name`` and below that is not a zombie, in any hierarchy."""
    pids: set[int] = set()
    for top in cgroup_folders(name):
        for folder, _, files in os.walk(top):
            if "cgroup.procs" in files:
                with contextlib.suppress(OSError):
                    pids.update(int(word) for word in Path(folder, "cgroup.procs").read_text().split())
    return {pid for pid in pids if process_runs(pid)}


def process_runs(pid: int) -> bool:
    """Whether ``pid`` is a process that is not dead or a zombie: this machine's PID 1 may reap late."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (OSError, IndexError):
        return False


def is_frozen(name: str) -> bool:
    """Whether the processes of the cgroup ``name`` are held."""
    folder = freezer(name)
    file, word = (folder / "cgroup.freeze", "1") if unified_cgroups() else (folder / "freezer.state", "FROZEN")
    try:
        return file.read_text().strip() == word
    except OSError:
        return False


def set_frozen(name: str, frozen: bool, seconds: float = COMMAND_SECONDS) -> None:
    """Hold (or let go) every process of the cgroup ``name``; raises LabError when that takes over ``seconds``."""
    folder = freezer(name)
    if unified_cgroups():
        file, word = folder / "cgroup.freeze", str(int(frozen))
    else:
        file, word = folder / "freezer.state", "FROZEN" if frozen else "THAWED"

    def settled() -> bool:
        # v1: a fork during the freeze leaves FREEZING behind; writing again completes it (freezer-subsystem.txt).
        with contextlib.suppress(FileNotFoundError):
            file.write_text(word)
            return file.read_text().strip() == word
        return not frozen

    if not wait_for(settled, seconds):
        raise LabError(f"the kernel did not {'freeze' if frozen else 'thaw'} {name} within {seconds:g} s: {file}")


def kill_cgroup(name: str, seconds: float = COMMAND_SECONDS) -> None:
    """End everything in the cgroup ``name`` as a power cut does, frozen or not; raises LabError if some survive.

    The signals are sent while nothing can run, so that no process sees another one die. A cgroup that is not there has nothing to end.
    """
    if not cgroup_folders(name):
        return
    with contextlib.suppress(LabError):  # what cannot be frozen is killed all the same
        set_frozen(name, True, seconds=1.0)
    for pid in cgroup_pids(name):
        send_signal(pid, signal.SIGKILL)
    set_frozen(name, False)

    def gone() -> bool:
        left = cgroup_pids(name)
        for pid in left:
            send_signal(pid, signal.SIGKILL)
        return not left

    if not wait_for(gone, seconds):
        raise LabError(f"processes of {name} survive SIGKILL: {sorted(cgroup_pids(name))}")


def send_signal(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process that may be gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def remove_cgroup(name: str, seconds: float = 5.0) -> None:
    """Remove the empty cgroup ``name`` in every hierarchy; raises LabError when the kernel keeps one busy."""

    def gone() -> bool:
        for top in cgroup_folders(name):
            for folder, _, _ in os.walk(top, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(folder)
        return not cgroup_folders(name)

    if not wait_for(gone, seconds):
        raise LabError(f"cgroup folders stay busy: {', '.join(map(str, cgroup_folders(name)))}")


def mounts_under(folder: Path) -> list[str]:
    """Mount points of the machine at or below ``folder``, deepest first."""
    points = (line.split()[1].replace("\\040", " ") for line in Path("/proc/self/mounts").read_text().splitlines())
    return sorted((p for p in points if Path(p) == folder or folder in Path(p).parents), key=len, reverse=True)


def unmount_under(folder: Path) -> None:
    """Unmount everything at or below ``folder``; busy mounts are detached."""
    for point in mounts_under(folder):
        run(["umount", "--lazy", point])


def mount_btrfs(image: Path, target: Path, size_bytes: int) -> None:
    """Mount a btrfs file system of its own, kept in the sparse file ``image``, unless the kernel has none."""
    target.mkdir(parents=True, exist_ok=True)
    if "btrfs" not in Path("/proc/filesystems").read_text() or str(target) in mounts_under(target):
        return
    if not image.exists():
        new = image.with_suffix(".new")
        with new.open("wb") as file:
            file.truncate(size_bytes)
        run(["mkfs.btrfs", "--quiet", "--force", str(new)])
        new.rename(image)
    run(["mount", "-t", "btrfs", "-o", "loop", str(image), str(target)])


def addresses() -> list[str]:
    """Every IPv4 address of the machine."""
    links = json.loads(run(["ip", "-json", "-4", "address", "show"]))
    return [info["local"] for link in links for info in link.get("addr_info", ())]


def link_exists(name: str) -> bool:
    """Whether the machine has a network link ``name``."""
    return Path("/sys/class/net", name).exists()


def make_bridge(name: str, address: str) -> None:
    """Make the bridge ``name`` with ``address`` (CIDR), or complete a half-made one."""
    if not link_exists(name):
        run(["ip", "link", "add", name, "type", "bridge"])
    run(["ip", "address", "replace", address, "dev", name])
    run(["ip", "link", "set", name, "up"])


def remove_link(name: str) -> None:
    """Remove the link ``name`` if it is there; the kernel may be removing it at the same moment."""
    try:
        if link_exists(name):
            run(["ip", "link", "delete", name])
    except LabError:
        if link_exists(name):
            raise


def load_table(script: str) -> None:
    """Apply an nftables script in one transaction."""
    run(["nft", "-f", "-"], text=script)


def remove_table(name: str) -> None:
    """Remove the bridge table ``name`` if it is there."""
    load_table(f"table bridge {name}\ndelete table bridge {name}\n")


@contextlib.contextmanager
def locked(path: Path, seconds: float = 300.0) -> Iterator[None]:
    """Hold an exclusive lock on the file ``path``; raises LabError when another process holds it for ``seconds``.

    The holder may remove the file: who waited for it then takes the lock on a new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + seconds
    while True:
        with path.open("a") as file:
            if not wait_for(lambda file=file: try_lock(file), end - time.monotonic()):  # type: ignore[misc]
                raise LabError(f"another gugus-lab command has held {path} for {seconds:g} s")
            with contextlib.suppress(FileNotFoundError):
                if os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                    yield
                    return


def try_lock(file: IO[str]) -> bool:
    """Take the lock on an open file, which its closing lets go; tells whether it was free."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
