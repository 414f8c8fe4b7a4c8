"""The options of `gugus guest create` and `set`: a table of what each means in the spec, and the functions that read the special ones.

An option not in the table is not lost: `--set PATH=VALUE` reaches every field of the spec.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from gugus.agent.v1.guest_pb2 import GuestKind
from gugus.cluster.v1.guest_pb2 import GuestSpec

from client.cli.faults import Faults, each
from client.cli.guest_devices import addresses, devices, features, mounts, pci_devices, usb_devices
from client.cli.words import cpu_milli, ssh_keys
from client.local_files import unreadable
from common.errors import invalid

Read = Callable[[str, Any], Any]

MAX_FILE_BYTES = 64 * 1024
"""First-boot files; the manager allows less and says how much."""


def _limit(option: str, text: str) -> int:
    return cpu_milli(option, text)


def _keys(option: str, files: Sequence[Path]) -> list[str]:
    return ssh_keys(files)


def _file(option: str, file: Path) -> str:
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise invalid(option, f"{file} is longer than {MAX_FILE_BYTES} bytes.")
        return data.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(option, file, error) from None


def _line(option: str, file: Path) -> str:
    return _file(option, file).strip()


def _pairs(option: str, texts: Sequence[str]) -> dict[str, str]:
    def one(text: str) -> tuple[str, str]:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise invalid(option, f'"{text}" is not NAME=VALUE.')
        return key, value

    return dict(each(one, texts))


@dataclass(frozen=True)
class Setting:
    """An option: `path` is the field in the spec it changes; `read` gives the field's value when it is not a plain text.

    kind: a text, a flag with its opposite, a list, a file, or files.
    """

    flag: str
    path: str
    help: str
    metavar: str = ""
    type: Any = str
    read: Read | None = None
    panel: str = ""

    @property
    def parameter(self) -> str:
        """Its name as a parameter of a function."""
        return "setting_" + self.flag.split("/")[0].removeprefix("--").replace("-", "_")

    @property
    def shown(self) -> str:
        """Its name as it is typed."""
        return self.flag.split("/")[0]


_G, _R, _V, _C, _F = "General", "Shares and limits", "Virtual machines", "Containers", "First boot"
_VM, _CT, _FB = "virtual_machine", "container", "first_boot"

SETTINGS = (
    Setting("--cpus", "cpus", "CPUs (1).", "N", panel=_G),
    Setting("--memory", "memory", "Like 2GiB (vm: 512MiB, container: 256MiB).", "SIZE", panel=_G),
    Setting("--notes", "notes", "Notes for people, Markdown.", "TEXT", panel=_G),
    Setting("--tag", "tags", "To select it by; may be repeated, all are named.", "TAG", list, panel=_G),
    Setting("--project", "project", "Whose quota it counts against.", "PROJECT", panel=_G),
    Setting("--protect/--no-protect", "protected", "Refuse to delete it or its disks.", type=bool, panel=_G),
    Setting("--shutdown-timeout", "shutdown_timeout", "How long it may take to shut down (60s).", "TIME", panel=_G),
    Setting("--boot-policy", "boot.policy", "After a boot of its host: default (as before), never, always.", "POLICY", panel=_G),
    Setting("--boot-order", "boot.order", "Its place when a host starts its guests, from 1.", "N", panel=_G),
    Setting("--boot-delay", "boot.delay", "Wait so long before the next in that order.", "TIME", panel=_G),
    Setting("--after", "boot.after", "A guest that starts before it; may be repeated, all are named.", "GUEST", list, panel=_G),
    Setting("--on-crash", "policies.on_crash", "restart (default) or stop.", "POLICY", panel=_G),
    Setting("--on-reboot", "policies.on_reboot", "restart (default) or stop.", "POLICY", panel=_G),
    Setting("--on-shutdown", "policies.on_shutdown", "restart (default under HA) or stop.", "POLICY", panel=_G),
    Setting("--cpu-limit", "cpu_limit", "CPU time it may use, like 0.5 (all of its CPUs).", "CPUS", read=_limit, panel=_R),
    Setting("--weight", "resources.cpu_weight", "Share of the CPUs, 1 to 10000 (100).", "N", panel=_R),
    Setting("--cpuset", "resources.cpuset", "CPUs of the host it may run on, like 0-3,8.", "SET", panel=_R),
    Setting("--balloon", "resources.memory_reserved", "Memory it keeps under pressure.", "SIZE", panel=_R),
    Setting("--memory-weight", "resources.memory_weight", "Share of memory that balloons give back (1000).", "N", panel=_R),
    Setting("--io-weight", "resources.io_weight", "Share of the disks, 1 to 10000 (100).", "N", panel=_R),
    Setting("--swap", "resources.swap", "Swap of a container.", "SIZE", panel=_R),
    Setting("--pids", "resources.pids", "Processes of a container (4096).", "N", panel=_R),
    Setting("--machine", f"{_VM}.machine", "Machine type: q35 (default), pc, or a versioned one.", "TYPE", panel=_V),
    Setting("--cpu-model", f"{_VM}.cpu.model", "cluster (default), host, or one of libvirt's.", "MODEL", panel=_V),
    Setting("--cpu-flag", f"{_VM}.cpu.flags", "+NAME or -NAME; may be repeated.", "FLAG", list, panel=_V),
    Setting("--sockets", f"{_VM}.cpu.sockets", "Sockets (1).", "N", panel=_V),
    Setting("--cores", f"{_VM}.cpu.cores", "Cores a socket.", "N", panel=_V),
    Setting("--threads", f"{_VM}.cpu.threads", "Threads a core (1).", "N", panel=_V),
    Setting("--max-cpus", f"{_VM}.cpu.max_cpus", "CPUs it can grow to while it runs.", "N", panel=_V),
    Setting("--max-memory", f"{_VM}.memory.max", "Memory it can grow to while it runs.", "SIZE", panel=_V),
    Setting("--huge-pages", f"{_VM}.memory.huge_pages", "2m or 1g.", "SIZE", panel=_V),
    Setting("--ballooning/--no-ballooning", f"{_VM}.memory.no_balloon", "Have a balloon device.", type="not", panel=_V),
    Setting("--uefi/--bios", f"{_VM}.firmware.kind", "Firmware.", type=("uefi", "bios"), panel=_V),
    Setting("--secure-boot/--no-secure-boot", f"{_VM}.firmware.secure_boot", "Secure Boot; UEFI.", type=bool, panel=_V),
    Setting("--tpm/--no-tpm", f"{_VM}.tpm", "A TPM 2.0.", type=bool, panel=_V),
    Setting("--display", f"{_VM}.display.model", "none (default), std, virtio, qxl, cirrus, vmware, ramfb.", "MODEL", panel=_V),
    Setting("--spice/--no-spice", f"{_VM}.display.spice", "Serve the screen through SPICE, too.", type=bool, panel=_V),
    Setting("--guest-agent/--no-guest-agent", f"{_VM}.guest_agent", "The QEMU guest agent runs in it.", type=bool, panel=_V),
    Setting("--watchdog", f"{_VM}.watchdog.model", "i6300esb or ib700.", "MODEL", panel=_V),
    Setting("--watchdog-action", f"{_VM}.watchdog.action", "reset (default), shutdown, poweroff, pause, none.", "ACTION", panel=_V),
    Setting("--rng/--no-rng", f"{_VM}.no_rng", "A virtio random generator (on).", type="not", panel=_V),
    Setting("--hotplug/--no-hotplug", f"{_VM}.no_hotplug", "Change what can be changed while it runs (on).", type="not", panel=_V),
    Setting("--serial-ports", f"{_VM}.serial_ports", "More serial ports, 0 to 3.", "N", panel=_V),
    Setting("--virtio-console/--no-virtio-console", f"{_VM}.virtio_console", "A virtio console.", type=bool, panel=_V),
    Setting("--local-time/--utc", f"{_VM}.local_time", "The clock shows local time.", type=bool, panel=_V),
    Setting("--audio", f"{_VM}.audio", "ich9 or ac97.", "MODEL", panel=_V),
    Setting("--usb", f"{_VM}.usb_devices", "VENDOR:PRODUCT or BUS-PORT; may be repeated.", "DEVICE", list, usb_devices, _V),
    Setting("--pci", f"{_VM}.pci_devices", "ADDRESS[,pcie][,no-rom][,primary-gpu]; may be repeated.", "DEVICE", list, pci_devices, _V),
    Setting("--smbios", f"{_VM}.smbios", "Like serial=X1; may be repeated.", "NAME=VALUE", list, _pairs, panel=_V),
    Setting("--privileged/--unprivileged", f"{_CT}.privileged", "Run with the host's user ids: unsafe.", type=bool, panel=_C),
    Setting("--feature", f"{_CT}.features", "nesting, fuse, keyctl, mknod, checkpoint; NAME=no takes it away.", "NAME", list, features, _C),
    Setting("--mount", f"{_CT}.mounts", "Folder of the host, SOURCE:TARGET[:ro]; may be repeated.", "MOUNT", list, mounts, _C),
    Setting("--device", f"{_CT}.devices", "Device of the host, /dev/NAME; may be repeated.", "DEVICE", list, devices, _C),
    Setting("--env", f"{_CT}.environment", "Of its first process; may be repeated.", "NAME=VALUE", list, _pairs, panel=_C),
    Setting("--init", f"{_CT}.init", "Its first process and arguments, a word each time.", "WORD", list, panel=_C),
    Setting("--ttys", f"{_CT}.ttys", "Terminals, 0 to 6 (2).", "N", panel=_C),
    Setting("--read-only-root/--writable-root", f"{_CT}.read_only_root", "Refuse writes to its root.", type=bool, panel=_C),
    Setting("--drop-capability", f"{_CT}.drop_capabilities", "Like net_raw; may be repeated.", "NAME", list, panel=_C),
    Setting("--hostname", f"{_FB}.hostname", "Host name (the guest's name).", "NAME", panel=_F),
    Setting("--user", f"{_FB}.user", "User to make, with the keys.", "USER", panel=_F),
    Setting("--ssh-key", f"{_FB}.ssh_authorized_keys", "Public keys to let in; may be repeated.", "FILE", "files", _keys, _F),
    Setting("--password-hash", f"{_FB}.password_hash", "File with the user's password as crypt(5) hashes it.", "FILE", Path, _line, _F),
    Setting("--ip", f"{_FB}.addresses", "[NIC=]ADDRESS/PREFIX[,GATEWAY], dhcp, auto or none.", "ADDRESS", list, addresses, _F),
    Setting("--dns", f"{_FB}.dns_servers", "DNS server; may be repeated.", "ADDRESS", list, panel=_F),
    Setting("--dns-search", f"{_FB}.dns_search", "DNS search domain; may be repeated.", "DOMAIN", list, panel=_F),
    Setting("--package", f"{_FB}.packages", "To install (vm); may be repeated.", "NAME", list, panel=_F),
    Setting("--upgrade/--no-upgrade", f"{_FB}.upgrade_packages", "Bring packages up to date (vm).", type=bool, panel=_F),
    Setting("--timezone", f"{_FB}.timezone", "Like Europe/Vienna.", "ZONE", panel=_F),
    Setting("--user-data", f"{_FB}.user_data", "cloud-init user-data instead of all this (vm).", "FILE", Path, _file, _F),
    Setting("--vendor-data", f"{_FB}.vendor_data", "cloud-init vendor-data (vm).", "FILE", Path, _file, _F),
    Setting("--network-config", f"{_FB}.network_config", "cloud-init network-config (vm).", "FILE", Path, _file, _F),
)  # fmt: skip

_ONLY = {
    _VM: (GuestKind.GUEST_KIND_CONTAINER, "virtual machines"),
    _CT: (GuestKind.GUEST_KIND_VIRTUAL_MACHINE, "containers"),
}


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of the table; it gets those that were typed as `settings`."""
    signature = inspect.signature(command, eval_str=True)
    own = [parameter for name, parameter in signature.parameters.items() if name != "settings"]
    more = [
        inspect.Parameter(
            setting.parameter, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_annotation(setting)
        )
        for setting in SETTINGS
    ]

    @functools.wraps(command)
    def with_them(*args: Any, **named: Any) -> None:
        typed = {setting: named.pop(setting.parameter) for setting in SETTINGS}
        command(*args, settings={setting: value for setting, value in typed.items() if value is not None}, **named)

    shown: Any = with_them
    keyword = inspect.Parameter.KEYWORD_ONLY
    shown.__signature__ = signature.replace(parameters=[*(one.replace(kind=keyword) for one in own), *more])
    shown.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *more]}
    return with_them


