"""Fence devices through the programs of Debian's fence-agents, on this host: parameters on standard input, the outcome in the exit code.

FenceAgentAPI: `off` and `on` exit with 0 when they were carried out; `status` with 0 when the power is on, 2 when it is off. Everything
else is a failure, a time-out as well. Parameters never are arguments: those can be seen by every process of the host.
"""

import os
import re
from pathlib import Path

from common.errors import GugusError, invalid, precondition
from common.process import CommandFailed, Completed, run
from manager.fencing.device import Device
from manager.fencing.metadata import BadMetadata, Metadata, parse
from manager.ha.fence_plan import Action, Outcome

METADATA_TIMEOUT_S = 10.0

WORDS_CHARS = 200
"""What is kept of what a program says when it fails: its last line."""

NAME = re.compile(r"fence_[a-z0-9_]{1,50}")

NO_POWER = frozenset(
    {
        "fence_ack_manual",
        "fence_brocade",
        "fence_check",
        "fence_cisco_mds",
        "fence_compute",
        "fence_dummy",
        "fence_evacuate",
        "fence_heuristics_ping",
        "fence_ifmib",
        "fence_kdump",
        "fence_mpath",
        "fence_sanbox2",
        "fence_sanlock",
        "fence_sbd",
        "fence_scsi",
        "fence_virtd",
    }
)
"""Programs of the package that cut no host's power: they take away storage or a network port, wait, ask, or do nothing at all."""

_ON, _OFF = 0, 2
_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "PYTHONWARNINGS": "ignore",
}


class FenceAgents:
    """The programs in a folder. Implements `manager.fencing.device.FenceDevice`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def installed(self) -> list[str]:
        """Return the programs that are there and cut power, by name."""
        try:
            names = [entry.name for entry in os.scandir(self._folder) if NAME.fullmatch(entry.name)]
        except OSError:
            return []
        return sorted(name for name in names if name not in NO_POWER and os.access(self._folder / name, os.X_OK))

    async def metadata(self, agent: str) -> Metadata:
        """Ask a program what it wants to know. Raises INVALID_ARGUMENT, and FAILED_PRECONDITION FENCE_AGENT_MISSING or _UNFIT."""
        self._require(agent)
        try:
            done = await self._run(agent, {"action": "metadata"}, METADATA_TIMEOUT_S)
            return parse(agent, done.text)
        except (CommandFailed, BadMetadata) as error:
            raise precondition(
                "FENCE_AGENT_UNFIT",
                f"{agent} cannot be used: {error}.",
                remedy=f"`{self._folder / agent} -o metadata` on the host of the acting manager shows what it says.",
            ) from None

    async def act(self, device: Device, action: Action) -> tuple[Outcome, str]:
        """See `FenceDevice.act`."""
        try:
            self._require(device.agent)
            done = await self._run(device.agent, {**device.parameters, "action": action.value}, device.timeout_s)
        except CommandFailed as error:
            return Outcome.FAILED, _without_secrets(device, _why(error, device.timeout_s))
        except GugusError as error:
            return Outcome.FAILED, error.message
        outcome = outcome_of(action, done.returncode)
        words = "" if outcome is not Outcome.FAILED else _last_line(done) or f"exit code {done.returncode}"
        return outcome, _without_secrets(device, words)

    async def _run(self, agent: str, parameters: dict[str, str], timeout_s: float) -> Completed:
        lines = "".join(f"{name}={value}\n" for name, value in parameters.items())
        program = [str(self._folder / agent)]
        return await run(program, timeout_s=timeout_s, input=lines.encode(), check=False, env=_ENVIRONMENT, cwd="/")

    def _require(self, agent: str) -> None:
        if not NAME.fullmatch(agent):
            raise invalid(
                "device.agent", f'"{agent}" is no program of the fence-agents; they are called like fence_ipmilan'
            )
        if agent in NO_POWER:
            raise invalid("device.agent", f"{agent} does not cut a host's power, so it proves nothing")
        if not os.access(self._folder / agent, os.X_OK):
            raise precondition(
                "FENCE_AGENT_MISSING",
                f"{self._folder / agent} is not on the host of the acting manager.",
                remedy="`apt-get install fence-agents` on the host of every manager: any of them may have to fence.",
            )


def outcome_of(action: Action, returncode: int) -> Outcome:
    """Return what an exit code says."""
    if action is not Action.STATUS:
        return Outcome.DONE if returncode == 0 else Outcome.FAILED
    return {_ON: Outcome.IS_ON, _OFF: Outcome.IS_OFF}.get(returncode, Outcome.FAILED)


def _why(error: CommandFailed, timeout_s: float) -> str:
    return f"it did not answer within {timeout_s:g} s" if error.timed_out else error.stderr_tail or error.message


def _last_line(done: Completed) -> str:
    """Return the last line of what a program said, without the time and process id that some put in front."""
    lines = [line for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
    return re.sub(r"^\S+ \S+ (ERROR|WARNING): ", "", lines[-1].strip())[:WORDS_CHARS] if lines else ""


def _without_secrets(device: Device, words: str) -> str:
    for name in device.secret_names:
        if value := device.parameters.get(name):
            words = words.replace(value, "***")
    return words
