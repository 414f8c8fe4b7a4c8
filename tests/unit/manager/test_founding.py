"""A cluster is founded once."""

import shutil
from pathlib import Path

import pytest

from common.errors import GugusError
from manager.daemon import Manager
from manager.founding import MARK
from tests.unit.manager.cluster import running


async def test_a_founder_that_lost_its_state_does_not_found_the_cluster_again(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        async with cluster.client() as gugus:
            await gugus.cluster.create_token()
        config = cluster.manager_config("n1")
    assert (config.state_dir / MARK).read_text().strip() == config.cluster_id
    shutil.rmtree(config.state_dir / "raft")
    with pytest.raises(GugusError, match="must not found it again") as refused:
        await Manager(config).run()
    assert refused.value.reason == "DATA_FOLDER_LOST"
    assert "gugus cluster restore" in str(refused.value)
