"""What one of our members is told on its command line."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.store.tls import HOST, Files
from manager.consensus import ConsensusConfig, Member, TlsFiles


@dataclass(frozen=True, slots=True)
class MemberConfig:
    """What a member is told on its command line: ports of all by name, folder and certificate of its own."""

    name: str
    raft_ports: dict[str, int]
    client_port: int
    data_dir: str
    ca: str
    certificate: str
    key: str

    def dump(self) -> str:
        """Return the command line's form."""
        return json.dumps(asdict(self))

    @property
    def files(self) -> Files:
        """Its certificate."""
        return Files(Path(self.ca), Path(self.certificate), Path(self.key))

    @property
    def consensus(self) -> ConsensusConfig:
        """Consensus as production configures it: default timings and limits."""
        voters = tuple(Member(name, HOST, port) for name, port in sorted(self.raft_ports.items()))
        files = TlsFiles(self.files.ca, self.files.certificate, self.files.key)
        return ConsensusConfig(
            self.name, voters, Path(self.data_dir), files, listen_host=HOST, listen_port=self.raft_ports[self.name]
        )
