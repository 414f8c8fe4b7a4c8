"""Calls that survive the death of a manager: the next one is tried with the same request until the deadline.

Invariant: a repetition is the same message, idempotency key included, so that work is never done twice.
"""

import asyncio
import random
import time
import uuid
from collections.abc import AsyncGenerator, Callable
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from client.config import ClientConfig
from common.errors import GugusError, from_rpc_error, unavailable
from common.identity.names import Role, any_of
from common.rpc.channel import open_channel

DEFAULT_TIMEOUT_S = 30.0
"""Overall deadline of a call: a change of leader takes a few seconds, a fenced one up to a lease of 10 s."""

ATTEMPT_TIMEOUT_S = 10.0
"""A manager that is silent for so long is left for the next one."""

BACKOFF_FIRST_S = 0.2
BACKOFF_MAX_S = 2.0
"""Pauses after each round over all managers, doubled from the first to the longest, with jitter."""

WAIT_TOLD_AFTER_S = 2.5
"""A call that is not answered for so long tells what it waits for: longer than a change of leader takes in the good case."""

STREAM_PATIENCE_S = 60.0
"""A stream is given up when for so long no manager would carry it on."""

T = TypeVar("T", bound=Message)
Stub = Callable[[grpc.aio.Channel], Any]
OnWait = Callable[[str], None]
"""Is told, in a sentence, what a call waits for."""

STATUS_TELLS = "`gugus cluster status` tells which managers are missing, and what to do."

_TRY_ANOTHER = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED})
"""CANCELLED by a manager that stops: it gives calls under way a short grace. Our own cancellation is no error of gRPC's."""

_OF_A_NODE = "node"
"""Metadata of an error that a node, not the manager, gave: another manager would say the same."""

_NO_NODE = "NO_NODE"

_OUTCOME_UNKNOWN = "OUTCOME_UNKNOWN"
"""ABORTED by a change of leader after the proposal: the repetition with the same key finds out, or does the work."""

_BROKEN_STREAM = _TRY_ANOTHER | {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}


def new_request_id() -> str:
    """Return a fresh idempotency key. Keep it to repeat a call after an error whose outcome is not known."""
    return str(uuid.uuid4())


