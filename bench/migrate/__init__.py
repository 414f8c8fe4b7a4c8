"""Live migration, ours against virsh's."""
