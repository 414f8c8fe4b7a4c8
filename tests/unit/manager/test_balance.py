"""Balancing: few moves towards evenness, planned anew as things come, and never more than asked for."""

from gugus.agent.v1.task_pb2 import TASK_STATE_CANCELLED, TASK_STATE_SUCCEEDED
from gugus.cluster.v1.guest_pb2 import Guest

from client.sdk import Gugus
from client.tasks import check
from common.errors import internal
from tests.unit.manager.cluster import guest_spec
from tests.unit.manager.conftest import haste, storage
from tests.unit.migration.test_operation import Two, cluster, gugus, reached

__all__ = ["cluster", "gugus", "haste", "storage"]


async def crowd(gugus: Gugus, count: int = 3) -> None:
    """More guests on n1, where web runs; n2 has none."""
    await gugus.nodes.cordon("n2")
    for number in range(count):
        check(await gugus.tasks.wait(await gugus.guests.create(f"g{number}", guest_spec())))
    await gugus.nodes.cordon("n2", False)


def counts(cluster: Two) -> dict[str, int]:
    nodes = [guest.status.node for guest in cluster.store.peek_all(Guest)]
    return {node: nodes.count(node) for node in ("n1", "n2")}


async def test_a_skewed_cluster_is_evened_out(cluster: Two, gugus: Gugus) -> None:
    await crowd(gugus)
    assert counts(cluster) == {"n1": 4, "n2": 0}
    ended = await cluster.ended(await gugus.plans.balance())
    assert ended.state == TASK_STATE_SUCCEEDED
    assert counts(cluster) == {"n1": 2, "n2": 2}
    assert "2 guests moved" in ended.log[-1].text
    again = await cluster.ended(await gugus.plans.balance())
    assert "0 guests moved" in again.log[-1].text  # what is even is left alone


async def test_no_more_moves_than_asked_for(cluster: Two, gugus: Gugus) -> None:
    await crowd(gugus)
    await cluster.ended(await gugus.plans.balance(1))
    assert counts(cluster) == {"n1": 3, "n2": 1}


async def test_a_guest_that_cannot_move_stays_and_another_one_goes(cluster: Two, gugus: Gugus) -> None:
    await crowd(gugus, 2)
    cluster.moves("n2").fails["receive"] = internal("BROKEN", "no door.")
    ended = await cluster.ended(await gugus.plans.balance())
    assert ended.state == TASK_STATE_SUCCEEDED
    assert counts(cluster) == {"n1": 2, "n2": 1}
    assert "no door" in ended.log[-1].text


async def test_another_manager_goes_on(cluster: Two, gugus: Gugus) -> None:
    await crowd(gugus)
    go_on = cluster.moves("n1").hold_at("send")
    task = await gugus.plans.balance()
    await reached(cluster, "n1", "send")
    await cluster.stop_manager()
    cluster.start_manager()
    await cluster.online("n1", "n2")
    go_on.set()
    assert (await cluster.ended(task)).state == TASK_STATE_SUCCEEDED
    assert counts(cluster) == {"n1": 2, "n2": 2}


async def test_a_cancelled_balance_ends_its_moves(cluster: Two, gugus: Gugus) -> None:
    await crowd(gugus)
    cluster.moves("n1").hold_at("send")
    task = await gugus.plans.balance()
    await reached(cluster, "n1", "send")
    await gugus.tasks.cancel(task.meta.name)
    assert (await cluster.ended(task)).state == TASK_STATE_CANCELLED
    assert counts(cluster) == {"n1": 4, "n2": 0}
