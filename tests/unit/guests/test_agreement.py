"""What managers take of a container, its node's agent takes, too: a stored spec that cannot be defined spoils all later changes."""

from pathlib import Path

from gugus.agent.v1.boot_pb2 import FirstBoot, NicAddress
from gugus.agent.v1.container_pb2 import BindMount, ContainerDevice, ContainerFeatures, ContainerSpec
from gugus.agent.v1.resources_pb2 import DiskSettings, IoLimits, NicSettings, Resources
from gugus.agent.v1.volume_pb2 import VOLUME_FORMAT_FILESYSTEM
from gugus.cluster.v1.guest_pb2 import CreateGuestRequest, DiskSpec, GuestSpec, NicSpec
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.compute.hypervisor import AttachedDisk, AttachedNic
from agent.compute.lxc import checks
from common.errors import GugusError
from manager.controllers.compile import agent_spec
from manager.guests.complete import complete
from tests.unit.guests.world import GIB, container, known

PATHS = st.sampled_from(
    ["/srv/data", "/", "/srv/", "/srv//a", "/srv/../a", "/proc/x", "/dev", "/run/a", "/a\x7f", "/\u200b", "srv", ""]
)
NAMES = st.sampled_from(["web", "x.y", "Web", "a-", "lo", "all", "default", "eth0", "a" * 16, "a" * 64, "é", ""])
ADDRESSES = st.sampled_from(
    [
        "",
        "dhcp",
        "auto",
        "none",
        "10.0.0.5",
        "10.0.0.5/24",
        "10.0.0.5/255.0.0.0",
        "10.0.0.5/33",
        "fd00::5/64",
        "fd00::5/²",
        "fe80::1%a/64",
    ]
)
WORDS = st.sampled_from(["ext4", "Ext4", "net_raw", "NET_RAW", "fly", "LANG", "1A", "a b", "é", ""])
NUMBERS = st.sampled_from([0, 1, 4, 6, 7, 575, 576, 0o777, 0o1000, 10_000, 10_001, 65_521, 2**22, 2**22 + 1])
SETS = st.sampled_from(["", "0", "0-3,8", "3-0", "0-", "a", "0 ,1", "²"])
GATEWAYS = st.sampled_from(["", "10.0.0.1", "fd00::1", "10.0.0.1/24", "x"])

SPECS = st.builds(
    GuestSpec,
    resources=st.builds(Resources, cpu_weight=NUMBERS, io_weight=NUMBERS, pids=NUMBERS, cpuset=SETS, memory_reserved_bytes=NUMBERS),
    container=st.builds(
        ContainerSpec,
        privileged=st.booleans(),
        ttys=NUMBERS,
        init=st.lists(PATHS, max_size=2),
        environment=st.dictionaries(WORDS, st.just("x"), max_size=1),
        drop_capabilities=st.lists(WORDS, max_size=1),
        features=st.builds(ContainerFeatures, mknod=st.booleans(), mount_types=st.lists(WORDS, max_size=1)),
        mounts=st.lists(st.builds(BindMount, source=PATHS, target=PATHS, shared=st.just(True)), max_size=2),
        devices=st.lists(
            st.builds(ContainerDevice, path=st.sampled_from(["/dev/fuse", "/dev/../x", "/dev", "/x"]), mode=NUMBERS), max_size=1
        ),
    ),
    first_boot=st.builds(
        FirstBoot,
        hostname=NAMES,
        user=NAMES,
        timezone=st.sampled_from(["", "Europe/Vienna", "/etc", "a b"]),
        dns_servers=st.lists(GATEWAYS, max_size=1),
        dns_search=st.lists(NAMES, max_size=1),
        addresses=st.lists(
            st.builds(NicAddress, nic=NAMES, ipv4=ADDRESSES, ipv6=ADDRESSES, ipv4_gateway=GATEWAYS, ipv6_gateway=GATEWAYS), max_size=1
        ),
    ),
)  # fmt: skip
PARTS = ["resources", "container", "container.mounts", "first_boot", "first_boot.hostname", "first_boot.addresses"]


@given(
    odd=SPECS,
    name=NAMES,
    mount=PATHS,
    nic=NAMES,
    mtu=NUMBERS,
    burst=st.booleans(),
    parts=st.sets(st.sampled_from([*PARTS, "name", "disk", "nic"]), min_size=1, max_size=2),
)
@settings(max_examples=400, deadline=None)
def test_agent_takes_what_the_manager_takes(
    odd: GuestSpec, name: str, mount: str, nic: str, mtu: int, burst: bool, parts: set[str]
) -> None:
    spec = container()
    for part in parts & {*PARTS}:
        outer, _, inner = part.partition(".")
        source, target = (getattr(odd, outer), getattr(spec, outer))
        if not inner:
            target.MergeFrom(source)
        elif inner == "hostname":
            target.hostname = source.hostname
        else:
            getattr(target, inner).extend(getattr(source, inner))
    if "disk" in parts:
        limits = IoLimits(read_iops=10, read_burst_iops=20) if burst else IoLimits()
        spec.disks.append(
            DiskSpec(name="data", pool="shared", size_bytes=GIB, settings=DiskSettings(mount_path=mount, limits=limits))
        )
    if "nic" in parts:
        spec.nics.append(NicSpec(name=nic, network="lan", settings=NicSettings(mtu=mtu)))
    try:
        guest = complete(CreateGuestRequest(name=name if "name" in parts else "web", spec=spec), known())
    except GugusError:
        return
    told = agent_spec(guest, ha=False)
    disks = [AttachedDisk(disk, Path("/x"), VOLUME_FORMAT_FILESYSTEM) for disk in told.disks]
    checks.check(told, disks, [AttachedNic(one, "br0") for one in told.nics])
