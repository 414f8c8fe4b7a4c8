"""The connection to libvirtd: kept up, watched, and never a reason for the agent to hang.

libvirt delivers events through an event loop of its own, which runs in one native thread of the process; everything it
says is handed over to the asyncio loop. Every call runs in a bounded pool: libvirtd may not answer for minutes.
"""

import asyncio
import contextlib
import functools
import json
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import libvirt
import libvirt_qemu

from common.errors import GugusError, internal, unavailable
from common.executors import BoundedPool
from common.logs import get_logger

CALL_TIMEOUT_S = 10.0
"""How long libvirtd may take to answer an ordinary question."""

POOL_THREADS = 8
RECONNECT_S = 1.0
KEEPALIVE_INTERVAL_S, KEEPALIVE_COUNT = 3, 3
"""A libvirtd that is silent for (count + 1) x interval is given up, and calls that wait for it fail."""

T = TypeVar("T")
LifecycleCallback = Callable[[str, int, int], None]
"""Called in the loop with a domain's name, the event (VIR_DOMAIN_EVENT_*) and its detail."""

ShutdownCallback = Callable[[str, str], None]
"""Called in the loop with a domain's name and why QEMU ends, in QEMU's word (ShutdownCause in qapi/run-state.json)."""

SHUTDOWN_EVENT = "SHUTDOWN"
"""QEMU's own event: libvirt's does not tell a guest that reboots from one that powers off when both are to end it."""

_GONE_CODES = frozenset({libvirt.VIR_ERR_NO_CONNECT, libvirt.VIR_ERR_INVALID_CONN})
_GONE_DOMAINS = frozenset({libvirt.VIR_FROM_RPC, libvirt.VIR_FROM_REMOTE})
"""Parts of libvirt whose errors are about the wire, never about a domain (virterror.h)."""

REFUSED = "LIBVIRT_REFUSED"
"""Reason of what libvirtd answered with an error of its own."""

_GIVEN_UP = frozenset({"CALL_STUCK", "POOL_BUSY", "POOL_CLOSED"})
"""Reasons for which the pool gives a call up (common.executors)."""

_log = get_logger("kvm.connection")


