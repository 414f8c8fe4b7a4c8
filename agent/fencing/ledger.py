"""What may be running of HA on this host: guests, their processes, and starts whose end is not known.

Invariant: a guest is struck off only when it is known not to run. That a hypervisor knows nothing of it is not enough
while its last process lives, nor while a start may still come to something: a start that an earlier agent asked for goes
on without it, in libvirtd or systemd. Not thread-safe: its owner holds a lock. Reads /proc, and nothing else.
"""

from collections.abc import Iterable

from agent.compute.lxc.processes import monitor_of
from agent.compute.processes import ProcessRecord, is_alive
from agent.fencing.record import LeaseRecord

LONGEST_START_NS = 60_000_000_000
"""After so long, a start that nobody waits for any more has come to something or never will: START_TIMEOUT_S of the
drivers, which is how long they wait for one."""


class Ledger:
    """Keeps the account. `learned` rises with everything learned of a guest: who acts on it sees whether it still holds."""

    def __init__(self) -> None:
        self.protected: set[str] = set()
        self.unwritten: set[str] = set()
        """Guests that ended, or are about to, and what they wrote may not be on shared disks."""
        self.learned = 0
        self._processes: dict[str, ProcessRecord] = {}
        self._monitors: dict[str, ProcessRecord] = {}
        self._unidentified: set[str] = set()
        self._starting: set[str] = set()
        self._unresolved: dict[str, int] = {}
        """Starts of unknown outcome, and from when on a hypervisor is believed that knows of no such guest."""
        self._suspects: set[str] = set()

    def restore(self, last: LeaseRecord, now_ns: int) -> None:
        """Take over from an agent that is gone. Starts that it asked for may still be under way."""
        self._processes, self._monitors = dict(last.processes), dict(last.monitors)
        self._unidentified = set(last.unidentified)
        started = set(last.starting) - self._unidentified
        self._unresolved = dict.fromkeys(started, now_ns + LONGEST_START_NS)
        self.protected.update(last.processes, last.starting)

    def record(self, deadline_ns: int) -> LeaseRecord:
        """Return what the watchdog, and the next agent, must know."""
        starting = tuple(sorted({*self._unidentified, *self.under_way, *self.unwritten}))
        unidentified = tuple(sorted(self._unidentified - self.under_way))
        return LeaseRecord(deadline_ns, dict(self._processes), starting, dict(self._monitors), unidentified)

    @property
    def under_way(self) -> frozenset[str]:
        """Guests that may be starting: what is killed now may be there a moment later."""
        return frozenset(self._starting | self._unresolved.keys())

    @property
    def may_run(self) -> frozenset[str]:
        """All guests that may be running."""
        return self.under_way | self._unidentified | self._processes.keys()

    def living(self) -> dict[str, str]:
        """Return the guests of which a process lives that is known, and what to say of it."""
        return {name: "its process is still there" for name in self._processes if self._lives(name)}

    def admit(self, name: str) -> None:
        """A start begins."""
        self.protected.add(name)
        self._starting.add(name)
        self.learned += 1

    def settled(self, name: str, process: ProcessRecord | None, *, running: bool, now_ns: int) -> None:
        """A start has ended: the guest runs, or it does not."""
        self._starting.discard(name)
        self._resolve(name, running, now_ns)
        self._note(name, process, running=running)

    def unsettled(self, name: str) -> None:
        """A start has ended, and the hypervisor could not say how. The next look that succeeds will."""
        self._starting.discard(name)
        self._unresolved.setdefault(name, 0)
        self.learned += 1

    def observed(self, name: str, process: ProcessRecord | None, *, running: bool, now_ns: int) -> bool:
        """A look at a guest: return whether anything was learned by it."""
        before = self.learned
        self._resolve(name, running, now_ns)
        known = name in self._processes or name in self._unidentified
        if self._processes.get(name) != process or running != known or (process and name in self._unidentified):
            self._note(name, process, running=running)
        return self.learned != before

    def strays(self, name: str, process: ProcessRecord | None, *, running: bool) -> bool:
        """Whether a guest that nobody may run here does. A look that is older than the kill is not believed.

        It tells of a process that is gone, or of none, and no second look says the same.
        """
        if running and ((process is not None and _is_there(process)) or name in self._suspects):
            self._suspects.discard(name)
            return True
        if running:
            self._suspects.add(name)
        else:
            self._suspects.discard(name)
        return False

    def protect(self, name: str, process: ProcessRecord | None, *, running: bool) -> None:
        """A guest comes under HA."""
        self.protected.add(name)
        self._note(name, process, running=running)

    def release(self, name: str) -> None:
        """A guest is under HA no more."""
        if name not in self.protected:
            return
        self._strike_off(name)
        for names in (self.protected, self.unwritten, self._suspects):
            names.discard(name)
        self._unresolved.pop(name, None)
        self.learned += 1

    def doubt(self, names: Iterable[str]) -> None:
        """These could not be killed for certain, whatever was known of them."""
        self._unidentified.update(set(names) - self.may_run)

    def clear(self) -> None:
        """Nothing runs: it was killed, and seen dead, and what it wrote is on the disks."""
        self._processes.clear()
        self._monitors.clear()
        for names in (self._unidentified, self.unwritten, self._suspects):
            names.clear()

    def _resolve(self, name: str, running: bool, now_ns: int) -> None:
        if name in self._unresolved and (running or now_ns >= self._unresolved[name]):
            del self._unresolved[name]
            self.learned += 1

    def _note(self, name: str, process: ProcessRecord | None, *, running: bool) -> None:
        if not (running and process) and self._lives(name):
            return  # the hypervisor has let go of it before the kernel has, or its monitor is about to reboot it
        self._strike_off(name)
        self.learned += 1
        if process is None and running:
            self._unidentified.add(name)
        elif process is not None and running:
            self._processes[name] = process
            self._note_monitor(name, process)

    def _note_monitor(self, name: str, process: ProcessRecord) -> None:
        try:
            monitor = monitor_of(process)
        except OSError:  # there may be one: the death of the process proves nothing until that is known
            self._unidentified.add(name)
            return
        if monitor is not None:
            self._monitors[name] = monitor

    def _strike_off(self, name: str) -> None:
        self._processes.pop(name, None)
        self._monitors.pop(name, None)
        self._unidentified.discard(name)

    def _lives(self, name: str) -> bool:
        known = (self._processes.get(name), self._monitors.get(name))
        return any(_is_there(process) for process in known if process is not None)


def _is_there(process: ProcessRecord) -> bool:
    try:
        return is_alive(process)
    except OSError:
        return True
