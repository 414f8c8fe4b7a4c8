"""`gugus plan`: from a file to a plan, without a cluster."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from client.cli import app, failure
from planner.document import schema
from planner.filters import FILTERS
from planner.objective import METRICS
from planner.scores import SCORES

GIB = 1 << 30

CLUSTER: dict[str, Any] = {
    "nodes": [
        {
            "name": "n1",
            "cpus": 8,
            "memory_bytes": 16 * GIB,
            "disk_bytes": 100 * GIB,
            "labels": {"rack": "a"},
            "online": True,
            "reserved_memory_bytes": GIB,
        },
        {"name": "n2", "cpus": 8, "memory_bytes": 16 * GIB, "disk_bytes": 100 * GIB, "labels": {"rack": "b"}},
    ],
    "guests": [
        {
            "name": "db1",
            "cpus": 2,
            "memory_bytes": 4 * GIB,
            "disk_bytes": GIB,
            "node": None,
            "priority": 5,
            "labels": {"app": "db"},
            "cpu_load": 0.5,
            "memory_load": 0.25,
        },
        {"name": "db2", "cpus": 2, "memory_bytes": 4 * GIB, "node": "n1", "labels": {"app": "db"}},
        {"name": "web", "cpus": 1, "memory_bytes": 2 * GIB, "node": "n1"},
        {"name": "huge", "cpus": 1, "memory_bytes": 40 * GIB},
    ],
    "rules": [
        {"kind": "guest-affinity", "name": "dbs", "guest_labels": {"app": "db"}, "mode": "apart", "domain": "rack"}
    ],
    "settings": {"cpu_overcommit_percent": 200, "balance": {"move_cost": 0}},
}


def plan(*words: str, document: Any = CLUSTER) -> Result:
    text = document if isinstance(document, str) else json.dumps(document)
    return CliRunner().invoke(app, ["plan", *words, "--cluster", "-"], input=text)


def answer(*words: str, document: Any = CLUSTER) -> dict[str, Any]:
    result = plan(*words, "-o", "json", document=document)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_placing_tells_assignments_scores_and_each_hosts_reason() -> None:
    told = answer("place")
    assert told["assignments"] == {"db1": "n2", "db2": "n1", "huge": None, "web": "n1"}
    assert [(m["guest"], m["from"], m["to"], m["wave"]) for m in told["moves"]] == [("db1", None, "n2", 1)]
    (huge,) = told["unplaced"]
    assert {host["node"]: host["reasons"] for host in huge["hosts"]} == {
        "n1": [
            "memory-size: 40GiB asked, the host has 15GiB for guests",
            "memory: 40GiB asked, 9GiB left to promise",
        ],
        "n2": [
            "memory-size: 40GiB asked, the host has 16GiB for guests",
            "memory: 40GiB asked, 12GiB left to promise",
        ],
    }
    assert told["score"]["after"]["total"] < told["score"]["before"]["total"]


def test_a_lost_node_and_one_that_the_file_says_is_off() -> None:
    told = answer("fail", "n1")
    assert {m["guest"]: m["to"] for m in told["moves"]} == {"db2": "n2", "web": "n2"}
    off = json.loads(json.dumps(CLUSTER))
    off["nodes"][0]["online"] = False
    assert answer("fail", document=off)["assignments"]["web"] == "n2"
    result = plan("fail")
    assert (result.exit_code, "all nodes of the file are online" in result.stderr) == (failure.USAGE, True)


def test_balance_and_drain_tell_moves_in_waves() -> None:
    told = answer("balance")
    assert told["moves"][0]["from"] == "n1"
    assert told["waves"] == [[move["guest"]] for move in told["moves"]]
    assert answer("balance", "--max-moves", "0")["moves"] == []
    assert set(answer("drain", "n1")["assignments"].values()) <= {"n2", None}


def test_yaml_is_read_and_written_too(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(CLUSTER))
    result = CliRunner().invoke(app, ["plan", "place", "--cluster", str(file), "-o", "yaml"])
    assert yaml.safe_load(result.stdout) == answer("place")


def test_people_get_tables() -> None:
    result = plan("place")
    assert "WAVE  GUEST  FROM  TO  WHY" in result.stdout
    assert "huge   n2    memory-size: 40GiB asked" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("total")


def test_every_fault_of_a_file_is_told_at_once() -> None:
    bad = {
        "nodes": [{"name": "n1", "cpus": -1, "memory": 3, "memory_bytes": "2GB"}, {"cpus": True}],
        "guests": [{"name": "g", "cpus": 1, "memory_bytes": 1.5, "cpu_load": 2, "labels": []}],
        "rules": [{"kind": "nonsense"}, {"kind": "guest-affinity", "name": "r", "mode": "near"}],
        "settings": {"weights": {"spred": 1}, "policy": "tidy", "spare": {"hosts": 99}},
    }
    result = plan("place", "-o", "json", document=bad)
    assert result.exit_code == failure.USAGE
    error = json.loads(result.stderr.splitlines()[-1])["error"]
    assert error["reason"] == "BAD_CLUSTER"
    assert {one["field"]: one["message"] for one in error["violations"]} == {
        "nodes[0].memory": "there is no such field; did you mean memory_bytes?",
        "nodes[0].cpus": "-1 is out of range; give one from 0 to 1000000.",
        "nodes[0].memory_bytes": '"2GB" is ambiguous: write "GiB" for the binary unit.',
        "nodes[1].name": "is missing. Its name.",
        "nodes[1].cpus": "True is not a whole number; give one from 0 to 1000000.",
        "nodes[1].memory_bytes": "is missing. Memory of the host.",
        "guests[0].memory_bytes": "1.5 is not a whole number; give one from 0 to 9007199254740991.",
        "guests[0].cpu_load": "2 is out of range; give one from 0 to 1.",
        "guests[0].labels": "[] is not an object with fields.",
        "rules[0].kind": '"nonsense" is none of node-affinity, guest-affinity.',
        "rules[1].mode": '"near" is none of together, apart.',
        "settings.weights.spred": "there is no such name; did you mean spread?",
        "settings.policy": '"tidy" is none of spread, pack.',
        "settings.spare.hosts": "99 is out of range; give one from 0 to 8.",
    }


def test_names_that_stand_twice_or_for_nothing_are_told() -> None:
    bad = {
        "nodes": [{"name": "n1", "cpus": 1, "memory_bytes": 1}, {"name": "n1", "cpus": 1, "memory_bytes": 1}],
        "guests": [{"name": "g", "cpus": 1, "memory_bytes": 1, "node": "n9", "after": ["g"]}],
    }
    error = json.loads(plan("place", "-o", "json", document=bad).stderr.splitlines()[-1])["error"]
    fields = [one["field"] for one in error["violations"]]
    assert fields == ["nodes[1].name", "guests[0].node", "guests[0].after[0]"]
    stranger = {**CLUSTER, "rules": [{"kind": "node-affinity", "name": "r", "guests": ["x"], "nodes": {"n1": 1}}]}
    result = plan("place", document=stranger)
    assert (result.exit_code, "rule r names guests that are none: x." in result.stderr) == (failure.USAGE, True)


def test_rules_that_cannot_hold_are_told_with_the_plan() -> None:
    rules = [
        {"kind": "guest-affinity", "name": "near", "guests": ["db1", "db2"], "mode": "together"},
        {"kind": "guest-affinity", "name": "far", "guests": ["db1", "db2"], "mode": "apart"},
    ]
    told = answer("place", document={**CLUSTER, "rules": rules})
    assert [one["reason"] for one in told["conflicts"]] == ["TOGETHER_AND_APART"]
    assert told["assignments"]["db1"] is None


@pytest.mark.parametrize("text", ["nodes: [", '{"nodes": [}', "- just\n- a list", "42", ""])
def test_what_is_no_document_is_refused_in_words(text: str) -> None:
    result = plan("place", document=text)
    assert result.exit_code == failure.USAGE
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.output


def test_the_schema_knows_all_that_is_read() -> None:
    result = CliRunner().invoke(app, ["plan", "schema"])
    shown = json.loads(result.stdout)
    assert shown == json.loads(json.dumps(schema()))
    assert set(shown["properties"]) == {"nodes", "guests", "rules", "settings"}
    for part in ("nodes", "guests"):
        known = shown["properties"][part]["items"]["properties"]
        assert all(field in known for item in CLUSTER[part] for field in item)
        assert all(field["description"] for field in known.values())


def test_other_commands_do_not_load_the_planner() -> None:
    code = "import sys, client.cli.app, client.cli.guest_app; print('numpy' in sys.modules, 'planner' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["False", "False"]


def test_the_page_tells_every_field_filter_score_and_part() -> None:
    page = (Path(__file__).parents[3] / "docs" / "planning.md").read_text()
    shown = schema()["properties"]
    fields = {name for part in ("nodes", "guests") for name in shown[part]["items"]["properties"]}
    fields |= {name for form in shown["rules"]["items"]["oneOf"] for name in form["properties"]}
    settings = shown["settings"]["properties"]
    fields |= set(settings) - {"spare", "balance"}
    fields |= {f"{group}.{name}" for group in ("spare", "balance") for name in settings[group]["properties"]}
    names = {one.name for one in FILTERS} | {name for name, _ in SCORES} | {one.name for one in METRICS}
    assert [name for name in sorted(fields | names) if f"`{name}`" not in page] == []


def test_the_pages_example_is_a_file_that_can_be_planned_with() -> None:
    page = (Path(__file__).parents[3] / "docs" / "planning.md").read_text()
    example = page.split("```yaml\n")[1].split("```")[0]
    told = answer("place", document=example)
    assert told["conflicts"] == []
    assert set(json.loads(page.split("```json\n")[1].split("```")[0])) == set(told)
