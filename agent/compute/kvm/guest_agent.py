"""QEMU's guest agent, through libvirt, which owns its channel: programs, files and frozen file systems of a virtual machine.

Commands are JSON (QEMU's docs/interop/qemu-ga-ref). An agent may hang with its guest: every command has a time limit, and only a few run
at once, for each takes one of the threads that all of libvirt's calls share.
"""

import asyncio
import base64
import json
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import libvirt
import libvirt_qemu

from agent.compute.access import failed, not_running
from agent.compute.kvm.xml.mark import NAMESPACE
from common.errors import GugusError, precondition, resource_exhausted

COMMAND_TIMEOUT_S = 5
"""How long the agent in a guest may take to answer a command; it answers in milliseconds when the guest is well."""

FREEZE_TIMEOUT_S = 60
"""How long a freeze may take: a guest writes out all that it holds in memory."""

LIBVIRT_SPARE_S = 5.0
"""What libvirt may take on top, when it waits for its turn on the domain."""

SMALL_POLL_S = 0.02
"""How often a small program is asked for its end; it takes some milliseconds."""

MAX_COMMANDS = 4
"""Commands under way at once, over all guests; half of the threads for libvirt (kvm.connection.POOL_THREADS)."""

MAX_COMMAND_BYTES = 128 * 1024
"""Longest command. One that does not fit into its socket at once (net.core.wmem_default: 208 KiB, less what the kernel needs of that) is
sent again from its start: libvirt 9 loses count of what it has written (qemuAgentIOWrite, safewrite on a descriptor that does not block),
and the agent then waits for the end of nonsense."""

DATA_BYTES = 64 * 1024
"""Bytes of data that one command carries, for in base64 they are a third more."""

CHANNEL = "org.qemu.guest_agent.0"
"""Name of the agent's port in the guest (qemu-ga(8))."""

_MISSING = frozenset(
    {
        libvirt.VIR_ERR_AGENT_UNRESPONSIVE,
        libvirt.VIR_ERR_AGENT_UNSYNCED,
        libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED,  # no channel for it in the domain
        libvirt.VIR_ERR_CONFIG_UNSUPPORTED,
    }
)
_NOT_RUNNING = frozenset({libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID})

_TOO_LARGE = "Unable to encode message payload"
"""libvirtd's word for an answer above 4 MiB (REMOTE_STRING_MAX); it says nothing of the connection."""

_REFUSED = "unable to execute QEMU agent command '"
"""What libvirt says before the command, "': " and the agent's own words (qemu_agent.c, qemuAgentCheckError)."""

WINDOWS = "mswindows"
"""What guest-get-osinfo calls Windows."""


Arguments = Mapping[str, object]


class Call(Protocol):
    """How libvirt is called: `agent.compute.kvm.connection.Connection.call`."""

    async def __call__(self, function: Callable[[Any], Any], *, timeout_s: float = ...) -> Any:
        """Run `function(virConnect)` in a thread of libvirt's pool. Raises GugusError, and what `function` raises."""


class AgentRefusal(Exception):
    """The agent answered with an error; its words."""


def domain_of(connection: Any, name: str) -> Any:
    """Return a running domain of ours, in a thread of libvirt's pool. Raises GUEST_NOT_RUNNING, libvirtError."""
    try:
        domain = connection.lookupByName(name)
        domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, NAMESPACE)
    except libvirt.libvirtError as error:
        if error.get_error_code() in (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_NO_DOMAIN_METADATA):
            raise not_running(name) from error
        raise
    return domain


def live_devices(domain: Any) -> ET.Element:
    """Return the element of a running domain's devices."""
    devices = ET.fromstring(domain.XMLDesc()).find("devices")  # noqa: S314  (libvirt's own output)
    if devices is None:
        raise ValueError("a domain without devices")
    return devices


