"""Handing leadership over: a voter that is asked to take over does so, whatever else its leader says meanwhile."""

from manager.consensus.core import RaftCore
from manager.consensus.library import Message, virtual_clock
from tests.unit.consensus.memory import memory_core

NAMES = ["n1", "n2", "n3"]
HEARTBEAT: Message = {
    "type": "append_entries", "term": 1, "commit_index": 1, "prevLogIdx": 1, "prevLogTerm": 0, "round": 1, "quiet": False,
    "entries": [],
}  # fmt: skip


def follower(sent: list[tuple[str, Message]]) -> RaftCore:
    core = memory_core("n1", NAMES, lambda name, message: sent.append((name, message)), 1)
    for name in NAMES[1:]:
        core.peer_connected(name)
        core.peer_greeted(name, 1, "")
    core.receive("n2", HEARTBEAT)
    core.turn()
    assert (core.leader, core.term) == ("n2", 1)
    sent.clear()
    return core


def test_a_heartbeat_right_behind_it_does_not_take_it_back() -> None:
    sent = list[tuple[str, Message]]()
    with virtual_clock(lambda: 1.0):
        core = follower(sent)
        core.receive("n2", {"type": "timeout_now", "term": 1})
        core.receive("n2", HEARTBEAT)
        core.turn()
        asked = {name: message for name, message in sent if message["type"] == "request_vote"}
        assert {name: (message["term"], message["transfer"]) for name, message in asked.items()} == {
            "n2": (2, True),
            "n3": (2, True),
        }
        sent.clear()
        core.turn()
        assert not sent, "once"


def test_what_a_former_leader_wished_is_void_under_another() -> None:
    sent = list[tuple[str, Message]]()
    with virtual_clock(lambda: 1.0):
        core = follower(sent)
        core.receive("n2", {"type": "timeout_now", "term": 1})
        core.receive("n3", {**HEARTBEAT, "term": 2})
        core.turn()
        assert not [message for _, message in sent if message["type"] in ("request_vote", "pre_vote")]
        assert (core.leader, core.term) == ("n3", 2)
