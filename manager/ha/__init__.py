"""High availability: fencing of nodes, recovery of guests, and the acting manager's lease, as pure functions."""
