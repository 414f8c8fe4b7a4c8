"""Two agents' ends of a tunnel on loopback."""

import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from agent.migration.arrivals import Arrival, Arrivals, Open, join
from agent.migration.departure import Departure, Way
from agent.migration.wire import Channel
from common.identity.ca import CertificateAuthority
from common.identity.credentials import Credentials
from common.identity.names import Identity, Role

CLUSTER = "c1"


@pytest.fixture(scope="session")
def ca() -> CertificateAuthority:
    return CertificateAuthority.create(CLUSTER, "test")


@pytest.fixture(scope="session")
def issue(ca: CertificateAuthority) -> Callable[..., Credentials]:
    def make(name: str, role: Role = Role.NODE, authority: CertificateAuthority = ca) -> Credentials:
        return authority.issue(Identity(CLUSTER, role, name), addresses=["127.0.0.1"])

    return make


@dataclass
class Far:
    """The target: what it expects, and the local sockets that streams come out of."""

    arrivals: Arrivals
    issue: Callable[..., Credentials]
    came: list[socket.socket] = field(default_factory=list)
    hosted: list[Channel] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def connect(self) -> socket.socket:
        near, far = socket.socketpair()
        self.came.append(far)
        return near

    def expect(self, streams: dict[str, Open] | None = None) -> Arrival:
        def host(channel: Channel) -> None:
            self.hosted.append(channel)
            self.over.wait(10)

        arrival = Arrival(
            "m1",
            Identity(CLUSTER, Role.NODE, "n1"),
            streams if streams is not None else {"memory": join(self.connect)},
            host,
        )
        self.arrivals.expect(arrival)
        return arrival

    def way(self, arrival: Arrival, **changed: object) -> Way:
        values = {"migration": arrival.id, "node": "n2", "address": "127.0.0.1", "port": self.arrivals.port}
        return Way(**{**values, "ticket": arrival.ticket, **changed})  # type: ignore[arg-type]

    def depart(self, arrival: Arrival, name: str = "n1", role: Role = Role.NODE, **changed: object) -> Departure:
        return Departure(self.issue(name, role), self.way(arrival, **changed))


@pytest.fixture
def far(issue: Callable[..., Credentials]) -> Iterator[Far]:
    arrivals = Arrivals(issue("n2"))
    arrivals.open("127.0.0.1", 0)
    made = Far(arrivals, issue)
    yield made
    made.over.set()
    arrivals.close()
