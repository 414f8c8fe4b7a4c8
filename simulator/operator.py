"""Whoever carries a scenario's commands out: on hosts at once, and as a client of the cluster once its managers can write.

What a command writes is what the product's services write (manager.services.guest, drain, rule, ha).
"""

from collections.abc import Callable, Mapping, Sequence

from gugus.cluster.v1.cluster_pb2 import DISARM_MODE_FREEZE, DISARM_MODE_UNSPECIFIED
from gugus.cluster.v1.guest_pb2 import HA_STATE_ERROR, POWER_OFF, POWER_ON, Guest
from gugus.cluster.v1.node_pb2 import NODE_STATE_FENCED, Node, RollingReboot

from manager.ha import account, rolling
from manager.ha.guest_machine import Event
from manager.ha.stored import give
from simulator.clockwork import S
from simulator.commands import ALL, Command
from simulator.state import CLUSTER, Course, Drain, Move, Object, Rolling, State, Txn, copy_of, guest_key, node_key
from simulator.world import World

RETRY = 1 * S
"""A client asks again so often while no manager can write."""

Change = Callable[[State], Txn | None]


class Operator:
    """Carries out one command after another."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._asked = 0

    def carry_out(self, command: Command) -> None:
        """Carry a command out, or begin to."""
        node, guest = command.args.get("NODE", ""), command.args.get("GUEST", "")
        kind = command.words.split()[0]
        if command.words in _HOSTS:
            _HOSTS[command.words](self, node)
        elif command.words == "device":
            self.world.devices[node].mood = command.args["MOOD"]
        elif command.words == "guest fail-start":
            self.world.fail_starts.setdefault(guest, []).append((node, int(command.args["N"])))
        elif command.words == "guest load":
            self.world.uses(guest, float(command.args["CPUS"]))
        elif command.words == "guest crash":
            for host in self.world.hosts.values():
                host.agent.crash(guest)
        elif command.words in _GUESTS:
            self._on_guest(guest, lambda g: _GUESTS[command.words](g, command))
        elif command.words in ("guest migrate", "guest relocate"):
            self._asked += 1
            restart, now = command.words == "guest relocate", self.world.queue.now
            move = Move(f"ask-{self._asked}", guest, node, "person", restart=restart, at_ns=now)
            self._client(lambda state: Txn({}, {f"move/{move.name}": move}))
        elif command.words == "nodes reboot":
            self._asked += 1
            task = f"reboot-{self._asked}"
            self._client(lambda state: self._rolling(state, task, command.args["NODES"].split()))
        elif kind in ("guest", "rule", "settings", "ha"):
            self._client(lambda state: self._written(state, command))
        else:
            self._on_node(node, command)

    # As a client.

    def _client(self, change: Change, *, told: bool = False) -> None:
        """Commit a change of the state of then, once some manager can."""
        if any(self.world.usable(name) for name in self.world.voters):
            txn = change(self.world.committed)
            if txn is not None:
                self.world.commit(txn)
            return
        if not told:
            self.world.tell("cluster", "no majority of managers is there: what was asked for waits")
        self.world.queue.after(RETRY, lambda: self._client(change, told=True))

    def _on_guest(self, name: str, change: Callable[[Guest], None]) -> None:
        def changed(state: State) -> Txn | None:
            if name not in state.guests:
                return None
            guest = copy_of(state.guests[name])
            change(guest)
            return Txn({}, {guest_key(name): guest})

        self._client(changed)

    def _written(self, state: State, command: Command) -> Txn | None:
        match command.words:
            case "guest add":
                guest = copy_of(command.value.guest)
                self.world.uses(guest.meta.name, command.value.load)
                if guest.status.node:
                    give(guest, guest.status.node, disarmed=state.cluster.ha.disarmed)
                return Txn({}, {guest_key(guest.meta.name): guest})
            case "rule set":
                return Txn({}, {f"rule/{command.value.meta.name}": command.value})
            case "rule remove":
                return Txn({}, {}, deletes=(f"rule/{command.args['RULE']}",))
            case "settings set":
                cluster = copy_of(state.cluster)
                cluster.settings.CopyFrom(command.value)
            case _:
                cluster = copy_of(state.cluster)
                cluster.ha.disarmed = command.words == "ha disarm"
                cluster.ha.mode = DISARM_MODE_FREEZE if command.text.endswith("freeze") else DISARM_MODE_UNSPECIFIED
        return Txn({}, {CLUSTER: cluster})

    def _rolling(self, state: State, name: str, wanted: Sequence[str]) -> Txn | None:
        """Begin to reboot hosts, or go on with what was broken off."""
        known = list(state.reboots.values())
        if any(one.course is Course.OPEN for one in known):
            self.world.tell("cluster", "hosts are being rebooted already")
            return None
        nodes = [node for node in state.nodes.values() if wanted == [ALL] or node.meta.name in wanted]
        names = {node.meta.name for node in nodes}
        last = RollingReboot.FromString(known[-1].notes) if known and known[-1].course is Course.FAILED else None
        earlier = rolling.of_the_same(last, names) if last is not None else None
        notes = rolling.planned(nodes, state.lease.holder if state.lease else "", earlier)
        return Txn({}, {f"reboot/{name}": Rolling(name, notes.SerializeToString())})

    def _on_node(self, name: str, command: Command) -> None:
        self._asked += 1
        task = f"drain-{self._asked}"

        def changed(state: State) -> Txn | None:
            node = copy_of(state.nodes[name])
            puts: dict[str, Object] = {node_key(name): node}
            match command.words:
                case "node maintenance on":
                    node.spec.maintenance = True
                    puts[f"drain/{task}"] = Drain(task, name)
                case "node maintenance off":
                    node.spec.maintenance = False
                    puts[f"drain/{task}"] = Drain(task, name, back=True)
                case "node drain":
                    node.spec.cordoned = True
                    puts[f"drain/{task}"] = Drain(task, name, maintenance=False)
                case "node cordon" | "node uncordon":
                    node.spec.cordoned = command.words == "node cordon"
                case "node fence":
                    if node.status.state != NODE_STATE_FENCED:
                        node.status.fence.asked_by = "a person"
                case "node confirm-off":
                    _confirm(node)
            return Txn({}, puts, tells=((node_key(name), f"asked: {command.text}"),))

        self._client(changed)

    # On hosts.

    def power_on(self, name: str) -> None:
        """Give a host power."""
        host = self.world.hosts[name]
        if not host.powered:
            self.world.tell(node_key(name), "power on")
            host.boot()

    def watchdog(self, name: str, *, on: bool) -> None:
        """Let a host's watchdog guard it, or not."""
        self.world.hosts[name].watchdog = on
        self.world.tell(node_key(name), "its watchdog guards it again" if on else "its watchdog is off")

    def thaw(self, name: str) -> None:
        """Let a frozen host go on."""
        self.world.tell(node_key(name), "goes on")
        self.world.hosts[name].thaw()

    def hang(self, name: str, *, hangs: bool) -> None:
        """Let a host's agent hang, or go on."""
        self.world.tell(node_key(name), "its agent hangs" if hangs else "its agent goes on")
        self.world.hosts[name].agent.hang(hangs=hangs)


