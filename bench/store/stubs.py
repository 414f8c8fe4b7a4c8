"""The Python code of etcd.proto: made at run time, for only the benchmark needs it."""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

ENVIRONMENT = "GUGUS_BENCH_STUBS"
"""Names the folder of the stubs to our children."""

_PROTO = Path(__file__).with_name("etcd.proto")


def generate(folder: Path) -> None:
    """Write the stubs to a folder, and let this process and its children find them there."""
    folder.mkdir(parents=True, exist_ok=True)
    protoc = [sys.executable, "-m", "grpc_tools.protoc", f"-I{_PROTO.parent}"]
    subprocess.run([*protoc, f"--python_out={folder}", f"--grpc_python_out={folder}", str(_PROTO)], check=True)
    os.environ[ENVIRONMENT] = str(folder)


def messages() -> ModuleType:
    """Return the module of the messages."""
    return _load("etcd_pb2")


def services() -> ModuleType:
    """Return the module of the services' stubs and servicers."""
    return _load("etcd_pb2_grpc")


def _load(name: str) -> ModuleType:
    folder = os.environ[ENVIRONMENT]
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(name)
