import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from client import caller, entry
from client.cli import app, failure
from common.identity.ca import CertificateAuthority
from common.identity.credentials import Credentials
from common.identity.names import Identity, Role
from tests.unit.client.conftest import Gugus
from tests.unit.client.fake import Cluster

CREATE = ["guest", "create", "web", "--kind", "vm", "--pool", "local", "--image", "tiny"]


def test_a_guest_is_made_and_listed(cluster: Cluster, gugus: Gugus) -> None:
    made = gugus(
        *CREATE,
        "--memory",
        "1GiB",
        "--cpu-limit",
        "0.5",
        "--disk",
        "2GiB/local",
        "--ha",
        "--label",
        "tier=web",
        "--network",
        "lan",
    )
    assert (made.exit_code, made.stdout) == (0, "")
    assert "making volumes" in made.stderr
    assert "guest web runs." in made.stderr
    request = cluster.state.requests[0]
    assert [(d.pool, d.image, d.size_bytes) for d in request.spec.disks] == [
        ("local", "tiny", 0),
        ("local", "", 2 << 30),
    ]
    assert (request.spec.memory_bytes, request.spec.ha.enabled, dict(request.labels)) == (
        1 << 30,
        True,
        {"tier": "web"},
    )
    assert request.spec.cpu_limit_milli == 500
    lines = gugus("guest", "list").stdout.splitlines()
    assert lines[0].split() == ["NAME", "KIND", "PHASE", "NODE", "HA", "CPUS", "MEMORY", "ADDRESSES", "MARKS", "REASON"]
    assert lines[1].split() == ["web", "vm", "running", "n1", "yes", "1", "1GiB", "-", "-", "-"]


def test_json_and_yaml_are_the_api_s_messages_alone_on_stdout(gugus: Gugus) -> None:
    task = json.loads(gugus(*CREATE, "-o", "json").stdout)
    assert (task["kind"], task["state"]) == ("create-guest", "TASK_STATE_SUCCEEDED")
    guests = json.loads(gugus("guest", "list", "-o", "json").stdout)
    assert guests == yaml.safe_load(gugus("guest", "list", "-o", "yaml").stdout)
    assert (guests[0]["meta"]["name"], guests[0]["spec"]["ha"]["enabled"]) == ("web", False)
    assert "recoveries" in guests[0]["status"]


def test_without_waiting_the_task_s_id_is_the_output(gugus: Gugus) -> None:
    assert gugus(*CREATE, "--no-wait").stdout == "t1\n"
    assert gugus("task", "wait", "t1").exit_code == failure.OK
    assert "t1  create-guest  guest/web  succeeded  100%" in gugus("task", "list").stdout


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["guest", "show", "wep"], failure.NOT_FOUND, 'guest "wep" does not exist.\n  what to do: Did you mean "web"?'),
        (CREATE, failure.CONFLICT, "already exists.\n  what to do: Choose another name."),
        (["guest", "lisst"], failure.USAGE, "Did you mean 'list'"),
        (["gest", "list"], failure.USAGE, "Did you mean 'guest'"),
        (["guest", "list", "--nod", "n1"], failure.USAGE, "--node"),
        ([*CREATE, "--memory", "1MB"], failure.USAGE, '--memory: "1MB" is ambiguous: write "MiB"'),
        ([*CREATE, "--disk", "ten"], failure.USAGE, "like 10GiB/local"),
        *(
            ([*CREATE, "--cpu-limit", text], failure.USAGE, "a number of CPUs")
            for text in ("half", "0", "-1", "nan", "inf")
        ),
        (["guest", "stop", "web", "--timeout", "3mo"], failure.USAGE, 'like "10s"'),
        (["guest", "delete", "web"], failure.USAGE, "what to do: Repeat the command with --yes."),
        (["--endpoint", "here", "guest", "list"], failure.USAGE, "like 192.0.2.1:7443"),
        (["guest", "create", "Web_1", "--kind", "vm"], failure.USAGE, "lower-case"),
        (["guest", "create", "a", "--kind", "vm"], failure.USAGE, "--pool: is missing"),
        (["--config", "/nowhere.yaml", "guest", "list"], failure.CONFLICT, "/nowhere.yaml does not exist"),
        (["--timeout", "1s", "--endpoint", "127.0.0.1:1", "node", "list"], failure.UNAVAILABLE, "no manager answered"),
        (["network", "create", "lan", "--bridge", "gugus0", "--nat"], failure.USAGE, "--address: is needed with --nat"),
    ],
)
def test_a_failure_says_what_was_wrong_and_what_is_right(gugus: Gugus, args: list[str], code: int, said: str) -> None:
    gugus(*CREATE)
    result = gugus(*args)
    assert said in result.stderr
    assert (result.exit_code, result.stdout) == (code, "")


