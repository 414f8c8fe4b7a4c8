"""Guests of this host: what each is to be (the state), what it does (the hypervisors), and every change of the two.

Invariant: a guest is started only with a generation that is not older than any seen for it, made durable before the
start; one under HA only under a lease that is held before *and* after the start, else it is killed again.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

from gugus.agent.v1 import guest_pb2, volume_pb2

from agent.attachments import Attachments
from agent.changes import Changes
from agent.compute import processes
from agent.compute.hypervisor import (
    CONSOLE_DEFAULT_BYTES,
    CONSOLE_MAX_BYTES,
    Hypervisor,
    Observation,
    Progress,
)
from agent.fencing.guard import Guard
from agent.networks import Networks
from agent.observer import Observer, Seen
from agent.pools import Pools
from agent.specs import check
from agent.state import AgentState
from agent.storage.pool import StoragePool, VolumeRequest
from agent.turns import Turns
from common.errors import GugusError, invalid, not_found, precondition
from common.logs import get_logger

STOP_POLL_S = 0.2
"""So often a guest that was asked to shut down is looked at, beside the driver's own word."""

HIBERNATION_BYTES = 1024 * 1024
"""Size at which a volume for a guest's memory is made; it grows as the memory is written."""

Boot = Callable[[str, int], Awaitable[None]]
"""Starts a guest of a name with a generation, as Hypervisor.start does."""

_log = get_logger("guests")


