"""Operations on a guest: they queue, hold its lock, go on after a failure of anything, and take back what they cannot finish."""

import asyncio
from collections.abc import Callable

import pytest
from gugus.agent.v1.task_pb2 import TASK_STATE_CANCELLED, TASK_STATE_FAILED, TASK_STATE_SUCCEEDED
from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_RUNNING, GUEST_PHASE_STOPPED, GetGuestRequest, Guest
from gugus.cluster.v1.task_pb2 import Task

from client.sdk import Gugus
from client.tasks import check
from common.errors import GugusError, precondition, unavailable
from manager.controllers import work
from manager.operations import Operation
from manager.store import Txn
from manager.tasks import new_task
from tests.unit.manager.cluster import Cluster, guest_spec

KIND = "test-guest"


class Probe:
    """An operation whose every call the test decides on, and which remembers what was called."""

    kind, verb, cancellable = KIND, "probe", True

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.fails: dict[str, list[GugusError]] = {}
        self.gate = asyncio.Event()
        self.gate.set()

    async def run(self, op: Operation) -> str:
        self.calls.append(f"run {op.request(GetGuestRequest).name} {op.step}".strip())
        self._fail("run")
        await op.note("second", log="at the second step")
        while not self.gate.is_set():
            op.check_cancel()
            await asyncio.sleep(0.01)
        self._fail("end")
        return "all well"

    async def undo(self, op: Operation) -> None:
        self.calls.append("undo")
        self._fail("undo")

    def _fail(self, where: str) -> None:
        if left := self.fails.get(where):
            raise left.pop(0)


class TidyProbe(Probe):
    """One that tidies up after its task has ended."""

    def __init__(self) -> None:
        super().__init__()
        self.may_tidy = asyncio.Event()

    async def clean(self, op: Operation) -> None:
        self.calls.append(f"clean {op.request(GetGuestRequest).name}")
        await self.may_tidy.wait()
        self._fail("clean")


@pytest.fixture
def made() -> Probe:
    return Probe()


@pytest.fixture(autouse=True)
def probe(monkeypatch: pytest.MonkeyPatch, made: Probe) -> Probe:
    monkeypatch.setattr(work, "HANDLERS", {KIND: made})
    monkeypatch.setattr("manager.controllers.guest_tasks.KINDS", frozenset({KIND}))
    monkeypatch.setattr("manager.services.cancel.KINDS", frozenset({KIND}))
    monkeypatch.setattr("manager.services.cancel.CANCELLABLE", frozenset({KIND}))
    return made


@pytest.fixture
async def guest(gugus: Gugus) -> str:
    check(await gugus.tasks.wait(await gugus.guests.create("web", guest_spec())))
    return "web"


async def ask(cluster: Cluster, text: str = "a") -> Task:
    """Ask for an operation, as a service does."""
    task = new_task(KIND, "guest/web", "test", "", GetGuestRequest(name=text))
    await cluster.store.txn(Txn().put(task, expect_absent=True))
    return task


def look(cluster: Cluster) -> Guest:
    found = cluster.peek(Guest, "web")
    assert found is not None
    return found


def locked_by(cluster: Cluster, task: Task) -> Callable[[], bool]:
    return lambda: cluster.peek(Guest, "web") is not None and look(cluster).status.lock.task == task.meta.name


async def test_operation_holds_the_lock_while_it_works_and_gives_it_back(
    cluster: Cluster, guest: str, probe: Probe
) -> None:
    probe.gate.clear()
    task = await ask(cluster)
    await cluster.eventually(locked_by(cluster, task))
    assert look(cluster).status.lock.reason == "probe"
    probe.gate.set()
    ended = await cluster.ended(task)
    assert ended.state == TASK_STATE_SUCCEEDED
    assert [line.text for line in ended.log][-2:] == ["at the second step", "all well"]
    assert not look(cluster).status.HasField("lock")


async def test_operations_queue_in_the_order_of_asking(cluster: Cluster, guest: str, probe: Probe) -> None:
    probe.gate.clear()
    first = await ask(cluster, "a")
    await cluster.eventually(locked_by(cluster, first))
    others = [await ask(cluster, "b"), await ask(cluster, "c")]
    probe.gate.set()
    for task in (first, *others):
        assert (await cluster.ended(task)).state == TASK_STATE_SUCCEEDED
    assert [call.split()[1] for call in probe.calls] == ["a", "b", "c"]


