"""The roots that the modules of `gugus guest` hang their commands on."""

from types import ModuleType
from typing import Annotated, Any, ClassVar

import typer

from client.cli.lazy import LazyGroup
from client.cli.many import Wait
from client.cli.session import complete_guest

__all__ = ["Name", "Wait", "app", "cdrom_app", "disk_app", "ha_app", "nic_app", "tag_app"]


class Guest(LazyGroup):
    """`gugus guest`. A new command needs a line here: its name, and the modules that hang it on `app`."""

    parts: ClassVar = {
        "create": ("guest",),
        "list": ("guest",),
        "show": ("guest",),
        "set": ("guest_change",),
        "edit": ("guest_change",),
        "export": ("guest_change",),
        "start": ("guest_power",),
        "stop": ("guest_power",),
        "reboot": ("guest_power",),
        "reset": ("guest_power",),
        "suspend": ("guest_power",),
        "resume": ("guest_power",),
        "hibernate": ("guest_power",),
        "wait": ("guest_power",),
        "migrate": ("guest_migrate",),
        "snapshot": ("guest_snapshot",),
        "clone": ("guest_clone",),
        "template": ("guest_clone",),
        "disk": ("guest_attach", "guest_disk"),
        "nic": ("guest_attach",),
        "cdrom": ("guest_attach",),
        "console": ("guest_console",),
        "console-log": ("guest",),
        "exec": ("guest_exec",),
        "push": ("guest_files",),
        "pull": ("guest_files",),
        "first-boot": ("guest_first_boot",),
        "send-key": ("guest_keys",),
        "passwd": ("guest_keys",),
        "ha": ("guest_ha",),
        "tag": ("guest_change",),
        "protect": ("guest_change",),
        "rename": ("guest_change",),
        "delete": ("guest",),
        "explain": ("guest",),
    }

    def built(self, name: str, module: ModuleType) -> Any:
        """Return a command of `app`, or one of the groups, as its modules have made it."""
        return typer.main.get_group(GROUPS[name]) if name in GROUPS else typer.main.get_group(app).commands[name]


app = typer.Typer(cls=Guest, no_args_is_help=True, help="Virtual machines and containers.")
ha_app = typer.Typer(no_args_is_help=True, help="Restart when it fails, and elsewhere when its host is lost, or not.")
disk_app = typer.Typer(no_args_is_help=True, help="Disks of guests.")
nic_app = typer.Typer(no_args_is_help=True, help="Network interfaces of guests.")
cdrom_app = typer.Typer(no_args_is_help=True, help="Discs in the drives of virtual machines.")
tag_app = typer.Typer(no_args_is_help=True, help="Words to select guests by.")
GROUPS = {"ha": ha_app, "disk": disk_app, "nic": nic_app, "cdrom": cdrom_app, "tag": tag_app}
"""Groups that several modules may hang commands on."""


Name = Annotated[str, typer.Argument(metavar="GUEST", autocompletion=complete_guest)]
