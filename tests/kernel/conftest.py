"""The tests in `inside` run in a booted stock kernel: one boot for all that are chosen, whose reports are told here.

Here pytest collects them like all others; the same pytest, started in that kernel, runs them and writes one line of
JSON a report into the folder that both share.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import pytest

from tests.kernel import machine

INSIDE = Path(__file__).with_name("inside")
REPORTS = "reports"
"""File in the shared folder, and the environment variable that names it to the pytest in the kernel."""

REPORTS_VARIABLE = "GUGUS_KERNEL_REPORTS"
BOOT_TIMEOUT_S = 700.0
"""Measured: 25 s to boot and 210 s for all tests; the rest is for a machine that is busy with other things."""

PYTEST = [sys.executable, "-m", "pytest", "-p", "pytest_asyncio.plugin", "-p", "no:cacheprovider"]
ENVIRONMENT = ["PYTEST_DISABLE_PLUGIN_AUTOLOAD=1", "PYTHONDONTWRITEBYTECODE=1"]
_TOLD = pytest.StashKey[tuple[list[pytest.TestReport], str]]()


class Teller:
    """In the kernel: writes down each report."""

    def __init__(self, config: pytest.Config, file: Path) -> None:
        self._config, self._file = config, file

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Append it at once: the machine may not live to see the end."""
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        with self._file.open("a") as file:
            file.write(json.dumps(data) + "\n")


def pytest_configure(config: pytest.Config) -> None:
    """In the kernel, write the reports down."""
    if file := os.environ.get(REPORTS_VARIABLE):
        config.pluginmanager.register(Teller(config, Path(file)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip everything of this ring, with the reason, where no kernel can be booted."""
    if REPORTS_VARIABLE not in os.environ and (reason := machine.why_not()):
        for item in items:
            if INSIDE.parent in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    """Tell what became of the test in the kernel in place of running it here."""
    if REPORTS_VARIABLE in os.environ or INSIDE not in item.path.parents or item.get_closest_marker("skip"):
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in _told(item):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _told(item: pytest.Item) -> list[pytest.TestReport]:
    stash = item.session.stash
    if _TOLD not in stash:
        chosen = [other.nodeid for other in item.session.items if INSIDE in other.path.parents]
        stash[_TOLD] = _run_inside(item.config, chosen)
    reports, why = stash[_TOLD]
    told = [report for report in reports if report.nodeid == item.nodeid]
    if not told or told[-1].when != "teardown":
        told.append(pytest.TestReport(item.nodeid, item.location, {}, "failed", why, "call"))
    return told


def _run_inside(config: pytest.Config, chosen: list[str]) -> tuple[list[pytest.TestReport], str]:
    """Return the reports, and how the machine ended for those that are missing."""
    with tempfile.TemporaryDirectory(prefix="kernel-") as name:
        folder = Path(name)
        variables = [f"{REPORTS_VARIABLE}={machine.SHARED / REPORTS}", *ENVIRONMENT]
        try:
            why = str(machine.boot(["env", *variables, *PYTEST, *chosen], folder, BOOT_TIMEOUT_S))
        except TimeoutError as error:
            why = str(error)
        lines = (folder / REPORTS).read_text().splitlines() if (folder / REPORTS).exists() else []
        hook = config.hook.pytest_report_from_serializable
        return [hook(config=config, data=json.loads(line)) for line in lines], why
