"""What `gugus apply` decides to do: only what documents name changes, and the second time nothing."""

from pathlib import Path
from typing import Any

import pytest
from gugus.agent.v1.guest_pb2 import GUEST_KIND_VIRTUAL_MACHINE
from gugus.agent.v1.resources_pb2 import DISK_CACHE_NONE
from gugus.cluster.v1.guest_pb2 import POWER_OFF, POWER_ON, Guest, GuestSpec
from gugus.cluster.v1.pool_pb2 import Pool
from hypothesis import HealthCheck, given, settings

from client.apply.differ import differences
from client.apply.documents import load, of_guest, parse
from client.apply.plan import Present, Step, plan, wanted_spec
from common.errors import GugusError
from tests.unit.client.apply.specs import messages


def _guest(name: str = "web", **labels: str) -> Guest:
    guest = Guest(spec_number=4)
    guest.meta.name = name
    guest.meta.labels.update(labels)
    spec = guest.spec
    spec.kind = GUEST_KIND_VIRTUAL_MACHINE
    spec.id, spec.cpus, spec.memory_bytes, spec.power = 100, 1, 512 << 20, POWER_ON
    spec.virtual_machine.machine = "pc-q35-7.2"
    spec.notes = "kept"
    for disk in ("disk0", "data"):
        spec.disks.add(name=disk, pool="local", size_bytes=1 << 30, volume=f"{name}-{disk}").settings.ssd = True
    spec.nics.add(name="eth0", network="lan", mac="52:54:00:00:00:01")
    return guest


def _plan(text: str, *guests: Guest, **options: Any) -> list[Any]:
    return plan(parse(text, "t.yaml"), Present({guest.meta.name: guest for guest in guests}), **options)


def _lines(actions: list[Any]) -> list[str]:
    return [line for action in actions for difference in action.differences for line in difference.lines()]


DOCUMENT = """
kind: Guest
name: web
spec:
  cpus: 2
  power: off
  disks:
    - settings: {cache: none}
    - {name: log, pool: local, size: 2GiB}
  nics: [{network: lan, mac: 52:54:00:00:00:01}]
  virtual_machine: {machine: q35}
"""


def test_only_what_is_named_changes() -> None:
    (action,) = _plan(DOCUMENT, _guest())
    assert action.step is Step.UPDATE
    assert _lines([action]) == [
        "  cpus: 1 -> 2",
        "- disks[data]: {name: data, pool: local, size: 1GiB, volume: web-data, settings: {ssd: true}}",
        "  disks[disk0].settings.cache: default -> none",
        "+ disks[log]: {name: log, pool: local, size: 2GiB}",
        "  power: on -> off",
    ]
    wanted = wanted_spec(action.document, _guest())
    assert (wanted.notes, wanted.power, wanted.virtual_machine.machine) == ("kept", POWER_OFF, "pc-q35-7.2")
    assert (wanted.disks[0].volume, wanted.disks[0].settings.ssd) == ("web-disk0", True)
    assert (wanted.disks[0].settings.cache, wanted.nics[0].mac) == (DISK_CACHE_NONE, "52:54:00:00:00:01")


def test_the_second_time_nothing_is_left_to_do() -> None:
    guest = _guest()
    guest.spec.CopyFrom(wanted_spec(parse(DOCUMENT, "t.yaml")[0], guest))
    (action,) = _plan(DOCUMENT, guest)
    assert (action.step, action.differences) == (Step.NOTHING, ())


def test_exact_returns_the_rest_to_its_default_and_keeps_what_the_guest_is() -> None:
    (action,) = _plan("kind: Guest\nname: web\nspec: {kind: vm}", _guest(), exact=True)
    assert _lines([action]) == [
        "  disks[disk0].settings.ssd: yes -> no",
        "  disks[data].settings.ssd: yes -> no",
        "  notes: kept -> default",
    ]
    wanted = wanted_spec(action.document, _guest(), exact=True)
    assert (wanted.id, wanted.memory_bytes, wanted.disks[1].volume, wanted.power) == (
        100,
        512 << 20,
        "web-data",
        POWER_ON,
    )


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(messages(GuestSpec))
def test_any_guest_that_is_exported_differs_in_nothing(spec: GuestSpec) -> None:
    guest = Guest(spec=spec)
    guest.meta.name = "web"
    (document,) = parse(of_guest(guest), "t.yaml")
    names = [disk.name for disk in spec.disks] + [nic.name for nic in spec.nics]
    if len(names) == len({*names}) and "" not in names:
        wanted = wanted_spec(document, guest)
        assert [d for d in differences(spec, wanted) if "." not in d.path and "[" not in d.path] == []


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(messages(GuestSpec), messages(GuestSpec))
def test_differences_are_there_exactly_when_specs_differ(one: GuestSpec, other: GuestSpec) -> None:
    assert differences(one, one) == []
    if not differences(one, other):
        assert differences(other, one) == []


