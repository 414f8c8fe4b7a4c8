"""`python -m bench.store`: our replicated store beside etcd's, three members each, on one disk, under the same load.

Prints one JSON object: each figure for ours, for etcd, and ours in units of etcd's; and the targets. What goes on is
told on standard error. The exit code is 0 when every target that was measured is met, 1 when not, 2 when it could not
be measured.
"""

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import grpc

from bench.store import sections, stubs
from bench.store.bed import Bed, bed
from bench.store.figures import Figures, judged
from bench.store.sections import Extent
from bench.store.sides import CannotMeasure, etcd_program, etcd_version
from lab.scratch import scratch

_PREFIX = "gugus-bench-store-"
Section = Callable[[Bed, Extent], Awaitable[Figures]]

LIGHT: dict[str, Section] = {
    "idle": sections.idle,
    "sequential": sections.sequential_writes,
    "writes32": partial(sections.concurrent_writes, clients=32),
    "writes256": partial(sections.concurrent_writes, clients=256),
    "reads": sections.linearizable_reads,
    "watch": sections.watch_fan_out,
    "failover": sections.failover,
    "frozen": sections.frozen_leader,
}
"""Sections on two clusters that hold little."""

HEAVY: dict[str, Section] = {"memory": sections.memory, "recovery": sections.recovery}
"""Sections on two fresh clusters that are filled."""

FULL = Extent(5, 3.0, 30.0, 9, 3, 50, sections.OBJECTS, 2)
QUICK = Extent(2, 1.0, 5.0, 2, 1, 30, 5_000, 2)


def main() -> int:
    """Run the command line."""
    options = _options()
    signal.signal(signal.SIGTERM, _terminated)
    try:
        etcd_program()
        with work_folder(options.dir) as folder:
            stubs.generate(folder / "stubs")
            result = asyncio.run(_guarded(folder, options))
    except (CannotMeasure, grpc.aio.AioRpcError, TimeoutError, OSError) as error:
        print(f"cannot measure: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("interrupted; nothing is left behind", file=sys.stderr)
        return 128 + signal.SIGINT
    print(json.dumps(result))
    if result["failures"]:
        return 2
    return 0 if all(target["met"] for target in result["targets"]) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.store", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=[*LIGHT, *HEAVY], help="sections to measure (default: all)")
    parser.add_argument("--quick", action="store_true", help="a short look: few rounds, few objects, noisy figures")
    parser.add_argument("--rounds", type=int, help=f"rounds of a section (default: {FULL.rounds})")
    parser.add_argument("--seconds", type=float, help=f"seconds of load in a round (default: {FULL.seconds:g})")
    parser.add_argument(
        "--objects", type=int, help=f"objects of 1 KiB for memory and recovery (default: {FULL.objects})"
    )
    parser.add_argument("--generators", type=int, help=f"load generators (default: {FULL.generators})")
    parser.add_argument(
        "--dir",
        type=Path,
        default=Path("/var/tmp"),
        help="where both keep their data; a real disk (default: %(default)s)",
    )
    return parser.parse_args()


def _terminated(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


async def _guarded(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measure, and on SIGINT or SIGTERM take down what was started before ending."""
    measuring = asyncio.ensure_future(_measure(folder, options))
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, measuring.cancel)
    return await measuring


async def _measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    extent, result = _extent(options), _Result()
    began = time.monotonic()
    for name, chapter in (("light", LIGHT), ("heavy", HEAVY)):
        wanted = {key: section for key, section in chapter.items() if not options.only or key in options.only}
        if wanted:
            await _chapter(folder / name, wanted, extent, result)
    return {
        "benchmark": "store",
        "members": 3,
        "cores": os.cpu_count(),
        "etcd_version": etcd_version(),
        "extent": asdict(extent),
        "duration_s": round(time.monotonic() - began, 1),
        "figures": {name: figure.shown() for name, figure in result.figures.items()},
        "generator_check": result.checks,
        "targets": judged(result.figures),
        "failures": result.failures,
    }


async def _chapter(folder: Path, wanted: dict[str, Section], extent: Extent, result: "_Result") -> None:
    """Measure sections on two fresh clusters; one that fails ends the chapter, and what was measured before is kept."""
    section = "start"
    try:
        async with bed(folder) as both:
            for section, measure in wanted.items():
                result.figures |= await _told(section, measure(both, extent))
            if "writes32" in wanted:
                result.checks |= await sections.generator_check(both, extent)
    except (CannotMeasure, grpc.aio.AioRpcError, TimeoutError) as error:
        print(f"{section}: cannot measure: {error}", file=sys.stderr)
        result.failures[section] = str(error).partition("\n")[0]


@dataclass(slots=True)
class _Result:
    figures: Figures = field(default_factory=dict)
    checks: dict[str, float] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


async def _told(name: str, section: Awaitable[Figures]) -> Figures:
    began = time.monotonic()
    figures = await section
    print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    for key, figure in figures.items():
        print(f"    {key}: {json.dumps(figure.shown())}", file=sys.stderr)
    return figures


def _extent(options: argparse.Namespace) -> Extent:
    given = {
        name: getattr(options, name)
        for name in ("rounds", "seconds", "objects", "generators")
        if getattr(options, name) is not None
    }
    return replace(QUICK if options.quick else FULL, **given)


@contextmanager
def work_folder(parent: Path) -> Iterator[Path]:
    """Make a folder for all that we write, and remove it at the end, and those of runs that were killed.

    Raises CannotMeasure when it would lie in memory: then a sync costs nothing and the comparison is worth nothing.
    """
    kind = subprocess.run(["stat", "-f", "-c", "%T", str(parent)], capture_output=True, text=True, check=True).stdout
    if kind.strip() in ("tmpfs", "ramfs"):
        raise CannotMeasure(f"{parent} is {kind.strip()}, not a disk: give another with --dir")
    with scratch(parent, _PREFIX) as folder:
        yield folder


if __name__ == "__main__":
    sys.exit(main())
