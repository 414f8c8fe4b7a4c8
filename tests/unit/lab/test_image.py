"""What a lab's nodes are made from."""

import tomllib
from pathlib import Path

from lab.image import PACKAGES


def test_nodes_get_every_package_that_an_installation_has() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert {Path(folder).name for folder in wheel} == set(PACKAGES)
