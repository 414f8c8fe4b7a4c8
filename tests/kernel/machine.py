"""A machine with Debian's stock kernel: this one's file system, booted in QEMU by virtme-ng, to run one command in.

The machine is emulated and its clock counts instructions (-icount), so what it sees of time does not depend on how busy
this one is: a second of computing takes longer here when others compute too, but is a second there. A wait is a wait.
"""

import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
SHARED = Path("/run/gugus-kernel")
"""Where the command finds the folder that it shares with this machine. What it writes there is here at once."""

EMULATOR = f"qemu-system-{platform.machine()}"
MEMORY = "1G"
CLOCK = "-icount shift=1,sleep=on"
"""2 ns an instruction; with more than one CPU a stock kernel does not boot so."""

FIRST_WORDS_TIMEOUT_S = 30.0
"""A real KVM takes 0.3 s, one in the emulated machine 10 s."""

NO_WATCHDOGS = "modprobe.blacklist=i6300esb,iTCO_wdt"
"""Drivers of the emulated hardware are not loaded by themselves: the test that wants one loads it."""

_PROGRAMS = (EMULATOR, "busybox", "modprobe", "udevadm")
_BIN = Path(sys.executable).parent
_TAIL_CHARS = 3000


@dataclass(frozen=True, slots=True)
class Ended:
    """How it went. code: the command's exit code, None when the machine was reset under it. console: kernel's words."""

    code: int | None
    output: str
    console: str

    def __str__(self) -> str:
        return f"exit code {self.code}\n{self.console[-_TAIL_CHARS:]}\n{self.output[-_TAIL_CHARS:]}"


def kernel_image() -> Path | None:
    """Return the newest stock kernel whose modules are installed."""
    images = [path for path in Path("/boot").glob("vmlinuz-*") if _modules(path).is_dir()]
    return max(images, key=lambda path: path.stat().st_mtime, default=None)


def why_not() -> str:
    """Tell why no kernel can be booted here; "" when one can."""
    if os.geteuid() != 0:
        return "a kernel is booted from this machine's whole file system: needs root"
    if platform.machine() != "x86_64":
        return f"the kernel lab is for x86_64, this is {platform.machine()}"
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    missing += [] if (_BIN / "vng").exists() else ["vng (Python package virtme-ng)"]
    if missing:
        return f"not installed: {', '.join(missing)}"
    return "" if kernel_image() else "no stock kernel in /boot with its modules (Debian package linux-image-amd64)"


def starts_on_kvm() -> bool:
    """Whether the stock kernel says its first words on this machine's KVM."""
    argv = [EMULATOR, "-accel", "kvm", "-machine", "pc", "-cpu", "host", "-m", "128", "-nodefaults", "-no-reboot"]
    argv += ["-display", "none", "-serial", "stdio", "-kernel", str(kernel_image())]
    argv += ["-append", "earlyprintk=serial,ttyS0 panic=-1"]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as qemu:
        watch = threading.Timer(FIRST_WORDS_TIMEOUT_S, qemu.kill)
        watch.start()
        try:
            assert qemu.stdout is not None
            return any(b"Linux version" in line for line in qemu.stdout)
        finally:
            watch.cancel()
            qemu.kill()


def boot(command: Sequence[str], folder: Path, timeout_s: float) -> Ended:
    """Boot, run `command` in the repository's folder, power off. `folder` is shared. Raises TimeoutError."""
    image = kernel_image()
    assert image is not None
    shutil.copy(Path(__file__).with_name("root.sh"), folder)  # virtme-ng's init hides some folders, even ours maybe
    root = shlex.join(["sh", f"{SHARED}/shared/root.sh", str(REPOSITORY), "sh", "-c"])
    inner = f'cd {shlex.quote(str(REPOSITORY))} && export PATH={shlex.quote(str(_BIN))}:"$PATH" && exec {shlex.join(command)}'
    (folder / "run.sh").write_text(
        f"{root} {shlex.quote(inner)} > {SHARED}/shared/output 2>&1 < /dev/null\necho $? > {SHARED}/shared/code\n"
    )
    argv = [str(_BIN / "vng"), "--verbose", "--run", str(image), "--disable-kvm", "--force-9p", "--cpus", "1"]
    argv += ["--memory", MEMORY, f"--qemu-opts={CLOCK}", "--append", NO_WATCHDOGS]
    argv += [f"--rwdir={SHARED}/shared={folder}", f"--rodir={SHARED}/lower=/"]  # root.sh knows their order
    argv += ["--", "sh", f"{SHARED}/shared/run.sh"]
    _run(argv, folder, timeout_s)
    code = _read(folder / "code").strip()
    return Ended(int(code) if code else None, _read(folder / "output"), _read(folder / "console"))


def _run(argv: list[str], folder: Path, timeout_s: float) -> None:
    """Run vng, which starts QEMU, in a process group of its own, and let nothing of it outlive the call."""
    path = f"{_BIN}:{os.environ.get('PATH', os.defpath)}"
    with (folder / "console").open("wb") as console:
        vng = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            cwd=REPOSITORY,
            env={**os.environ, "PATH": path, "TMPDIR": str(folder), "HOME": str(folder)},
            start_new_session=True,
        )
        try:
            vng.wait(timeout_s)
        except subprocess.TimeoutExpired:
            said = Ended(None, _read(folder / "output"), _read(folder / "console"))
            raise TimeoutError(f"the kernel lab did not end within {timeout_s:g} s: {said}") from None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(vng.pid, signal.SIGKILL)
            vng.wait()


def _modules(image: Path) -> Path:
    return Path("/lib/modules") / image.name.removeprefix("vmlinuz-")


def _read(file: Path) -> str:
    with suppress(FileNotFoundError):
        return file.read_text(errors="replace")
    return ""
