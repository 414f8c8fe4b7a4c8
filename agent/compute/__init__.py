"""Guests of one host: one small interface, one driver a hypervisor."""
