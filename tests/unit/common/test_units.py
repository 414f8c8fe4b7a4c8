import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.units import format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1024", 1024),
        ("100B", 100),
        ("512MiB", 512 << 20),
        ("512mi", 512 << 20),
        ("2G", 2 << 30),
        (" 1.5 GiB ", 3 << 29),
        ("1T", 1 << 40),
    ],
)
def test_sizes_are_binary(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("512MB", 'ambiguous: write "MiB"'),
        ("", "is not a size"),
        ("-1G", "is not a size"),
        ("1e3", "is not a size"),
        ("G", "is not a size"),
        ("1.3B", "whole number"),
        ("9999999P", "more than any host"),
        ("１G", "is not a size"),
    ],
)
def test_texts_that_are_no_size_say_why(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_size(text)


@given(st.integers(0, 2**62))
def test_formatted_size_reads_back_within_rounding(size: int) -> None:
    read = parse_size_leniently(format_size(size))
    assert abs(read - size) <= size / 100 + 1


def parse_size_leniently(text: str) -> float:
    number = text.rstrip("BKMGTPi")
    factor = parse_size("1" + text.removeprefix(number))
    return float(number) * factor


def test_sizes_are_shown_short() -> None:
    assert [format_size(n) for n in (0, 100, 1024, 3 << 29, 10 << 40)] == ["0B", "100B", "1KiB", "1.5GiB", "10TiB"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10s", 10), ("5m", 300), ("1h30m", 5400), ("250ms", 0.25), ("2d", 172800), ("1.5s", 1.5), ("10", 10)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1s", "1x", "1s1s", "10 s", "1h 30m", "inf", "nan", "1e9"])
def test_texts_that_are_no_duration_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"duration|twice"):
        parse_duration(text)


def test_durations_are_shown_in_at_most_two_units() -> None:
    shown = [format_duration(s) for s in (0, 0.25, 1.5, 10, 59.96, 90, 3600, 5400.4, 183600, -5)]
    assert shown == ["0ms", "250ms", "1.5s", "10s", "1m", "1m30s", "1h", "1h30m", "2d3h", "-5s"]
