"""The two small guests of the demo and the lab tests: a virtual machine's disk and a container's root file system.

Both are made from Debian packages on this machine, without root, and both keep a heartbeat by which a test can prove
that exactly one copy runs.
"""

from lab.images.build import Images, build_container_rootfs, build_vm_image, images
from lab.images.heartbeat import (
    Heartbeat,
    NoHeartbeat,
    read_container_heartbeat,
    read_container_history,
    read_heartbeat,
    read_history,
    two_copies,
    writers,
)
from lab.images.kernel import KernelMissing

__all__ = [
    "Heartbeat",
    "Images",
    "KernelMissing",
    "NoHeartbeat",
    "build_container_rootfs",
    "build_vm_image",
    "images",
    "read_container_heartbeat",
    "read_container_history",
    "read_heartbeat",
    "read_history",
    "two_copies",
    "writers",
]