def apply_settings(spec: GuestSpec, settings: Mapping[Setting, Any]) -> None:
    """Change a spec as options say. Raises GugusError naming every option at fault."""
    faults = Faults()
    for setting, value in settings.items():
        with faults.gathered():
            _apply(spec, setting, value)
    faults.tell()


def _apply(spec: GuestSpec, setting: Setting, value: Any) -> None:
    from client.apply.paths import assign, put  # here: other commands start faster without it

    other, who = _ONLY.get(setting.path.split(".")[0], (None, ""))
    if spec.kind == other:
        raise invalid(setting.shown, f"is of {who} only.")
    if isinstance(value, (str, list, Path)):
        value, emptied = _without_empty(value)
        if emptied:
            put(spec, setting.path, None)
        if not value:
            return
    if setting.read is not None:
        put(spec, setting.path, setting.read(setting.shown, value))
    elif isinstance(setting.type, tuple):
        assign(spec, setting.path, setting.type[0 if value else 1], setting.shown)
    elif isinstance(value, bool):
        put(spec, setting.path, (not value) if setting.type == "not" else value)
    elif isinstance(value, list):
        put(spec, setting.path, value)
    else:
        assign(spec, setting.path, value, setting.shown)


def _without_empty(value: Any) -> tuple[Any, bool]:
    """Return a value without what is empty in it, and whether something was: that means the default, or an empty list.

    An empty file name arrives as Path("."), which no option can mean: it is a folder.
    """
    if isinstance(value, list):
        kept = [item for item in value if item not in ("", Path())]
        return kept, len(kept) < len(value)
    empty = value in ("", Path())
    return ("" if empty else value), empty


def _annotation(setting: Setting) -> Any:
    kinds = {str: str, list: list[str], Path: Path, "files": list[Path]}
    kind: Any = kinds.get(setting.type, bool)
    metavar = setting.metavar or None
    option = typer.Option(setting.flag, metavar=metavar, help=setting.help, rich_help_panel=setting.panel)
    return Annotated[kind | None, option]
