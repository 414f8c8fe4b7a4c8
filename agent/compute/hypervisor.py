"""Hypervisor: what a driver of guests has to offer to the agent.

A driver knows one host and nothing of the cluster. It runs what it is told, tells what it sees, and never touches a
guest that this project did not make. Grants, epochs and leases are the agent's business, above.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from gugus.agent.v1 import guest_pb2, node_pb2, volume_pb2

if TYPE_CHECKING:  # they speak of disks as this module does
    from agent.compute.access import Access
    from agent.compute.disks import GuestDisks
    from agent.compute.migration import Migration
    from agent.compute.snapshots import GuestSnapshots

Progress = Callable[[int, str], None]
"""Called in the loop with the part done (0 to 100) and what is being done, in words."""

CONSOLE_DEFAULT_BYTES = 64 * 1024
"""Console bytes that are returned when the caller names no number (GetConsoleLogRequest.max_bytes)."""

CONSOLE_MAX_BYTES = 1024 * 1024
"""Most console bytes returned at once (GetConsoleLogRequest.max_bytes)."""

EMERGENCY_KILL_TIMEOUT_S = 1.5
"""How long an emergency kill waits for the processes to be gone; within `common.leases`' kill budget of 2 s."""


@dataclass(frozen=True, slots=True)
class AttachedDisk:
    """A disk with everything resolved: `path` is a file (QCOW2, RAW) or a folder (FILESYSTEM) of this host.

    `lease`: the file that is to be locked for as long as the guest runs (`agent.leases`); None when it need not be, for no other
    host reaches the disk, or the guest does not write to it.
    """

    spec: guest_pb2.GuestDisk
    path: Path
    format: volume_pb2.VolumeFormat.ValueType
    read_only: bool = False
    lease: Path | None = None


@dataclass(frozen=True, slots=True)
class AttachedNic:
    """A network interface with its bridge resolved."""

    spec: guest_pb2.GuestNic
    bridge: str


@dataclass(frozen=True, slots=True)
class MachineFiles:
    """Files of a virtual machine beside its disks, resolved to paths of this host; containers have none.

    `discs` are the images in its CD-ROM drives, by the drive's name (an empty drive is not in it). `hibernation` is the
    memory that the next start takes up. `state` is a folder beside the first disk for what belongs to the machine and
    must go where its disk goes: UEFI variables and the TPM's state; the driver makes it when it needs it.
    """

    discs: Mapping[str, Path] = field(default_factory=dict)
    hibernation: Path | None = None
    state: Path | None = None


NO_FILES = MachineFiles()


@dataclass(frozen=True, slots=True)
class Observation:
    """What a hypervisor says of a guest now. Fields as in gugus.agent.v1.Guest.

    `generation` is the one it was started with, as the hypervisor remembers it (0 when it is not running), so that an
    agent that restarts knows under which grant the guest runs. `usage` may be some seconds old.
    """

    state: guest_pb2.GuestState.ValueType
    pid: int = 0
    mode: str = ""
    reason: str = ""
    generation: int = 0
    addresses: tuple[str, ...] = ()
    cpu_time_ns: int = 0
    memory_used_bytes: int = 0
    ended: guest_pb2.GuestEnd.ValueType = guest_pb2.GUEST_END_UNSPECIFIED
    pending: tuple[guest_pb2.PendingChange, ...] = ()
    usage: guest_pb2.GuestUsage | None = None

    @property
    def running(self) -> bool:
        """Whether any part of the guest may execute or hold its disks: everything but STOPPED and CRASHED."""
        return self.state not in (guest_pb2.GUEST_STATE_STOPPED, guest_pb2.GUEST_STATE_CRASHED)


@dataclass(frozen=True, slots=True)
class KillReport:
    """What an emergency kill did: `gone` names whose processes are certainly dead, `alive` maps a name to why not."""

    gone: frozenset[str]
    alive: Mapping[str, str] = field(default_factory=dict)