class Guests:
    """All guests of this host. Methods raise GugusError; changes take turns on each guest."""

    def __init__(
        self,
        state: AgentState,
        observer: Observer,
        pools: Pools,
        networks: Networks,
        guard: Guard,
        turns: Turns,
        changes: Changes,
    ) -> None:
        self._state, self._observer, self._pools, self._networks = state, observer, pools, networks
        self._guard, self._turns, self.changes = guard, turns, changes
        self._attachments = Attachments(pools, networks)
        self.ended_by_host: set[str] = set()
        """Guests that this host asked to end, and nobody else: their end is not their own."""
        observer.listen(self._observed)

    # What there is

    def get(self, name: str) -> guest_pb2.Guest:
        """Return a guest as last seen. Raises GUEST_NOT_FOUND."""
        if name not in self._state.guests and name not in self._observer.seen:
            raise not_found("guest", name)
        return self._describe(name)

    def list(self) -> list[guest_pb2.Guest]:
        """Return all guests by name: those defined, and those that run without a definition."""
        seen, defined = dict(self._observer.seen), self._state.guests.copy()  # scrapes come from other threads
        running = {name for name, what in seen.items() if what.observation.running}
        return [self._describe(name) for name in sorted(defined.keys() | running)]

    async def console_log(self, name: str, max_bytes: int) -> bytes:
        """Return the end of a guest's console log. Raises GUEST_NOT_FOUND."""
        wanted = min(max_bytes or CONSOLE_DEFAULT_BYTES, CONSOLE_MAX_BYTES)
        return await self._hypervisor(name).console_log(name, wanted)

    # Changes

    async def create(self, epoch: int, spec: guest_pb2.GuestSpec) -> guest_pb2.Guest:
        """Define a guest, or bring its definition up to date. Raises VOLUME_MISSING, NETWORK_MISSING, LEASE_EXPIRED."""
        check(spec)
        return await self._turns.run(f"guest/{spec.name}", epoch, partial(self._create, spec))

    async def start(self, epoch: int, name: str, generation: int, boot: Boot | None = None) -> guest_pb2.Guest:
        """Start a guest, by `boot` instead of the hypervisor's own `start` when it is given (as a rollback does).

        Raises GUEST_NOT_FOUND, STALE_GENERATION, LEASE_EXPIRED, and what the hypervisor raises.
        """
        if generation < 1:
            raise invalid("grant.generation", "is missing; it is at least 1")
        return await self._turns.run(f"guest/{name}", epoch, partial(self._start, name, generation, boot))

    async def stop(self, epoch: int, name: str, timeout_s: float) -> guest_pb2.Guest:
        """Ask a guest to shut down and kill it when the time is over. Kill and delete do not wait for it."""
        asked = await self._turns.run(f"guest/{name}", epoch, partial(self._ask_to_stop, name, timeout_s > 0))
        if asked is None:
            return self._stopped(name, guest_pb2.STOP_OUTCOME_NOT_RUNNING)
        if timeout_s > 0:
            await self._wait_stopped(name, asked.pid, timeout_s)
        return await self._turns.run(f"guest/{name}", epoch, partial(self._kill, name, asked.pid))

    async def kill(self, epoch: int, name: str) -> guest_pb2.Guest:
        """Kill a guest at once."""
        return await self._turns.run(f"guest/{name}", epoch, partial(self._kill, name, None))

    async def suspend(self, epoch: int, name: str) -> guest_pb2.Guest:
        """Hold a guest's CPUs. Raises GUEST_NOT_RUNNING."""
        return await self._turns.run(f"guest/{name}", epoch, partial(self._do, name, "suspend"))

    async def resume(self, epoch: int, name: str) -> guest_pb2.Guest:
        """Let a held guest go on. Raises GUEST_NOT_RUNNING."""
        return await self._turns.run(f"guest/{name}", epoch, partial(self._do, name, "resume"))

    async def reset(self, epoch: int, name: str) -> guest_pb2.Guest:
        """Boot a guest again at once. Raises GUEST_NOT_RUNNING."""
        return await self._turns.run(f"guest/{name}", epoch, partial(self._do, name, "reset"))

    async def admit_hibernation(self, epoch: int, name: str) -> None:
        """Refuse a hibernation that cannot be begun. Raises GUEST_NOT_FOUND, STALE_EPOCH."""
        self._hypervisor(name)
        await self._turns.admit(epoch)

    async def hibernate(self, epoch: int, name: str, pool: str, volume: str, progress: Progress) -> None:
        """Write a guest's memory into a new volume and end it. Repeated after it was done, it changes nothing.

        Raises GUEST_NOT_RUNNING, NOT_HIBERNATABLE, NO_SPACE; then the guest runs on, and there is no volume.
        """
        work = partial(self._hibernate, name, pool, volume, progress)
        await self._turns.run(f"guest/{name}", epoch, work)

    async def delete(self, epoch: int, name: str) -> None:
        """Remove a stopped guest's definition. Raises GUEST_RUNNING."""
        await self._turns.run(f"guest/{name}", epoch, partial(self._delete, name))

    async def _create(self, spec: guest_pb2.GuestSpec) -> guest_pb2.Guest:
        known = self._state.guests.get(spec.name)
        if known is not None and (known.uid, known.kind) != (spec.uid, spec.kind):
            raise precondition(
                "GUEST_NAME_TAKEN",
                f'guest "{spec.name}" is defined here with another UUID or kind ({known.uid}).',
                remedy="Delete the old guest from this node first.",
                subject=f"guest/{spec.name}",
            )
        hypervisor = self._observer.hypervisor_for(spec.kind)
        await self._define(hypervisor, spec)
        seen = self._observer.seen.get(spec.name)
        running = seen is not None and seen.observation.running
        if spec.ha:
            self._guard.protect(spec.name, _process(seen.observation if seen else None), running=running)
        await self._state.run(self._state.save_guest, spec)
        if not spec.ha:
            self._guard.release(spec.name)
        left = await hypervisor.apply(spec.name) if running else ()
        await self._attachments.grow(spec, {change.field for change in left}, running=running)
        await self._observer.look(spec.name, hypervisor)
        self.changes.tell(spec.name)
        return self._describe(spec.name)

    async def _start(self, name: str, generation: int, boot: Boot | None) -> guest_pb2.Guest:
        spec = self._spec(name)
        highest = self._state.generation(spec.uid)
        if generation < highest:
            raise _stale_generation(name, generation, highest)
        hypervisor = self._observer.hypervisor_for(spec.kind)
        if spec.ha:
            self._guard.require_lease(name)
        await self._state.run(self._state.raise_generation, spec.uid, generation)
        self.ended_by_host.discard(name)
        await self._define(hypervisor, spec)
        await self._boot(spec, hypervisor, generation, boot or hypervisor.start)
        return self._describe(name)

    async def arrive(self, name: str, generation: int, boot: Boot) -> None:
        """Run a guest that is here already but for `boot`, as one that comes from another host, under a start's checks.

        To be called in the guest's turn, with its generation raised: nothing here waits for a disk before `boot`. Raises
        GUEST_NOT_FOUND, LEASE_EXPIRED, and what `boot` raises.
        """
        spec = self._spec(name)
        if spec.ha:
            self._guard.require_lease(name)
        await self._boot(spec, self._observer.hypervisor_for(spec.kind), generation, boot)

    async def _boot(self, spec: guest_pb2.GuestSpec, hypervisor: Hypervisor, generation: int, boot: Boot) -> None:
        if await self._run(spec, hypervisor, generation, boot):
            raise precondition(
                "LEASE_EXPIRED",
                f'the node lease ended while guest "{spec.name}" was being started; it was killed.',
                remedy="The manager places it again.",
                subject=f"guest/{spec.name}",
            )
        _log.info("guest started", guest=spec.name, generation=generation)
        self.changes.tell(spec.name)

    async def _run(self, spec: guest_pb2.GuestSpec, hypervisor: Hypervisor, generation: int, boot: Boot) -> bool:
        """Start a guest that is ready to run; return whether the lease was lost meanwhile, so that it was killed.

        It is admitted last: what may take long before, such as a look at its disks, can leave nothing running.
        """
        if spec.ha:
            self._guard.admit(spec.name)
        try:
            await boot(spec.name, generation)
        finally:
            lost = await self._settle(spec, hypervisor)
        return lost

    async def _settle(self, spec: guest_pb2.GuestSpec, hypervisor: Hypervisor) -> bool:
        """After a start, however it ended: note the process; return whether the lease was lost meanwhile.

        When the hypervisor cannot say whether the guest runs, an HA start stays under way for the guard until it can:
        should the lease end before that, the watchdog resets the host.
        """
        try:
            observation = await self._observer.look(spec.name, hypervisor)
        except GugusError as error:
            if spec.ha:
                self._guard.unsettled(spec.name)
            _log.error("start of unknown outcome", guest=spec.name, error=str(error))
            return False
        if not spec.ha:
            return False
        running = observation is not None and observation.running
        if self._guard.settle(spec.name, _process(observation), running=running) or not running:
            return False
        await hypervisor.emergency_kill([spec.name])
        return True

    async def _ask_to_stop(self, name: str, gracefully: bool) -> Observation | None:
        """Ask for a shutdown; return what runs and is to end, None when nothing does."""
        hypervisor = self._hypervisor(name)
        observation = await self._observer.look(name, hypervisor)
        if observation is None or not observation.running:
            return None
        if gracefully:
            await hypervisor.shutdown(name)
        return observation

    async def _wait_stopped(self, name: str, pid: int, timeout_s: float) -> None:
        end = asyncio.get_running_loop().time() + timeout_s
        while asyncio.get_running_loop().time() < end:
            observation = await self._observer.look(name, self._hypervisor(name))
            if observation is None or not observation.running or observation.pid != pid:
                return
            await asyncio.sleep(STOP_POLL_S)

    async def _kill(self, name: str, pid: int | None) -> guest_pb2.Guest:
        """Kill a guest; with a pid, only if that is still its process (else it has ended, or was started anew)."""
        hypervisor = self._hypervisor(name)
        seen = self._observer.seen.get(name)
        running = seen is not None and seen.observation.running
        outcome = guest_pb2.STOP_OUTCOME_KILLED if running else guest_pb2.STOP_OUTCOME_NOT_RUNNING
        if pid is None or (running and seen is not None and seen.observation.pid == pid):
            await hypervisor.kill(name)
            await self._observer.look(name, hypervisor)
        else:
            outcome = guest_pb2.STOP_OUTCOME_SHUT_DOWN
        _log.info("guest stopped", guest=name, how=guest_pb2.StopOutcome.Name(outcome))
        self.changes.tell(name)
        return self._stopped(name, outcome)

    def _stopped(self, name: str, outcome: guest_pb2.StopOutcome.ValueType) -> guest_pb2.Guest:
        described = self._describe(name)
        described.stopped = outcome
        return described

    async def _do(self, name: str, what: str) -> guest_pb2.Guest:
        """Suspend, resume or reset a guest."""
        hypervisor = self._hypervisor(name)
        change = {"suspend": hypervisor.suspend, "resume": hypervisor.resume, "reset": hypervisor.reset}[what]
        await change(name)
        await self._observer.look(name, hypervisor)
        _log.info("guest changed", guest=name, change=what)
        self.changes.tell(name)
        return self._describe(name)

    async def _hibernate(self, name: str, pool: str, volume: str, progress: Progress) -> None:
        hypervisor, storage = self._hypervisor(name), self._pools.get(pool)
        observation = await self._observer.look(name, hypervisor)
        if observation is None or not observation.running:
            await self._was_hibernated(name, storage, volume, progress)
            return
        wanted = VolumeRequest(name=volume, format=volume_pb2.VOLUME_FORMAT_RAW, size_bytes=HIBERNATION_BYTES)
        await storage.create_volume(wanted)
        try:
            await hypervisor.hibernate(name, await storage.path_of(volume), progress)
        except BaseException:
            await asyncio.shield(storage.delete_volume(volume))
            raise
        finally:
            await self._observer.look(name, hypervisor)
        _log.info("guest hibernated", guest=name, pool=pool, volume=volume)
        self.changes.tell(name)

    async def _was_hibernated(self, name: str, storage: StoragePool, volume: str, progress: Progress) -> None:
        """Accept that a hibernation was done before. Raises GUEST_NOT_RUNNING when it was not."""
        try:
            path = await storage.path_of(volume)
        except GugusError as error:
            what = f'guest "{name}" does not run, and volume "{volume}" has no memory of it.'
            raise precondition("GUEST_NOT_RUNNING", what, remedy="Start it first.", subject=f"guest/{name}") from error
        await self._hypervisor(name).hibernate(name, path, progress)

    async def _delete(self, name: str) -> None:
        if name not in self._state.guests and name not in self._observer.seen:
            return
        hypervisor = self._hypervisor(name)
        await hypervisor.undefine(name)
        await self._state.run(self._state.remove_guest, name)
        self._guard.release(name)
        await self._observer.look(name, hypervisor)
        self.changes.tell(name)

    async def _define(self, hypervisor: Hypervisor, spec: guest_pb2.GuestSpec) -> None:
        found = await self._attachments.resolve(spec)
        await hypervisor.define(found.spec, found.disks, found.nics, found.files)

    # What is known

    def _spec(self, name: str) -> guest_pb2.GuestSpec:
        if name not in self._state.guests:
            raise not_found("guest", name, remedy="Create the guest on this node first.")
        return self._state.guests[name]

    def _hypervisor(self, name: str) -> Hypervisor:
        """Return the hypervisor of a guest, also of one that runs without a definition. Raises GUEST_NOT_FOUND."""
        if name in self._state.guests:
            return self._observer.hypervisor_for(self._state.guests[name].kind)
        if name in self._observer.seen:
            return self._observer.seen[name].hypervisor
        raise not_found("guest", name)

    def _observed(self, name: str, seen: Seen | None) -> None:
        """Keep the guard's record of HA processes true; the guard knows whose they are."""
        if seen is None or not seen.doubt:
            observation = seen.observation if seen else None
            running = observation is not None and observation.running
            self._guard.observed(name, _process(observation), running=running)

    def _describe(self, name: str) -> guest_pb2.Guest:
        spec = self._state.guests.get(name)
        seen = self._observer.seen.get(name)
        seen_now = seen.observation if seen else Observation(guest_pb2.GUEST_STATE_STOPPED)
        reasons = [seen_now.reason, seen.doubt if seen else "", "" if spec else "runs without a definition"]
        leased = self._networks.addresses(spec) if spec and seen_now.running else ()
        addresses = tuple(dict.fromkeys((*seen_now.addresses, *leased)))
        return guest_pb2.Guest(
            spec=spec or guest_pb2.GuestSpec(name=name),
            state=seen_now.state,
            generation=self._state.generation(spec.uid) if spec else seen_now.generation,
            pid=seen_now.pid,
            mode=seen_now.mode,
            reason="; ".join(reason for reason in reasons if reason),
            addresses=addresses,
            cpu_time_ns=seen_now.cpu_time_ns,
            memory_used_bytes=seen_now.memory_used_bytes,
            ended=guest_pb2.GUEST_END_HOST if name in self.ended_by_host and not seen_now.running else seen_now.ended,
            pending=seen_now.pending,
            usage=seen_now.usage,
        )


def _process(observation: Observation | None) -> processes.ProcessRecord | None:
    """Return the process of a guest that runs; None when it cannot be told: for the guard it runs all the same."""
    if observation is None or not observation.running or not observation.pid:
        return None
    try:
        return processes.record_of(observation.pid)
    except OSError as error:
        _log.error("process cannot be looked at", pid=observation.pid, error=str(error))
        return None


def _stale_generation(name: str, generation: int, highest: int) -> GugusError:
    return precondition(
        "STALE_GENERATION",
        f'the grant of generation {generation} for guest "{name}" is old: this node was granted {highest}.',
        remedy="The guest was given away since; ask the manager for its present grant.",
        subject=f"guest/{name}",
        metadata={"generation": str(highest)},
    )