class GuestAgent:
    """The agents in all guests of this host. Methods raise GugusError, and AgentRefusal where they say so."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._few = asyncio.Semaphore(MAX_COMMANDS)

    async def command(
        self, name: str, command: str, arguments: Arguments | None = None, *, timeout_s: int = COMMAND_TIMEOUT_S
    ) -> Any:
        """Have the agent of a guest do something; return what it answered.

        Raises GUEST_AGENT_MISSING, GUEST_NOT_RUNNING, HYPERVISOR_DOWN, GUEST_COMMAND_TOO_LONG, and AgentRefusal.
        """
        request = line(command, arguments)

        def ask(connection: Any) -> str:
            domain = domain_of(connection, name)
            _require_connected(name, domain)
            try:
                return str(libvirt_qemu.qemuAgentCommand(domain, request, timeout_s, 0))
            except libvirt.libvirtError as error:
                raise _told(name, error) from error

        async with self._few:
            answer = await self._call(ask, timeout_s=timeout_s + LIBVIRT_SPARE_S)
        return json.loads(answer).get("return")

    async def ping(self, name: str) -> None:
        """Return when the agent answers. Raises GUEST_AGENT_MISSING, GUEST_NOT_RUNNING, HYPERVISOR_DOWN."""
        await self.ask(name, "guest-ping")

    async def ask(
        self,
        name: str,
        command: str,
        arguments: Arguments | None = None,
        *,
        reason: str = "GUEST_AGENT_REFUSED",
        timeout_s: int = COMMAND_TIMEOUT_S,
    ) -> Any:
        """As `command`, with the agent's refusal as a GugusError of this reason."""
        try:
            return await self.command(name, command, arguments, timeout_s=timeout_s)
        except AgentRefusal as error:
            raise failed(reason, name, f"its guest agent refused {command}", str(error)) from error

    async def system(self, name: str) -> str:
        """Return what the guest runs, such as "debian" or "mswindows"; "" when its agent cannot tell."""
        try:
            return str((await self.command(name, "guest-get-osinfo") or {}).get("id", ""))
        except AgentRefusal:
            return ""

    async def small(self, name: str, *argv: str) -> tuple[int, str]:
        """Run a program of the guest that says little and ends soon; return its exit code and what it wrote.

        Never one of a user's: libvirt gives an agent up for good that answers with more than 10 MiB (QEMU_AGENT_MAX_RESPONSE).
        """
        request = {"path": argv[0], "arg": list(argv[1:]), "capture-output": True}
        pid = (await self.ask(name, "guest-exec", request, reason="EXECUTE_FAILED"))["pid"]
        while not (answer := await self.ask(name, "guest-exec-status", {"pid": pid}))["exited"]:  # noqa: ASYNC110  (QEMU tells of no end)
            await asyncio.sleep(SMALL_POLL_S)
        words = decoded(answer, "out-data") + decoded(answer, "err-data")
        return int(answer.get("exitcode", -1)), words.decode(errors="replace")

    async def freeze(self, name: str) -> int:
        """Freeze the guest's file systems; return how many. Raises FREEZE_FAILED; then some may be frozen."""
        frozen = await self.ask(name, "guest-fsfreeze-freeze", reason="FREEZE_FAILED", timeout_s=FREEZE_TIMEOUT_S)
        return int(frozen)

    async def thaw(self, name: str) -> None:
        """Thaw the guest's file systems; nothing happens when none is frozen. Raises as `ask`."""
        await self.ask(name, "guest-fsfreeze-thaw", reason="FREEZE_FAILED", timeout_s=FREEZE_TIMEOUT_S)


def line(command: str, arguments: Arguments | None) -> str:
    """Return a command as it is sent. Raises GUEST_COMMAND_TOO_LONG."""
    words = json.dumps({"execute": command, **({"arguments": dict(arguments)} if arguments else {})})
    if len(words) > MAX_COMMAND_BYTES:
        raise resource_exhausted(
            "GUEST_COMMAND_TOO_LONG",
            f"{command} has {len(words)} bytes; the way to a guest agent carries {MAX_COMMAND_BYTES >> 10} KiB at once.",
            remedy="Push a file into the guest, and name that instead of long arguments.",
        )
    return words


def missing(name: str, why: str) -> GugusError:
    """Return the error for a guest whose agent does not answer."""
    return precondition(
        "GUEST_AGENT_MISSING",
        f'guest "{name}" has no QEMU guest agent that answers: {why.rstrip(".")}.',
        remedy="Set guest_agent in its spec, start it anew, and install and start qemu-guest-agent in the guest.",
        subject=f"guest/{name}",
    )


def encoded(data: bytes) -> str:
    """Return bytes as the agent takes them."""
    return base64.b64encode(data).decode()


def decoded(answer: Any, key: str) -> bytes:
    """Return bytes of an answer; none when it has none."""
    return base64.b64decode(answer.get(key, ""))


def _require_connected(name: str, domain: Any) -> None:
    for target in live_devices(domain).findall("channel/target"):
        if target.get("name") == CHANNEL:
            if target.get("state") == "disconnected":
                raise missing(name, "nothing in the guest has opened its channel")
            return
    raise missing(name, "the guest has no channel for it")


def _told(name: str, error: Any) -> Exception:
    code, words = error.get_error_code(), str(error)
    if code in _MISSING:
        return missing(name, words)
    if code in _NOT_RUNNING:
        return not_running(name)
    if _TOO_LARGE in words:
        return AgentRefusal(f"what it answered is more than libvirt carries ({words})")
    _, marker, refusal = words.partition(_REFUSED)
    return AgentRefusal(refusal.partition("': ")[2] or refusal) if marker else error
