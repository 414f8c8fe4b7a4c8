"""Both clusters up beside each other, with a connection to every member; and how they are taken down."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.store import sides
from bench.store.client import Cluster, Connection
from bench.store.tls import Files, Pki


@dataclass(slots=True)
class Party:
    """One side while it is measured."""

    side: sides.Side
    cluster: Cluster
    leader: Connection

    @property
    def name(self) -> str:
        """Whose it is."""
        return self.side.name

    @property
    def leading(self) -> sides.Node:
        """The process that leads."""
        return self.side.at(self.leader.endpoint)

    @property
    def following(self) -> sides.Node:
        """One that does not."""
        return next(node for node in self.side.nodes if node.endpoint != self.leader.endpoint)

    async def settle(self) -> None:
        """Wait until all members are up and agree, and note who leads."""
        try:
            self.leader = await self.cluster.ready()
        except sides.CannotMeasure as error:
            words = "\n".join(f"{node.name}: {node.last_words()}" for node in self.side.nodes)
            raise sides.CannotMeasure(f"{error}\n{words}") from None


@dataclass(frozen=True, slots=True)
class Bed:
    """Both sides, and the certificate of who measures."""

    ours: Party
    etcd: Party
    files: Files

    def turns(self, number: int) -> Sequence[Party]:
        """Return the order of a round: who was first is second in the next."""
        return (self.etcd, self.ours) if number % 2 else (self.ours, self.etcd)


@asynccontextmanager
async def bed(folder: Path) -> AsyncIterator[Bed]:
    """Start two fresh clusters in a folder; at the end nothing of them is left."""
    pki = Pki(folder / "pki")
    files = pki.operator()
    async with AsyncExitStack() as stack:
        parties = []
        for make in (sides.ours, sides.etcd):
            side = make(folder / make.__name__, pki)
            stack.callback(side.stop)
            side.start()
            cluster = Cluster(side.endpoints, files)
            stack.push_async_callback(cluster.close)
            parties.append(Party(side, cluster, cluster.connections[0]))
            await parties[-1].settle()
        yield Bed(parties[0], parties[1], files)
