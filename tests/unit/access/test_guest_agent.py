"""Virtual machines' programs and files, against the real QEMU guest agent: it runs on this machine, in a folder of the test's."""

import asyncio
import hashlib
import json
import os
import shutil
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from agent.compute.access import Command, FileWish, Output
from agent.compute.kvm import agent_files, agent_program, freezing
from agent.compute.kvm.agent_program import MAX_INPUT_BYTES, CapturedProgram, StreamedProgram
from agent.compute.kvm.freezing import Freezing
from agent.compute.kvm.guest_agent import DATA_BYTES, AgentRefusal, GuestAgent, line, missing
from common.errors import GugusError
from tests.unit.access.conftest import eventually

QEMU_GA = shutil.which("qemu-ga", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


class LocalAgent(GuestAgent):
    """The agent's client, past libvirt: its channel is a socket here."""

    def __init__(self, path: Path) -> None:
        async def no_libvirt(function: Callable[[Any], Any], *, timeout_s: float = 0.0) -> Any:
            raise AssertionError("libvirt was asked")

        super().__init__(no_libvirt)
        self._socket = path
        self._turn = asyncio.Lock()

    async def command(self, name: str, command: str, arguments: Any = None, *, timeout_s: int = 5) -> Any:
        sent = line(command, arguments).encode() + b"\n"
        async with self._turn:
            reader, writer = await asyncio.open_unix_connection(self._socket, limit=64 << 20)
            writer.write(sent)
            answer = json.loads(await reader.readline())
            writer.close()
        if "error" in answer:
            raise AgentRefusal(answer["error"]["desc"])
        return answer["return"]


def listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[LocalAgent]:
    if QEMU_GA is None:
        pytest.skip("qemu-guest-agent is not installed")
    path = tmp_path / "agent.sock"
    process = await asyncio.create_subprocess_exec(
        QEMU_GA, "--method", "unix-listen", "--path", str(path), "--statedir", str(tmp_path),
        "--pidfile", str(tmp_path / "pid"), "--logfile", str(tmp_path / "log"),
    )  # fmt: skip
    await eventually(lambda: listens(path))
    yield LocalAgent(path)
    process.kill()
    await process.wait()


async def run(
    agent: GuestAgent,
    command: Command,
    input: bytes = b"",
    kind: type[StreamedProgram | CapturedProgram] = StreamedProgram,
) -> tuple[int, bytes, bytes]:
    program, streams = kind(agent, "web", command), {False: b"", True: b""}
    if input:
        await program.write(input)
    await program.end_input()
    while (output := await program.read()) is not None:
        streams[output.error] += output.data
    ended = (await program.wait()).code, streams[False], streams[True]
    await program.close()
    return ended


async def test_program_has_streams_exit_code_folder_and_environment(agent: LocalAgent, tmp_path: Path) -> None:
    command = Command(
        ("sh", "-c", "read x; echo $x $COLOUR $(pwd); echo err >&2; exit 9"), {"COLOUR": "red"}, str(tmp_path)
    )
    assert await run(agent, command, b"hello\n") == (9, f"hello red {tmp_path}\n".encode(), b"err\n")


async def test_program_with_much_output_and_all_the_input_there_may_be(agent: LocalAgent) -> None:
    data = os.urandom(MAX_INPUT_BYTES)
    code, stdout, _ = await run(agent, Command(("cat",)), data)
    assert (code, hashlib.sha256(stdout).digest()) == (0, hashlib.sha256(data).digest())
    program = StreamedProgram(agent, "web", Command(("cat",)))
    await program.write(data)
    with pytest.raises(GugusError) as caught:
        await program.write(b"x")
    assert caught.value.reason == "EXECUTE_INPUT_TOO_LONG"


async def test_command_that_the_way_to_the_agent_does_not_carry_is_refused(agent: LocalAgent) -> None:
    with pytest.raises(GugusError) as caught:
        await run(agent, Command(("echo", "x" * (200 << 10))))
    assert caught.value.reason == "GUEST_COMMAND_TOO_LONG"
    with pytest.raises(GugusError) as caught:
        await run(agent, Command(("sort",)), b"x" * (DATA_BYTES + 1), CapturedProgram)
    assert caught.value.reason == "EXECUTE_INPUT_TOO_LONG"
    assert (await run(agent, Command(("wc", "-c")), b"x" * DATA_BYTES, CapturedProgram))[1].strip() == b"65536"


async def test_program_that_is_killed_has_the_signal(agent: LocalAgent) -> None:
    program = StreamedProgram(agent, "web", Command(("sleep", "600")))
    await program.end_input()
    reading = asyncio.create_task(program.read())
    await eventually(lambda: program._pid is not None)
    await program.signal(15)
    assert await reading is None
    assert (await program.wait()).code == 128 + 15
    await program.close()


async def test_program_that_is_let_go_ends(agent: LocalAgent) -> None:
    program = StreamedProgram(agent, "web", Command(("sleep", "600")))
    await program.end_input()
    reading = asyncio.create_task(program.read())
    await eventually(lambda: program._pid is not None)
    await program.close()
    assert await reading is None
    await eventually(lambda: not os.path.exists(f"/proc/{program._pid}"))


async def test_output_is_shown_as_it_comes(agent: LocalAgent) -> None:
    program = StreamedProgram(agent, "web", Command(("sh", "-c", "echo first; sleep 600")))
    await program.end_input()
    async with asyncio.timeout(5):
        assert await program.read() == Output(b"first\n")
    folder = program._folder
    await program.close()
    assert not os.path.exists(folder)  # noqa: ASYNC240


async def drain(program: StreamedProgram) -> None:
    while await program.read() is not None:
        pass


async def test_program_that_writes_for_ever_is_ended(agent: LocalAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_program, "MAX_OUTPUT_BYTES", 3 << 20)
    program = StreamedProgram(agent, "web", Command(("cat", "/dev/zero")))
    await program.end_input()
    with pytest.raises(GugusError) as caught:
        await drain(program)
    assert caught.value.reason == "EXECUTE_OUTPUT_TOO_LONG"
    await program.close()


async def test_windows_gives_output_at_the_end(agent: LocalAgent) -> None:
    command = Command(("sh", "-c", "cat; echo err >&2; exit 4"), {"A": "b"})
    assert await run(agent, command, b"in", CapturedProgram) == (4, b"in", b"err\n")


async def test_program_or_folder_that_is_not_there_is_said_so(agent: LocalAgent) -> None:
    code, _, words = await run(agent, Command(("/no/such/program",)))
    assert (code, b"/no/such/program" in words) == (127, True)
    code, _, words = await run(agent, Command(("true",), folder="/no/such/folder"))
    assert (code, b"/no/such/folder" in words) == (126, True)
    with pytest.raises(GugusError) as caught:
        await run(agent, Command(("/no/such/program",)), kind=CapturedProgram)
    assert caught.value.reason == "EXECUTE_FAILED"


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(data), 300_000):
        yield data[at : at + 300_000]


