"""The `gugus` command."""

from client.cli.app import app, main

__all__ = ["app", "main"]
