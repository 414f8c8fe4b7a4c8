"""Pools and volumes of one host: one small interface, one driver a kind of storage."""