async def test_file_goes_in_and_out(agent: LocalAgent, tmp_path: Path) -> None:
    folder = tmp_path / "guest"
    folder.mkdir()
    data, path = os.urandom(1_700_001), folder / "file"
    wish = FileWish(mode=0o640, uid=os.getuid(), gid=os.getgid())
    placed = await agent_files.push(agent, "web", str(path), wish, pieces(data))
    assert (placed.size_bytes, placed.mode) == (len(data), 0o640)
    assert path.read_bytes() == data
    info, content = await agent_files.pull(agent, "web", str(path))
    assert b"".join([piece async for piece in content]) == data
    assert (info.size_bytes, info.mode, info.uid) == (len(data), 0o640, os.getuid())
    await agent_files.push(agent, "web", str(path), FileWish(), pieces(b"new"))  # keeps what it had
    assert (path.read_bytes(), path.stat().st_mode & 0o7777) == (b"new", 0o640)
    assert [file.name for file in folder.iterdir()] == ["file"]


async def test_file_that_ends_in_the_middle_leaves_nothing(agent: LocalAgent, tmp_path: Path) -> None:
    folder = tmp_path / "guest"
    folder.mkdir()
    (folder / "file").write_text("old")

    async def broken() -> AsyncIterator[bytes]:
        yield b"new"
        raise ValueError("cut off")

    with pytest.raises(ValueError, match="cut off"):
        await agent_files.push(agent, "web", str(folder / "file"), FileWish(), broken())
    assert [(file.name, file.read_text()) for file in folder.iterdir()] == [("file", "old")]


