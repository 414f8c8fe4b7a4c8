"""The simulated disk: what was synced survives, what was not may be lost or torn, and nothing else ever comes back."""

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.consensus.disk import Disk, is_full
from tests.simulation.consensus.disk import SECTOR, Platter, PowerCut, SimDisk


def disk_of(platter: Platter) -> SimDisk:
    return SimDisk(platter, lambda _: None)


def platter(seed: int = 0) -> Platter:
    return Platter(random.Random(seed))


def content(platter: Platter, name: str) -> bytes | None:
    reader = disk_of(platter).open(name)
    return None if reader is None else reader.read(0, reader.size)


def test_it_is_a_disk_as_consensus_wants_it() -> None:
    disk: Disk = disk_of(platter())
    assert disk.names() == []


writes = st.lists(st.tuples(st.integers(0, 3 * SECTOR), st.binary(min_size=1, max_size=2 * SECTOR)), max_size=5)


@given(writes, writes, st.integers(0, 1_000))
def test_each_sector_is_what_was_synced_or_something_written_since(
    before: list[tuple[int, bytes]], after: list[tuple[int, bytes]], seed: int
) -> None:
    host = platter(seed)
    disk, image = disk_of(host), bytearray(6 * SECTOR)
    disk.allocate("f", len(image))
    for offset, data in before:
        disk.write("f", offset, data)
        image[offset : offset + len(data)] = data
    disk.sync("f")
    possible = [{bytes(image[start : start + SECTOR])} for start in range(0, len(image), SECTOR)]
    for offset, data in after:
        disk.write("f", offset, data)
        image[offset : offset + len(data)] = data
        for sector, versions in enumerate(possible):
            versions.add(bytes(image[sector * SECTOR : (sector + 1) * SECTOR]))
    host.lose_power()
    found = content(host, "f")
    assert found is not None
    assert len(found) == len(image)
    assert all(found[i * SECTOR : (i + 1) * SECTOR] in versions for i, versions in enumerate(possible))


def test_a_power_cut_loses_keeps_and_tears() -> None:
    outcomes = set()
    for seed in range(60):
        host = platter(seed)
        disk = disk_of(host)
        disk.allocate("f", 2 * SECTOR)
        disk.write("f", 0, b"a" * 2 * SECTOR)
        host.lose_power()
        outcomes.add(bytes((content(host, "f") or b"")[::SECTOR]))
    assert outcomes == {b"\0\0", b"a\0", b"\0a", b"aa"}


def test_a_file_that_was_never_synced_may_be_gone_short_or_whole() -> None:
    found = set()
    for seed in range(80):
        host = platter(seed)
        disk_of(host).write("f", 0, b"a" * (SECTOR + 10))
        host.lose_power()
        whole = content(host, "f")
        found.add("gone" if whole is None else "whole" if whole == b"a" * (SECTOR + 10) else "damaged")
    assert found == {"gone", "whole", "damaged"}


def test_what_is_durable_stays() -> None:
    host = platter()
    disk = disk_of(host)
    disk.write("a", 0, b"1")
    disk.sync("a")
    disk.rename("a", "b")
    disk.allocate("c", 10)
    disk.write("d", 0, b"12345")
    disk.sync("d")
    disk.truncate("d", 2)
    disk.write("e", 0, b"1")
    disk.sync("e")
    disk.remove("e")
    host.lose_power()
    assert disk_of(host).names() == ["b", "c", "d"]
    assert (content(host, "b"), content(host, "c"), content(host, "d")) == (b"1", bytes(10), b"12")


def test_a_rename_does_not_make_content_durable() -> None:
    lost = 0
    for seed in range(40):
        host = platter(seed)
        disk = disk_of(host)
        disk.write("a", 0, b"1")
        disk.rename("a", "b")
        host.lose_power()
        lost += content(host, "b") != b"1"
    assert 0 < lost < 40


def test_a_reader_keeps_its_file() -> None:
    disk = disk_of(platter())
    disk.write("a", 0, b"old")
    reader = disk.open("a")
    disk.write("b", 0, b"newer")
    disk.rename("b", "a")
    disk.remove("a")
    assert reader is not None
    assert (reader.size, reader.read(0, 10)) == (3, b"old")


def test_power_is_cut_at_any_point_of_an_operation_and_then_nothing_works_any_more() -> None:
    names = []
    for point in range(3):
        host = platter()
        host.cut_after = point
        disk = disk_of(host)
        with pytest.raises(PowerCut):
            disk.allocate("a", 100)
        with pytest.raises(PowerCut):
            disk.names()
        host.lose_power()
        names.append(content(host, "a"))
    assert names == [None, b"", bytes(100)]


MORE: dict[str, Callable[[SimDisk], None]] = {
    "a longer file": lambda disk: disk.write("a", 95, b"1234567890"),
    "a new file": lambda disk: disk.write("b", 0, b"1"),
    "an allocation": lambda disk: disk.allocate("b", 1),
}


@pytest.mark.parametrize("what", MORE)
def test_a_full_disk_takes_what_needs_no_more_room(what: str) -> None:
    host = platter()
    disk = disk_of(host)
    disk.allocate("a", 100)
    host.full = True
    disk.write("a", 90, b"1234567890")
    with pytest.raises(OSError) as refused:  # noqa: PT011 - looked at below
        MORE[what](disk)
    assert is_full(refused.value)
    assert disk.names() == ["a"]
    assert disk.room()[0] == 0


def test_a_sync_that_fails_says_so_once_and_not_as_full() -> None:
    host = platter()
    disk = disk_of(host)
    disk.write("a", 0, b"1")
    host.sync_fails = True
    with pytest.raises(OSError) as failed:  # noqa: PT011 - looked at below
        disk.sync("a")
    assert not is_full(failed.value)
    disk.sync("a")


def test_a_slow_sync_tells_how_long_it_takes() -> None:
    host, waited = platter(), list[float]()
    host.sync_s = 0.5
    disk = SimDisk(host, waited.append)
    disk.write("a", 0, b"1")
    disk.sync("a")
    assert waited == [0.5]