_HOSTS: Mapping[str, Callable[[Operator, str], None]] = {
    "power on": Operator.power_on,
    "power off": lambda operator, name: operator.world.hosts[name].power_off(),
    "network on": lambda operator, name: operator.world.cut_off(name, off=False),
    "network off": lambda operator, name: operator.world.cut_off(name, off=True),
    "freeze": lambda operator, name: operator.world.hosts[name].freeze(),
    "thaw": Operator.thaw,
    "agent hang": lambda operator, name: operator.hang(name, hangs=True),
    "agent continue": lambda operator, name: operator.hang(name, hangs=False),
    "watchdog on": lambda operator, name: operator.watchdog(name, on=True),
    "watchdog off": lambda operator, name: operator.watchdog(name, on=False),
    "node reboot": lambda operator, name: operator.world.hosts[name].go_down(reboot=True),
    "node shutdown": lambda operator, name: operator.world.hosts[name].go_down(reboot=False),
}


def _confirm(node: Node) -> None:
    fence = node.status.fence
    fence.confirmed_by = "a person"
    fence.confirmed_boot_id, fence.confirmed_lapse_number = node.status.boot_id, node.status.lapse_number


def _enable(guest: Guest, command: Command) -> None:
    guest.spec.ha.enabled, guest.spec.ha.disabled = command.words != "guest ignore", False
    account.follow(guest)


def _disable(guest: Guest, command: Command) -> None:
    guest.spec.ha.enabled = guest.spec.ha.disabled = True
    guest.spec.power = POWER_OFF
    account.follow(guest)


def _start(guest: Guest, command: Command) -> None:
    if guest.status.ha.state == HA_STATE_ERROR:
        account.happen(guest, Event.START, "started by a person")
    guest.status.booting, guest.status.failures = False, 0
    guest.spec.power = POWER_ON
    account.follow(guest)


def _stop(guest: Guest, command: Command) -> None:
    guest.spec.power = POWER_OFF
    account.follow(guest)


def _lock(guest: Guest, command: Command) -> None:
    guest.status.lock.task, guest.status.lock.reason = "asked", command.args["REASON"]


def _unlock(guest: Guest, command: Command) -> None:
    guest.status.ClearField("lock")


def _remove(guest: Guest, command: Command) -> None:
    guest.meta.deleting = True


_GUESTS: Mapping[str, Callable[[Guest, Command], None]] = {
    "guest enable": _enable,
    "guest ignore": _enable,
    "guest disable": _disable,
    "guest start": _start,
    "guest stop": _stop,
    "guest lock": _lock,
    "guest unlock": _unlock,
    "guest remove": _remove,
}
