"""What an attacker sends: pickles that leave a mark when anything unpickles them, and a client without manners."""

import asyncio
import os
import pickle
import ssl
import sys
from pathlib import Path

from gugus.consensus.v1 import wire_pb2

from manager.consensus import TlsFiles
from manager.consensus.codec import decode_refusal
from manager.consensus.frames import FrameSplitter, framed
from manager.consensus.outbound import MAX_REFUSAL_BYTES

_found: list[object] = []
_armed = False


def _audit(event: str, args: tuple[object, ...]) -> None:
    if _armed and event == "pickle.find_class":
        _found.append(args)


sys.addaudithook(_audit)  # it cannot be taken away again; it does nothing unless a trap is armed


class Trap:
    """Watches for anything of a pickle being looked up or called while it is open, in any thread of this process."""

    def __init__(self, folder: Path) -> None:
        self._marker = folder / "owned"

    def __enter__(self) -> "Trap":
        global _armed
        _found.clear()
        _armed = True
        return self

    def __exit__(self, *_: object) -> None:
        global _armed
        _armed = False
        assert not self._marker.exists(), "a pickle was executed"
        assert not _found, f"a pickle was looked into: {_found}"

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self._marker),)

    def pickles(self) -> list[bytes]:
        """Return this trap pickled, in every protocol."""
        return [pickle.dumps(self, protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]


def frames_with(data: bytes, term: int = 0, index: int = 1) -> list[bytes]:
    """Return frames of every kind that can carry bytes or text, with these in each."""
    shown = data.decode("latin-1")
    entry = [wire_pb2.Entry(index=index + 1, term=term, command=command) for command in (data, b"\x00" + data)]
    command = wire_pb2.Command(data=data).SerializeToString()
    entry.append(wire_pb2.Entry(index=index + 1, term=term, command=b"\x00" + command))
    frames = [
        *(wire_pb2.Frame(append_entries=_append(term, index, one)) for one in entry),
        wire_pb2.Frame(
            snapshot_chunk=wire_pb2.SnapshotChunk(
                term=term, snapshot_index=index + 1_000, total_bytes=len(data), data=data
            )
        ),
        wire_pb2.Frame(hello=wire_pb2.Hello(level=1, cluster_id=shown, sender=shown, recipient=shown)),
        wire_pb2.Frame(refusal=wire_pb2.Refusal(reason=shown)),
    ]
    return [data, *(frame.SerializeToString() for frame in frames)]


def _append(term: int, index: int, entry: wire_pb2.Entry) -> wire_pb2.AppendEntries:
    return wire_pb2.AppendEntries(term=term, previous_index=index, previous_term=term, entries=[entry])


class Client:
    """A TLS client that says what it is told to."""

    def __init__(self, port: int, files: TlsFiles | None, ca: Path) -> None:
        self._port = port
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.check_hostname = False
        self._context.load_verify_locations(ca)
        if files is not None:
            self._context.load_cert_chain(files.certificate, files.key)

    async def __aenter__(self) -> "Client":
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port, ssl=self._context)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.transport.abort()

    def hello(self, sender: str, recipient: str, **fields: object) -> None:
        """Introduce ourselves."""
        hello = wire_pb2.Hello(
            **{"level": 1, "cluster_id": "c1", "sender": sender, "recipient": recipient, **fields}  # type: ignore[arg-type]
        )
        self.frame(wire_pb2.Frame(hello=hello).SerializeToString())

    def frame(self, frame: bytes) -> None:
        """Send a frame."""
        self._writer.write(framed(frame))

    def raw(self, data: bytes) -> None:
        """Send bytes."""
        self._writer.write(data)

    async def answer(self, timeout_s: float = 5.0) -> str:
        """Wait for the end of the connection; return why it was refused, "" when nothing was said."""
        async with asyncio.timeout(timeout_s):
            try:
                data = await self._reader.read()
            except (ConnectionError, ssl.SSLError):
                return ""
        frames = list(FrameSplitter(MAX_REFUSAL_BYTES).feed(data))
        return decode_refusal(frames[0]) if frames else ""
