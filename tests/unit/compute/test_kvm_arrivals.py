"""What a machine brings along from another host: its TPM's state; and what is put to use of what was plugged in."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import libvirt
import pytest
from google.protobuf import text_format
from gugus.agent.v1 import guest_pb2
from gugus.agent.v1.migration_pb2 import (
    MIGRATION_PRESENCE_ABSENT,
    MIGRATION_PRESENCE_RUNNING,
    MIGRATION_PRESENCE_UNSPECIFIED,
    MIGRATION_TIMEOUT_ACTION_POST_COPY,
    MIGRATION_TIMEOUT_ACTION_UNSPECIFIED,
    MigrationPolicy,
    MigrationPresence,
)

from agent.compute.definitions import Definition
from agent.compute.kvm import firmware, onlining, policy
from agent.compute.kvm.guest_agent import AgentRefusal, GuestAgent
from agent.compute.kvm.migration import KvmMigration
from agent.migration.policy_faults import policy_faults

MakeGuest = Callable[..., Definition]


# A TPM's state


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Where a TPM's state is when its machine has arrived, and where it belongs."""
    found, wanted = tmp_path / "libvirt" / "uid", tmp_path / "companion" / "tpm"
    for folder in (found, wanted):
        folder.mkdir(parents=True)
    (found / "tpm2").mkdir()
    (found / "tpm2" / "state").write_text("new")
    (wanted / "stale").write_text("of the source, before the migration")
    return found, wanted


def content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


async def test_the_state_of_a_tpm_goes_beside_its_disk(folders: tuple[Path, Path]) -> None:
    found, wanted = folders
    await firmware._take_along(found, wanted)
    assert content(wanted) == {"tpm2/state": "new"}
    assert content(found) == {}
    await firmware._take_along(found, wanted)
    assert content(wanted) == {"tpm2/state": "new"}, "nothing that is there is given up for nothing"
    assert sorted(path.name for path in [*found.parent.iterdir(), *wanted.parent.iterdir()]) == ["tpm", "uid"]


