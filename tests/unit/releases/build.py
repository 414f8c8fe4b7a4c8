"""Makes the next release of this checkout: new fields, a new kind of frame, and a new operation at level 2."""

import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[3]

EDITS: Mapping[str, Mapping[str, str]] = {
    "proto/gugus/cluster/v1/guest.proto": {
        "message Guest {": "message Guest {\n  string shine = 99;",
        "message GuestSpec {": "message GuestSpec {\n  string glow = 98;",
    },
    "proto/gugus/store/v1/store.proto": {"message Txn {": "message Txn {\n  repeated string touches = 99;"},
    "proto/gugus/consensus/v1/wire.proto": {
        "message Hello {": "message Hello {\n  string release = 99;",
        "message AppendEntries {": "message AppendEntries {\n  string mood = 99;",
        "    Refusal refusal = 12;": "    Refusal refusal = 12;\n    Gossip gossip = 99;",
        "message Refusal {": "message Gossip {\n  string text = 1;\n}\nmessage Refusal {",
    },
    "manager/consensus/level.py": {"\n\nLEVEL: Final = 1\n": "\n\nLEVEL: Final = 2\n"},
    "manager/consensus/outbound.py": {
        "sender=self._me.name,": 'release="next", sender=self._me.name,',
        "        transport.write(framed(encode_hello(self._hello())))\n": (
            "        transport.write(framed(encode_hello(self._hello())))\n"
            '        gossip = wire_pb2.Gossip(text="new")\n'
            "        transport.write(framed(wire_pb2.Frame(gossip=gossip).SerializeToString()))\n"
        ),
    },
    "manager/consensus/codec.py": {
        '    if kind == "append_entries":\n        body.entries.extend': (
            '    if kind == "append_entries":\n        body.mood = "bright"\n        body.entries.extend'
        ),
        "    if kind not in _FIELDS:\n": '    if kind == "gossip":\n        return None\n    if kind not in _FIELDS:\n',
    },
    "manager/store/state.py": {
        "list(txn.deletes)\n": (
            "list(txn.deletes)\n"
            "        puts += [(key, entry.value) for key in txn.touches if (entry := self._entry(key)) is not None]\n"
        ),
    },
}
"""Text by text, each once in its file: an edit that does not fit any more fails, so that this stays a true release."""


def next_release(folder: Path) -> Path:
    """Build the next release in a folder; return what its members need as PYTHONPATH."""
    for part in ("manager", "common", "proto"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    for name, edits in EDITS.items():
        path = folder / name
        text = path.read_text()
        for before, after in edits.items():
            assert text.count(before) == 1, f"{name}: {before!r} is there {text.count(before)} times"
            text = text.replace(before, after)
        path.write_text(text)
    protos = [str(path) for path in (folder / "proto").rglob("*.proto")]
    include = [f"-I{folder / 'proto'}", f"-I{sysconfig.get_paths()['purelib']}"]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *include, f"--python_out={folder}", *protos], check=True)
    return folder