async def test_power_asked_for_meanwhile_comes_true_afterwards(
    cluster: Cluster, gugus: Gugus, guest: str, probe: Probe
) -> None:
    probe.gate.clear()
    task = await ask(cluster)
    await cluster.eventually(locked_by(cluster, task))
    stop = await gugus.guests.stop("web")
    await cluster.beats(2)
    assert look(cluster).status.phase == GUEST_PHASE_RUNNING
    probe.gate.set()
    check(await gugus.tasks.wait(stop))
    assert look(cluster).status.phase == GUEST_PHASE_STOPPED


async def test_failure_that_says_nothing_of_the_request_is_tried_again(
    cluster: Cluster, guest: str, probe: Probe
) -> None:
    probe.fails = {"end": [unavailable("RPC_UNAVAILABLE", "the node does not answer.")]}
    assert (await cluster.ended(await ask(cluster))).state == TASK_STATE_SUCCEEDED
    assert probe.calls == ["run a", "run a second"]


async def test_failed_operation_is_taken_back_until_that_succeeds(cluster: Cluster, guest: str, probe: Probe) -> None:
    probe.fails = {
        "end": [precondition("NO_ROOM", "there is no room.")],
        "undo": [unavailable("RPC_UNAVAILABLE", "the node does not answer.")],
    }
    ended = await cluster.ended(await ask(cluster))
    assert ended.state == TASK_STATE_FAILED
    assert "there is no room" in ended.error.message
    assert probe.calls == ["run a", "undo", "undo"]
    assert not look(cluster).status.HasField("lock")
    assert any(event.reason == "NO_ROOM" for event in cluster.events())


