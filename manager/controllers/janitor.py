"""Keeps the state bounded: trims old events, ended tasks and spent tokens."""

import asyncio
import time

from gugus.cluster.v1.cluster_pb2 import Token
from gugus.cluster.v1.event_pb2 import Event
from gugus.cluster.v1.task_pb2 import Task

from common.errors import GugusError
from common.logs import get_logger
from manager import events, tasks
from manager.consensus import ConsensusError
from manager.controllers.context import Context
from manager.scheduler import balancing
from manager.store import Txn

PERIOD_S = 30.0
BATCH = 100
"""Deletions a transaction, so that it stays small."""

TOKEN_KEPT_S = 7 * 24 * 3600
"""A token stays listed so long after its end, for whoever asks who used it."""

_log = get_logger("janitor")


class Janitor:
    """Trims once in a while."""

    def __init__(self, context: Context) -> None:
        self._store = context.store

    async def run(self) -> None:
        """Trim until cancelled."""
        while True:
            try:
                await self._trim()
            except (ConsensusError, GugusError) as error:
                _log.warning("trimming is tried again", error=str(error))
            await asyncio.sleep(PERIOD_S)

    async def _trim(self) -> None:
        names = sorted(event.meta.name for event in self._store.peek_all(Event))
        await self._delete(Event, names[: -events.KEPT])
        now_s = time.time()
        tasks_ = (task for task in self._store.peek_all(Task) if task.state in tasks.ENDED)
        ended = [task for task in tasks_ if not balancing.of_the_budget(task, now_s)]
        ended.sort(key=lambda task: task.ended_at.ToNanoseconds())
        await self._delete(Task, [task.meta.name for task in ended[: -tasks.KEPT]])
        before_s = now_s - TOKEN_KEPT_S
        spent = [token for token in self._store.peek_all(Token) if token.expires_at.seconds < before_s]
        await self._delete(Token, [token.meta.name for token in spent])

    async def _delete(self, kind: type[Event | Task | Token], names: list[str]) -> None:
        for start in range(0, len(names), BATCH):
            txn = Txn()
            for name in names[start : start + BATCH]:
                txn.delete(kind, name)
            await self._store.txn(txn)
