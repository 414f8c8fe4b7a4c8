"""The watchdog's countdown: it fires exactly when an armed node stops feeding."""

from hypothesis import given
from hypothesis import strategies as st

from lab.timer import DEFAULT_SECONDS, Timer


def test_it_is_disarmed_until_the_first_byte() -> None:
    assert not Timer().expired(1e9)
    assert Timer().receive(b"", 0.0).deadline is None
    assert Timer().receive(b"x", 5.0).deadline == 5.0 + DEFAULT_SECONDS


def test_feeding_starts_the_countdown_again() -> None:
    timer = Timer().receive(b"timeout 3\n", 0.0).receive(b"feed\n", 2.0)
    assert not timer.expired(4.9)
    assert timer.expired(5.0)


def test_the_magic_close_disarms_and_a_later_feed_arms_again() -> None:
    closed = Timer().receive(b"timeout 3\nfeed\nV\n", 0.0)
    assert not closed.expired(1e9)
    assert closed.receive(b"feed\n", 10.0).expired(13.0)


def test_nonsense_never_disarms() -> None:
    timer = Timer().receive(b"timeout 3\n", 0.0).receive(b"timeout -1\ntimeout nan\nVV\n", 1.0)
    assert timer.expired(4.0)


@given(st.lists(st.binary(min_size=1, max_size=5), max_size=20))
def test_it_does_not_matter_how_the_pipe_splits_the_text(chunks: list[bytes]) -> None:
    split = Timer()
    for chunk in chunks:
        split = split.receive(chunk, 1.0)
    whole = Timer().receive(b"".join(chunks), 1.0)
    assert (split.timeout, split.rest) == (whole.timeout, whole.rest)
