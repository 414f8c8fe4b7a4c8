"""Changing a guest: what is asked for is brought in, what is left out stays, and what cannot be is refused."""

from collections.abc import Callable

import pytest
from gugus.agent.v1.container_pb2 import ContainerSpec
from gugus.agent.v1.guest_pb2 import GUEST_KIND_CONTAINER
from gugus.agent.v1.resources_pb2 import DISK_BUS_SCSI, Resources
from gugus.cluster.v1.guest_pb2 import (
    POWER_HIBERNATED,
    POWER_OFF,
    DiskSpec,
    Guest,
    GuestSpec,
    UpdateGuestRequest,
)

from common.errors import GugusError
from manager.guests.update import updated
from manager.guests.volumes import volumes_of
from tests.unit.guests.world import GIB, container, guest, known, vm


@pytest.fixture
def web() -> Guest:
    """A guest with two disks, as it is stored."""
    spec = vm(notes="old")
    spec.disks.add(name="data", pool="shared", size_bytes=GIB)
    return guest(spec, known())


def change(before: Guest, *paths: str, request: UpdateGuestRequest | None = None, **fields: object) -> Guest:
    """Change fields of a guest's spec by a mask, or all of it without."""
    wish = UpdateGuestRequest()
    wish.CopyFrom(request or UpdateGuestRequest())
    wish.spec.MergeFrom(GuestSpec(**fields))  # type: ignore[arg-type]
    wish.update_mask.paths.extend(paths)
    return updated(before, wish, known(before))


def copy(spec: GuestSpec) -> GuestSpec:
    made = GuestSpec()
    made.CopyFrom(spec)
    return made


def whole(before: Guest, alter: Callable[[GuestSpec], object], **request: object) -> Guest:
    """Send the whole spec of a guest back after an alteration."""
    spec = copy(before.spec)
    alter(spec)
    return updated(before, UpdateGuestRequest(spec=spec, **request), known(before))  # type: ignore[arg-type]


def refused(act: Callable[[], object]) -> GugusError:
    with pytest.raises(GugusError) as caught:
        act()
    return caught.value


def test_only_masked_fields_change(web: Guest) -> None:
    after = change(web, "cpus", "resources.cpu_weight", cpus=8, notes="new", resources=Resources(cpu_weight=500))
    assert (after.spec.cpus, after.spec.resources.cpu_weight, after.spec.notes) == (8, 500, "old")
    assert after.spec_number == web.spec_number + 1
    assert web.spec.cpus == 4, "the guest that was given is left as it is"


def test_spec_that_is_sent_back_changes_nothing(web: Guest) -> None:
    after = whole(web, lambda spec: None)
    assert (after.meta, after.spec, after.spec_number) == (web.meta, web.spec, web.spec_number)


def test_what_a_whole_spec_leaves_out_gets_its_default_or_stays(web: Guest) -> None:
    spec = GuestSpec(disks=[DiskSpec(name="root"), DiskSpec(name="data")], nics=[web.spec.nics[0]])
    spec.nics[0].mac = ""
    after = updated(web, UpdateGuestRequest(spec=spec), known(web))
    assert after.spec.kind == web.spec.kind
    assert after.spec.id == web.spec.id
    assert after.spec.power == web.spec.power
    assert after.spec.disks == web.spec.disks
    assert after.spec.nics == web.spec.nics
    assert after.spec.virtual_machine.machine == web.spec.virtual_machine.machine
    assert (after.spec.cpus, after.spec.notes) == (1, "")


def test_power_alone_is_no_new_spec(web: Guest) -> None:
    after = change(web, "power", power=POWER_OFF)
    assert after.spec.power == POWER_OFF
    assert after.spec_number == web.spec_number


def test_labels_are_replaced_when_that_is_said(web: Guest) -> None:
    web.meta.labels["a"] = "1"
    assert change(web, "cpus", cpus=4).meta.labels == {"a": "1"}
    labels = UpdateGuestRequest(labels={"b": "2"}, set_labels=True)
    assert change(web, "cpus", cpus=4, request=labels).meta.labels == {"b": "2"}


def test_spec_that_was_changed_meanwhile_is_refused(web: Guest) -> None:
    error = refused(lambda: change(web, "cpus", cpus=2, request=UpdateGuestRequest(spec_number=7)))
    assert error.reason == "SPEC_CHANGED"


def test_path_that_is_none_is_named(web: Guest) -> None:
    error = refused(lambda: change(web, "cpus", "colour"))
    assert error.field == "update_mask.paths[1]"


def test_removed_disk_is_kept_unused_and_can_be_taken_up_again(web: Guest) -> None:
    data = web.spec.disks[1]
    after = whole(web, lambda spec: spec.disks.pop())
    assert list(after.status.unused_disks) == [data]
    assert not after.status.leaving_disks
    assert volumes_of(after) == volumes_of(web)
    back = whole(after, lambda spec: spec.disks.add(name="again", volume=data.volume))
    assert back.spec.disks[1].volume == data.volume
    assert (back.spec.disks[1].pool, back.spec.disks[1].size_bytes) == (data.pool, data.size_bytes)
    assert not back.status.unused_disks
    assert not back.status.new_volumes


def test_removed_disk_is_deleted_when_that_is_said(web: Guest) -> None:
    after = whole(web, lambda spec: spec.disks.pop(), delete_removed_disks=True)
    assert [disk.name for disk in after.status.leaving_disks] == ["data"]
    assert not after.status.unused_disks


