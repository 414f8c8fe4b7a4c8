import asyncio

import pytest

from agent.reach import reach
from common.errors import GugusError


async def test_host_that_answers_is_reached_whether_its_agent_does_or_not() -> None:
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    assert (await reach(f"127.0.0.1:{port}", 1.0))[0]
    server.close()
    await server.wait_closed()
    reached, how = await reach(f"127.0.0.1:{port}", 1.0)
    assert reached, "a refusal comes from a kernel that runs"
    assert "not its agent" in how


async def test_host_without_a_way_to_it_is_not_reached() -> None:
    reached, why = await reach("224.0.0.1:7445", 0.2)
    assert not reached
    assert why


async def test_endpoint_that_is_none_is_refused() -> None:
    with pytest.raises(GugusError, match="endpoint"):
        await reach("nowhere", 0.1)
