"""`python -m lab.images OUT_DIR`: builds both guest images, or finds them there, and prints where they are as JSON."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from lab.images import KernelMissing, images


def main() -> int:
    """Run the command line; 0 when both images are there, 1 with the reason on stderr when one cannot be built."""
    parser = argparse.ArgumentParser(prog="python -m lab.images", description="Build the guest images of the demo.")
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR", help="folder for the images, reused while unchanged")
    try:
        built = images(parser.parse_args().out_dir)
    except subprocess.CalledProcessError as failure:
        print(f"cannot build the images: {failure}: {failure.stderr!r}", file=sys.stderr)
        return 1
    except (KernelMissing, OSError, subprocess.TimeoutExpired) as failure:
        print(f"cannot build the images: {failure} (are the packages in packages.txt installed?)", file=sys.stderr)
        return 1
    print(json.dumps(asdict(built), default=str))
    return 0


if __name__ == "__main__":
    sys.exit(main())
