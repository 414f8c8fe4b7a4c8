"""The tunnel: carries bytes whole, and lets nobody in who has no right, or does not say so in time."""

import os
import socket
import ssl
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agent.migration import arrivals, pump
from agent.migration.departure import Departure
from agent.migration.pump import Broken, Moved, Stop
from agent.migration.wire import Channel, arrival_name, narrow
from common.errors import GugusError
from common.identity.ca import CertificateAuthority
from common.identity.credentials import Credentials
from common.identity.names import Identity, Role
from common.identity.tls import client_context
from tests.unit.migration.conftest import CLUSTER, Far

QUICKLY_TAKEN = 256 << 20
ETHERNET_SEGMENT_BYTES = 1448


def open_door(far: Far, tmp_path: Path) -> socket.socket:
    departure = far.depart(far.expect())
    departure.open()
    departure.door(tmp_path / "door", "memory", (os.getuid(), os.getgid()))
    plain = socket.socket(socket.AF_UNIX)
    plain.connect(str(tmp_path / "door"))
    plain.settimeout(10)
    return plain


def wait_for_stream(far: Far) -> socket.socket:
    end = time.monotonic() + 10
    while not far.came and time.monotonic() < end:
        time.sleep(0.005)
    far.came[0].settimeout(10)
    return far.came[0]


def read_all(sock: socket.socket) -> bytes:
    data = b""
    while piece := sock.recv(1 << 16):
        data += piece
    return data


def test_bytes_arrive_whole_both_ways_and_each_way_ends_alone(far: Far, tmp_path: Path) -> None:
    near = open_door(far, tmp_path)
    sent = os.urandom(3 * pump.PIECE_BYTES + 17)

    def send() -> None:
        near.sendall(sent)
        near.shutdown(socket.SHUT_WR)

    threading.Thread(target=send, daemon=True).start()
    there = wait_for_stream(far)
    assert read_all(there) == sent
    there.sendall(b"and back")  # long after the other way ended
    there.shutdown(socket.SHUT_WR)
    assert read_all(near) == b"and back"


def test_little_is_on_its_way_when_the_other_end_takes_no_more(far: Far, tmp_path: Path) -> None:
    """What was sent before a guest stops has to be taken in while it stands still."""
    server = far.arrivals._server
    assert server is not None
    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, ETHERNET_SEGMENT_BYTES)
    near = open_door(far, tmp_path)
    there, piece = wait_for_stream(far), bytes(1 << 16)

    def take() -> None:  # fast for as long as the kernel needs to let as much be on its way as it ever does
        left = QUICKLY_TAKEN
        while left:
            left -= len(there.recv(min(left, len(piece))))

    taker = threading.Thread(target=take)
    taker.start()
    near.settimeout(1.0)
    sent = 0
    with suppress(TimeoutError):
        while sent < 2 * QUICKLY_TAKEN:
            sent += near.send(piece)
    taker.join()
    assert sent - QUICKLY_TAKEN < 3 << 20


