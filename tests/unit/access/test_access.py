"""Programs and files from the client through the manager and the agent to the guest, and back."""

import asyncio
import hashlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from gugus.agent.v1 import access_pb2, access_pb2_grpc, guest_pb2

from agent.access.requests import command_of
from agent.compute.kvm.keys import KEYS
from client.access import run
from common.errors import GugusError, from_rpc_error
from common.identity.ca import CertificateAuthority
from common.identity.names import Identity, Role
from common.rpc.channel import open_channel
from common.rpc.streams import Stream
from tests.unit.access.conftest import CLUSTER_ID, EPOCH, House, credentials, eventually

MIB = 1 << 20


def words(guest: str, reason: str, house: House) -> list[str]:
    return [message for about, why, message in house.events if (about, why) == (f"guest/{guest}", reason)]


async def test_program_gets_its_input_and_gives_output_of_both_streams_and_its_exit_code(house: House) -> None:
    script = 'read word; echo "out $word $COLOUR"; echo err >&2; exit 7'
    done = await run(house.gugus.access, "db", ["sh", "-c", script], input=b"hello\n", environment={"COLOUR": "red"})
    assert done == (7, b"out hello red\n", b"err\n")


async def test_program_that_a_signal_ends_has_the_exit_code_of_shells(house: House) -> None:
    assert (await run(house.gugus.access, "db", ["sh", "-c", "kill -TERM $$"]))[0] == 128 + signal.SIGTERM


async def test_much_output_and_input_arrive_whole(house: House) -> None:
    data = os.urandom(3 * MIB)
    code, stdout, _ = await run(house.gugus.access, "db", ["cat"], input=data)
    assert code == 0
    assert hashlib.sha256(stdout).digest() == hashlib.sha256(data).digest()


async def test_program_on_a_terminal_knows_its_size_also_a_later_one(house: House) -> None:
    script = "stty size; read x; stty size; exit 3"
    output = b""
    async with house.gugus.access.execute("db", ["sh", "-c", script], terminal=(100, 40)) as running:
        async for answer in running:
            output += answer.stdout
            if output.count(b"\n") == 1:
                await running.resize(60, 20)
                await running.write(b"\n")
    assert b"40 100" in output
    assert b"20 60" in output
    assert running.exit_code == 3


async def test_signal_reaches_the_program(house: House) -> None:
    script = 'trap "echo caught; exit 5" INT; echo ready; while :; do sleep 0.05; done'
    output = b""
    async with house.gugus.access.execute("db", ["sh", "-c", script]) as running:
        async for answer in running:
            output += answer.stdout
            if output == b"ready\n":
                await running.signal(signal.SIGINT)
    assert output == b"ready\ncaught\n"
    assert running.exit_code == 5


async def test_program_ends_when_its_caller_goes(house: House) -> None:
    async with house.gugus.access.execute("db", ["sleep", "600"]) as running:
        reading = asyncio.ensure_future(anext(running.__aiter__()))
        await eventually(lambda: house.inside.programs)
        reading.cancel()
    ended = await asyncio.wait_for(house.inside.programs[0].wait(), 5)
    assert ended.signal == signal.SIGKILL


async def test_program_that_is_not_there_is_said_so(house: House) -> None:
    with pytest.raises(GugusError) as caught:
        await run(house.gugus.access, "db", ["/no/such/program"])
    assert caught.value.reason == "EXECUTE_FAILED"
    assert "node n1" in caught.value.message


async def test_slow_reader_holds_the_program_up_instead_of_memory(house: House) -> None:
    """A program that writes for ever is not read from faster than its caller reads."""
    async with house.gugus.access.execute("db", ["sh", "-c", "cat /dev/zero & echo $! >&2; wait"]) as running:
        answers = running.__aiter__()
        writer = 0
        while not writer:
            answer = await anext(answers)
            writer = int(answer.stderr or 0)

        def written() -> int:
            lines = open(f"/proc/{writer}/io").read().splitlines()  # noqa: SIM115
            return int(next(line.split()[1] for line in lines if line.startswith("wchar")))

        before = -1
        while before != (before := written()):  # noqa: ASYNC110 (it stands still, which is no event)
            await asyncio.sleep(0.2)
        assert before < 32 * MIB  # what three HTTP/2 connections take ahead


