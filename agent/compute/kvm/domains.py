"""The domains of ours that libvirt runs: every question and every order goes through here.

Other people's domains are never touched: what has no mark of ours does not exist here.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import libvirt

from agent.compute.kvm.connection import Connection, LifecycleCallback, ShutdownCallback
from agent.compute.kvm.observations import Marks, Seen, look
from agent.compute.kvm.xml.mark import NAMESPACE, PREFIX, TAG, Mark, element
from agent.compute.kvm.xml.run import to_text
from common.errors import precondition

T = TypeVar("T")
LONG_S = 60.0
LONG_CALLS = 4
"""Calls that may take longer than LONG_S go over a connection of their own, so many at once: libvirtd serves five calls of
one connection at a time (max_client_requests), and looks must never wait for the writing of memories."""

GONE = (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID)
"""Errors that say that a domain has ended by itself."""


class Domains:
    """Domains by guest name. Methods raise GugusError: HYPERVISOR_DOWN, LIBVIRT_REFUSED with libvirt's own words."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._connection: Connection | None = None
        self._long: Connection | None = None
        self._aside: Connection | None = None
        self.marks = Marks()

    async def open(
        self, on_lifecycle: LifecycleCallback, on_shutdown: ShutdownCallback, on_connection: Callable[[], None]
    ) -> None:
        """Connect, and have what happens to any domain told. Never fails because libvirtd is down."""
        self._connection = Connection(self._uri, on_lifecycle, on_shutdown, on_connection)
        await self._connection.open()
        self._long = Connection(self._uri, _ignore, _ignore, _ignore, LONG_CALLS)
        self._aside = Connection(self._uri, _ignore, _ignore, _ignore, LONG_CALLS)

    async def close(self) -> None:
        """Disconnect."""
        for connection in (self._connection, self._long, self._aside):
            if connection is not None:
                await connection.close()

    async def call(self, function: Callable[[Any], T], *, aside: bool = False, **limits: float) -> T:
        """Run `function(virConnect)` in a thread; `timeout_s` may be given.

        aside: what a guest that hangs may hold up goes over a connection of its own, where it keeps nothing else waiting.
        """
        if self._connection is None:
            raise RuntimeError("open() comes first")
        if self._aside is not None and aside:
            return await self._aside.call(function, **limits)
        if self._long is not None and limits.get("timeout_s", 0) > LONG_S:
            return await self._long.call(function, **limits)
        return await self._connection.call(function, **limits)

    async def look(self) -> dict[str, Seen]:
        """Ask for all active domains of ours, by name."""
        return await self.call(lambda connection: look(connection, self.marks))

    async def act(self, name: str, act: Callable[[Any], object], *, aside: bool = False, **limits: float) -> bool:
        """Do something to a running domain of ours; False when there is none."""

        def find_and_act(connection: Any) -> bool:
            try:
                domain = connection.lookupByName(name)
                if self.marks.of(domain) is None:
                    return False
                act(domain)
            except libvirt.libvirtError as error:
                if error.get_error_code() in GONE:
                    return False  # it has ended by itself
                raise
            return True

        return await self.call(find_and_act, aside=aside, **limits)

    async def require(self, name: str, act: Callable[[Any], T], *, aside: bool = False, **limits: float) -> T:
        """Do something to a running domain of ours and return what it returns. Raises GUEST_NOT_RUNNING."""
        result: list[T] = []
        if not await self.act(name, lambda domain: result.append(act(domain)), aside=aside, **limits):
            raise not_running(name)
        return result[0]

    async def mark(self, name: str) -> Mark | None:
        """Return the mark of a running domain; None when there is none."""
        marks: list[Mark | None] = []
        await self.act(name, lambda domain: marks.append(self.marks.of(domain)))
        return marks[0] if marks else None

    async def remark(self, name: str, mark: Mark) -> bool:
        """Replace the mark of a running domain; False when it does not run."""

        def write(domain: Any) -> None:
            remark(domain, mark)
            self.marks.forget(domain)

        return await self.act(name, write)


def _ignore(*_: object) -> None:
    """Events come over the other connection."""


def remark(domain: Any, mark: Mark) -> None:
    """Replace the mark of a running domain, in a thread of libvirt's pool. Raises libvirtError."""
    kind, live = libvirt.VIR_DOMAIN_METADATA_ELEMENT, libvirt.VIR_DOMAIN_AFFECT_LIVE
    bare = element(mark)
    bare.tag = TAG  # libvirt puts it into the namespace itself
    domain.setMetadata(kind, to_text(bare), PREFIX, NAMESPACE, live)


def not_running(name: str) -> Exception:
    """Return the error for a guest that does not run."""
    return precondition("GUEST_NOT_RUNNING", f'guest "{name}" does not run.', remedy="Start it first.", subject=name)
