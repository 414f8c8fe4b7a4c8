"""The SDK: one object a cluster, one attribute a service, one typed method a call.

Invariant: every call that starts work carries an idempotency key, made here when the caller gives none, so that the
repetition of a call whose answer was lost does no work twice.

Each service is loaded when it is first used: a command needs one or two of them (docs/decisions/0006).
"""

from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Self

from client.caller import DEFAULT_TIMEOUT_S, Caller, OnWait
from client.config import ClientConfig

if TYPE_CHECKING:
    from client.access import Access
    from client.backups import Backups
    from client.clones import Clones
    from client.clusters import Clusters
    from client.events import Events
    from client.guests import Guests
    from client.images import Images
    from client.migrations import Migrations
    from client.networks import Networks
    from client.nodes import Nodes
    from client.plans import Plans
    from client.pools import Pools
    from client.projects import Projects
    from client.rules import Rules
    from client.snapshots import Snapshots
    from client.tasks import Tasks


class Gugus:
    """A cluster. `async with Gugus.connect(config) as gugus: ...`; nothing connects before the first call."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    @property
    def ca_pem(self) -> bytes:
        """Certificate (PEM) of the cluster's authority."""
        return self._caller.trust[0]

    @cached_property
    def cluster(self) -> "Clusters":
        """The cluster itself: its state, its voters, its join tokens."""
        from client.clusters import Clusters

        return Clusters(self._caller)

    @cached_property
    def backups(self) -> "Backups":
        """Backups of the cluster's state."""
        from client.backups import Backups

        return Backups(self._caller)

    @cached_property
    def access(self) -> "Access":
        """Consoles, programs and files of guests."""
        from client.access import Access

        return Access(self._caller)

    @cached_property
    def nodes(self) -> "Nodes":
        """The hosts."""
        from client.nodes import Nodes

        return Nodes(self._caller)

    @cached_property
    def guests(self) -> "Guests":
        """Virtual machines and containers."""
        from client.guests import Guests

        return Guests(self._caller)

    @cached_property
    def snapshots(self) -> "Snapshots":
        """Snapshots of guests."""
        from client.snapshots import Snapshots

        return Snapshots(self._caller)

    @cached_property
    def clones(self) -> "Clones":
        """Clones, templates, and disks that move."""
        from client.clones import Clones

        return Clones(self._caller)

    @cached_property
    def migrations(self) -> "Migrations":
        """Guests that move to other nodes."""
        from client.migrations import Migrations

        return Migrations(self._caller)

    @cached_property
    def projects(self) -> "Projects":
        """Groups of guests with quotas."""
        from client.projects import Projects

        return Projects(self._caller)

    @cached_property
    def rules(self) -> "Rules":
        """Rules about where guests run."""
        from client.rules import Rules

        return Rules(self._caller)

    @cached_property
    def plans(self) -> "Plans":
        """What would happen."""
        from client.plans import Plans

        return Plans(self._caller)

    @cached_property
    def pools(self) -> "Pools":
        """Pools and the volumes in them."""
        from client.pools import Pools

        return Pools(self._caller)

    @cached_property
    def images(self) -> "Images":
        """What disks are made from."""
        from client.images import Images

        return Images(self._caller)

    @cached_property
    def networks(self) -> "Networks":
        """Networks of guests."""
        from client.networks import Networks

        return Networks(self._caller)

    @cached_property
    def tasks(self) -> "Tasks":
        """Work under way."""
        from client.tasks import Tasks

        return Tasks(self._caller)

    @cached_property
    def events(self) -> "Events":
        """What happened."""
        from client.events import Events

        return Events(self._caller)

    @classmethod
    def connect(
        cls,
        config: ClientConfig,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        on_wait: OnWait = lambda text: None,
    ) -> Self:
        """Return the cluster of a configuration. `timeout_s` is each call's deadline, repetitions included.

        on_wait: is told, in a sentence, what a call waits for that is not answered within a few seconds.

        Raises ConfigError when the operator's certificate or key is missing.
        """
        return cls(Caller(config, timeout_s, on_wait))

    async def close(self) -> None:
        """Close the connections."""
        await self._caller.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
