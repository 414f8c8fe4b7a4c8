"""Failover: the power of a host is cut, and its guest runs elsewhere. See `bench/README.md`."""
