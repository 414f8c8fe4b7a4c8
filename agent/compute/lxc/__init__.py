"""System containers through liblxc's own programs: one process a start, none to look, kill or watch."""
