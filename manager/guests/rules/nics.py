"""Network interfaces."""

from collections.abc import Iterator

from gugus.agent.v1.guest_pb2 import GUEST_KIND_CONTAINER
from gugus.agent.v1.resources_pb2 import NIC_MODEL_UNSPECIFIED, NIC_MODEL_VIRTIO, NicModel
from gugus.cluster.v1.guest_pb2 import GuestSpec, NicSpec

from common import validate
from common.errors import GugusError, invalid
from manager.guests.known import Known, absent
from manager.guests.rules import check
from manager.guests.rules.disks import MAX_BOOT_ORDER
from manager.guests.rules.resources import MAX_RATE

MAX_NICS = 32
MIN_MTU = 576
MAX_MTU = 65_520
MAX_QUEUES = 256
MIN_RATE = 1000
"""Bytes a second. Less lets not one full packet pass in a second."""


def faults(spec: GuestSpec, known: Known) -> Iterator[GugusError]:
    """Everything in `nics`. That no other guest has an address is looked at by `complete`."""
    yield from check.at_most("spec.nics", len(spec.nics), MAX_NICS, "interfaces")
    names: set[str] = set()
    macs: set[str] = set()
    for index, nic in enumerate(spec.nics):
        at = f"spec.nics[{index}]"
        yield from _name(at, spec, nic)
        if nic.name in names:
            yield invalid(f"{at}.name", f'"{nic.name}" is the name of another interface of this guest.')
        names.add(nic.name)
        if message := validate.mac(nic.mac):
            yield invalid(f"{at}.mac", f"{message}.")
        elif nic.mac in macs:
            yield invalid(f"{at}.mac", f"{nic.mac} is the address of another interface of this guest.")
        macs.add(nic.mac)
        if nic.network not in known.networks:
            yield absent("network", f"{at}.network", nic.network, known.networks)
        elif known.networks[nic.network].meta.deleting:
            yield invalid(f"{at}.network", f'"{nic.network}" is being deleted.')
        yield from _settings(f"{at}.settings", spec, nic)


def _name(at: str, spec: GuestSpec, nic: NicSpec) -> Iterator[GugusError]:
    container = spec.kind == GUEST_KIND_CONTAINER
    message = validate.name(nic.name) or (container and validate.bridge_name(nic.name))
    if message:
        yield invalid(f"{at}.name", f"{message}.")
    elif container and nic.name == "lo":
        yield invalid(f"{at}.name", '"lo" is the loopback interface of each container.')


def _settings(at: str, spec: GuestSpec, nic: NicSpec) -> Iterator[GugusError]:
    settings = nic.settings
    yield from check.enum(f"{at}.model", settings.model, NicModel)
    yield from check.ranged(f"{at}.rate_bytes_per_s", settings.rate_bytes_per_s, MIN_RATE, MAX_RATE)
    yield from check.ranged(f"{at}.burst_bytes", settings.burst_bytes, 1, MAX_RATE)
    yield from check.ranged(f"{at}.mtu", settings.mtu, MIN_MTU, MAX_MTU)
    yield from check.ranged(f"{at}.boot_order", settings.boot_order, 1, MAX_BOOT_ORDER)
    if settings.burst_bytes and not settings.rate_bytes_per_s:
        yield invalid(
            f"{at}.burst_bytes", f"{settings.burst_bytes} needs rate_bytes_per_s: a burst goes beyond a limit."
        )
    if spec.kind == GUEST_KIND_CONTAINER:
        for name in ("model", "queues", "boot_order"):
            if getattr(settings, name):
                yield invalid(f"{at}.{name}", "only interfaces of virtual machines have it.")
    elif settings.queues:
        if settings.model not in (NIC_MODEL_UNSPECIFIED, NIC_MODEL_VIRTIO):
            yield invalid(f"{at}.queues", f"{settings.queues}: only virtio interfaces have several.")
        yield from check.ranged(f"{at}.queues", settings.queues, 1, min(MAX_QUEUES, max(1, spec.cpus)))
