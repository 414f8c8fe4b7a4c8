"""The demo's story on simulated hosts: real managers, agents and certificates, simulated guests; no root needed."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.api import Lab
from lab.cluster import operator_config
from lab.demo import PROMISED_SECONDS, tell


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab("story", state_dir=tmp_path / "labs")
    yield lab
    lab.down()


def test_three_hosts_become_a_cluster_and_survive_the_loss_of_one(lab: Lab) -> None:
    result = tell(lab, simulated=True)
    assert (result["nodes"], result["guests"], result["max_copies"]) == (3, 2, 1)
    assert 0 < result["detected_s"] < result["fenced_s"] < result["recovered_s"] <= PROMISED_SECONDS
    keys = operator_config(lab.plan).parent
    assert {file.stat().st_mode & 0o777 for file in keys.iterdir()} == {0o600}
