"""The library is the one that we know."""

import inspect
import socket
from importlib.metadata import version

from manager.consensus.library import PRIVATE_FIELDS, PRIVATE_METHODS, REBOUND_NAMES, VERSION, SyncObj, library


def test_the_library_is_the_one_whose_private_names_we_rely_on() -> None:
    assert version("pysyncobj") == VERSION
    assert [m for m in PRIVATE_METHODS if not hasattr(SyncObj, f"_SyncObj__{m}")] == []
    source = inspect.getsource(SyncObj)
    assert [f for f in PRIVATE_FIELDS if f"self.__{f} =" not in source] == []
    assert [n for n in REBOUND_NAMES if not hasattr(library, n)] == []


def test_addresses_can_be_written_after_the_library_was_loaded() -> None:
    """It puts a function for Windows in the place of socket.inet_ntop, for the whole process."""
    assert socket.inet_ntop(socket.AF_INET, b"\x0a\x14\x00\x01") == "10.20.0.1"
