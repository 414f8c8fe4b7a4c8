"""Leases of disks that several hosts reach: who may write to them, proven by locks of the storage itself."""
