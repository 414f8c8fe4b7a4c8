"""Every error that a service gives at the door says what to do about it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import manager.services

REMEDIED = {
    "already_exists",
    "deadline_exceeded",
    "permission_denied",
    "precondition",
    "resource_exhausted",
    "unauthenticated",
    "unavailable",
}
"""Makers of errors (common.errors) of which only the remedy says what to do. `invalid` says what would be right, `aborted` tells of
work that nobody wants any more, and for a name that does not exist the client looks for the nearest."""

AMONG_HOSTS = {"arrivals.py"}
"""What managers of two clusters say to each other in a migration: no user reads it."""

FILES = [
    *(file for file in Path(manager.services.__file__).parent.glob("*.py") if file.name not in AMONG_HOSTS),
    *(Path(manager.services.__file__).parent.parent / "guests").rglob("*.py"),
    *(
        (Path(manager.services.__file__).parent.parent / "controllers" / name)
        for name in ("context.py", "images.py", "voters.py")
    ),
]


def without_remedy(file: Path) -> Iterator[str]:
    """Yield where a file makes such an error without a remedy."""
    for node in ast.walk(ast.parse(file.read_text())):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in REMEDIED
            and not any(keyword.arg == "remedy" for keyword in node.keywords)
        ):
            yield f"{file.name}:{node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_errors_have_remedies(file: Path) -> None:
    assert not list(without_remedy(file))