@pytest.mark.parametrize(("segment", "narrowed"), [(ETHERNET_SEGMENT_BYTES, True), (8948, True), (32767, False)])
def test_large_segments_keep_the_room_that_the_kernel_gives_them(segment: int, narrowed: bool) -> None:
    """In less of it some are dropped, and each of these costs 200 ms."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, segment)
        with socket.create_connection(server.getsockname()), server.accept()[0] as there:
            before = there.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
            narrow(there)
            assert (there.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) != before) == narrowed


def test_connections_arrive_in_the_order_in_which_they_were_made(far: Far, tmp_path: Path) -> None:
    """A QEMU tells the main channel of a migration from its parallel ones by nothing else."""

    def slow_at_first() -> socket.socket:
        if not far.came:
            time.sleep(0.2)
        return far.connect()

    departure = far.depart(far.expect({"memory": arrivals.join(slow_at_first)}))
    departure.open()
    departure.door(tmp_path / "door", "memory", (os.getuid(), os.getgid()))
    near = []
    for number in range(6):
        plain = socket.socket(socket.AF_UNIX)
        plain.connect(str(tmp_path / "door"))
        plain.sendall(bytes([number]))
        near.append(plain)
    end = time.monotonic() + 10
    while len(far.came) < len(near) and time.monotonic() < end:
        time.sleep(0.005)
    assert [there.recv(1)[0] for there in far.came] == list(range(6))


def test_a_stream_whose_program_is_gone_is_refused_and_told_why(far: Far, tmp_path: Path) -> None:
    def connect() -> socket.socket:
        raise ConnectionRefusedError(111, "Connection refused")

    departure = far.depart(far.expect({"memory": arrivals.join(connect)}))
    departure.open()
    with pytest.raises(GugusError) as raised:
        departure.stream("memory")
    assert "Connection refused" in str(raised.value)


def test_a_program_that_goes_away_takes_the_other_end_along(far: Far, tmp_path: Path) -> None:
    near = open_door(far, tmp_path)
    near.sendall(b"x")
    there = wait_for_stream(far)
    assert there.recv(1) == b"x"
    there.close()
    near.sendall(b"more")
    assert near.recv(1) == b""


def test_the_end_of_the_migration_ends_its_streams(far: Far, tmp_path: Path) -> None:
    near = open_door(far, tmp_path)
    near.sendall(b"x")
    assert wait_for_stream(far).recv(1) == b"x"
    far.arrivals.forget("m1")
    assert near.recv(1) == b""


def test_what_came_before_the_peer_closed_is_not_lost() -> None:
    here, there = pair()
    plain, program = socket.socketpair()
    program.settimeout(5)
    there.sendall(b"\0\0\0\4last\0\0\0\0")
    there.close()
    stop = Stop()

    def run() -> None:
        with suppress(Broken):
            pump.pump(plain, here, stop)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert program.recv(10) == b"last"
    assert program.recv(10) == b""
    stop.set()
    thread.join(5)


@pytest.mark.parametrize("role", [Role.MANAGER, Role.OPERATOR])
def test_only_nodes_are_let_in(far: Far, role: Role) -> None:
    with pytest.raises(GugusError) as raised:
        far.depart(far.expect(), role=role).open()
    assert raised.value.reason == "TARGET_UNREACHABLE"
    assert not far.hosted


def test_only_the_node_that_the_guest_comes_from_is_let_in(far: Far) -> None:
    with pytest.raises(GugusError) as raised:
        far.depart(far.expect(), name="n3").open()
    assert raised.value.reason == "MIGRATION_REFUSED"


def test_a_wrong_ticket_is_refused_and_leaves_the_right_one_good(far: Far) -> None:
    arrival = far.expect()
    ticket = arrival.ticket
    with pytest.raises(GugusError):
        far.depart(arrival, ticket="0" * 64).open()
    far.depart(arrival, ticket=ticket).open()


def test_a_ticket_is_good_once(far: Far) -> None:
    arrival = far.expect()
    ticket = arrival.ticket
    far.depart(arrival).open()
    with pytest.raises(GugusError):
        far.depart(arrival, ticket=ticket).open()


def test_an_empty_ticket_is_none(far: Far) -> None:
    arrival = far.expect()
    far.depart(arrival).open()
    with pytest.raises(GugusError):
        far.depart(arrival, ticket="").open()


def test_an_old_ticket_is_refused(far: Far) -> None:
    arrival = far.expect()
    arrival.expires_s = time.monotonic() - 1
    with pytest.raises(GugusError):
        far.depart(arrival).open()


def test_a_stream_needs_a_session(far: Far) -> None:
    departure = far.depart(far.expect())
    with pytest.raises(GugusError):
        departure.stream("memory")
    departure.open()
    with pytest.raises(GugusError) as raised:
        departure.stream("another")
    assert "no stream" in str(raised.value)


def test_a_certificate_of_another_authority_gets_nowhere(far: Far) -> None:
    foreign = CertificateAuthority.create(CLUSTER, "test")
    credentials = foreign.issue(Identity(CLUSTER, Role.NODE, "n1"))
    raw = socket.create_connection(("127.0.0.1", far.arrivals.port), 5)
    context = client_context(credentials)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    arrival = far.expect()

    def try_it() -> None:
        channel = Channel(context.wrap_socket(raw))
        channel.send(migration="m1", ticket=arrival.ticket)
        channel.receive(5)

    with pytest.raises((OSError, Broken)):
        try_it()


def test_a_target_that_is_another_node_gets_no_ticket(far: Far) -> None:
    with pytest.raises(GugusError) as raised:
        far.depart(far.expect(), node="n9").open()
    assert raised.value.reason == "TARGET_UNREACHABLE"
    assert not far.hosted


def test_who_says_nothing_is_sent_away_and_holds_up_nobody(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "GREETING_TIMEOUT_S", 0.5)
    silent = [socket.create_connection(("127.0.0.1", far.arrivals.port), 5) for _ in range(arrivals.MAX_GREETINGS)]
    began_s = time.monotonic()
    far.depart(far.expect()).open()
    assert time.monotonic() - began_s < 4
    for sock in silent:
        sock.settimeout(5)
        assert sock.recv(1) == b""


@pytest.mark.parametrize("garbage", [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\0\0\2[]", b"\0\0\0\5hello"])
def test_nonsense_is_sent_away(far: Far, garbage: bytes) -> None:
    departure = far.depart(far.expect())
    raw = socket.create_connection(("127.0.0.1", far.arrivals.port), 5)
    tls = departure._context.wrap_socket(raw, server_hostname=departure._host_name)
    tls.sendall(garbage)
    with pytest.raises((OSError, AssertionError)):
        assert tls.recv(1)
    far.depart(far.expect()).open()


def pair() -> tuple[ssl.SSLSocket, ssl.SSLSocket]:
    authority = CertificateAuthority.create(CLUSTER, "test")
    credentials = authority.issue(Identity(CLUSTER, Role.NODE, "n1"))
    from common.identity.tls import server_context

    one, other = socket.socketpair()
    made: list[ssl.SSLSocket] = []
    server = threading.Thread(
        target=lambda: made.append(server_context(credentials).wrap_socket(one, server_side=True))
    )
    server.start()
    client = client_context(credentials).wrap_socket(other, server_hostname=credentials.identity.dns_name)
    server.join()
    return made[0], client


@pytest.mark.parametrize(
    "sent",
    [
        b"\xff\xff\xff\xff",
        b"\0\0\0\0more",
        b"\0\0\0\x09half",
    ],
    ids=["too long a piece", "more after the end", "cut off"],
)
def test_a_peer_that_breaks_the_frames_is_noticed(sent: bytes) -> None:
    here, there = pair()
    plain, program = socket.socketpair()
    there.sendall(sent)
    threading.Timer(0.2, there.close).start()
    with pytest.raises(Broken):
        pump.pump(plain, here, Stop(), Moved())
    program.close()


def test_a_pump_is_stopped_from_another_thread() -> None:
    here, _there = pair()
    plain, _program = socket.socketpair()
    stop = Stop()
    threading.Timer(0.1, stop.set).start()
    with pytest.raises(Broken, match="stopped"):
        pump.pump(plain, here, stop)
    stop.close()
    stop.set()


THERE = "c2"


class Forger(CertificateAuthority):
    """An authority that signs for any cluster: nobody but its own cluster keeps it from that."""

    said = ""

    @property
    def cluster_id(self) -> str:
        return self.said


@dataclass
class Abroad:
    """A node of another cluster, whose authority is let in for one migration."""

    far: Far
    authority: CertificateAuthority
    arrival: arrivals.Arrival

    def credentials(self, cluster: str = THERE, name: str = "n1", role: Role = Role.NODE) -> Credentials:
        forger = Forger(self.authority._certificate, self.authority._key)
        forger.said = cluster
        return forger.issue(Identity(cluster, role, name), addresses=["127.0.0.1"])

    def depart(self, credentials: Credentials | None = None, **changed: object) -> Departure:
        trusted = {"cluster_id": CLUSTER, "ca_pem": self.far.issue("n2").ca_pem}
        return Departure(credentials or self.credentials(), self.far.way(self.arrival, **{**trusted, **changed}))


@pytest.fixture
def abroad(far: Far) -> Abroad:
    authority = CertificateAuthority.create(THERE, "other")

    def host(channel: Channel) -> None:
        far.hosted.append(channel)
        far.over.wait(10)

    streams = {"memory": arrivals.join(far.connect)}
    arrival = arrivals.Arrival("m2", Identity(THERE, Role.NODE, "n1"), streams, host, authority.cert_pem)
    far.arrivals.expect(arrival)
    return Abroad(far, authority, arrival)


def test_a_node_of_another_cluster_comes_in_by_its_own_authority(abroad: Abroad) -> None:
    departure = abroad.depart()
    departure.open()
    departure.stream("memory")
    assert abroad.far.arrivals.expects("m2")


def test_only_its_own_migration_is_open_to_it(abroad: Abroad) -> None:
    """The two authorities are as far apart as ever: whoever comes in by one gets to no migration of the other."""
    own = abroad.far.expect()  # m1, from n1 of our own cluster
    forged = abroad.credentials(cluster=CLUSTER)  # the other authority can write any name into a certificate
    for credentials in (abroad.credentials(), forged):
        with pytest.raises(GugusError):
            abroad.depart(credentials, migration="m1", ticket=own.ticket).open()
        tls = ssl_context(credentials).wrap_socket(
            socket.create_connection(("127.0.0.1", abroad.far.arrivals.port), 5), server_hostname=arrival_name("m2")
        )
        channel = Channel(tls)
        channel.send(migration="m1", ticket=own.ticket)
        assert "refused" in channel.receive(5)
    assert own.session == ""
    assert own.ticket


@pytest.mark.parametrize(
    "changed",
    [{"name": "n3"}, {"cluster": "c3"}, {"cluster": CLUSTER}, {"role": Role.MANAGER}, {"role": Role.OPERATOR}],
    ids=str,
)
def test_nobody_else_of_the_other_cluster_comes_in(abroad: Abroad, changed: dict[str, Any]) -> None:
    with pytest.raises(GugusError):
        abroad.depart(abroad.credentials(**changed)).open()


def test_a_node_of_our_own_cluster_does_not_come_in_its_place(abroad: Abroad) -> None:
    with pytest.raises(GugusError):
        abroad.depart(abroad.far.issue("n1")).open()
    with pytest.raises(GugusError):
        Departure(abroad.far.issue("n1"), abroad.far.way(abroad.arrival)).open()


def test_the_other_authority_is_forgotten_with_the_migration(abroad: Abroad) -> None:
    abroad.far.arrivals.forget("m2")
    with pytest.raises(GugusError) as raised:
        abroad.depart().open()
    assert raised.value.reason == "TARGET_UNREACHABLE"
    assert not abroad.far.arrivals.expects("m2")


def test_a_target_is_verified_by_the_authority_that_was_told(abroad: Abroad) -> None:
    for changed in ({"ca_pem": abroad.authority.cert_pem}, {"node": "n9"}, {"cluster_id": "c9"}):
        with pytest.raises(GugusError) as raised:
            abroad.depart(**changed).open()
        assert raised.value.reason == "TARGET_UNREACHABLE"
    assert not abroad.far.hosted


def test_no_session_can_be_resumed(abroad: Abroad) -> None:
    tls = ssl_context(abroad.credentials()).wrap_socket(
        socket.create_connection(("127.0.0.1", abroad.far.arrivals.port), 5), server_hostname=arrival_name("m2")
    )
    channel = Channel(tls)
    channel.send(migration="m2", ticket=abroad.arrival.ticket)
    channel.receive(5)
    assert tls.session is None or not tls.session.has_ticket


def test_an_authority_that_is_none_is_refused(far: Far) -> None:
    arrival = arrivals.Arrival("m3", Identity(THERE, Role.NODE, "n1"), {}, lambda channel: None, ca_pem=b"nothing")
    with pytest.raises(ValueError, match="no certificate"):
        far.arrivals.expect(arrival)


def ssl_context(credentials: Credentials) -> ssl.SSLContext:
    context = client_context(credentials)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context
