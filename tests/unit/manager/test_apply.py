"""Documents against a whole cluster: what they say comes true, and what managers fill in is no difference the second time."""

from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_RUNNING, Guest

from client.apply.carry_out import begin, groups, present
from client.apply.documents import of_guest, parse
from client.apply.plan import GUEST, PROJECT, Action, Step, plan
from client.bulk import Outcome, Result, Runner
from client.sdk import Gugus
from tests.unit.manager.cluster import Cluster

KINDS = {GUEST, PROJECT}

TEXT = """
kind: Project
name: shop
spec: {limits: {cpus: 4, memory: 1GiB}}
---
kind: Guest
name: web
labels: {set: a}
spec:
  kind: vm
  cpus: 2
  memory: 64MiB
  project: shop
  tags: [front]
  power: on
  disks:
    - {pool: shared, image: debian}
    - {name: data, pool: shared, size: 1MiB, settings: {cache: none, limits: {read: 1MiB/s}}}
  virtual_machine: {machine: q35, cpu: {model: cluster}}
  resources: {cpu_weight: 200}
  boot: {order: 2, delay: 1s}
---
kind: Guest
name: db
labels: {set: a}
spec: {kind: vm, memory: 64MiB, disks: [{pool: shared, image: debian}]}
"""


async def _planned(
    gugus: Gugus, text: str, *, exact: bool = False, prune: dict[str, str] | None = None
) -> list[Action]:
    return plan(parse(text, "t.yaml"), await present(gugus, KINDS), exact=exact, prune=prune)


async def _applied(
    gugus: Gugus, text: str, *, exact: bool = False, prune: dict[str, str] | None = None, delete: bool = False
) -> list[Outcome]:
    actions = await _planned(gugus, text, exact=exact, prune=prune)
    by_target = {action.target: action for action in actions}
    runner = Runner(
        gugus.tasks, lambda target: begin(gugus, by_target[target], exact=exact, delete_removed_disks=delete)
    )
    outcomes = await runner.run(groups(actions))
    assert [outcome.reason for outcome in outcomes if outcome.result is Result.FAILED] == []
    return outcomes


def _steps(actions: list[Action]) -> dict[str, Step]:
    return {action.target: action.step for action in actions}


async def test_files_come_true_and_a_second_time_nothing_is_left_to_do(cluster: Cluster, gugus: Gugus) -> None:
    await _applied(gugus, TEXT)
    web = await gugus.guests.get("web")
    assert (web.status.phase, web.spec.cpus, list(web.spec.tags)) == (GUEST_PHASE_RUNNING, 2, ["front"])
    assert _steps(await _planned(gugus, TEXT)) == dict.fromkeys(("project/shop", "guest/web", "guest/db"), Step.NOTHING)
    await _applied(gugus, TEXT)
    after = await gugus.guests.get("web")
    assert (after.meta.revision, after.spec_number) == (web.meta.revision, web.spec_number)


async def test_exported_guests_differ_in_nothing_also_exactly(gugus: Gugus) -> None:
    await _applied(gugus, TEXT)
    for name in ("web", "db"):
        text = of_guest(await gugus.guests.get(name))
        assert _steps(await _planned(gugus, text)) == {f"guest/{name}": Step.NOTHING}
        assert [action.differences for action in await _planned(gugus, text, exact=True)] == [()]


async def test_exact_settles_after_one_time(gugus: Gugus) -> None:
    await _applied(gugus, TEXT)
    text = "kind: Guest\nname: web\nspec: {kind: vm}\n"
    assert _steps(await _planned(gugus, text, exact=True)) == {"guest/web": Step.UPDATE}
    await _applied(gugus, text, exact=True)
    assert [action.differences for action in await _planned(gugus, text, exact=True)] == [()]
    web = await gugus.guests.get("web")
    assert ([disk.name for disk in web.spec.disks], list(web.spec.tags), web.spec.boot.order) == (
        ["disk0", "data"],
        [],
        0,
    )


async def test_a_change_keeps_what_files_do_not_name(cluster: Cluster, gugus: Gugus) -> None:
    await _applied(gugus, TEXT)
    task = await gugus.guests.change("web", lambda spec: setattr(spec, "notes", "by hand"))
    assert task is not None
    await gugus.tasks.wait(task)
    before = await gugus.guests.get("web")
    await _applied(gugus, TEXT.replace("memory: 64MiB\n", "memory: 96MiB\n").replace("cpus: 4", "cpus: 5"))
    web = await gugus.guests.get("web")
    assert (web.spec.memory_bytes, web.spec.notes) == (96 << 20, "by hand")
    assert [disk.volume for disk in web.spec.disks] == [disk.volume for disk in before.spec.disks]
    assert (await gugus.projects.get("shop")).spec.limits.cpus == 5


async def test_a_disk_that_is_no_longer_named_is_kept_and_what_is_pruned_goes(cluster: Cluster, gugus: Gugus) -> None:
    await _applied(gugus, TEXT)
    start = TEXT.index("---\nkind: Guest\nname: db")
    lines = [line for line in TEXT[:start].splitlines() if "name: data" not in line]
    await _applied(gugus, "\n".join(lines), prune={"set": "a"})
    assert cluster.peek(Guest, "db") is None
    web = await gugus.guests.get("web")
    assert [disk.name for disk in web.spec.disks] == ["disk0"]
    assert [disk.name for disk in web.status.unused_disks] == ["data"]
