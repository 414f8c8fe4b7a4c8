"""How the last run of each guest ended, on disk: an agent that was away meanwhile finds out what it can.

One small file a guest says that it runs, and later how it ended. Of what happened while no agent listened, libvirt's own
log has the last word, and another boot of the host means that the host went down.
"""

import os
import re
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import libvirt
from gugus.agent.v1 import guest_pb2

from common.files import read_json, write_json
from common.logs import get_logger

QEMU_LOGS = Path("/var/log/libvirt/qemu")
"""Where libvirt has the log of each QEMU; its last line tells why it ended."""

NEWS_S = 2.0
"""libvirt takes a domain off its list before it tells why it ended. If it has not told by then, it did so while nobody listened."""

_TAIL_BYTES = 4096
_REBOOTS = frozenset({"guest-reset", "subsystem-reset"})
"""Causes of a SHUTDOWN event of a QEMU that is not to reboot (ShutdownCause in qapi/run-state.json)."""

_LAST_WORDS = re.compile(rb"shutting down, reason=([a-z-]+)")
_CRASHED = "QEMU ended by itself with an error; see /var/log/libvirt/qemu."
_PANICKED = "The guest's kernel crashed."
_log = get_logger("kvm.ends")


@dataclass(frozen=True, slots=True)
class Ended:
    """The last run: whether it still goes on, else how it ended and why, in words."""

    boot_id: str
    runs: bool = True
    end: guest_pb2.GuestEnd.ValueType = guest_pb2.GUEST_END_UNSPECIFIED
    reason: str = ""

    @property
    def crashed(self) -> bool:
        """Whether it ended in disorder."""
        return self.end == guest_pb2.GUEST_END_CRASH


class Ends:
    """The last runs of guests. Files are written at once: they are few bytes, on the host's own disk."""

    def __init__(self, folder: Path, boot_id: str, logs: Path = QEMU_LOGS) -> None:
        self._folder, self._boot_id, self._logs = folder, boot_id, logs
        self._known: dict[str, Ended] = {}
        self._gone_s: dict[str, float] = {}
        """Since when guests are known not to run, while nothing was heard of their ends (time.monotonic)."""
        self._reboots: set[str] = set()
        """Guests whose QEMU said that it ends because the guest reboots."""

    def load(self, running: frozenset[str]) -> None:
        """Read what is on disk; find out about those that ran when this was written, and do not run now."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for path in self._folder.glob("[!.]*.json"):
            try:
                known = Ended(**read_json(path))
            except (ValueError, TypeError) as error:
                _log.warning("how a guest ended cannot be read", path=str(path), error=str(error))
                continue
            if known.runs and path.stem not in running:
                known = self._found_out(path.stem, known)
                self._save(path.stem, known)
            self._known[path.stem] = known

    def of(self, name: str) -> Ended | None:
        """Return how the last run of a guest ended; None when it never ran here."""
        return self._known.get(name)

    def awaits_news(self, name: str) -> bool:
        """Whether libvirt has yet to tell how a guest ended that does not run; after a while it is found out otherwise."""
        known = self._known.get(name)
        if known is None or not known.runs:
            return False
        if time.monotonic() - self._gone_s.setdefault(name, time.monotonic()) < NEWS_S:
            return True
        self._keep(name, self._found_out(name, known))
        return False

    def runs(self, name: str) -> None:
        """A guest is seen to run."""
        self._gone_s.pop(name, None)

    def began(self, name: str) -> None:
        """A run begins."""
        self._reboots.discard(name)
        self._keep(name, Ended(self._boot_id))

    def not_begun(self, name: str) -> None:
        """A run that was to begin did not."""
        self._keep(name, Ended(self._boot_id, False))

    def reboots(self, name: str, reason: str) -> None:
        """QEMU says why it is about to end."""
        if reason in _REBOOTS:
            self._reboots.add(name)

    def stopped(self, name: str, detail: int, *, ordered: bool) -> None:
        """libvirt says that a domain has stopped. detail: VIR_DOMAIN_EVENT_STOPPED_*; ordered: by this agent."""
        end, reason = guest_pb2.GUEST_END_UNSPECIFIED, ""
        if detail == libvirt.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN:
            end = guest_pb2.GUEST_END_REBOOT if name in self._reboots else guest_pb2.GUEST_END_POWEROFF
        elif detail == libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED:
            end, reason = guest_pb2.GUEST_END_CRASH, _PANICKED
        elif detail == libvirt.VIR_DOMAIN_EVENT_STOPPED_FAILED:
            end, reason = guest_pb2.GUEST_END_CRASH, _CRASHED
        elif detail == libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED:
            end, reason = guest_pb2.GUEST_END_CRASH, "Ended by another's order (virsh destroy)."
        self._reboots.discard(name)
        if ordered:
            end, reason = guest_pb2.GUEST_END_UNSPECIFIED, ""
        self._keep(name, Ended(self._boot_id, False, end, reason))

    def forget(self, name: str) -> None:
        """A guest is gone."""
        self._known.pop(name, None)
        self._gone_s.pop(name, None)
        (self._folder / f"{name}.json").unlink(missing_ok=True)

    def _found_out(self, name: str, known: Ended) -> Ended:
        if known.boot_id != self._boot_id:
            return replace(known, runs=False, end=guest_pb2.GUEST_END_HOST, reason="Its host went down.")
        word = last_word(self._logs / f"{name}.log")
        if word in ("crashed", "failed", ""):
            return replace(known, runs=False, end=guest_pb2.GUEST_END_CRASH, reason=_CRASHED)
        if word == "shutdown":
            return replace(known, runs=False, end=guest_pb2.GUEST_END_POWEROFF)
        return replace(known, runs=False)

    def _keep(self, name: str, ended: Ended) -> None:
        self._gone_s.pop(name, None)
        if self._known.get(name) != ended:
            self._known[name] = ended
            self._save(name, ended)

    def _save(self, name: str, ended: Ended) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_json(self._folder / f"{name}.json", asdict(ended))
        except OSError as error:  # a full disk must not keep a guest from ending or starting
            _log.error("how a guest ended cannot be kept", guest=name, error=str(error))


def last_word(log: Path) -> str:
    """Return why QEMU ended by libvirt's log: "shutdown", "destroyed", "crashed", "failed", "saved"...; "" if unknown."""
    try:
        with log.open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - _TAIL_BYTES, 0))
            found = _LAST_WORDS.findall(file.read())
    except OSError:
        return ""
    return found[-1].decode() if found else ""