def test_a_failed_task_exits_with_1_and_its_cause(gugus: Gugus) -> None:
    result = gugus("guest", "create", "doomed", *CREATE[3:], "-o", "json")
    assert (result.exit_code, result.stdout) == (failure.FAILED, "")
    assert "error: pool local is full.\n  what to do: Delete something.\n" in result.stderr
    error = json.loads(result.stderr.splitlines()[-1])["error"]
    assert (error["reason"], error["exit_code"], error["metadata"]["task"]) == ("NO_SPACE", 1, "t1")


def test_who_is_no_operator_is_denied(gugus: Gugus, ca: CertificateAuthority, settings_file: Path) -> None:
    _pose_as(ca.issue(Identity(ca.cluster_id, Role.NODE, "n2")), settings_file.parent)
    assert gugus("guest", "list").exit_code == failure.DENIED


def test_a_certificate_of_a_foreign_ca_reaches_no_manager(gugus: Gugus, settings_file: Path) -> None:
    foreign = CertificateAuthority.create("0123456789abcdef", "demo")
    _pose_as(foreign.issue(Identity(foreign.cluster_id, Role.OPERATOR, "admin")), settings_file.parent)
    assert gugus("--timeout", "1s", "guest", "list").exit_code == failure.UNAVAILABLE


def _pose_as(credentials: Credentials, folder: Path) -> None:
    (folder / "operator.crt").write_bytes(credentials.cert_pem)
    (folder / "operator.key").write_bytes(credentials.key_pem)


def test_explain_shows_each_node_with_scores_or_refusals(gugus: Gugus) -> None:
    text = gugus("guest", "explain", "web").stdout
    assert text.startswith("n1 has the most free memory.\n")
    assert "n1 *  yes   1.50   memory 1.00, spread 0.50" in text
    assert "state: n2 is fenced." in text
    assert "times its weight: memory 2, spread 0.5." in text


def test_status_tells_problems_in_words_and_exits_with_1(gugus: Gugus) -> None:
    told = gugus("cluster", "status")
    lines = told.stdout.splitlines()
    assert "1 of 2 voters are there, n1 leads (term 2), n1 acts (epoch 3)" in lines[0]
    assert lines[1].startswith("problem: n2 is away. (for 1m3")
    assert lines[2:4] == ["  what to do: Bring it back.", "note: n1 cut 9B off its journal."]
    assert "Nothing is wrong." not in told.stdout
    assert told.exit_code == failure.FAILED


def test_status_shows_each_managers_figures_or_that_it_does_not_answer(gugus: Gugus) -> None:
    table = gugus("cluster", "status").stdout.splitlines()[-3:]
    assert table[0].split("  ")[0] == "NAME"
    assert "leader, acts" in table[1]
    for figure in ("none", "1MiB", "2KiB, 2h ago", "1.23ms", "5GiB", "0.1.0", "70"):
        assert figure in table[1]
    assert "does not answer" in table[2]
    assert "1,234 entries" in table[2]


