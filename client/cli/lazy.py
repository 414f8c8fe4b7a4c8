"""Groups whose commands are loaded when they are used: a command line starts without what it does not need (docs/decisions/0006)."""

from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import Any, ClassVar

from typer.core import TyperCommand, TyperGroup


class _Part(TyperCommand):
    """Stands for a command that is not loaded yet."""


class LazyGroup(TyperGroup):
    """Has the commands of `parts`: names, and the modules of `client.cli` to import for each."""

    parts: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for name in self.parts:
            if name not in self.commands:
                self.add_command(_Part(name))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command, and load it first if it is not yet."""
        found = super().get_command(ctx, cmd_name)
        if isinstance(found, _Part):
            modules = [import_module(f"client.cli.{module}") for module in self.parts[cmd_name]]
            found = self.built(cmd_name, modules[0])
            found.name = cmd_name
            self.add_command(found)
        return found

    def built(self, name: str, module: ModuleType) -> Any:
        """Return the command of a name, whose modules were imported; `module` is the first of them."""
        raise NotImplementedError