class Caller:
    """Channels to the managers of one cluster, opened when first used; remembers which manager answered last."""

    def __init__(
        self, config: ClientConfig, timeout_s: float = DEFAULT_TIMEOUT_S, on_wait: OnWait = lambda text: None
    ) -> None:
        self.timeout_s = timeout_s
        self._on_wait = on_wait
        self._config = config
        self._examined = False
        self._endpoints = config.endpoints
        self._credentials = config.credentials()
        self._verify = any_of(Role.MANAGER, config.cluster_id)
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._current = 0

    async def close(self) -> None:
        """Close every channel."""
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()

    @property
    def channel(self) -> grpc.aio.Channel:
        """The channel to the manager that answered last: for a stream that must not be repeated, after a call that may be."""
        return self._channel()

    @property
    def trust(self) -> tuple[bytes, str]:
        """The CA's certificate (PEM) and the name that every manager's certificate carries: for what is no gRPC."""
        return self._credentials.ca_pem, self._verify

    async def call(
        self,
        stub: Stub,
        method: str,
        request: Message,
        answer: type[T],
        *,
        timeout_s: float | None = None,
        attempt_s: float = ATTEMPT_TIMEOUT_S,
    ) -> T:
        """Make one call, at whatever manager answers.

        Raises the manager's GugusError, ConfigError, or NO_MANAGER when none answered within `timeout_s`.
        """
        patience = _Patience(self.timeout_s if timeout_s is None else timeout_s, len(self._endpoints))
        ordinary = attempt_s <= ATTEMPT_TIMEOUT_S  # whoever allows one attempt more knows that its answer takes long
        loop = asyncio.get_running_loop()
        waiting = loop.call_later(WAIT_TOLD_AFTER_S, self._tell_wait, patience, ordinary)
        try:
            result = await self._attempts(stub, method, request, patience, attempt_s)
        finally:
            waiting.cancel()
        if not isinstance(result, answer):
            raise TypeError(f"{method} answered {type(result).__name__}, expected {answer.__name__}")
        return result

    async def _attempts(
        self, stub: Stub, method: str, request: Message, patience: "_Patience", attempt_s: float
    ) -> Any:
        while True:
            endpoint, left_s = self._endpoint, patience.left_s
            try:
                return await getattr(stub(self._channel()), method)(request, timeout=max(0.05, min(left_s, attempt_s)))
            except grpc.aio.AioRpcError as failure:
                error = from_rpc_error(failure)
                if not _may_help(error):
                    raise error from None
                patience.failures[endpoint] = self._noted(error)
            self._next()
            pause_s = patience.pauses.next()
            if pause_s >= patience.left_s:
                raise _no_manager(patience.failures, patience.allowed_s)
            await asyncio.sleep(pause_s)

    def _tell_wait(self, patience: "_Patience", silence: bool) -> None:
        """Say what is waited for: what managers said, or, with `silence`, that one has not answered."""
        if patience.failures:
            why = _no_manager(patience.failures, WAIT_TOLD_AFTER_S).message.rstrip(".")
        elif silence:
            why = f"{self._endpoint} has not answered yet"
        else:
            return
        self._on_wait(f"waiting, at most {patience.allowed_s:g} s: {why}. {STATUS_TELLS}")

    async def stream(
        self,
        stub: Stub,
        method: str,
        request: Callable[[], Message],
        answer: type[T],
        *,
        patience_s: float = STREAM_PATIENCE_S,
    ) -> AsyncGenerator[T, None]:
        """Yield the messages of a stream; when it breaks, carry on with `request()`, asked anew, at another manager.

        Ends when the caller stops asking: a stream that a server ends is opened again. Raises the manager's GugusError,
        or NO_MANAGER when none carried it on for `patience_s`.
        """
        patience, told = _Patience(patience_s, len(self._endpoints)), False
        while True:
            endpoint, served = self._endpoint, False
            try:
                call = getattr(stub(self._channel()), method)(request())
                try:
                    async for message in call:
                        if not isinstance(message, answer):
                            raise TypeError(f"{method} sent {type(message).__name__}, expected {answer.__name__}")
                        served = True
                        yield message
                finally:
                    call.cancel()
            except grpc.aio.AioRpcError as failure:
                error = from_rpc_error(failure)
                if error.code not in _BROKEN_STREAM or (error.code in _TRY_ANOTHER and not _may_help(error)):
                    raise error from None
                if served:  # it may have been quiet for long: what counts is the time without a stream
                    patience, told = _Patience(patience_s, len(self._endpoints)), False
                patience.failures[endpoint] = self._noted(error)
            self._next()
            if patience.left_s < 0:
                raise _no_manager(patience.failures, patience_s)
            if not told and patience.left_s < patience_s - WAIT_TOLD_AFTER_S:
                self._tell_wait(patience, silence=False)
                told = True
            await asyncio.sleep(max(patience.pauses.next(), BACKOFF_FIRST_S))

    def _noted(self, error: GugusError) -> GugusError:
        """Return a failure that another manager may not have. Raises ConfigError when the cause is on this side."""
        if not self._examined:
            self._examined = True
            self._config.examine(self._credentials)
        return error

    @property
    def _endpoint(self) -> str:
        return self._endpoints[self._current]

    def _channel(self) -> grpc.aio.Channel:
        endpoint = self._endpoint
        if endpoint not in self._channels:
            self._channels[endpoint] = open_channel(endpoint, self._credentials, verify=self._verify)
        return self._channels[endpoint]

    def _next(self) -> None:
        self._current = (self._current + 1) % len(self._endpoints)


class _Patience:
    """How long something may take, and what has been in its way."""

    def __init__(self, allowed_s: float, managers: int) -> None:
        self.allowed_s = allowed_s
        self.pauses = _Pauses(managers)
        self.failures: dict[str, GugusError] = {}
        self._deadline_s = time.monotonic() + allowed_s

    @property
    def left_s(self) -> float:
        return self._deadline_s - time.monotonic()


class _Pauses:
    """None between the managers of the first round, then growing ones; all managers down is not a reason to hammer."""

    def __init__(self, managers: int) -> None:
        self._managers = managers
        self._tries = 0

    def next(self) -> float:
        self._tries += 1
        round_, within = divmod(self._tries, self._managers)
        if within:
            return 0.0
        pause = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(round_ - 1, 10))
        return pause * random.uniform(0.5, 1.0)  # noqa: S311 (jitter, not a secret)


def _may_help(error: GugusError) -> bool:
    if error.reason == _OUTCOME_UNKNOWN:
        return True
    of_a_node = _OF_A_NODE in error.metadata or error.reason == _NO_NODE
    return error.code in _TRY_ANOTHER and not of_a_node


def _no_manager(failures: dict[str, GugusError], waited_s: float) -> GugusError:
    """Prefer what a manager said over what the network said."""
    told = [error for error in failures.values() if not error.reason.startswith("RPC_")]
    if told:
        if "gugus cluster status" not in told[-1].remedy:
            told[-1].remedy = f"{told[-1].remedy} {STATUS_TELLS}".strip()
        return told[-1]
    each = "; ".join(f"{endpoint}: {error.message.rstrip('.')}" for endpoint, error in failures.items())
    return unavailable(
        "NO_MANAGER",
        f"no manager answered within {waited_s:g} s ({each or 'streams ended'}).",
        remedy="Is gugus-manager running there (systemctl status gugus-manager)? --endpoint HOST:PORT names another.",
    )
