"""The consensus thread: one loop that owns the core, its disk and its sockets, and answers by callbacks.

Invariant: the core is touched in this thread only. It is driven by events (messages, requests, its own deadline), never by a poll. Any
exception out of the core stops the member for good: it stops answering, which is what a crash would do.
"""

import asyncio
import random
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

import structlog

from .core import RaftCore, Setup
from .disk import FolderDisk
from .handover import Handover
from .library import Message, now
from .transport import TlsTransport
from .types import ConsensusConfig, Leadership, Member, Role, StateMachine, Unavailable

FIGURES_EVERY_S = 0.05
"""How old the published indexes and figures may be while much happens."""
SHORTEST_WAIT_S = 0.001
"""A turn that could not do what was due is not repeated sooner than this."""

_Asked = tuple[Callable[[RaftCore], None], Callable[[Exception], None]]

_log = structlog.get_logger("manager.consensus")


class Actor:
    """A running member.

    `publish` is called in this thread with each new view, `answered` when requests may have been answered.
    """

    def __init__(
        self,
        config: ConsensusConfig,
        machine: StateMachine,
        publish: Callable[[Leadership], None],
        answered: Callable[[], None],
    ) -> None:
        self._config, self._machine, self._publish, self._answered = config, machine, publish, answered
        self._requests: Handover[_Asked] | None = None
        self._started: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="consensus", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._core: RaftCore | None = None
        self._transport: TlsTransport | None = None
        self._end: asyncio.Event | None = None
        self._turn_due = False
        self._essence: object = None
        self._publish_due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._writer = ThreadPoolExecutor(1, "snapshot")
        self._last = Leadership()

    def start(self) -> Future[None]:
        """Start the thread; the future tells when the member is up, or raises why it is not."""
        self._thread.start()
        return self._started

    def submit(self, request: Callable[[RaftCore], None], failed: Callable[[Exception], None]) -> None:
        """Run a request in the thread, followed by a turn; `failed` is called with what it raised, or Unavailable."""
        requests = self._requests
        if requests is None:
            failed(_stopped())
            self._answered()
            return
        requests.put((request, failed))
        requests.wake()

    def _take(self, asked: "_Asked") -> None:
        request, failed = asked
        if self._core is None:
            failed(_stopped())
            return
        try:
            request(self._core)
        except Exception as error:  # the caller's to handle
            failed(error)

    def _taken(self) -> None:
        self._answered()
        self._guarded(self._turn)

    def stop(self) -> None:
        """Ask the thread to end; `join` waits for it."""
        if self._loop is not None and self._end is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._end.set)

    def join(self) -> None:
        """Wait for the end of the thread."""
        self._thread.join()

    # -- in the thread

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:
            _log.error("consensus stopped", member=self._config.me, exc_info=error)
            if not self._started.done():
                self._started.set_exception(error)
        finally:
            if self._requests is not None:
                self._requests.close()

    async def _main(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        self._requests = Handover(self._loop, self._take, self._taken)
        transport = TlsTransport(
            self._config,
            self._on_message,
            self._on_connected,
            self._on_disconnected,
            self._on_greeted,
            self._on_introduced,
        )
        self._transport = transport
        config = self._config
        setup = Setup(config.me, config.voters, config.joining, config.timings, config.limits)
        disk, rng = FolderDisk(config.data_dir), random.Random()  # noqa: S311 - spreads elections, names folders
        core = RaftCore(setup, disk, self._machine, transport.send, rng, self._background)
        core.after_apply = self._answered  # waiting callers go on while the disk works
        self._core = core
        failure: str | None = None
        try:
            await transport.start(core.uid)
            self._started.set_result(None)
            self._guarded(self._turn)
            await self._end.wait()
            failure = self._last.failure
        finally:
            self._core = None
            if self._timer is not None:
                self._timer.cancel()
            await transport.stop()
            self._writer.shutdown(cancel_futures=True)
            core.close()
            self._answered()
            self._publish(Leadership(role=Role.STOPPED, term=core.term, voters=core.voters, failure=failure))

    def _guarded(self, action: Callable[[], None]) -> None:
        """Run what touches the core; an exception stops the member."""
        if self._core is None:
            return
        try:
            action()
        except Exception as error:  # a failed disk, a broken invariant: never go on
            _log.error("consensus failed; this member stops", member=self._config.me, exc_info=error)
            self._core = None
            self._last = Leadership(role=Role.STOPPED, failure=f"{type(error).__name__}: {error}")
            if self._end is not None:
                self._end.set()

    def _turn(self) -> None:
        core, transport = self._core, self._transport
        self._turn_due = False
        if core is None or transport is None:
            return
        if core.turn():
            self._schedule_turn()
        transport.flush()
        transport.set_contacts(core.contacts)
        self._answered()
        self._publish_view(core)
        self._wake_at(max(core.deadline(), now() + SHORTEST_WAIT_S))

    def _publish_view(self, core: RaftCore) -> None:
        """Publish what has changed: leadership at once, figures not more often than anyone looks at them."""
        essence = (core.state, core.term, core.leader, core.voters, core.connected_names)
        if essence != self._essence or now() >= self._publish_due:
            self._essence, self._publish_due = essence, now() + FIGURES_EVERY_S
            self._last = core.leadership()
            self._publish(self._last)

    def _wake_at(self, deadline: float) -> None:
        """Have a turn at a time; an earlier wake-up that is set already is kept and looks again, which is cheaper than moving it."""
        if self._loop is None:
            return
        if self._timer is not None:
            if self._timer.when() <= deadline:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(deadline, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        core = self._core
        if core is not None and core.deadline() > now():
            self._wake_at(core.deadline())
        else:
            self._guarded(self._turn)

    def _background(self, work: Callable[[], None], done: Callable[[Exception | None], None]) -> None:
        """Run work in the writer's thread, then `done` here."""

        def finished(future: Future[None]) -> None:
            if future.cancelled() or self._loop is None:
                return
            error = future.exception()
            with suppress(RuntimeError):  # the loop is closed: the member stops
                self._loop.call_soon_threadsafe(self._with_core, lambda _core: done(_as_exception(error)))

        self._writer.submit(work).add_done_callback(finished)

    def _schedule_turn(self) -> None:
        """Have one turn after all that is ready now, so that its sync covers it all."""
        if not self._turn_due and self._loop is not None:
            self._turn_due = True
            self._loop.call_soon(self._guarded, self._turn)

    def _on_message(self, sender: str, message: Message) -> None:
        self._with_core(lambda core: core.receive(sender, message))

    def _on_connected(self, name: str) -> None:
        self._with_core(lambda core: core.peer_connected(name))

    def _on_disconnected(self, name: str) -> None:
        self._with_core(lambda core: core.peer_disconnected(name))

    def _on_greeted(self, name: str, level: int, uid: str) -> None:
        self._with_core(lambda core: core.peer_greeted(name, level, uid))

    def _on_introduced(self, member: Member) -> None:
        self._with_core(lambda core: core.introduced(member))

    def _with_core(self, action: Callable[[RaftCore], None]) -> None:
        core = self._core
        if core is not None:
            self._guarded(lambda: action(core))
            self._schedule_turn()


def _stopped() -> Unavailable:
    return Unavailable("this member's consensus has stopped")


def _as_exception(error: BaseException | None) -> Exception | None:
    return error if error is None or isinstance(error, Exception) else RuntimeError(f"{type(error).__name__}: {error}")
