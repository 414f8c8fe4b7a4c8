"""What a scenario's file may hold, and what is said of one that is wrong."""

import json

import pytest

from common.errors import GugusError
from simulator.commands import COMMAND, LINES, Command, Expected
from simulator.scenario import load, schema

WRONG = """\
nodes:
  - {name: n1, cpu: 4}
  - {name: n2, memory_bytes: lots, power: maybe}
comands: []
settings: {node_lease_ms: 10}
commands:
  - power of n1
  - wait -5
  - wait soon
  - guest fail-start web zero times
  - device explodes n3
  - guest add: {name: web, nod: n1}
  - expect: {guests: {web: {stat: started}}, nodes: {n1: fense}}
  - [1]
  - guest load web many
  - nodes reboot
pools: [{name: nfs, locks: maybe}]
"""

STRANGE = """\
nodes: [{name: node1}, {name: node2}, {name: node1}, {name: vote, witness: true}]
managers: [node3]
guests:
  - {name: web, node: node3, pinned: nodeX}
  - {name: box, node: vote}
rules:
  - {kind: node-affinity, name: r, guests: [wbe], nodes: {node9: 1}}
  - {kind: guest-affinity, name: s, mode: apart}
commands:
  - power off nod1
  - guest migrate wen node2
  - guest add: {name: web, node: node1}
  - guest remove web
  - guest start web
  - rule remove q
  - device works node1
  - expect: {guests: {db: {node: n5}}, nodes: {n1: fenced}}
  - nodes reboot node1 nod2 node2
  - nodes reboot all
pools: [{name: nfs}, {name: nfs, locks: none}]
"""


def faults_of(text: str) -> dict[str, str]:
    with pytest.raises(GugusError) as caught:
        load(text, "it.yaml")
    assert caught.value.reason == "BAD_SCENARIO"
    assert "--schema" in caught.value.remedy
    return {one.field: one.message for one in caught.value.violations}


def test_all_faults_are_told_at_once_with_their_lines() -> None:
    faults = faults_of(WRONG)
    assert faults["nodes[0].cpu"].startswith("line 2: there is no such field; did you mean cpus?")
    assert faults["nodes[1].memory_bytes"].startswith('line 3: "lots" is not a size')
    assert "maybe is neither on nor off" in faults["nodes[1].power"]
    assert "line 4" in faults["comands"]
    assert "did you mean commands?" in faults["comands"]
    assert "give one from 3000 to 60000" in faults["settings.node_lease_ms"]
    assert "did you mean `power off NODE`?" in faults["commands[0]"]
    assert faults["commands[1]"].startswith("line 8: -5 is no time to wait: give seconds from 0 to")
    assert "soon is no time to wait" in faults["commands[2]"]
    assert "zero is no count" in faults["commands[3]"]
    assert 'a device cannot "explodes"' in faults["commands[4]"]
    assert "did you mean node?" in faults["commands[5].guest add.nod"]
    assert "did you mean state?" in faults["commands[6].expect.guests.web.stat"]
    assert "joining, online" in faults["commands[6].expect.nodes.n1"]
    assert "is no command" in faults["commands[7]"]
    assert "many is no number of CPUs" in faults["commands[8]"]
    assert "is no command" in faults["commands[9]"]
    assert "host, lease, none" in faults["pools[0].locks"]


def test_names_that_are_not_there_are_told_with_the_nearest() -> None:
    faults = faults_of(STRANGE)
    assert "is the name of nodes[0] already" in faults["nodes[2].name"]
    assert "did you mean node2?" in faults["managers[0]"]
    assert 'there is no node "node3"' in faults["guests[0].node"]
    assert 'there is no node "nodeX"' in faults["guests[0].pinned"]
    assert "vote is a witness, which runs no guests" in faults["guests[1].node"]
    assert "did you mean web?" in faults["rules[0].guests[0]"]
    assert "rules[0].nodes.node9" in faults
    assert "covers nobody" in faults["rules[1]"]
    assert "line 10" in faults["commands[0]"]
    assert "did you mean web?" in faults["commands[1]"]
    assert "is a guest already" in faults["commands[2].guest add.name"]
    assert 'there is no guest "web" here' in faults["commands[4]"]  # it was removed by then
    assert 'there is no rule "q" here' in faults["commands[5]"]
    assert "has no fence devices" in faults["commands[6]"]
    assert "commands[7].expect.nodes.n1" in faults
    assert "did you mean node2?" in faults["commands[8]"]
    assert "commands[9]" not in faults
    assert "is the name of pools[0] already" in faults["pools[1].name"]


@pytest.mark.parametrize("text", ["a: [", "", "[]", "nodes: []", "42"])
def test_what_is_no_scenario_is_refused(text: str) -> None:
    with pytest.raises(GugusError) as caught:
        load(text, "it.yaml")
    assert caught.value.reason == "BAD_SCENARIO"


def test_yaml_words_for_on_and_off_are_switches() -> None:
    text = "nodes: [{name: n1, power: off, network: on}, {name: n2, fence: {levels: [[a]], after: off}}]"
    scenario = load(text, "it")
    assert scenario.setup.off == {"n1"}
    assert scenario.setup.cut == set()


def test_json_is_read_as_well() -> None:
    assert (
        load(json.dumps({"nodes": [{"name": "n1"}], "commands": ["power off n1"]}), "it").commands[0].words
        == "power off"
    )


@pytest.mark.parametrize("line", LINES)
def test_every_command_can_be_written_as_it_is_documented(line: str) -> None:
    given = line.replace("SECONDS", "1.5").replace(" N ", " 3 ").replace("MOOD", "hangs").replace("CPUS", "2.5")
    for text in (given.replace("[", "").replace("]", ""), given.partition(" [")[0]):
        faults: list[object] = []
        command = COMMAND.read(text, "commands[0]", faults)  # type: ignore[arg-type]
        assert not faults, faults
        assert isinstance(command, Command)


def test_words_that_may_be_left_out() -> None:
    (command,) = load("nodes: [{name: n1}]\nguests: [{name: g}]\ncommands: [guest fail-start g 3]", "it").commands
    assert command.args == {"GUEST": "g", "N": "3"}
    (command,) = load(
        "nodes: [{name: n1}]\nguests: [{name: g}]\ncommands: [guest fail-start g 3 times on n1]", "it"
    ).commands
    assert command.args == {"GUEST": "g", "N": "3", "NODE": "n1"}


def test_any_number_of_nodes_may_follow() -> None:
    (command,) = load("nodes: [{name: n1}, {name: n2}]\ncommands: [nodes reboot n1 n2]", "it").commands
    assert (command.words, command.args) == ("nodes reboot", {"NODES": "n1 n2"})


def test_what_is_expected_is_read_whole() -> None:
    (command,) = load("nodes: [{name: n1}]\ncommands: [{expect: {nodes: {n1: online}, within_s: 3}}]", "it").commands
    assert isinstance(command.value, Expected)
    assert (command.value.nodes, command.value.within_s) == ({"n1": "online"}, 3.0)


def test_the_schema_names_every_command_and_field() -> None:
    text = json.dumps(schema())
    assert all(line in text for line in LINES)
    for word in (
        "nodes",
        "guests",
        "rules",
        "pools",
        "balance",
        "witness",
        "on_quorum_loss",
        "settings",
        "managers",
        "boot_s",
        "fence",
        "within_s",
        "guest add",
        "expect",
    ):
        assert f'"{word}"' in text
