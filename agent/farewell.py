"""The last beats of a host that is shut down in order: what they carry, and when the acting manager has it.

A beat with the report of a lapse proves that no HA guest runs here, so the node is fenced without waiting. The same
report in a later beat would ask to be taken back, once the guests have their new hosts. So it is carried until it was
taken in, and no longer: beats without it leave a fenced node fenced.

Pure: no clock, no I/O.
"""

from gugus.cluster.v1 import heartbeat_pb2


class Farewell:
    """From the moment that the lease is given up on purpose. No answer renews it any more."""

    def __init__(self) -> None:
        self.over = False
        """Whether the acting manager counts this node as fenced."""
        self._carries = True
        self._reported: set[int] = set()

    def sent(self, sequence: int, lapse: heartbeat_pb2.LapseReport | None) -> heartbeat_pb2.LapseReport | None:
        """Return the report that a beat is to carry; `lapse` is the one there is, None while guests are being killed."""
        if lapse is None or not self._carries:
            return None
        self._reported.add(sequence)
        return lapse

    def answered(self, sequence: int, lease_ms: int, *, fenced: bool) -> bool:
        """Take in an answer of the acting manager; return whether to beat again at once."""
        if sequence in self._reported:
            self._carries = False
            return True
        if lease_ms > 0:
            self._carries = True  # it counts this node as online: it has not looked at a report, or lost it
        elif fenced and not self._carries:
            self.over = True
        return False