async def test_fault_of_ours_fails_the_task_and_frees_the_guest(
    cluster: Cluster, guest: str, probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(op: Operation) -> str:
        raise KeyError("nobody foresaw this")

    monkeypatch.setattr(probe, "run", broken)
    ended = await cluster.ended(await ask(cluster))
    assert ended.state == TASK_STATE_FAILED
    assert "nobody foresaw this" not in ended.error.message
    assert not look(cluster).status.HasField("lock")


async def test_waiting_and_running_operations_can_be_cancelled(
    cluster: Cluster, gugus: Gugus, guest: str, probe: Probe
) -> None:
    probe.gate.clear()
    running = await ask(cluster, "a")
    await cluster.eventually(locked_by(cluster, running))
    waiting = await ask(cluster, "b")
    await gugus.tasks.cancel(waiting.meta.name)
    await gugus.tasks.cancel(running.meta.name)
    assert (await cluster.ended(running)).state == TASK_STATE_CANCELLED
    assert (await cluster.ended(waiting)).state == TASK_STATE_CANCELLED
    assert probe.calls == ["run a", "undo"]


async def test_next_manager_goes_on_from_the_step_that_was_noted(cluster: Cluster, guest: str, probe: Probe) -> None:
    probe.gate.clear()
    task = await ask(cluster)
    await cluster.eventually(lambda: cluster.peek(Task, task.meta.name).step == "second")  # type: ignore[union-attr]
    await cluster.stop_manager()
    cluster.start_manager()
    await cluster.online()
    probe.gate.set()
    assert (await cluster.ended(task)).state == TASK_STATE_SUCCEEDED
    assert probe.calls == ["run a", "run a second"]


@pytest.mark.parametrize("what", ["stop", "delete"])
async def test_a_kill_and_a_deletion_ask_what_works_on_the_guest_to_end(
    cluster: Cluster, gugus: Gugus, guest: str, probe: Probe, what: str
) -> None:
    probe.gate.clear()
    task = await ask(cluster)
    await cluster.eventually(lambda: cluster.peek(Task, task.meta.name).step == "second")  # type: ignore[union-attr]
    call = gugus.guests.stop if what == "stop" else gugus.guests.delete
    asked = await call("web", force=True, request_id="a-key")
    assert (await call("web", force=True, request_id="a-key")).meta.name == asked.meta.name
    ended = check(await gugus.tasks.wait(asked))
    assert f"asked {KIND} (task {task.meta.name}) to end" in ended.log[0].text
    other = await cluster.ended(task)
    assert other.state == TASK_STATE_CANCELLED
    assert any("asked to end: " in line.text for line in other.log)
    assert probe.calls == ["run a", "undo"]


async def test_guest_that_is_being_deleted_waits_for_an_operation_that_cannot_be_cancelled(
    cluster: Cluster, gugus: Gugus, guest: str, probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manager.services.cancel.CANCELLABLE", frozenset())
    probe.gate.clear()
    first, second = await ask(cluster, "a"), await ask(cluster, "b")
    await cluster.eventually(locked_by(cluster, first))
    await cluster.eventually(lambda: cluster.peek(Task, first.meta.name).step == "second")  # type: ignore[union-attr]
    delete = await gugus.guests.delete("web", force=True)
    assert delete.log[0].text == f"waiting for {KIND} (task {first.meta.name}), which cannot be cancelled"
    await cluster.beats(2)
    assert look(cluster).meta.deleting
    probe.gate.set()
    check(await gugus.tasks.wait(delete))
    assert (await cluster.ended(first)).state == TASK_STATE_SUCCEEDED
    assert (await cluster.ended(second)).state == TASK_STATE_FAILED
    assert cluster.peek(Guest, "web") is None


class TestTidying:
    """An operation whose task ends before all is tidy."""

    @pytest.fixture
    def made(self) -> TidyProbe:
        return TidyProbe()

    async def test_the_task_ends_first_and_the_next_one_begins_when_all_is_tidy(
        self, cluster: Cluster, guest: str, probe: TidyProbe
    ) -> None:
        first = await ask(cluster, "a")
        assert (await cluster.ended(first)).state == TASK_STATE_SUCCEEDED
        second = await ask(cluster, "b")
        await cluster.eventually(lambda: "clean a" in probe.calls)
        assert locked_by(cluster, first)()
        probe.may_tidy.set()
        assert (await cluster.ended(second)).state == TASK_STATE_SUCCEEDED
        await cluster.eventually(lambda: not look(cluster).status.HasField("lock"))
        assert probe.calls == ["run a", "clean a", "run b", "clean b"]

    async def test_it_is_tidied_until_that_succeeds_whoever_manages(
        self, cluster: Cluster, guest: str, probe: TidyProbe
    ) -> None:
        probe.fails = {"clean": [unavailable("RPC_UNAVAILABLE", "the node does not answer.")]}
        task = await ask(cluster)
        await cluster.eventually(lambda: "clean a" in probe.calls)
        await cluster.stop_manager()
        cluster.start_manager()
        await cluster.eventually(lambda: cluster.acting)
        assert (await cluster.ended(task)).state == TASK_STATE_SUCCEEDED
        probe.may_tidy.set()
        await cluster.eventually(lambda: not look(cluster).status.HasField("lock"))
        assert probe.calls == ["run a", *["clean a"] * 3]

    async def test_what_cannot_be_tidied_is_told_and_holds_nobody(
        self, cluster: Cluster, guest: str, probe: TidyProbe
    ) -> None:
        probe.fails = {"clean": [precondition("STUCK", "a volume is in use.")]}
        probe.may_tidy.set()
        task = await ask(cluster)
        await cluster.ended(task)
        await cluster.eventually(lambda: not look(cluster).status.HasField("lock"))
        stored = cluster.peek(Task, task.meta.name)
        assert stored is not None
        assert (stored.state, stored.log[-1].text) == (TASK_STATE_SUCCEEDED, "something is left: a volume is in use.")

    async def test_a_failure_is_taken_back_and_not_tidied(self, cluster: Cluster, guest: str, probe: TidyProbe) -> None:
        probe.fails = {"end": [precondition("NO_ROOM", "there is no room.")]}
        assert (await cluster.ended(await ask(cluster))).state == TASK_STATE_FAILED
        assert not look(cluster).status.HasField("lock")
        assert probe.calls == ["run a", "undo"]
