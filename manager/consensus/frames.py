"""Cutting a stream of bytes into frames: a 4-byte big-endian length, then so many bytes.

Invariant: a length beyond the limit ends the stream before anything of that frame is kept; what is held is one incomplete
frame at most, so far as it has arrived.
"""

from collections.abc import Iterator

from .codec import WireError

_LENGTH_BYTES = 4


def framed(frame: bytes) -> bytes:
    """Return a frame with its length before it."""
    return len(frame).to_bytes(_LENGTH_BYTES, "big") + frame


class FrameSplitter:
    """The receiving end of one connection. `limit` may be changed at any time, also between two frames."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._buffer = bytearray()

    @property
    def incomplete(self) -> bool:
        """Whether a frame has begun and not ended."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take what arrived, and yield the frames that are complete now. Raises WireError for one that is too long."""
        self._buffer += data
        start = 0
        try:
            while (end := self._end_of_frame(start)) is not None:
                frame = bytes(memoryview(self._buffer)[start + _LENGTH_BYTES : end])
                start = end
                yield frame
        finally:
            del self._buffer[:start]

    def _end_of_frame(self, start: int) -> int | None:
        if len(self._buffer) < start + _LENGTH_BYTES:
            return None
        length = int.from_bytes(self._buffer[start : start + _LENGTH_BYTES], "big")
        if length > self.limit:
            raise WireError(f"frame: {length} bytes, at most {self.limit}")
        end = start + _LENGTH_BYTES + length
        return end if len(self._buffer) >= end else None
