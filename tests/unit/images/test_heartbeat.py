import pytest

from lab.images import heartbeat
from lab.images.heartbeat import Heartbeat, history_of_area, parse, two_copies, writers


def record(seq: int, boot: str) -> Heartbeat:
    return Heartbeat(seq, boot, float(seq), 1_800_000_000 + seq, "web")


def test_a_line_of_the_guest_is_read_back() -> None:
    assert parse("gugus-heartbeat 7 b-1 12.34 1795494257 web") == Heartbeat(7, "b-1", 12.34, 1795494257, "web")


@pytest.mark.parametrize("line", ["", "gugus-heartbeat 7 b-1", "gugus-heartbeat x b-1 1 2 web", "else 7 b-1 1 2 web"])
def test_a_torn_or_foreign_line_is_no_record(line: str) -> None:
    assert parse(line) is None


def test_an_area_never_written_has_no_history() -> None:
    assert history_of_area(heartbeat.empty_sector() + bytes(4096)) == ()


def test_a_disk_without_the_area_is_refused_with_the_reason() -> None:
    with pytest.raises(heartbeat.NoHeartbeat, match="not made from the demo's image"):
        history_of_area(bytes(4096))


def test_a_restart_is_no_second_copy() -> None:
    history = [record(1, "a"), record(2, "a"), record(3, "b")]
    assert writers(history) == ("a", "b")
    assert not two_copies(history)


def test_a_boot_that_writes_again_after_another_began_is_a_second_copy() -> None:
    assert two_copies([record(1, "a"), record(2, "b"), record(3, "a")])