async def test_arguments_are_in_no_event_but_the_program_and_its_user_are(house: House) -> None:
    await run(house.gugus.access, "db", ["echo", "s3cret"], environment={"PASSWORD": "hunter2"})
    assert words("db", "GUEST_EXECUTED", house) == ["operator alice asked to run echo in it"]
    assert "s3cret" not in str(house.events)
    assert "hunter2" not in str(house.events)


async def test_nothing_runs_that_cannot_be_written_down(house: House) -> None:
    house.state.down = True
    with pytest.raises(GugusError) as caught:
        await run(house.gugus.access, "db", ["true"])
    assert caught.value.reason == "NO_QUORUM"
    assert not house.inside.programs


async def test_file_goes_in_and_comes_back_with_its_mode(house: House) -> None:
    data = os.urandom(2 * MIB + 17)

    async def content() -> AsyncIterator[bytes]:
        for at in range(0, len(data), 70_000):
            yield data[at : at + 70_000]

    placed = await house.gugus.access.push("db", "/file", content(), mode=0o600, size_bytes=len(data))
    assert (placed.size_bytes, placed.mode) == (len(data), 0o600)
    assert (house.inside.folder / "file").read_bytes() == data
    told: list[access_pb2.FileInfo] = []
    back = b"".join([piece async for piece in house.gugus.access.pull("db", "/file", told.append)])
    assert back == data
    assert told[0].size_bytes == len(data)
    assert words("db", "GUEST_FILE_PUSHED", house) == ["operator alice asked to put /file into it"]
    assert words("db", "GUEST_FILE_PULLED", house) == ["operator alice asked to take /file from it"]


async def test_file_that_is_cut_off_changes_nothing(house: House) -> None:
    (house.inside.folder / "file").write_text("old")

    async def content() -> AsyncIterator[bytes]:
        yield b"new"
        await house.inside.pushing.wait()
        raise RuntimeError("the disk that it is read from fails")

    with pytest.raises(RuntimeError):
        await house.gugus.access.push("db", "/file", content())
    await asyncio.sleep(0.1)
    assert (house.inside.folder / "file").read_text() == "old"


async def refusal(call: Any, request: Any) -> str:
    """Send the first message of a stream; return why it is refused."""
    stream = Stream[Any, Any](call)
    try:
        await stream.write(request)
        await stream.read()
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error).reason
    return ""


async def push(stub: Any, *requests: access_pb2.PushFileRequest) -> str:
    """Push bare messages; return the reason of the refusal."""

    async def all_of_them() -> AsyncIterator[access_pb2.PushFileRequest]:
        for request in requests:
            yield request

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.PushFile(all_of_them())
    return from_rpc_error(caught.value).reason


async def test_file_of_another_hash_is_refused(house: House, to_agent: Any) -> None:
    start = access_pb2.PushFileStart(epoch=EPOCH, name="db", path="/file")
    end = access_pb2.FileEnd(size_bytes=3, sha256=hashlib.sha256(b"xyz").digest())
    request = access_pb2.PushFileRequest
    assert await push(to_agent, request(start=start), request(data=b"abc"), request(end=end)) == "FILE_DAMAGED"
    assert await push(to_agent, request(start=start), request(data=b"abc")) == "FILE_DAMAGED"
    assert await push(to_agent, request(data=b"abc")) == "INVALID_ARGUMENT"
    relative = access_pb2.PushFileStart(epoch=EPOCH, name="db", path="file")
    assert await push(to_agent, request(start=relative)) == "INVALID_ARGUMENT"
    stale = access_pb2.PushFileStart(epoch=EPOCH - 1, name="db", path="/file")
    assert await push(to_agent, request(start=stale)) == "STALE_EPOCH"
    assert not list(house.inside.folder.iterdir())


async def test_missing_file_and_missing_folder_are_said_so(house: House) -> None:
    with pytest.raises(GugusError) as caught:
        async for _ in house.gugus.access.pull("db", "/none"):
            pass
    assert caught.value.reason == "FILE_NOT_READ"

    async def content() -> AsyncIterator[bytes]:
        yield b"x"

    with pytest.raises(GugusError) as caught:
        await house.gugus.access.push("db", "/none/file", content())
    assert caught.value.reason == "FILE_NOT_WRITTEN"