class Hypervisor(Protocol):
    """A driver. All names are names of guests. Methods raise GugusError only; every one of them has a time limit."""

    @property
    def name(self) -> str:
        """Driver's name, as in HypervisorFacts.driver."""

    @property
    def kinds(self) -> tuple[guest_pb2.GuestKind.ValueType, ...]:
        """Kinds of guests it runs."""

    async def open(self) -> None:
        """Connect and adopt what runs already. Never fails because the hypervisor is down: `probe` tells that.

        Must be called once, in the running loop, before everything but `emergency_kill`.
        """

    async def close(self) -> None:
        """Let go of the hypervisor. Guests go on running."""

    async def probe(self) -> node_pb2.HypervisorFacts:
        """Tell whether and how it can run guests now. May take some seconds once a boot; cached afterwards."""

    async def define(
        self,
        spec: guest_pb2.GuestSpec,
        disks: Sequence[AttachedDisk],
        nics: Sequence[AttachedNic],
        files: MachineFiles = NO_FILES,
    ) -> None:
        """Remember how a guest is to be run, replacing what was known of it. Idempotent.

        Disks and NICs are in the order of the spec. A running guest is not changed, see `apply`. Errors:
        INVALID_ARGUMENT for a spec that this driver cannot run.
        """

    async def apply(self, name: str) -> Sequence[guest_pb2.PendingChange]:
        """Change a running guest into its definition as far as that can be done while it runs; return what is left.

        What is left waits for the next start; each item that failed is among it, with the reason. Nothing is applied
        half. Idempotent; does nothing for a guest that does not run. Observation.pending tells the same until then.
        Errors: GUEST_NOT_FOUND, HYPERVISOR_DOWN.
        """

    async def start(self, name: str, generation: int) -> None:
        """Run a defined guest; returns once it runs. Idempotent: a running one is left alone.

        `generation` is kept with the running guest, see Observation. Errors: GUEST_NOT_FOUND, HYPERVISOR_DOWN, and
        GUEST_START_FAILED with the hypervisor's own words.
        """

    async def shutdown(self, name: str) -> None:
        """Ask a guest to shut down, without waiting for it. Nothing happens to one that does not run."""

    async def kill(self, name: str) -> None:
        """End a guest at once; returns once it does not run any more. Nothing happens to one that does not run.

        Falls back to `emergency_kill` when the hypervisor's daemon does not answer.
        """

    async def suspend(self, name: str) -> None:
        """Hold a guest's CPUs; returns once they stand still. Idempotent. Errors: GUEST_NOT_RUNNING."""

    async def resume(self, name: str) -> None:
        """Let a held guest go on. Idempotent. Errors: GUEST_NOT_RUNNING."""

    async def reset(self, name: str) -> None:
        """Boot a guest again at once, as the reset button does. Errors: GUEST_NOT_RUNNING, GUEST_RESET_FAILED."""

    async def hibernate(self, name: str, path: Path, progress: Progress) -> None:
        """Write a guest's memory over a file, and end the guest. Can be cancelled (asyncio).

        Repeated after it was done, it changes nothing. After a failure the guest runs on, and the file is worthless.
        Errors: GUEST_NOT_RUNNING, NOT_HIBERNATABLE, NO_SPACE.
        """

    async def undefine(self, name: str) -> None:
        """Forget a stopped guest and remove everything the driver made for it, disks apart. Idempotent.

        Errors: GUEST_RUNNING.
        """

    async def observe(self, name: str) -> Observation | None:
        """Tell what a guest does; None when it is neither defined nor running here. Errors: HYPERVISOR_DOWN."""

    async def observe_all(self) -> dict[str, Observation]:
        """Tell what all guests of this driver do, defined or running. Errors: HYPERVISOR_DOWN."""

    def watch(self, callback: Callable[[str], None]) -> None:
        """Have `callback` called in the loop with a guest's name after each change. "" means: look at all of them."""

    async def console_log(self, name: str, max_bytes: int) -> bytes:
        """Return the last bytes of the serial console, of the present run or the last. Errors: GUEST_NOT_FOUND."""

    async def emergency_kill(self, names: Collection[str]) -> KillReport:
        """Kill guests by their processes alone: no daemon, no library, no lock is needed for it.

        Used at lease end. Works before `open`. Each process is identified beyond doubt (see `agent.compute.processes`)
        before it gets SIGKILL. Returns when all are gone, or after EMERGENCY_KILL_TIMEOUT_S with those that are not
        (uninterruptible in the kernel). A guest that does not run counts as gone. Never raises.
        """

    # What only some drivers can; None where they cannot.

    @property
    def snapshots(self) -> "GuestSnapshots | None":
        """Snapshots of running guests."""

    @property
    def disks(self) -> "GuestDisks | None":
        """Work on disks of running guests."""

    @property
    def migration(self) -> "Migration | None":
        """Moves of running guests to other hosts."""

    @property
    def access(self) -> "Access | None":
        """Consoles, programs and files in guests."""
