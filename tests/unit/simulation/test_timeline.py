"""Virtual time, and clocks that drift."""

import pytest

from tests.simulation.consensus import timeline
from tests.simulation.consensus.timeline import HostClock, Timeline, Violation


def test_events_come_in_order_of_time_and_then_of_their_making() -> None:
    line, seen = Timeline(), list[tuple[str, float]]()
    for name, delay in (("late", 2.0), ("first", 1.0), ("second", 1.0), ("past", -5.0)):
        line.after(delay, lambda name=name: seen.append((name, line.now)))  # type: ignore[misc]
    line.run(1.5)
    assert seen == [("past", 0.0), ("first", 1.0), ("second", 1.0)]
    assert line.now == 1.5
    line.run(0.5)
    assert seen[-1] == ("late", 2.0)


def test_events_without_end_are_a_violation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline, "MAX_EVENTS", 100)
    line = Timeline()

    def again() -> None:
        line.after(0, again)

    again()
    with pytest.raises(Violation, match="without end"):
        line.run(1)


def test_a_clock_that_runs_fast_shows_more_and_can_be_turned_back_into_real_time() -> None:
    clock = HostClock(offset=100.0, rate=1.05)
    assert clock.own(10.0) == pytest.approx(110.5)
    assert clock.real(clock.own(7.0)) == pytest.approx(7.0)
