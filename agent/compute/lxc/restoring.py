"""A program that has liblxc and CRIU restore a container; and what CRIU has us do in the middle of it.

    python -m agent.compute.lxc.restoring

What is to be done is in a file that GUGUS_RESTORE names (`Order`). The container's monitor comes of it, and stays. It lives
in mounts of its own, in which the root file system has its ids translated: liblxc translates none when it restores
(criu.c of liblxc 5, do_restore). These mounts go with the monitor. CRIU calls `hook` at one of its stages, by a script
that `start` writes: criu(8), --action-script, takes a program without arguments.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TypedDict

from agent.compute.lxc import cgroup_tree, mounts, processes

VARIABLE = "GUGUS_RESTORE"
"""Variable of the environment that names the file."""

STAGE = "post-setup-namespaces"
"""The stage at which the container's init is in its cgroup, and no file of a cgroup has been opened yet."""

_SCRIPT = """#!{python}
import os, sys
if os.environ.get("CRTOOLS_SCRIPT_ACTION") == "{stage}":
    from {module} import hook
    sys.exit(hook())
"""


class Order(TypedDict):
    """What is to be done. userns: file of the namespace that translates the root's ids, or ""."""

    name: str
    lxc_path: str
    rootfs: str
    userns: str
    images: str
    log: str
    pid_file: str
    hook: str
    groups: list[cgroup_tree.Group]


def start(order: Order) -> int:
    """Restore; return the exit code. Raises OSError."""
    mounts.unshare()
    if order["userns"]:
        with mounts.detached(order["rootfs"], order["userns"], follow=True) as handle:
            place = os.open(order["rootfs"], os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            mounts.attach(handle, place)
            os.close(place)
    script = Path(order["hook"])
    script.write_text(_SCRIPT.format(python=sys.executable, stage=STAGE, module=__spec__.name))
    script.chmod(0o700)
    argv = ["lxc-checkpoint", "--restore", "--daemon", "--verbose", f"--action-script={script}"]
    argv += [f"--name={order['name']}", f"--lxcpath={order['lxc_path']}", f"--checkpoint-dir={order['images']}"]
    argv += [f"--logfile={order['log']}", "--logpriority=DEBUG"]
    # Neither our end nor the agent's may end the monitor alone, and it may not keep what we were given to write to.
    nothing = subprocess.DEVNULL
    code = subprocess.run(
        argv, stdin=nothing, stdout=nothing, stderr=nothing, start_new_session=True, check=False
    ).returncode
    if code == 0:
        found = processes.scan(Path(order["lxc_path"])).get(order["name"])
        if found is None or found.monitor is None:
            return 1
        Path(order["pid_file"]).write_text(f"{found.monitor.pid}\n")
    return code


def hook() -> int:
    """Make the container's cgroups what they were; return the exit code. Raises OSError, KeyError."""
    order = _order()
    folders = processes.folders_by_controller(int(os.environ["CRTOOLS_INIT_PID"]), order["name"])
    cgroup_tree.restore(str(folders[processes.UNIFIED]), order["groups"])
    return 0


def _order() -> Order:
    order: Order = json.loads(Path(os.environ[VARIABLE]).read_text())
    return order


if __name__ == "__main__":
    sys.exit(start(_order()))
