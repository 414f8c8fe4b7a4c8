import dataclasses
from pathlib import Path

import grpc
import pytest
from gugus.agent.v1.task_pb2 import TaskState
from gugus.cluster.v1 import guest_pb2

from client import config
from client.config import ClientConfig
from client.sdk import Gugus
from client.tasks import TaskFailed, check
from common.config import ConfigError
from common.errors import GugusError
from tests.unit.client.fake import Cluster

SPEC = guest_pb2.GuestSpec(cpus=1)


async def test_a_lost_answer_is_asked_for_again_elsewhere_with_the_same_key(
    cluster: Cluster, settings: ClientConfig
) -> None:
    cluster.state.lose_answers.add(0)
    async with Gugus.connect(settings) as gugus:
        task = await gugus.guests.create("web", SPEC)
    assert task.meta.name == "t1"
    assert len(cluster.state.requests) == 2
    assert len({request.request_id for request in cluster.state.requests}) == 1
    assert len(cluster.state.tasks) == 1


async def test_an_unknown_outcome_is_found_out_with_the_same_key(cluster: Cluster, settings: ClientConfig) -> None:
    cluster.state.forget_outcome.add(0)
    async with Gugus.connect(settings) as gugus:
        assert (await gugus.guests.create("web", SPEC)).meta.name == "t1"
    assert len({request.request_id for request in cluster.state.requests}) == 1


async def test_a_call_that_a_stopping_manager_cancelled_is_repeated_elsewhere(
    cluster: Cluster, settings: ClientConfig
) -> None:
    cluster.state.cancel.add(0)
    async with Gugus.connect(settings) as gugus:
        assert (await gugus.guests.create("web", SPEC)).meta.name == "t1"
    assert len({request.request_id for request in cluster.state.requests}) == 1


async def test_a_dead_manager_is_passed_over(cluster: Cluster, settings: ClientConfig) -> None:
    cluster.kill(0)
    async with Gugus.connect(settings) as gugus:
        assert (await gugus.cluster.status()).leader == "n1"


async def test_without_a_leader_the_call_waits_its_deadline_and_repeats_what_managers_say(
    cluster: Cluster, settings: ClientConfig
) -> None:
    cluster.state.no_leader |= {0, 1}
    async with Gugus.connect(settings, timeout_s=1) as gugus:
        with pytest.raises(GugusError) as caught:
            await gugus.guests.create("web", SPEC)
    assert caught.value.reason == "NO_LEADER"
    assert len(cluster.state.requests) > 2


async def test_when_nobody_answers_the_error_names_every_manager(cluster: Cluster, settings: ClientConfig) -> None:
    cluster.kill(0)
    cluster.kill(1)
    async with Gugus.connect(settings, timeout_s=1) as gugus:
        with pytest.raises(GugusError) as caught:
            await gugus.guests.list()
    assert caught.value.reason == "NO_MANAGER"
    assert all(endpoint in caught.value.message for endpoint in cluster.endpoints)


async def test_other_errors_are_not_repeated(cluster: Cluster, settings: ClientConfig) -> None:
    async with Gugus.connect(settings) as gugus:
        await gugus.guests.create("web", SPEC)
        with pytest.raises(GugusError) as caught:
            await gugus.guests.create("web", SPEC)
    assert caught.value.code is grpc.StatusCode.ALREADY_EXISTS
    assert caught.value.remedy == "Choose another name."
    assert len(cluster.state.requests) == 2


async def test_waiting_goes_on_at_another_manager_when_the_stream_breaks(
    cluster: Cluster, settings: ClientConfig
) -> None:
    cluster.state.break_watches.add(0)
    percents = list[int]()
    async with Gugus.connect(settings) as gugus:
        task = await gugus.guests.create("web", SPEC)
        ended = await gugus.tasks.wait(task, lambda task: percents.append(task.progress_percent))
    assert ended.state == TaskState.TASK_STATE_SUCCEEDED
    assert cluster.state.watched == [0, 1]
    assert percents == [40, 40, 100]


async def test_a_failed_task_raises_its_cause(cluster: Cluster, settings: ClientConfig) -> None:
    async with Gugus.connect(settings) as gugus:
        ended = await gugus.tasks.wait(await gugus.guests.create("doomed", SPEC))
    with pytest.raises(TaskFailed, match="pool local is full") as caught:
        check(ended)
    assert (caught.value.reason, caught.value.remedy) == ("NO_SPACE", "Delete something.")


async def test_waiting_ends_with_its_timeout(cluster: Cluster, settings: ClientConfig) -> None:
    cluster.state.hold = True
    async with Gugus.connect(settings) as gugus:
        with pytest.raises(GugusError) as caught:
            await gugus.tasks.wait(await gugus.guests.create("web", SPEC), timeout_s=0.3)
    cluster.state.hold = False
    assert caught.value.reason == "TASK_NOT_ENDED"


async def test_events_come_once_each_though_the_manager_breaks_off(cluster: Cluster, settings: ClientConfig) -> None:
    cluster.state.break_watches.add(0)
    names = list[str]()
    async with Gugus.connect(settings) as gugus:
        async for event in gugus.events.follow():
            names.append(event.meta.name)
            if len(names) == 3:
                break
    assert names == ["e1", "e2", "e3"]


def test_the_configuration_is_read_back_as_written(settings: ClientConfig, settings_file: Path) -> None:
    assert config.load(settings_file) == settings


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cluster_nam: demo", 'Did you mean "cluster_name"'),
        ("- 1", "expected keys and values"),
        ("cluster_name: demo", '"cluster_id" is missing'),
    ],
)
def test_a_wrong_configuration_says_what_is_right(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "client.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        config.load(file)
    assert said in str(caught.value)


async def test_the_certificate_of_another_cluster_is_told_from_managers_that_are_away(settings: ClientConfig) -> None:
    other = dataclasses.replace(settings, cluster_id="fedcba9876543210")
    with pytest.raises(ConfigError, match="is of the cluster"):
        async with Gugus.connect(other) as gugus:
            await gugus.nodes.list()


async def test_a_certificate_that_is_none_is_told_from_managers_that_are_away(settings: ClientConfig) -> None:
    settings.operator_crt.write_text("not a certificate")
    with pytest.raises(ConfigError, match="cannot be used"):
        async with Gugus.connect(settings) as gugus:
            await gugus.nodes.list()
