"""The lease record: what it says of this boot is believed, and nothing else."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.compute.processes import ProcessRecord
from agent.fencing.record import FILE_NAME, LeaseRecord, read, write

NAMES = st.text(min_size=1, max_size=5)
PROCESSES = st.dictionaries(NAMES, st.builds(ProcessRecord, st.integers(1), st.integers(0)), max_size=3)
STARTING = st.lists(NAMES, max_size=3).map(tuple)


@given(st.builds(LeaseRecord, st.integers(0), PROCESSES, STARTING, PROCESSES, STARTING))
def test_what_is_written_is_what_is_read(record: LeaseRecord) -> None:
    assert LeaseRecord.from_bytes(record.to_bytes()) == record


def test_a_record_of_another_boot_tells_nothing(tmp_path: Path) -> None:
    now = LeaseRecord(1 << 60, {"web": ProcessRecord(1, 1)})
    write(tmp_path, now)
    assert read(tmp_path) == now
    write(tmp_path, replace(now, boot="another"))
    assert read(tmp_path) is None


def test_a_record_of_an_older_version_is_understood(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text(json.dumps({"deadline_ns": 5, "processes": {"web": [1, 2]}, "starting": ["db"]}))
    known = read(tmp_path)
    assert known is not None
    assert (known.deadline_ns, known.processes, known.starting) == (5, {"web": ProcessRecord(1, 2)}, ("db",))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"deadline_ns":Infinity,"processes":{},"starting":[]}', "\0" * 40])
def test_a_damaged_record_is_told_apart_from_none(tmp_path: Path, text: str) -> None:
    assert read(tmp_path) is None
    (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(ValueError, match=r".*"):
        read(tmp_path)