async def test_guest_that_does_not_run_or_does_not_exist_is_refused(house: House) -> None:
    house.guests["db"].state = guest_pb2.GUEST_STATE_STOPPED
    with pytest.raises(GugusError) as caught:
        await run(house.gugus.access, "db", ["true"])
    assert caught.value.reason == "GUEST_NOT_RUNNING"
    with pytest.raises(GugusError) as caught:
        await run(house.gugus.access, "nobody", ["true"])
    assert caught.value.reason == "GUEST_NOT_FOUND"


async def test_agent_refuses_everybody_but_managers(house: House, ca: CertificateAuthority) -> None:
    verify = Identity(CLUSTER_ID, Role.NODE, "n1").dns_name
    for role in (Role.OPERATOR, Role.NODE):
        mine = credentials(ca, role, "mallory")
        async with open_channel(f"127.0.0.1:{house.agent_port}", mine, verify=verify) as channel:
            stub: Any = access_pb2_grpc.AccessServiceStub(channel)
            start = access_pb2.ExecuteStart(epoch=EPOCH, name="db", execution=access_pb2.Execution(command=["true"]))
            for call, request in (
                (stub.Execute(), access_pb2.ExecuteRequest(start=start)),
                (stub.OpenConsole(), access_pb2.OpenConsoleRequest(start=access_pb2.ConsoleStart(name="db"))),
            ):
                assert await refusal(call, request) == "ROLE_NOT_ALLOWED"
    assert not house.inside.programs


@pytest.mark.parametrize(
    "execution",
    [
        access_pb2.Execution(),
        access_pb2.Execution(command=["x\0y"]),
        access_pb2.Execution(command=["x"], environment={"a b": "c"}),
        access_pb2.Execution(command=["x"], working_directory="relative"),
        access_pb2.Execution(command=["x"], user="-c"),
        access_pb2.Execution(command=["x"], terminal=True, size=access_pb2.TerminalSize(columns=5000, rows=1)),
        access_pb2.Execution(command=["x" * 200_000]),
    ],
)
def test_command_that_can_never_be_right_is_refused(execution: access_pb2.Execution) -> None:
    with pytest.raises(GugusError) as caught:
        command_of(execution)
    assert caught.value.reason == "INVALID_ARGUMENT"
    assert "xxxx" not in caught.value.message


async def test_keys_are_pressed_and_which_ones_is_in_no_event(house: House) -> None:
    await house.gugus.access.send_keys("web", ["ctrl", "alt", "delete"])
    assert house.inside.pressed == [29, 56, 111]
    assert words("web", "GUEST_KEYS_SENT", house) == ["operator alice asked to press keys of its keyboard"]
    for keys in ([], ["ctrl", "any"], ["a"] * 17):
        with pytest.raises(GugusError) as caught:
            await house.gugus.access.send_keys("web", keys)
        assert caught.value.reason == "INVALID_ARGUMENT"
    with pytest.raises(GugusError, match="db is a container, which has no keyboard"):
        await house.gugus.access.send_keys("db", ["a"])


async def test_password_goes_in_by_standard_input(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "chpasswd").write_text(f"#!/bin/sh\ncat > {tmp_path}/given\n")
    (tools / "chpasswd").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=":")
    await house.gugus.access.set_password("web", "root", "hunter2")
    assert (tmp_path / "given").read_text() == "root:hunter2\n"
    assert "hunter2" not in str(house.events)
    (tools / "chpasswd").write_text("#!/bin/sh\necho no such user >&2; exit 1\n")
    with pytest.raises(GugusError, match="no such user"):
        await house.gugus.access.set_password("web", "nobody", "hunter2")
    (tools / "chpasswd").write_text("#!/bin/sh\nexit 127\n")
    with pytest.raises(GugusError, match='guest "web" has no chpasswd'):
        await house.gugus.access.set_password("web", "root", "hunter2")
    with pytest.raises(GugusError) as caught:
        await house.gugus.access.set_password("web", "root", "a\nroot:b")
    assert caught.value.reason == "INVALID_ARGUMENT"


def test_every_key_has_a_number_of_its_own() -> None:
    assert len(set(KEYS.values())) == len(KEYS)
    known = {"esc": 1, "q": 16, "a": 30, "z": 44, "spc": 57, "f1": 59, "f10": 68, "f12": 88, "sysrq": 99, "menu": 127}
    assert known.items() <= KEYS.items()
