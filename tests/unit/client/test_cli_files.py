"""`gugus guest push` and `pull` before anything reaches a cluster: what cannot be is told at once, all of it."""

from pathlib import Path

from tests.unit.client.conftest import Gugus


def test_both_faults_of_a_push_are_told(gugus: Gugus, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    for mode, owner, told in (
        ("9999", "joe", ['--mode: "9999"', '--owner: "joe"']),
        ("0x1", "1:", ['--mode: "0x1"', '--owner: "1:"']),
        ("77777", "0:0", ['--mode: "77777"']),
    ):
        done = gugus("guest", "push", str(file), "web:/x", "--mode", mode, "--owner", owner)
        assert done.exit_code == 2
        assert all(words in done.stderr for words in told), done.stderr


def test_a_pull_into_a_folder_that_is_not_there_is_told(gugus: Gugus, tmp_path: Path) -> None:
    target = tmp_path / "none" / "x"
    done = gugus("guest", "pull", "web:/etc/motd", str(target))
    assert done.exit_code == 2
    assert f"FILE: {target} cannot be written: there is no folder {target.parent}." in done.stderr