class Connection:
    """One connection to one libvirt, which comes back by itself. Made and used in one asyncio loop."""

    def __init__(
        self,
        uri: str,
        on_lifecycle: LifecycleCallback,
        on_shutdown: ShutdownCallback,
        on_connection: Callable[[], None],
        threads: int = POOL_THREADS,
    ) -> None:
        self._uri = uri
        self._on_lifecycle = on_lifecycle
        self._on_shutdown = on_shutdown
        self._on_connection = on_connection
        self._pool = BoundedPool("libvirt", threads, CALL_TIMEOUT_S)
        self._connection: Any = None
        self._problem = "not connected yet"
        self._keeper: asyncio.Task[None] | None = None
        self._lost = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    async def open(self) -> None:
        """Try to connect once, and go on trying in the background."""
        _start_event_loop()
        with contextlib.suppress(GugusError):
            await self._connect()
        self._keeper = asyncio.create_task(self._keep())

    async def close(self) -> None:
        """Disconnect."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        if self._connection is not None:
            with contextlib.suppress(GugusError, libvirt.libvirtError):
                await self._pool.run(self._connection.close, timeout_s=1.0)
        self._connection = None
        self._pool.close()

    @property
    def problem(self) -> str:
        """Why there is no connection; "" when there is one."""
        return "" if self._connection is not None else self._problem

    async def call(self, function: Callable[[Any], T], *, timeout_s: float = CALL_TIMEOUT_S) -> T:
        """Run `function(virConnect)` in a thread. Raises GugusError alone: HYPERVISOR_DOWN, or LIBVIRT_REFUSED."""
        connection = self._connection
        if connection is None:
            await self._connect()
            connection = self._connection
        try:
            return await self._pool.run(function, connection, timeout_s=timeout_s)
        except libvirt.libvirtError as error:
            if error.get_error_code() in _GONE_CODES or error.get_error_domain() in _GONE_DOMAINS:
                self._drop(connection, str(error))
                raise down(self._uri, str(error)) from error
            raise internal(REFUSED, f"{str(error).rstrip('.')}.") from error
        except GugusError as error:
            if error.reason in _GIVEN_UP:
                raise down(self._uri, f"no answer within {timeout_s:g} s") from error
            raise

    async def _connect(self) -> None:
        try:
            connection = await self._pool.run(_open, self._uri, self._lifecycle, self._shutdown, self._closed)
        except (libvirt.libvirtError, GugusError) as error:
            self._problem = str(error)
            raise down(self._uri, str(error)) from error
        if self._connection is not None:  # two callers at once: one connection is enough
            await self._pool.run(connection.close)
            return
        self._connection = connection
        _log.info("connected to libvirt", uri=self._uri)
        self._loop.call_soon(self._on_connection)

    async def _keep(self) -> None:
        while True:
            if self._connection is not None:
                await self._lost.wait()
            self._lost.clear()
            if self._connection is None:
                await asyncio.sleep(RECONNECT_S)
                with contextlib.suppress(GugusError):
                    await self._connect()

    def _drop(self, connection: Any, why: str) -> None:
        if connection is not self._connection or connection is None:
            return
        _log.warning("connection to libvirt lost", uri=self._uri, reason=why)
        self._connection, self._problem = None, why
        self._lost.set()
        self._on_connection()

    def _closed(self, connection: Any, reason: int, _opaque: object) -> None:
        """Called in libvirt's thread when the daemon is gone."""
        self._hand_over(self._drop_present, f"closed by libvirt (reason {reason})")

    def _drop_present(self, why: str) -> None:
        self._drop(self._connection, why)

    def _lifecycle(self, _connection: Any, domain: Any, event: int, detail: int, _opaque: object) -> None:
        """Called in libvirt's thread when a domain starts, stops, or changes its state."""
        self._hand_over(self._on_lifecycle, domain.name(), event, detail)

    def _shutdown(
        self, _connection: Any, domain: Any, _event: str, _s: int, _us: int, details: str, _opaque: object
    ) -> None:
        """Called in libvirt's thread when a QEMU is about to end."""
        try:
            reason = str(json.loads(details or "{}").get("reason", ""))
        except (ValueError, AttributeError):
            reason = ""
        self._hand_over(self._on_shutdown, domain.name(), reason)

    def _hand_over(self, function: Callable[..., None], *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody listens any more
            self._loop.call_soon_threadsafe(function, *args)


def down(uri: str, why: str) -> GugusError:
    """Return the error for a libvirtd that does not answer."""
    return unavailable(
        "HYPERVISOR_DOWN",
        f"libvirtd does not answer at {uri}: {why.rstrip('.')}.",
        remedy="Check `systemctl status libvirtd`. Guests that run go on running.",
        metadata={"uri": uri},
    )


def _open(uri: str, lifecycle: Callable[..., None], shutdown: Callable[..., None], closed: Callable[..., None]) -> Any:
    connection = libvirt.open(uri)
    with contextlib.suppress(libvirt.libvirtError):  # drivers within the process (test:///) have no wire to watch
        connection.setKeepAlive(KEEPALIVE_INTERVAL_S, KEEPALIVE_COUNT)
    with contextlib.suppress(libvirt.libvirtError):
        connection.registerCloseCallback(closed, None)
    connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, lifecycle, None)
    with contextlib.suppress(libvirt.libvirtError):  # only QEMU has a monitor
        libvirt_qemu.qemuMonitorEventRegister(connection, None, SHUTDOWN_EVENT, shutdown, None)
    return connection


@functools.cache
def _start_event_loop() -> None:
    """Start libvirt's event loop. Once a process and for good: libvirt has no way to end it."""
    libvirt.registerErrorHandler(lambda _context, _error: None, None)  # it would print every error to stderr
    libvirt.virEventRegisterDefaultImpl()
    threading.Thread(target=_run_events, name="libvirt-events", daemon=True).start()


def _run_events() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()
