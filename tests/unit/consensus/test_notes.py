import pytest

from manager.consensus.notes import MAX_PEERS, Notes


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr("manager.consensus.notes.time.monotonic", lambda: now[0])
    return now


def test_the_same_is_said_again_after_long_and_something_else_after_a_while(clock: list[float]) -> None:
    said = Notes()
    assert said.worth_saying("n1", "refused")
    assert not said.worth_saying("n1", "refused")
    assert said.worth_saying("n2", "refused")
    clock[0] = 11.0
    assert not said.worth_saying("n1", "refused")
    assert said.worth_saying("n1", "not reached")
    clock[0] = 611.0
    assert said.worth_saying("n1", "not reached")


def test_a_peer_that_alternates_is_told_of_rarely(clock: list[float]) -> None:
    said = Notes()
    count = 0
    for attempt in range(1_000):
        clock[0] += 0.01
        count += said.worth_saying("stranger", f"reason {attempt % 2}")
    assert count == 1


def test_memory_is_bounded_whoever_comes(clock: list[float]) -> None:
    said = Notes()
    for peer in range(1_000):
        said.worth_saying(f"10.0.0.{peer}", "no handshake")
    assert len(said._said) == MAX_PEERS
