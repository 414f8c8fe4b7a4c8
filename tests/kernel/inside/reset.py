"""Run in the booted kernel until it is reset: an agent that stops renewing, and a guest that cannot be proven dead.

It writes what happens, and when, into the file it is given: a line each, at once on this machine's disk.
"""

import sys
import time
from pathlib import Path
from tempfile import mkdtemp

from agent.compute.processes import record_of
from common.clock import boottime_ns
from common.leases import MIN_NODE_LEASE_MS
from tests.kernel.inside.watchdogs import SOFTDOG, Agent, Daemon, Driver, Guests, until, victim

RENEWALS_S = 6.0
BEAT_S = 0.05
GIVE_UP_S = 30.0


def main(events: Path) -> None:
    """Tell the story. It comes back only when nothing reset the machine."""
    driver = Driver(SOFTDOG)
    folder = Path(mkdtemp())
    agent = Agent(folder, Daemon(folder))
    with events.open("w", buffering=1) as file, victim() as guest:

        def note(what: str, at_ns: int) -> None:
            file.write(f"{at_ns} {what}\n")

        record = record_of(guest.pid)
        assert record is not None
        guests = Guests({"web": record}, starting=("db",))
        note("first lease ends", agent.renew(guests, MIN_NODE_LEASE_MS).deadline_ns)
        until(lambda: driver.armed)
        note("last lease ends", agent.renew_for(RENEWALS_S, guests, MIN_NODE_LEASE_MS).deadline_ns)
        end, dead = time.monotonic() + GIVE_UP_S, False
        while time.monotonic() < end:
            if not dead and guest.poll() is not None:
                dead = True
                note("web is dead", boottime_ns())
            note("alive", boottime_ns())
            time.sleep(BEAT_S)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
