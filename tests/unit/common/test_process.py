import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from common.process import CommandFailed, run


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie that nobody has reaped yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def until(true: Callable[[], bool]) -> None:
    for _ in range(200):
        if true():
            return
        await asyncio.sleep(0.01)
    pytest.fail("waited 2 s in vain")


async def test_output_and_input_pass_through() -> None:
    done = await run(["cat"], input=b"hello", timeout_s=5)
    assert (done.returncode, done.stdout, done.text) == (0, b"hello", "hello")


async def test_failure_tells_command_exit_code_and_last_words() -> None:
    with pytest.raises(CommandFailed, match="failed with exit code 1") as caught:
        await run(["sh", "-c", "echo first >&2; echo no space left >&2; exit 1"], timeout_s=5)
    assert caught.value.returncode == 1
    assert "no space left" in str(caught.value)


async def test_exit_code_is_a_value_when_not_checked() -> None:
    assert (await run(["false"], timeout_s=5, check=False)).returncode == 1
    assert (await run(["sh", "-c", "kill -9 $$"], timeout_s=5, check=False)).returncode == -9


async def test_missing_program_is_named() -> None:
    with pytest.raises(CommandFailed, match="`gugus-none` could not be run: No such file") as caught:
        await run(["gugus-none"], timeout_s=5)
    assert caught.value.returncode is None
    assert "Install" in caught.value.remedy


async def test_time_out_kills_the_whole_process_group(tmp_path: Path) -> None:
    pidfile = tmp_path / "pid"
    started = time.monotonic()
    with pytest.raises(CommandFailed, match="took too long") as caught:
        await run(["sh", "-c", 'sleep 60 & echo $! > "$1"; wait', "sh", str(pidfile)], timeout_s=0.3)
    assert caught.value.timed_out
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - started < 3
    await until(lambda: not alive(int(pidfile.read_text())))


async def test_child_that_outlives_its_parent_cannot_hold_the_call(tmp_path: Path) -> None:
    pidfile = tmp_path / "pid"
    with pytest.raises(CommandFailed, match="took too long"):
        await run(["sh", "-c", 'sleep 60 & echo $! > "$1"', "sh", str(pidfile)], timeout_s=0.3)
    await until(lambda: not alive(int(pidfile.read_text())))


async def test_cancelled_caller_leaves_no_program_behind(tmp_path: Path) -> None:
    pidfile = tmp_path / "pid"
    task = asyncio.create_task(run(["sh", "-c", 'echo $$ > "$1"; sleep 60', "sh", str(pidfile)], timeout_s=60))
    await until(lambda: pidfile.exists() and bool(pidfile.read_text()))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not alive(int(pidfile.read_text()))
