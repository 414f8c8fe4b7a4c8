"""Guests that are to stay."""

from gugus.cluster.v1.guest_pb2 import Guest

from common.errors import precondition


def check_kept(guest: Guest) -> None:
    """Raise GUEST_DELETING when a guest is on its way out: nothing is made of it any more."""
    if guest.meta.deleting:
        raise precondition(
            "GUEST_DELETING",
            f"guest {guest.meta.name} is being deleted.",
            remedy="Wait until it is gone, or choose another guest.",
            subject=f"guest/{guest.meta.name}",
        )
