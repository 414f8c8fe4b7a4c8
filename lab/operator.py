"""The cluster as a person at the console has it: one question, one answer, in the order in which they are written.

Invariant: a thin synchronous face of the SDK for the demo, the tests and the benchmarks; it decides nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from gugus.cluster.v1.cluster_pb2 import ClusterStatus
from gugus.cluster.v1.event_pb2 import Event
from gugus.cluster.v1.guest_pb2 import Guest
from gugus.cluster.v1.node_pb2 import NODE_STATE_ONLINE, Node
from gugus.cluster.v1.task_pb2 import Task

from client import Gugus
from client.caller import DEFAULT_TIMEOUT_S
from client.config import load
from client.tasks import check
from common.errors import GugusError

T = TypeVar("T")

#: Seconds that a task may take: longer than any that a lab has, on a machine that does other things as well.
TASK_SECONDS = 120.0
#: Seconds between two looks at something that is waited for.
POLL_SECONDS = 0.1


class Operator:
    """A cluster, by the client configuration ``config``. ``gugus`` is the SDK; ``run`` awaits one of its calls."""

    def __init__(self, config: Path, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self._runner = asyncio.Runner()
        self.gugus = Gugus.connect(load(config), timeout_s=timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self.run(self.gugus.close())
        self._runner.close()

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        """Await a call of the SDK. Raises what it raises."""
        return self._runner.run(call)

    def do(self, call: Coroutine[Any, Any, Task], seconds: float = TASK_SECONDS) -> Task:
        """Begin a task and wait for its end. Raises GugusError, TaskFailed when it did not succeed."""
        return check(self.run(self.gugus.tasks.wait(self.run(call), timeout_s=seconds)))

    def status(self) -> ClusterStatus:
        """How the cluster is."""
        return self.run(self.gugus.cluster.status())

    def nodes(self) -> Sequence[Node]:
        """All nodes."""
        return self.run(self.gugus.nodes.list())

    def node(self, name: str) -> Node:
        """One node."""
        return self.run(self.gugus.nodes.get(name))

    def online(self) -> set[str]:
        """The names of the nodes that hold their lease."""
        return {node.meta.name for node in self.nodes() if node.status.state == NODE_STATE_ONLINE}

    def guests(self) -> Sequence[Guest]:
        """All guests."""
        return self.run(self.gugus.guests.list())

    def guest(self, name: str) -> Guest:
        """One guest."""
        return self.run(self.gugus.guests.get(name))

    def events(self, limit: int = 200) -> Sequence[Event]:
        """The newest events, oldest first."""
        return self.run(self.gugus.events.list(limit=limit))

    def console_log(self, name: str) -> str:
        """What a guest wrote on its console in its present run."""
        return self.run(self.gugus.guests.console_log(name)).decode(errors="replace")

    def wait(self, what: str, condition: Callable[[], T | None], seconds: float) -> T:
        """Wait until a condition holds and return what it returned; managers may be away meanwhile.

        Raises TimeoutError that says what was waited for.
        """
        end, trouble = time.monotonic() + seconds, ""
        while True:
            try:
                if result := condition():
                    return result
                trouble = ""
            except GugusError as error:
                trouble = f" (last answer: {error})"
            if time.monotonic() > end:
                raise TimeoutError(f"waited {seconds:g} s in vain: {what}{trouble}")
            time.sleep(POLL_SECONDS)
