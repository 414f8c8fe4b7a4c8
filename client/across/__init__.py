"""Guests that move to another cluster: what is in the way, how it is done, and the doing, driven by a client of both.

The managers of the two never speak to each other. What runs goes from node to node (docs/decisions/0019); everything else goes through
the machine of whoever holds the credentials of both.
"""