def test_unused_disk_is_deleted_when_that_is_said(web: Guest) -> None:
    unused = whole(web, lambda spec: spec.disks.pop())
    volume = web.spec.disks[1].volume
    after = whole(unused, lambda spec: None, delete_unused_volumes=[volume])
    assert [disk.volume for disk in after.status.leaving_disks] == [volume]
    assert not after.status.unused_disks
    assert after.spec_number == unused.spec_number + 1
    error = refused(lambda: whole(web, lambda spec: None, delete_unused_volumes=["no"]))
    assert error.field == "delete_unused_volumes[0]"


def test_new_disk_of_an_old_name_gets_a_volume_of_its_own(web: Guest) -> None:
    unused = whole(web, lambda spec: spec.disks.pop())
    after = whole(unused, lambda spec: spec.disks.add(name="data", pool="shared", size_bytes=GIB))
    assert after.spec.disks[1].volume != web.spec.disks[1].volume
    assert list(after.status.new_volumes) == [after.spec.disks[1].volume]


def test_disk_that_was_never_made_is_not_kept(web: Guest) -> None:
    more = whole(web, lambda spec: spec.disks.add(name="more", pool="shared", size_bytes=GIB))
    less = whole(more, lambda spec: spec.disks.pop())
    assert not less.status.unused_disks
    assert not less.status.new_volumes
    assert [disk.name for disk in less.status.leaving_disks] == ["more"]


def test_disk_may_grow_and_be_attached_otherwise(web: Guest) -> None:
    def alter(spec: GuestSpec) -> None:
        spec.disks[1].size_bytes = 2 * GIB
        spec.disks[1].settings.bus = DISK_BUS_SCSI
        spec.disks[1].settings.io_thread = True

    assert whole(web, alter).spec.disks[1].size_bytes == 2 * GIB


@pytest.mark.parametrize(
    ("field", "alter"),
    [
        ("spec.id", lambda spec: setattr(spec, "id", 200)),
        ("spec.power", lambda spec: setattr(spec, "power", POWER_HIBERNATED)),
        ("spec.disks[0].pool", lambda spec: setattr(spec.disks[0], "pool", "local")),
        ("spec.disks[1].image", lambda spec: setattr(spec.disks[1], "image", "debian")),
        ("spec.disks[1].size_bytes", lambda spec: setattr(spec.disks[1], "size_bytes", GIB // 2)),
        (
            "spec.disks[2].volume",
            lambda spec: spec.disks.add(name="x", pool="shared", size_bytes=GIB, volume="of-another"),
        ),
    ],
)
def test_what_cannot_be_changed_is_told_with_its_field(
    web: Guest, field: str, alter: Callable[[GuestSpec], object]
) -> None:
    error = refused(lambda: whole(web, alter))
    assert field in {violation.field for violation in error.violations}


@pytest.mark.parametrize(
    ("field", "alter"),
    [
        ("spec.kind", lambda spec: setattr(spec, "kind", GUEST_KIND_CONTAINER)),
        ("spec.disks[0].pool", lambda spec: setattr(spec.disks[0], "pool", "nowhere")),
        ("spec.disks[0].image", lambda spec: setattr(spec.disks[0], "image", "nope")),
    ],
)
def test_what_only_follows_from_a_forbidden_change_is_not_told(
    web: Guest, field: str, alter: Callable[[GuestSpec], object]
) -> None:
    error = refused(lambda: whole(web, alter))
    assert [violation.field for violation in error.violations] == [field]
    assert error.reason == "INVALID_ARGUMENT"


def test_container_keeps_its_root_and_its_user_ids() -> None:
    box = guest(container(), known(), "box")

    def alter(spec: GuestSpec) -> None:
        spec.disks.insert(0, DiskSpec(name="new", pool="shared", image="root"))
        spec.container.CopyFrom(ContainerSpec(privileged=True))

    error = refused(lambda: whole(box, alter))
    assert {"spec.disks[0]", "spec.container.privileged"} <= {violation.field for violation in error.violations}


def test_protected_guest_loses_no_disk(web: Guest) -> None:
    web.spec.protected = True
    error = refused(lambda: whole(web, lambda spec: spec.disks.pop()))
    assert (error.reason, error.remedy) == ("GUEST_PROTECTED", "`gugus guest protect web --off` first.")


def test_template_keeps_its_disks(web: Guest) -> None:
    web.spec.template = True
    assert refused(lambda: whole(web, lambda spec: spec.disks.pop())).reason == "GUEST_IS_TEMPLATE"
    assert whole(web, lambda spec: setattr(spec, "notes", "x")).spec.template


def test_disk_that_a_snapshot_holds_stays(web: Guest) -> None:
    spec = copy(web.spec)
    spec.disks.pop()
    error = refused(lambda: updated(web, UpdateGuestRequest(spec=spec), known(web), lambda disk: ["before"]))
    assert error.reason == "SNAPSHOT_EXISTS"
    assert "data is in before" in error.message


def test_what_was_wrong_before_is_no_reason_to_refuse_another_change(web: Guest) -> None:
    world = known(web)
    del world.networks["lan"]  # type: ignore[attr-defined]
    wish = UpdateGuestRequest(spec=GuestSpec(notes="x"))
    wish.update_mask.paths.append("notes")
    assert updated(web, wish, world).spec.notes == "x"
    wish.update_mask.paths.append("cpus")
    wish.spec.cpus = 10_000
    assert refused(lambda: updated(web, wish, world)).field == "spec.cpus"


def test_guest_is_not_pinned_to_a_node_where_it_is_not(web: Guest) -> None:
    web.status.node = "n1"
    assert refused(lambda: change(web, "pinned_node", pinned_node="n2")).reason == "GUEST_ELSEWHERE"
    assert change(web, "pinned_node", pinned_node="n1").spec.pinned_node == "n1"