@pytest.mark.parametrize(("path", "reason"), [("none", "FILE_NOT_READ"), ("", "FILE_NOT_READ")])
async def test_file_that_is_none_is_not_read(agent: LocalAgent, tmp_path: Path, path: str, reason: str) -> None:
    with pytest.raises(GugusError) as caught:
        await agent_files.pull(agent, "web", str(tmp_path / path))
    assert caught.value.reason == reason


async def test_file_into_no_folder_is_not_written(agent: LocalAgent, tmp_path: Path) -> None:
    with pytest.raises(GugusError) as caught:
        await agent_files.push(agent, "web", str(tmp_path / "none/file"), FileWish(), pieces(b"x"))
    assert caught.value.reason == "FILE_NOT_WRITTEN"
    assert f"the folder {tmp_path}/none does not exist; make it first" in str(caught.value)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/", 'it is a folder; end it with "/" to put the file into it'),
        ("/dev/null", "it is no regular file"),
        ("/etc/hostname/file", "/etc/hostname is no folder"),
        ("/proc/none", "/proc/none"),
    ],
)
async def test_file_that_cannot_be_put_somewhere_is_told_by_the_name_of_the_user(
    agent: LocalAgent, path: str, words: str
) -> None:
    with pytest.raises(GugusError) as caught:
        await agent_files.push(agent, "web", path, FileWish(), pieces(b"x"))
    assert caught.value.reason == "FILE_NOT_WRITTEN"
    assert words in str(caught.value)
    assert ".gugus-" not in str(caught.value), "the name of the file that is written at first says nothing to anybody"


# Freezing: never on this machine's own file systems, so with a stand-in


class Frozen(GuestAgent):
    """An agent that counts what it is told, and answers as it is told."""

    def __init__(self, errors: Sequence[GugusError | None] = ()) -> None:
        self.said: list[str] = []
        self.errors = list(errors)
        """What the next tries to thaw end with."""
        self.refuse: GugusError | None = None

    async def ping(self, name: str) -> None:
        self.said.append("ping")

    async def freeze(self, name: str) -> int:
        self.said.append("freeze")
        if self.refuse:
            raise self.refuse
        return 3

    async def thaw(self, name: str) -> None:
        self.said.append("thaw")
        if self.errors and (error := self.errors.pop(0)):
            raise error


async def test_frozen_guest_is_thawed_once_asked(tmp_path: Path) -> None:
    agent = Frozen()
    all_of_them = Freezing(agent, tmp_path)
    assert await all_of_them.freeze("web", 60.0) == 3
    assert (tmp_path / "web").exists()
    await all_of_them.thaw("web")
    assert agent.said == ["ping", "freeze", "thaw"]
    assert not os.listdir(tmp_path)
    await all_of_them.thaw("web")
    assert agent.said[-1:] == ["thaw"]
    assert len(agent.said) == 3


async def test_frozen_guest_is_thawed_when_its_time_is_over(tmp_path: Path) -> None:
    agent = Frozen()
    await Freezing(agent, tmp_path).freeze("web", 0.1)
    await eventually(lambda: agent.said[-1] == "thaw" and not list(tmp_path.iterdir()))


async def test_thaw_is_tried_until_it_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freezing, "RETRY_S", 0.01)
    agent = Frozen([missing("web", "silent"), missing("web", "silent"), None])
    all_of_them = Freezing(agent, tmp_path)
    await all_of_them.freeze("web", 60.0)
    await all_of_them.thaw("web")
    await eventually(lambda: agent.said.count("thaw") == 3 and not list(tmp_path.iterdir()))


async def test_guest_is_thawed_by_the_next_agent_process(tmp_path: Path) -> None:
    first = Freezing(Frozen(), tmp_path)
    await first.freeze("web", 60.0)
    for task in first._ends.values():  # killed
        task.cancel()
    agent = Frozen()
    await Freezing(agent, tmp_path).open()
    await eventually(lambda: agent.said == ["thaw"] and not list(tmp_path.iterdir()))


async def test_freeze_that_fails_leaves_nothing_frozen(tmp_path: Path) -> None:
    agent = Frozen()
    agent.refuse = missing("web", "it hangs")
    with pytest.raises(GugusError):
        await Freezing(agent, tmp_path).freeze("web", 60.0)
    await eventually(lambda: agent.said == ["ping", "freeze", "thaw"] and not list(tmp_path.iterdir()))