def test_status_has_all_of_it_for_programs_with_the_same_exit_code(gugus: Gugus) -> None:
    told = gugus("cluster", "status", "-o", "json")
    status = json.loads(told.stdout)
    assert (status["healthy"], status["findings"][0]["reason"], told.exit_code) == (False, "MEMBER_AWAY", 1)
    assert status["voters"][0]["status"]["disk"]["sync_p99_us"] == "1234"
    assert status["voters"][1]["silence"] == "Connection refused"


def test_a_healthy_cluster_exits_with_0_whatever_is_noted(cluster: Cluster, gugus: Gugus) -> None:
    del cluster.state.status.problems[:], cluster.state.status.findings[0]
    told = gugus("cluster", "status")
    assert (told.exit_code, "note: n1 cut" in told.stdout, "Nothing is wrong." in told.stdout) == (0, True, True)


def test_an_older_managers_problems_are_told_as_well(cluster: Cluster, gugus: Gugus) -> None:
    del cluster.state.status.findings[:]
    assert "problem: n2 is away. Bring it back." in gugus("cluster", "status").stdout


def test_leadership_is_handed_to_the_one_that_is_named_or_away_from_who_acts(cluster: Cluster, gugus: Gugus) -> None:
    assert "n3 leads and acts now." in gugus("cluster", "transfer", "n3").stderr
    assert "n2 leads and acts now." in gugus("cluster", "transfer").stderr
    assert [(r.to, r.away_from) for r in cluster.state.transfers] == [("n3", ""), ("", "n3")]


def test_nodes_show_how_they_run_guests(gugus: Gugus) -> None:
    assert gugus("node", "list").stdout.splitlines()[1].split()[:4] == ["n1", "online", "127.0.0.1", "0"]
    assert "tcg" in gugus("node", "list").stdout


def test_a_list_of_guests_marks_what_sets_one_apart(cluster: Cluster, gugus: Gugus) -> None:
    for name in ("base", "web", "db"):
        gugus(*CREATE[:2], name, *CREATE[3:])
    guests = cluster.state.guests
    guests["base"].spec.template = guests["base"].spec.protected = True
    guests["web"].status.lock.reason = "snapshot"
    guests["db"].status.lock.reason = "migrate"
    guests["db"].status.migration.source, guests["db"].status.migration.target = "n1", "n2"
    lines = gugus("guest", "list").stdout.splitlines()
    assert "MARKS" in lines[0]
    assert [line.split("  ")[0] for line in lines[1:]] == ["base", "web", "db"]
    assert "template, protected" in lines[1]
    assert "locked: snapshot" in lines[2]
    assert "on its way from n1 to n2" in lines[3]
    assert "locked" not in lines[3]


def test_volumes_are_listed_by_node_and_who_could_not_be_asked_is_told(cluster: Cluster, gugus: Gugus) -> None:
    told = cluster.state.volumes
    told.volumes.add(name="web-disk0", size_bytes=1 << 30)
    told.volumes.add(name="web-disk0", size_bytes=1 << 30)
    told.nodes.extend(["n1", "n2"])
    told.unasked_nodes["n3"] = "it is not online"
    result = gugus("pool", "volumes", "local")
    assert [line.split()[:2] for line in result.stdout.splitlines()] == [
        ["NODE", "NAME"],
        ["n1", "web-disk0"],
        ["n2", "web-disk0"],
    ]
    assert result.stderr == "not asked: n3: it is not online\n"
    assert [item["node"] for item in json.loads(gugus("pool", "volumes", "local", "-o", "json").stdout)] == ["n1", "n2"]


def test_the_cpu_of_all_hosts_is_told_with_the_node_that_limits_it(cluster: Cluster, gugus: Gugus) -> None:
    told = cluster.state.cpu
    told.cpu.model = "qemu64"
    told.cpu.features.append("aes")
    limit = told.limits.add(node="gone")
    limit.without.model = "Haswell"
    limit.without.features.extend(["aes", "avx"])
    lines = gugus("cluster", "cpu").stdout.splitlines()
    assert lines[0] == "qemu64, with aes"
    assert "Haswell, +avx" in lines[-1]
    assert "gugus node remove gone" in lines[-1]


