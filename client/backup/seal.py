"""How a backup is sealed: a key of the passphrase by scrypt, and frames that can be neither changed, left out, moved nor added.

Invariant: a key seals one file only, for its salt is fresh each time; so the number of a frame may be its nonce.
"""

import os
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from gugus.cluster.v1 import backup_pb2

KEY_BYTES = 32
SALT_BYTES = 16

COST = 2**17
BLOCK_SIZE = 8
PARALLELIZATION = 1
"""scrypt with 128 MiB, about half a second: the least that OWASP's Password Storage Cheat Sheet recommends for scrypt."""

MAX_SCRYPT_BYTES = 2**30
"""A header may ask for no more memory than this: it is read before anything of the file is proven."""

_COUNTER_BYTES = 11


class SealBroken(Exception):
    """A frame is not what was sealed under this key, at this place."""


@dataclass(frozen=True, slots=True)
class Seal:
    """A key, and what the frames are bound to: SHA-256 of all that stands before them."""

    key: bytes
    bound_to: bytes

    def close(self, number: int, data: bytes, *, last: bool) -> bytes:
        """Return the ciphertext of a frame."""
        return AESGCM(self.key).encrypt(_nonce(number, last), data, self.bound_to)

    def open(self, number: int, data: bytes, *, last: bool) -> bytes:
        """Return the content of a frame. Raises SealBroken."""
        try:
            return AESGCM(self.key).decrypt(_nonce(number, last), data, self.bound_to)
        except InvalidTag:
            raise SealBroken(f"frame {number}") from None


def new_scrypt() -> backup_pb2.Scrypt:
    """Return the parameters for a new file."""
    return backup_pb2.Scrypt(
        salt=os.urandom(SALT_BYTES), cost=COST, block_size=BLOCK_SIZE, parallelization=PARALLELIZATION
    )


def key_of(passphrase: str, how: backup_pb2.Scrypt) -> bytes:
    """Return the key; takes a moment, on purpose. Raises ValueError for parameters that no sound file has."""
    cost, size, parallel = how.cost, how.block_size, how.parallelization
    if cost < 2 or cost & (cost - 1) or not size or not parallel or 128 * cost * size * parallel > MAX_SCRYPT_BYTES:
        raise ValueError(f"scrypt with N={cost}, r={size}, p={parallel}")
    made = Scrypt(salt=how.salt, length=KEY_BYTES, n=cost, r=size, p=parallel)
    return made.derive(passphrase.encode())


def _nonce(number: int, last: bool) -> bytes:
    return number.to_bytes(_COUNTER_BYTES, "big") + bytes([last])
