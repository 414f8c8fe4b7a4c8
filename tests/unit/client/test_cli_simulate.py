"""`gugus simulate`: what it prints, and its exit codes."""

import json
import subprocess
import sys
from pathlib import Path

GUGUS = Path(sys.executable).with_name("gugus")
GOOD = """
nodes: [{name: n1}, {name: n2}, {name: n3}]
guests: [{name: web, node: n3}]
commands:
  - wait 5
  - power off n3
  - expect: {guests: {web: {not_node: n3, runs: true}}, within_s: 20}
"""


def run(*args: str, text: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run([GUGUS, "simulate", *args], input=text, capture_output=True, text=True, timeout=60)


def test_the_log_and_the_verdict(tmp_path: Path) -> None:
    file = tmp_path / "it.yaml"
    file.write_text(GOOD)
    done = run(str(file))
    assert done.returncode == 0, done.stderr
    assert "> command    power off n3" in done.stdout
    assert "n3 was fenced" in done.stdout
    assert "as expected" in done.stderr


def test_every_step_as_json() -> None:
    done = run("-", "-o", "json", text=GOOD)
    played = json.loads(done.stdout)
    assert played["ok"] is True
    assert [step["command"] for step in played["steps"]] == ["begin", "wait 5", "power off n3", "end"]
    web = played["steps"][-1]["guests"]["web"]
    assert (web["state"], web["recoveries"], web["runs_on"]) == ("started", 1, [web["node"]])
    assert done.stdout == run("-", "-o", "json", text=GOOD).stdout


def test_what_was_not_so_is_told_and_fails() -> None:
    done = run("-", text=GOOD.replace("within_s: 20", "within_s: 3"))
    assert done.returncode == 1
    assert "not as expected: at 8.0 s: guest web: node is n3 within 3 s" in done.stderr


def test_a_wrong_file_is_refused_with_every_fault() -> None:
    done = run("-", text="nodes: [{nam: n1}]\ncommands: [power of n1]")
    assert done.returncode == 2
    assert "did you mean name?" in done.stderr
    assert "power off NODE" in done.stderr
    assert run("/nowhere.yaml").returncode == 2
    assert run().returncode == 2


def test_the_schema_is_json() -> None:
    assert json.loads(run("--schema").stdout)["title"].startswith("A scenario")
