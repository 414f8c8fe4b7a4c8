"""Starting a container so that it stays when the agent goes, and reading from liblxc's log what became of it.

Under systemd the start is a transient unit of its own, outside the agent's sandbox and cgroup, whose life is that of
the container's monitor; at the host's shutdown it asks the container to power off. Elsewhere lxc-start goes to the
background by itself.
"""

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.leases import claim
from common.errors import GugusError, internal
from common.process import CommandFailed, run

START_TIMEOUT_S = 30.0
"""A start takes about 0.1 s; the rest is for a host under load or slow shared storage."""

HOST_SHUTDOWN_S = 30
"""How long a container may take to power off when the host shuts down, in seconds."""

COMMAND_TIMEOUT_S = 10.0
CRASH = "crash"
_LOG_TAIL_BYTES = 16 * 1024
_REASON_CHARS = 600
_SYSTEMD = Path("/run/systemd/system")
# start.c of liblxc 5, __lxc_start: <words of the signal>(<number>) - Container "<name>" <what became of it>
_END = re.compile(r'- (?P<words>[^()]*)\((?P<signal>\d+)\) - Container "[^"]*" (?P<what>.*)$', re.MULTILINE)
_EXIT = re.compile(r"Child <\d+> ended on error \((?P<code>\d+)\)$", re.MULTILINE)  # error.c, lxc_error_set_and_log
_ERROR = re.compile(r" (?:ERROR|FATAL) +\S+ - \S+ - (?P<text>.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Files:
    """The files of one container in our lxcpath."""

    lxc_path: Path
    name: str

    @property
    def folder(self) -> Path:
        """The container's folder."""
        return self.lxc_path / self.name

    @property
    def config(self) -> Path:
        """The generated configuration; made anew at every start."""
        return self.folder / "config"

    @property
    def mark(self) -> Path:
        """Says that the folder is this project's."""
        return self.folder / "gugus"

    @property
    def log(self) -> Path:
        """liblxc's log of the present run or the last."""
        return self.folder / "lxc.log"

    @property
    def console(self) -> Path:
        """What the container wrote on its console in the present run or the last; liblxc rotates to `.1`."""
        return self.folder / "console.log"

    @property
    def seccomp(self) -> Path:
        """The generated policy for system calls."""
        return self.folder / "seccomp"

    @property
    def devices(self) -> Path:
        """Nodes of the host's devices that the container is given."""
        return self.folder / "devices"

    @property
    def may_start(self) -> Path:
        """As long as it is there, the monitor starts the container again when the guest reboots."""
        return self.folder / "may-start"

    @property
    def restore(self) -> Path:
        """What the program that restores it is told."""
        return self.folder / "restore.json"

    @property
    def restore_hook(self) -> Path:
        """The program that CRIU calls while it is restored."""
        return self.folder / "restore-hook"

    @property
    def monitor_pid(self) -> Path:
        """Written by lxc-start, read by systemd."""
        return self.folder / "monitor.pid"


def systemd_runs() -> bool:
    """Whether systemd is the init here (sd_booted(3))."""
    return _SYSTEMD.is_dir()


def unit(name: str) -> str:
    """The transient unit of a container."""
    return f"gugus-container-{name}.service"


async def launch(files: Files, command: Sequence[str] = (), order: str = "") -> None:
    """Start a container and return once its init runs, which is `command` instead of /sbin/init when there is one.

    order: for the program that holds the leases of its disks (`agent.leases`), "" when it has none. Raises GUEST_START_FAILED with
    liblxc's own words.
    """
    try:
        await begin(files, start_argv(files, command), order=order)
    except CommandFailed as error:
        raise start_failed(files, error) from error


async def begin(
    files: Files,
    argv: list[str],
    timeout_s: float = START_TIMEOUT_S,
    variables: Mapping[str, str] | None = None,
    order: str = "",
) -> None:
    """Run a command that leaves a container's monitor behind, so that it stays when the agent goes.

    variables: set for it beside what the environment has. order: see `launch`. Raises CommandFailed.
    """
    more = dict(variables or {})
    argv = claim.command(order, argv) if order else argv
    if systemd_runs():
        await _begin_unit(files, unit_argv(files, argv, timeout_s, more), timeout_s)
    else:
        await run(argv, timeout_s=timeout_s, env={**os.environ, **more})


async def _begin_unit(files: Files, command: list[str], timeout_s: float) -> None:
    try:
        await run(command, timeout_s=timeout_s)
    except CommandFailed as error:
        if "already" not in error.stderr_tail:
            raise
        # The unit of the run before is still there: its monitor hung, or the stop of it has not been seen through yet.
        await run(["systemctl", "stop", unit(files.name)], timeout_s=START_TIMEOUT_S, check=False)
        await run(["systemctl", "reset-failed", unit(files.name)], timeout_s=COMMAND_TIMEOUT_S, check=False)
        await run(command, timeout_s=timeout_s)


def start_argv(files: Files, command: Sequence[str] = ()) -> list[str]:
    """The command that starts a container in the background; it exits once the container's init runs."""
    return [
        "lxc-start",
        f"--name={files.name}",
        f"--lxcpath={files.lxc_path}",
        "--daemon",
        f"--pidfile={files.monitor_pid}",
        f"--logfile={files.log}",
        "--logpriority=DEBUG",  # the level at which liblxc says how a container ended
        *(["--", *command] if command else []),
    ]


def unit_argv(
    files: Files, argv: list[str], timeout_s: float = START_TIMEOUT_S, variables: Mapping[str, str] | None = None
) -> list[str]:
    """The command that has systemd run `argv` as a unit whose main process is the container's monitor."""
    stop = ["/usr/bin/lxc-stop", f"--name={files.name}", f"--lxcpath={files.lxc_path}", f"--timeout={HOST_SHUTDOWN_S}"]
    return [
        "systemd-run",
        "--quiet",
        "--collect",
        f"--unit={unit(files.name)}",
        f"--description=Container {files.name} of gugus",
        "--property=Type=forking",
        f"--property=PIDFile={files.monitor_pid}",
        f"--property=TimeoutStartSec={timeout_s:g}",  # also when the agent that asked for it is gone
        "--property=KillMode=process",
        "--property=Delegate=yes",
        "--property=Before=virt-guest-shutdown.target",  # as libvirt's scopes: stopped after the agent when the host goes down
        f"--property=TimeoutStopSec={HOST_SHUTDOWN_S + 10}",
        f"--property=ExecStop={shlex.join(stop)}",
        *(f"--setenv={name}={value}" for name, value in (variables or {}).items()),
        *(word.replace("$", "$$") for word in argv),  # systemd puts variables of its own in place of ${NAME}
    ]


def start_failed(files: Files, error: GugusError | None = None) -> GugusError:
    """The error of a start that failed, in the words of liblxc's log where it has any."""
    log = _tail(files.log)
    words = list(dict.fromkeys(match["text"] for match in _ERROR.finditer(log)))
    said = "; ".join(words)[:_REASON_CHARS] or (str(error) if error else "its init ended at once")
    return internal("GUEST_START_FAILED", f'container "{files.name}" did not start: {said}')


def how_it_ended(files: Files, *, application: bool = False) -> tuple[str, str]:
    """Tell from liblxc's log how the last run ended by itself ("poweroff", "reboot" or "crash"), and the reason in words.

    A container that powers off or reboots by reboot(2) has its init ended by SIGINT or SIGHUP, which liblxc logs as
    "halting" and "rebooting" (pid_namespaces(7)). A program that is no init (`application`) ends in order with exit code
    0. Any other end that nobody asked for is a crash.
    """
    ends = [*_END.finditer(log := _tail(files.log)), *_EXIT.finditer(log)]
    last = max(ends, key=lambda match: match.start(), default=None)
    if last is None:
        return ("poweroff", "it ended by itself") if application else (CRASH, "its init ended without powering off")
    if last.re is _EXIT:
        return CRASH, f"its first process ended with exit code {last['code']}"
    if last["what"] == "is halting":
        return "poweroff", "it powered off by itself"
    if last["what"] == "is rebooting":
        return "reboot", "it asked for a reboot"
    return CRASH, f"its init was ended by signal {last['signal']} ({last['words'].strip().rpartition(' - ')[2]})"


def _tail(file: Path) -> str:
    return tail(file, _LOG_TAIL_BYTES).decode(errors="replace")


def tail(file: Path, max_bytes: int) -> bytes:
    """Return the last bytes of a file; empty when there is none."""
    try:
        with file.open("rb") as opened:
            opened.seek(0, 2)
            opened.seek(max(opened.tell() - max_bytes, 0))
            return opened.read(max_bytes)
    except OSError:
        return b""
