"""Tells in events when something begins to be wrong with the managers, and when it is over.

Invariant: what is open stands in the cluster object, written in the same transaction as the event that told of it; so
each begin has one end, whoever acts meanwhile and whoever is killed when.
"""

import asyncio
import time
from collections.abc import Sequence

from gugus.cluster.v1.cluster_pb2 import Cluster, Finding

from common.errors import GugusError
from common.logs import get_logger
from common.units import format_duration
from manager.consensus import ConsensusError
from manager.controllers.context import Context
from manager.damping import Damper, key_of
from manager.events import INFO, record
from manager.health import findings, problems
from manager.members import Members
from manager.store import Txn

PERIOD_S = 5.0
"""Half of the shortest time that a finding must last: what is told is ten to fifteen seconds old."""

_log = get_logger("alarms")


class Alarms:
    """Looks at the managers for as long as this one acts."""

    def __init__(self, context: Context, members: Members) -> None:
        self._context = context
        self._members = members
        self._damper = Damper()

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            try:
                await self._look()
            except (ConsensusError, GugusError) as error:
                _log.warning("alarms are looked at again", error=str(error))
            await asyncio.sleep(PERIOD_S)

    async def _look(self) -> None:
        found = problems(findings(await self._members.look()))
        clusters = self._context.store.peek_all(Cluster)
        if not clusters:
            return  # not founded yet
        told, ended = self._damper.step(clusters[0].alarms, found, self._context.acting.now_ns() / 1e9)
        if told or ended:
            await self._context.store.txn(_change(clusters[0], told, ended))
            for finding in told:
                _log.warning("alarm", reason=finding.reason, about=finding.about, text=finding.sentence)


def _change(cluster: Cluster, told: Sequence[Finding], ended: Sequence[Finding]) -> Txn:
    """Return the transaction that tells what began and what ended, and keeps what is open."""
    before = {key_of(finding): finding for finding in cluster.alarms}
    gone = {key_of(finding) for finding in (*told, *ended)}
    opened = [finding for key, finding in before.items() if key not in gone]
    txn = Txn()
    for finding in ended:
        lasted = format_duration(max(0, time.time() - finding.since.seconds))  # for people: wall clocks may differ
        message = f"Over after {lasted}: {finding.sentence}"
        record(txn, finding.about, f"{finding.reason}_ENDED", message, INFO)
    for finding in told:
        record(txn, finding.about, finding.reason, f"{finding.sentence} {finding.remedy}", finding.severity)
        finding.since.GetCurrentTime()
        if key_of(finding) in before:  # it became worse
            finding.since.CopyFrom(before[key_of(finding)].since)
        opened.append(finding)
    del cluster.alarms[:]
    cluster.alarms.extend(opened)
    return txn.put(cluster, expect_revision=cluster.meta.revision)
