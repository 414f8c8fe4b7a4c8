"""Gives the nodes of a lab's cluster fence devices: the lab's own power switch, as a person would set them up."""

from __future__ import annotations

from gugus.cluster.v1.node_pb2 import FenceDevice

from lab.operator import Operator
from lab.plan import LabPlan
from lab.powerswitch import secret

DEVICE, AGENT = "switch", "fence_gugus_lab"


def give_devices(operator: Operator, plan: LabPlan) -> None:
    """Give every node its plug of the switch."""
    for node in plan.nodes():
        device = FenceDevice(name=DEVICE, agent=AGENT, parameters={"ip": plan.gateway, "plug": node.name})
        operator.run(operator.gugus.nodes.set_fence_device(node.name, device, {"password": secret(plan)}))


def take_devices(operator: Operator, plan: LabPlan) -> None:
    """Take them away: then leases alone prove that a node is dead."""
    for node in plan.nodes():
        operator.run(operator.gugus.nodes.remove_fence_device(node.name, DEVICE))
