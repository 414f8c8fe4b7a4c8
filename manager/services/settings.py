"""Changes of the cluster's settings: checked as a whole, written once, and told in an event with old and new values."""

from gugus.cluster.v1.cluster_pb2 import Cluster, UpdateSettingsRequest
from gugus.cluster.v1.node_pb2 import Node

from common.cluster_settings import Table
from common.errors import internal, invalid
from manager.controllers.context import Context
from manager.events import record
from manager.scheduler.settings import default_weights
from manager.services.forward import actor
from manager.services.requests import change_once
from manager.store import Txn

MAX_PATHS = 100
"""Paths of one request: several times as many as there are settings."""


async def update(context: Context, request: UpdateSettingsRequest) -> Cluster:
    """Change settings, all or none. Raises INVALID_ARGUMENT with every fault."""
    paths = list(request.update_mask.paths)
    if not 1 <= len(paths) <= MAX_PATHS:
        raise invalid(
            "update_mask.paths",
            f"names {len(paths)} settings; 1 to {MAX_PATHS} are changed at once.",
            remedy='Name what is to change, like "spare.nodes".',
        )

    async def change(key: str) -> None:
        cluster = await _cluster(context)
        table = Table(default_weights(cluster.settings))
        after = table.changed(cluster.settings, request.settings, paths)
        differences = table.differences(cluster.settings, after)
        if not differences:
            return
        if after.spare.domain != cluster.settings.spare.domain:
            _refuse_unknown(context, after.spare.domain)
        cluster.settings.CopyFrom(after)
        txn = Txn(key).put(cluster, expect_revision=cluster.meta.revision)
        record(txn, f"cluster/{cluster.meta.name}", "SETTINGS_CHANGED", f"by {actor()}: {'; '.join(differences)}")
        await context.store.txn(txn)

    await change_once(context.store, "update-settings cluster", request.request_id, change)
    return await _cluster(context)


def _refuse_unknown(context: Context, domain: str) -> None:
    """Raise INVALID_ARGUMENT for a label that no node has: each node would be a domain of its own, which nobody means."""
    known = sorted({key for node in context.store.peek_all(Node) for key in node.meta.labels})
    if domain and domain not in known:
        have = f"there are {', '.join(known)}" if known else "no node has any"
        remedy = f"`gugus node label NODE {domain}=VALUE` first."
        raise invalid("spare.domain", f'no node has the label "{domain}"; {have}.', remedy=remedy)


async def _cluster(context: Context) -> Cluster:
    clusters = await context.store.list(Cluster)
    if not clusters:
        raise internal("NO_CLUSTER", "the state holds no cluster object; was the first manager's start interrupted?")
    return clusters[0]
