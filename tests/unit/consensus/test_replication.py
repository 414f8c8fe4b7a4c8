"""How a follower far behind is helped: the leader's snapshot travels once, whatever old answers come in between."""

from manager.consensus.library import Message, virtual_clock
from tests.unit.consensus.memory import memory_core

NAMES = ["n1", "n2", "n3"]


def answer(term: int, following: int, *, reset: bool = False) -> Message:
    """What a follower says whose log ends before `following`."""
    head = {"type": "next_node_idx", "term": term, "next_node_idx": following}
    return {**head, "reset": reset, "success": not reset, "round": 0}


def test_an_old_answer_neither_ends_a_snapshot_nor_makes_it_endless() -> None:
    clock, sent = [1.0], list[tuple[str, Message]]()
    with virtual_clock(lambda: clock[0]):
        core = memory_core("n1", NAMES, lambda name, message: sent.append((name, message)), 1)
        for name in NAMES[1:]:
            core.peer_connected(name)
            core.peer_greeted(name, 1, "")
        clock[0] += 10
        core.turn()
        question = next(message for _, message in sent if message["type"] == "pre_vote")
        core.receive("n2", {"type": "pre_vote_granted", "round": question["round"]})
        core.turn()
        core.receive("n2", {"type": "response_vote", "term": core.term})
        core.turn()
        assert core.is_leader
        for number in range(40):  # n2 follows, n3 hears nothing; the log before the snapshot goes away
            core.propose(b"%d" % number, lambda _: None)
            core.turn()
            core.receive("n2", answer(core.term, core.journal.last_index + 1))
            core.turn()
        assert core.journal.first_index > 10
        core.receive("n3", answer(core.term, 2, reset=True))
        core.turn()
        index = sent[-1][1]["snapshot_index"]
        assert sent[-1] == ("n3", {**sent[-1][1], "type": "snapshot_chunk", "offset": 0})
        core.receive("n3", answer(core.term, 5))  # of before, on its way for long
        core.turn()
        core.receive("n3", answer(core.term, index + 1))  # it has the snapshot
        sent.clear()
        core.turn()
        clock[0] += 1
        core.turn()
        to_n3 = [message for name, message in sent if name == "n3"]
        assert {message["type"] for message in to_n3} == {"append_entries"}
        assert to_n3[0]["prevLogIdx"] == index
        assert core.match_index("n3") == index
