"""Fence devices for tests: real programs that follow the FenceAgentAPI, each host's power a file, and moods in others."""

import textwrap
from pathlib import Path

AGENT = "fence_test"
PROGRAM = """
#!/usr/bin/python3 -IS
import os, sys, time
METADATA = '''<?xml version="1.0"?><resource-agent name="fence_test" shortdesc="test"><parameters>
<parameter name="action" required="1"><content type="string" default="reboot"/></parameter>
<parameter name="plug" required="1" obsoletes="port"><content type="string"/></parameter>
<parameter name="port" required="1" deprecated="1"><content type="string"/></parameter>
<parameter name="ip" required="0"><content type="string"/></parameter>
<parameter name="ipport" required="0"><content type="integer" default="1"/></parameter>
<parameter name="password" required="0"><content type="string"/></parameter>
<parameter name="debug_file" required="0"><content type="string"/></parameter>
</parameters><actions><action name="on"/><action name="off"/><action name="reboot"/><action name="status"/>
<action name="metadata"/></actions></resource-agent>'''
told = dict(line.rstrip("\\n").split("=", 1) for line in sys.stdin if "=" in line)
action, plug = told.get("action"), told.get("plug")
if action == "metadata":
    print(METADATA)
    sys.exit(0)
folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), "power")
with open(os.path.join(folder, "log"), "a") as log:
    log.write(f"{action} {plug} {sys.argv[1:]}\\n")
mood = os.path.join(folder, plug + ".mood")
mood = open(mood).read() if os.path.exists(mood) else ""
if mood == "hangs":
    time.sleep(600)
if mood == "fails":
    sys.exit("no route to host; the password was " + told.get("password", ""))
power = os.path.join(folder, plug)
if action == "status":
    sys.exit(0 if open(power).read() == "on" else 2)
if mood != "idles":
    open(power + ".new", "w").write(action)
    os.rename(power + ".new", power)
"""


class Power:
    """The switchboard: `folder` is what `fence_agents_dir` names."""

    def __init__(self, folder: Path, *hosts: str) -> None:
        self.folder = folder
        (folder / "power").mkdir(parents=True)
        program = folder / AGENT
        program.write_text(textwrap.dedent(PROGRAM).lstrip())
        program.chmod(0o755)
        for host in hosts:
            self.switch(host, "on")

    def of(self, host: str) -> str:
        """Return "on" or "off"."""
        return (self.folder / "power" / host).read_text()

    def switch(self, host: str, state: str) -> None:
        """Switch a host's power."""
        (self.folder / "power" / host).write_text(state)

    def mood(self, host: str, mood: str) -> None:
        """Let the device of a host hang, fail, or idle (say that it did what it did not)."""
        (self.folder / "power" / f"{host}.mood").write_text(mood)

    def log(self) -> list[str]:
        """Return what was asked: action, plug, arguments."""
        log = self.folder / "power" / "log"
        return log.read_text().splitlines() if log.exists() else []

    def actions(self, host: str) -> list[str]:
        """Return what was asked of one host's device."""
        return [line.split()[0] for line in self.log() if line.split()[1] == host]
