"""Durations are read and written as Prometheus does."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_sd.config import Duration, format_duration

DAY = 86_400_000


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("0", 0),
        ("0s", 0),
        ("100ms", 100),
        ("1s", 1_000),
        ("5m", 300_000),
        ("1h30m", 5_400_000),
        ("1d", DAY),
        ("1w", 7 * DAY),
        ("1y", 365 * DAY),
        ("1y2w3d4h5m6s7ms", (365 + 14 + 3) * DAY + 4 * 3_600_000 + 5 * 60_000 + 6_007),
        ("90m", 5_400_000),
        ("0001s", 1_000),
        ("292y", 292 * 365 * DAY),
    ],
)
def test_durations_are_read(text: str, milliseconds: int) -> None:
    assert Duration.of(text) == Duration(milliseconds)
    assert Duration.of(text).seconds == milliseconds / 1000


@pytest.mark.parametrize(
    "text", ["", "10", "1", "m", "1M", "1m1h", "1m1m", "1s1", "-1s", "+1s", "1.5s", " 1s", "1s ", "1s\n", "٣s", "1ms1s"]
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a valid duration string") as caught:
        Duration.of(text)
    assert f'"{text}"'.replace("\n", "\\n") in str(caught.value)


@pytest.mark.parametrize("text", ["293y", "9223372036855ms", "99999999999999999999ms", "9" * 5000 + "y"])
def test_durations_beyond_64_bits_of_nanoseconds_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="duration out of range"):
        Duration.of(text)


def test_zeros_in_front_make_no_number_too_long() -> None:
    assert Duration.of("0" * 5000 + "1s") == Duration(1000)


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (0, "0s"),
        (1, "1ms"),
        (90_000, "1m30s"),
        (5_400_000, "1h30m"),
        (90 * DAY, "90d"),
        (14 * DAY, "2w"),
        (365 * DAY, "1y"),
        (366 * DAY, "366d"),
        (730 * DAY, "2y"),
    ],
)
def test_the_canonical_form(milliseconds: int, text: str) -> None:
    assert format_duration(Duration(milliseconds)) == str(Duration(milliseconds)) == text


@given(st.integers(min_value=0, max_value=9_223_372_036_854))
def test_what_is_written_is_read_back(milliseconds: int) -> None:
    assert Duration.of(str(Duration(milliseconds))) == Duration(milliseconds)


def test_a_duration_is_a_value() -> None:
    @dataclass(frozen=True)
    class Timed:
        every: Duration = Duration(5)  # noqa: RUF009 (immutable)

    assert hash(Timed()) == hash(Timed(Duration(5)))
    assert Duration(1) < Duration(2)
    with pytest.raises(ValueError, match="not negative"):
        Duration(-1)
