"""Disaster recovery: a cluster of one voter is made of what is left of one, under a new id (docs/decisions/0008).

Invariant: what was there before is moved aside, never changed; and whatever step is interrupted, the same command finishes it.
"""
