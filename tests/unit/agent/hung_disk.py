"""Run under `unshare -m`: mounts a file system that answers no read, and a process in the part of QEMU hangs on it.

Its main thread is idle, another one is in uninterruptible sleep. Prints its pid once it hangs; the end of this process
lets it go. The protocol is that of linux/fuse.h.
"""

import ctypes
import os
import struct
import sys

VICTIM = """
import os, sys, threading, time
threading.Thread(target=lambda: os.read(os.open(sys.argv[-1], os.O_RDONLY), 4096), daemon=True).start()
time.sleep(1000)
"""
UID = "6b1f3d6e-7f2b-4b8e-9a3c-1d2e3f405060"
_HEADER = struct.Struct("<IIQQIIII")
_LOOKUP, _GETATTR, _OPEN, _READ, _FLUSH, _RELEASE, _INIT = 1, 3, 14, 15, 25, 18, 26
_UNANSWERED = {2, 36, 42, _READ}  # FORGET, INTERRUPT, BATCH_FORGET want none
_INIT_OUT = struct.pack("<IIIIHHIIHHI", 7, 31, 65536, 0, 12, 10, 65536, 1, 0, 0, 0) + bytes(28)
_OPEN_OUT = struct.pack("<QII", 1, 1, 0)  # FOPEN_DIRECT_IO


def attributes(node: int) -> bytes:
    mode = 0o40777 if node == 1 else 0o100666
    return struct.pack("<QQQQQQIIIIIIIIII", node, 4096, 8, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


ANSWERS = {
    _INIT: _INIT_OUT,
    _LOOKUP: struct.pack("<QQQQII", 2, 0, 100, 100, 0, 0) + attributes(2),
    _OPEN: _OPEN_OUT,
    _RELEASE: b"",
    _FLUSH: b"",
}


def main(folder: str) -> None:
    fuse = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0".encode()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"hang", folder.encode(), b"fuse.hang", 0, options):
        raise OSError(ctypes.get_errno(), "mount")
    victim = os.fork()
    if victim == 0:
        words = ["qemu-system-x86_64", "-c", VICTIM, "-name", "guest=web", "-uuid", UID, f"{folder}/disk"]
        os.execve(os.path.realpath(sys.executable), words, {**os.environ, "PYTHONHOME": sys.base_prefix})
    while True:
        request = os.read(fuse, 1 << 20)
        _, operation, unique, node, *_ = _HEADER.unpack_from(request)
        if operation == _READ:
            print(victim, flush=True)
        if operation in _UNANSWERED:
            continue
        found = struct.pack("<QII", 100, 0, 0) + attributes(node) if operation == _GETATTR else ANSWERS.get(operation)
        error, data = (0, found) if found is not None else (-38, b"")  # ENOSYS
        os.write(fuse, struct.pack("<IiQ", 16 + len(data), error, unique) + data)


if __name__ == "__main__":
    main(sys.argv[1])
