"""The density benchmark's arithmetic."""

import os
import subprocess
import sys
from collections.abc import Sequence

from bench.density.figures import Figures, judged
from bench.density.processes import cpu_seconds, own_processes, rss_mib


def test_each_figure_is_judged_by_its_own_limit() -> None:
    result = judged({"simulated": Figures(200, 1.99, 150.0, 99.9, 2.9)})
    assert result["simulated"]["guests"] == 200
    assert {target["figure"]: target["met"] for target in result["targets"]} == {
        "cpu_percent": True,
        "rss_mib": False,
        "list_ms": True,
        "adopt_s": True,
    }


def _run(words: Sequence[str]) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout


def test_an_agent_is_its_process_and_its_helpers_but_not_what_it_started_else() -> None:
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'], stdin=sys.stdin)"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE) as helper:
        other = subprocess.Popen(["sleep", "30"])
        try:
            for _ in range(200):
                own = own_processes(_run, os.getpid())
                if helper.pid in own and len(own) > 2:
                    break
            assert other.pid not in own
            assert cpu_seconds(_run, own) > 0
            assert rss_mib(_run, own) > rss_mib(_run, [other.pid]) > 0
        finally:
            other.kill()
            other.wait()
            helper.communicate(b"\n")
