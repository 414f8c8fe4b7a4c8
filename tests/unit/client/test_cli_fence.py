from pathlib import Path

from client.cli import failure
from tests.unit.client.conftest import Gugus
from tests.unit.client.fake import Cluster


def test_word_that_a_host_is_off_is_typed_and_goes_with_what_was_shown(gugus: Gugus, cluster: Cluster) -> None:
    nobody = gugus("node", "confirm-off", "n2")
    assert nobody.exit_code == failure.USAGE
    assert "no terminal" in nobody.stderr
    assert cluster.state.requests == []
    assert gugus("node", "confirm-off", "n2", "--i-have-seen-that-it-is-off", "n2").exit_code == failure.OK
    (request,) = cluster.state.requests
    assert (request.typed_name, request.boot_id, request.lapse_number) == ("n2", "boot-7", 3)


def test_secrets_of_a_device_are_read_from_files_and_standard_input(
    gugus: Gugus, cluster: Cluster, tmp_path: Path
) -> None:
    file = tmp_path / "password"
    file.write_text("open sesame\n")
    set_ = ["node", "fence-device", "set", "n2", "ipmi", "--agent", "fence_ipmilan", "--set", "ip=10.0.9.1"]
    done = gugus(*set_, "--secret", f"password={file}", "--level", "2", "--timeout", "30s")
    assert done.exit_code == failure.OK, done.stderr
    assert "sesame" not in done.output
    assert gugus(*set_, "--secret", "password=-", input="again\n").exit_code == failure.OK
    first, second = cluster.state.requests
    assert dict(first.secrets) == {"password": "open sesame"}
    assert (dict(first.device.parameters), first.device.level, first.device.timeout_s) == ({"ip": "10.0.9.1"}, 2, 30)
    assert dict(second.secrets) == {"password": "again"}
    assert gugus(*set_, "--secret", "password").exit_code == failure.USAGE
    assert gugus(*set_, "--secret", f"password={tmp_path / 'none'}").exit_code == failure.USAGE


def test_devices_are_listed_without_their_secrets_and_a_test_that_fails_says_so(gugus: Gugus) -> None:
    listed = gugus("node", "fence-device", "list", "n2")
    assert "ip=::1 password=***" in listed.stdout
    tested = gugus("node", "fence-test", "n2")
    assert tested.exit_code == 1
    assert "no route to host" in tested.stdout
    assert "n2" in tested.stderr


def test_fencing_asks_first(gugus: Gugus) -> None:
    assert gugus("node", "fence", "n2").exit_code == failure.USAGE