@pytest.mark.parametrize("step", range(6))
async def test_an_agent_that_dies_in_the_middle_loses_nothing_of_it(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """It is killed at each call that changes a folder."""
    found, wanted = folders
    calls = 0

    def or_die(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == step + 1:
                raise KeyboardInterrupt
            return function(*args, **kwargs)

        return call

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", or_die(shutil.rmtree))
        patched.setattr(Path, "rename", or_die(Path.rename))
        with pytest.raises(KeyboardInterrupt):
            await firmware._take_along(found, wanted)
    firmware._folders(wanted, found)
    await firmware._take_along(found, wanted)
    assert content(wanted) == {"tpm2/state": "new"}
    assert content(found) == {}


# Post-copy


class Domains:
    """One domain in a state."""

    def __init__(self, *state: int) -> None:
        self.state = state

    async def act(self, name: str, function: Callable[[Any], object], **_: object) -> bool:
        if self.state:
            function(type("Domain", (), {"state": lambda _: [*self.state]})())
        return bool(self.state)


class Machines:
    """As the driver, with one domain."""

    def __init__(self, *state: int) -> None:
        self.domains = Domains(*state)
        self.ended: list[str] = []

    def watch(self, callback: object) -> None:
        del callback

    async def kill(self, name: str) -> None:
        self.ended.append(name)
        self.domains.state = ()


@pytest.mark.parametrize(
    ("state", "presence", "torn"),
    [
        ((libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_POSTCOPY), MIGRATION_PRESENCE_UNSPECIFIED, True),
        (
            (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_POSTCOPY_FAILED),
            MIGRATION_PRESENCE_UNSPECIFIED,
            True,
        ),
        ((libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_POSTCOPY), MIGRATION_PRESENCE_ABSENT, True),
        ((libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED), MIGRATION_PRESENCE_ABSENT, True),
        ((libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_MIGRATED), MIGRATION_PRESENCE_RUNNING, False),
        ((), MIGRATION_PRESENCE_ABSENT, False),
    ],
)
async def test_a_machine_with_a_part_of_its_memory_is_no_copy_that_counts(
    tmp_path: Path, state: tuple[int, ...], presence: MigrationPresence.ValueType, torn: bool
) -> None:
    machines = Machines(*state)
    migration = KvmMigration(machines, tmp_path)  # type: ignore[arg-type]
    assert await migration.presence("web") == presence
    assert await migration.bury("web") is torn
    assert machines.ended == (["web"] if torn else [])
    assert await migration.bury("web") is False


def test_a_guest_that_is_held_goes_without_post_copy() -> None:
    asked = MigrationPolicy(post_copy=True, timeout_s=5, timeout_action=MIGRATION_TIMEOUT_ACTION_POST_COPY, channels=3)
    fitting = policy.of_held(asked)
    assert policy_faults(fitting) == []
    assert (fitting.post_copy, fitting.timeout_action) == (False, MIGRATION_TIMEOUT_ACTION_UNSPECIFIED)
    assert (fitting.timeout_s, fitting.channels) == (5, 3)
    assert asked.post_copy


# What was plugged in


class Inside(GuestAgent):
    """The agent of a guest with so many CPUs and blocks of memory, each on or off."""

    def __init__(self, cpus: list[bool], blocks: list[bool]) -> None:
        self.cpus, self.blocks = cpus, blocks
        self.late: list[bool] = []
        """Blocks that appear one by one, each after a look."""
        self.refuses = False

    async def command(
        self, name: str, command: str, arguments: Mapping[str, Any] | None = None, *, timeout_s: int = 5
    ) -> Any:
        del name, timeout_s
        if self.refuses:
            raise AgentRefusal("the command is not allowed")
        if command == "guest-get-vcpus":
            return [{"logical-id": index, "online": on, "can-offline": index > 0} for index, on in enumerate(self.cpus)]
        if command == "guest-get-memory-blocks":
            self.blocks += [self.late.pop()] if self.late else []
            return [{"phys-index": index + 32, "online": on} for index, on in enumerate(self.blocks)]
        for order in (arguments or {}).get("vcpus", []):
            self.cpus[order["logical-id"]] = order["online"]
        for order in (arguments or {}).get("mem-blks", []):
            self.blocks[order["phys-index"] - 32] = order["online"]
        return None


async def test_cpus_and_memory_that_came_are_put_to_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onlining, "TRY_S", 0.0)
    guest = Inside([True, False, False], [True, False])
    await onlining.online(guest, "web")
    assert (guest.cpus, guest.blocks) == ([True] * 3, [True] * 2)
    await onlining.online(guest, "web")  # one that did it by itself
    guest.refuses = True
    await onlining.online(guest, "web")


async def test_memory_that_appears_after_the_cpus_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onlining, "TRY_S", 0.0)
    guest = Inside([True, False], [True])
    guest.late = [False, False, False]
    await onlining.online(guest, "web")
    assert (guest.cpus, guest.blocks) == ([True] * 2, [True] * 4)


def test_only_growth_of_a_guest_with_an_agent_is_told_to_it(make_guest: MakeGuest) -> None:
    def of(words: str) -> Definition:
        guest = make_guest()
        text_format.Parse(words, more := guest_pb2.GuestSpec())
        guest.spec.MergeFrom(more)
        return guest

    agent = "virtual_machine { guest_agent: true }"
    small, large = of(f"cpus: 1 memory_bytes: 1000 {agent}"), of(f"cpus: 2 memory_bytes: 1000 {agent}")
    assert onlining.has_grown(small, large)
    assert not onlining.has_grown(large, small)
    assert not onlining.has_grown(large, large)
    assert not onlining.has_grown(of("cpus: 1"), of("cpus: 2"))
    assert not onlining.has_grown(None, large)