def test_what_is_not_there_is_made_in_an_order_that_works() -> None:
    text = """
kind: Guest
name: web
---
kind: Pool
name: local
spec: {dir: {path: /srv}}
---
kind: Network
name: lan
spec: {bridge: {bridge: br0}}
---
kind: Project
name: shop
spec: {limits: {memory: 8GiB}}
"""
    actions = _plan(text)
    assert [(action.step, action.target) for action in actions] == [
        (Step.CREATE, "project/shop"),
        (Step.CREATE, "network/lan"),
        (Step.CREATE, "pool/local"),
        (Step.CREATE, "guest/web"),
    ]


def test_pools_are_compared_too() -> None:
    pool = Pool(nodes=["n1"])
    pool.meta.name = pool.spec.name = "local"
    pool.spec.dir.path = "/srv"
    text = "kind: Pool\nname: local\nnodes: [n1, n2]\nspec: {dir: {path: /srv, shared: yes}}"
    (action,) = plan(parse(text, "t.yaml"), Present(pools={"local": pool}))
    assert _lines([action]) == ["  dir.shared: no -> yes", "  nodes: n1 -> n1, n2"]


def test_labels_are_replaced_when_they_are_named() -> None:
    (action,) = _plan("kind: Guest\nname: web\nlabels: {tier: db, team: a}", _guest(tier="web", old="1"))
    assert _lines([action]) == ["- labels[old]: 1", "+ labels[team]: a", "  labels[tier]: web -> db"]
    assert _plan("kind: Guest\nname: web", _guest(tier="web"))[0].step is Step.NOTHING


def test_prune_deletes_guests_of_its_labels_that_no_document_names() -> None:
    text = "kind: Guest\nname: web\nlabels: {set: a}"
    actions = _plan(text, _guest("web", set="a"), _guest("old", set="a"), _guest("other", set="b"), prune={"set": "a"})
    assert [(action.step, action.target) for action in actions] == [
        (Step.NOTHING, "guest/web"),
        (Step.DELETE, "guest/old"),
    ]
    with pytest.raises(GugusError, match=r"t\.yaml:1: labels: guest/web lacks set=b"):
        _plan(text, prune={"set": "b"})


def test_texts_of_several_lines_are_compared_line_by_line() -> None:
    guest = _guest()
    guest.spec.first_boot.user_data = "#cloud-config\na: 1\nb: 2\n"
    guest.spec.first_boot.password_hash = "$6$secret"
    text = (
        "kind: Guest\nname: web\nspec:\n  first_boot:\n    password_hash: $6$other\n"
        "    user_data: |\n      #cloud-config\n      a: 1\n      b: 3\n"
    )
    lines = _lines(_plan(text, guest))
    assert lines[0].strip() == "first_boot.user_data:"
    assert lines[1:] == [
        "    @@ -2,2 +2,2 @@",
        "     a: 1",
        "    -b: 2",
        "    +b: 3",
        "  first_boot.password_hash: (hidden) -> (hidden)",
    ]


def test_documents_of_a_folder_are_read_and_every_fault_of_all_files_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("kind: Guest\nname: web\n---\nkind: Gast\nname: x\n")
    (tmp_path / "b.yml").write_text(
        "kind: Pool\nname: Local\nlabels: {a: b}\nspec: {dir: {path: 1}, name: x}\nsize: 3\n"
    )
    (tmp_path / "c.txt").write_text("kind: [")
    with pytest.raises(GugusError) as caught:
        load([str(tmp_path)])
    assert [(v.field.rsplit("/", 1)[-1], v.message.split(";")[0]) for v in caught.value.violations] == [
        ("a.yaml:4: kind", '"Gast" is not one of Project, Network, Pool, Guest.'),
        ("b.yml:1: name", '"Local" is not a name: use lower-case letters, digits and inner "-", like web-1.'),
        ("b.yml:3: labels", "a Pool has none."),
        ("b.yml:5: size", "is no part of a document"),
        ("b.yml:4: spec.name", "is set by the cluster"),
    ]
    (tmp_path / "a.yaml").write_text("kind: Guest\nname: web\n")
    (tmp_path / "b.yml").write_text("\n---\nkind: Guest\nname: web\n")
    with pytest.raises(GugusError, match=r"b.yml:3: guest/web stands in .*a.yaml:1 as well"):
        load([str(tmp_path)])
    with pytest.raises(GugusError, match="cannot be read"):
        load([str(tmp_path / "none.yaml")])
