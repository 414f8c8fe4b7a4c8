"""Guests that move to another cluster: what is in the way, how it is done, and the doing, driven by a client of both.

The clusters never speak to each other: each trusts its own authority only (docs/decisions/0013). So everything goes through the machine
of whoever holds the credentials of both.
"""
