"""The kinds of faults: what is done to hosts, what may follow from it, and how the hosts come back.

A kind does its harm, waits for what it waits for, and undoes it. It does not judge.
"""

import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from lab.api import Lab, LabError

LEASE_OVER_SECONDS = 14.0
"""Lease, kill budget and margin have passed (12.3 s)."""
MANAGER, AGENT, WATCHDOG, LIBVIRTD = "gugus-manager", "gugus-agent", "gugus-watchdog", "libvirtd"


@dataclass(frozen=True)
class Field:
    """What a kind may use. acting: the host whose manager acts. recovered: waits until the guests of these hosts run elsewhere."""

    lab: Lab
    rng: random.Random
    victims: Sequence[str]
    recovered: Callable[[], None]


@dataclass(frozen=True)
class Kind:
    """One kind of fault.

    harm: does and undoes it. victims: how many hosts it befalls; 0 for a majority of the managers. acting: the acting manager's host is the
    first of them (None: as it comes). fenced: the victims may be fenced (and their guests given to others). reset: their watchdogs may
    reset them. stops_all: other hosts' leases may end, too, and their guests with them.
    """

    name: str
    harm: Callable[[Field], None]
    victims: int = 1
    acting: bool | None = False
    fenced: bool = True
    reset: bool = False
    stops_all: bool = False


def _give_power(on: Field) -> None:
    """Give all victims power at once, and wait until they have booted."""
    with ThreadPoolExecutor(len(on.victims)) as pool:
        list(pool.map(on.lab.power_on, on.victims))


def _power_cut(on: Field) -> None:
    for name in on.victims:
        on.lab.power_off(name)
    on.recovered()
    _give_power(on)


def _comes_back_late(on: Field) -> None:
    on.lab.power_off(on.victims[0])
    on.recovered()
    time.sleep(on.rng.uniform(20.0, 60.0))
    on.lab.power_on(on.victims[0])


def _comes_back_at_once(on: Field) -> None:
    on.lab.power_off(on.victims[0])
    time.sleep(on.rng.uniform(0.0, 3.0))
    on.lab.power_on(on.victims[0])


def _another_meanwhile(on: Field) -> None:
    """The acting manager's host is lost, and about when its guests are given to others, the next one is."""
    on.lab.power_off(on.victims[0])
    time.sleep(on.rng.uniform(8.0, 18.0))
    on.lab.power_off(on.victims[1])
    on.recovered()
    _give_power(on)


def _cut(on: Field, way: str) -> None:
    on.lab.cut(on.victims[0], way=way)  # type: ignore[arg-type]
    on.recovered()
    on.lab.heal(on.victims[0])


def _brief_cut(on: Field) -> None:
    on.lab.cut(on.victims[0])
    time.sleep(on.rng.uniform(0.5, 5.0))
    on.lab.heal(on.victims[0])


def _freeze(on: Field) -> None:
    """A host that hangs is reset by its watchdog, and boots; there is nothing to undo."""
    on.lab.freeze(on.victims[0])
    time.sleep(LEASE_OVER_SECONDS)
    on.lab.thaw(on.victims[0])


def _kill(on: Field, unit: str) -> None:
    on.lab.exec(on.victims[0], ["systemctl", "kill", "--kill-who=main", "--signal=SIGKILL", unit], check=True)
    time.sleep(on.rng.uniform(0.0, 5.0))


def _hung_libvirtd(on: Field) -> None:
    name = on.victims[0]
    on.lab.exec(name, ["virsh", "list"])  # it is started by its socket, and ends when idle
    on.lab.exec(name, ["systemctl", "kill", "--kill-who=main", "--signal=SIGSTOP", LIBVIRTD], check=True)
    time.sleep(LEASE_OVER_SECONDS + on.rng.uniform(0.0, 4.0))
    on.lab.exec(name, ["systemctl", "kill", "--kill-who=main", "--signal=SIGCONT", LIBVIRTD], check=True)


def _hung_agent(on: Field) -> None:
    """An agent that hangs is as dead as its host: its watchdog must reset the host."""
    on.lab.exec(on.victims[0], ["systemctl", "kill", "--kill-who=main", "--signal=SIGSTOP", AGENT], check=True)
    on.recovered()


def _cut_and_signal(on: Field, unit: str, signal: str) -> None:
    """The host is cut off while a process of it, which helps to end its guests, hangs or is started anew."""
    name = on.victims[0]
    if unit == LIBVIRTD:
        on.lab.exec(name, ["virsh", "list"])
    on.lab.cut(name)
    time.sleep(on.rng.uniform(0.0, 9.0))
    on.lab.exec(name, ["systemctl", "kill", "--kill-who=main", f"--signal={signal}", unit], check=True)
    on.recovered()
    on.lab.heal(name)
    with suppress(LabError):  # its watchdog may have reset it
        on.lab.exec(name, ["systemctl", "kill", "--kill-who=main", "--signal=SIGCONT", unit])


def _majority_lost(on: Field) -> None:
    """All guests under HA end, for no lease can be renewed."""
    for name in on.victims:
        on.lab.power_off(name)
    time.sleep(LEASE_OVER_SECONDS + on.rng.uniform(0.0, 4.0))
    _give_power(on)


KINDS = (
    Kind("power-cut", _power_cut),
    Kind("power-cut-acting", _power_cut, acting=True),
    Kind("two-hosts", _power_cut, victims=2, acting=None),
    Kind("another-meanwhile", _another_meanwhile, victims=2, acting=True),
    Kind("comes-back-late", _comes_back_late, acting=None),
    Kind("comes-back-at-once", _comes_back_at_once, acting=None),
    Kind("cut-both-ways", lambda on: _cut(on, "both"), acting=None),
    Kind("cut-what-it-sends", lambda on: _cut(on, "out"), acting=None),
    Kind("cut-what-it-is-sent", lambda on: _cut(on, "in"), acting=None),
    Kind("brief-cut", _brief_cut, acting=None, fenced=False),
    Kind("frozen-host", _freeze, acting=None, reset=True),
    Kind("hung-agent", _hung_agent, acting=None, reset=True),
    Kind("killed-agent", lambda on: _kill(on, AGENT), acting=None, fenced=False),
    Kind("killed-watchdog", lambda on: _kill(on, WATCHDOG), acting=None, fenced=False),
    Kind("killed-manager", lambda on: _kill(on, MANAGER), acting=True, fenced=False),
    Kind("hung-libvirtd", _hung_libvirtd, acting=None, fenced=False),
    Kind("cut-and-hung-libvirtd", lambda on: _cut_and_signal(on, LIBVIRTD, "SIGSTOP"), acting=None, reset=True),
    Kind("cut-and-killed-agent", lambda on: _cut_and_signal(on, AGENT, "SIGKILL"), acting=None, reset=True),
    Kind("cut-and-killed-watchdog", lambda on: _cut_and_signal(on, WATCHDOG, "SIGKILL"), acting=None, reset=True),
    Kind("majority-lost", _majority_lost, victims=0, acting=None, stops_all=True),
)