def test_events_are_listed(gugus: Gugus) -> None:
    assert json.loads(gugus("events", "-o", "json").stdout)[0]["reason"] == "NODE_FENCED"


def test_the_shell_completes_commands_and_guest_names(gugus: Gugus) -> None:
    gugus(*CREATE)

    def complete(line: str) -> str:
        words = {"_GUGUS_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
        return CliRunner().invoke(app, [], env=words, prog_name="gugus").stdout

    assert complete("gugus gu").split() == ["guest"]
    assert complete("gugus guest show w").split() == ["web"]


def _process(settings_file: Path, *args: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "GUGUS_CONFIG": str(settings_file)}
    command = [sys.executable, "-c", "from client.cli import main; main()", *args]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_program_exits_with_the_same_codes(cluster: Cluster, settings_file: Path) -> None:
    process = _process(settings_file, "guest", "show", "web")
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (failure.NOT_FOUND, "")
    assert err == 'error: guest "web" does not exist.\n  what to do: There is no guest yet.\n'


def test_an_interruption_while_python_still_imports_is_silent(settings_file: Path) -> None:
    """The first import of the command line is where it stands when the signal comes."""
    stop = (
        "import sys, os, signal\n"
        "class Stop:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'client.cli': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Stop())\n"
        "from client.entry import main\n"
        "main()\n"
    )
    environment = {**os.environ, "GUGUS_CONFIG": str(settings_file)}
    done = subprocess.run(
        [sys.executable, "-c", stop, "guest", "list"], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (failure.INTERRUPTED, "", "")
    assert entry.INTERRUPTED == failure.INTERRUPTED


def test_the_entry_imports_nothing_that_takes_time() -> None:
    check = "import sys, client.entry; print([m for m in ('grpc', 'yaml', 'typer', 'asyncio') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", check], text=True).strip() == "[]"


def test_a_command_that_waits_for_managers_says_for_what_and_where_to_look(
    cluster: Cluster, gugus: Gugus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caller, "WAIT_TOLD_AFTER_S", 0.3)
    cluster.state.no_leader |= {0, 1}
    result = gugus("--timeout", "1s", *CREATE)
    assert result.exit_code == failure.UNAVAILABLE
    waiting, error, remedy = result.stderr.splitlines()
    assert waiting.startswith("waiting, at most 1 s: there is no leader. `gugus cluster status` tells")
    assert error == "error: there is no leader."
    assert "`gugus cluster status`" in remedy


def test_a_call_that_is_answered_says_nothing_of_waiting(gugus: Gugus) -> None:
    assert "waiting" not in gugus("guest", "list").stderr


def test_an_interrupted_wait_says_that_the_task_goes_on(cluster: Cluster, settings_file: Path) -> None:
    cluster.state.hold = True
    process = _process(settings_file, *CREATE)
    until = time.monotonic() + 20
    while not cluster.state.watched and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    cluster.state.hold = False
    assert (process.returncode, out) == (failure.INTERRUPTED, "")
    assert "the task goes on. `gugus task follow t1` follows it" in err
    assert "Traceback" not in err


def test_an_interrupted_command_on_many_leaves_a_summary(cluster: Cluster, settings_file: Path, gugus: Gugus) -> None:
    for name in ("a", "b", "c"):
        gugus("guest", "create", name, *CREATE[3:], "--no-wait")
    cluster.state.hold = True
    cluster.state.watched.clear()
    process = _process(settings_file, "guest", "start", "a", "b", "c", "--parallel", "2")
    until = time.monotonic() + 20
    while len(cluster.state.watched) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    cluster.state.hold = False
    assert process.returncode == failure.INTERRUPTED
    assert [" ".join(line.split()[:3]) for line in out.splitlines()[1:]] == ["a goes on", "b goes on", "c not begun"]
    assert "What was not begun will not be." in err
    assert "Traceback" not in err
