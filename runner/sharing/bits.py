"""Digests of the bits of tensors: bits that the process has seen before are compared with a copy, which is faster."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from runner.tensors import same_bits_flat

LEAST = 2**14  # bytes of a tensor that is remembered
MOST = 2**27  # bytes of all copies
SAMPLES = 64  # bytes by which a copy is found


class Digests:
    """Gives the SHA-256 of the bits of tensors, and remembers copies of the tensors.

    Hashing the bits of a tensor takes about five times as long as comparing them with a copy.

    Attributes:
        known: {(size, a few bytes): (copy as bytes, digest)}.
        size: the bytes of all copies.
    """

    def __init__(self) -> None:
        self.known: dict[tuple[int, bytes], tuple[Tensor, bytes]] = {}
        self.size = 0

    def of(self, tensor: Tensor) -> bytes:
        """Return the digest of the bits of a dense tensor, in the order of its indices."""
        bits = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().view(-1).view(torch.uint8)
        if bits.numel() < LEAST:
            return hashlib.sha256(bits.numpy().data).digest()
        key = bits.numel(), bits[:: bits.numel() // SAMPLES].numpy().tobytes()
        known = self.known.get(key)
        if known is not None and same_bits_flat(known[0], bits):
            return known[1]
        digest = hashlib.sha256(bits.numpy().data).digest()
        self._remember(key, bits, digest)
        return digest

    def _remember(self, key: tuple[int, bytes], bits: Tensor, digest: bytes) -> None:
        """Keep a copy of the bits; all others are forgotten first if there is no room."""
        if bits.numel() > MOST:
            return
        if key not in self.known:
            self.size += bits.numel()
        if self.size > MOST:
            self.known, self.size = {}, bits.numel()
        self.known[key] = bits.clone(), digest


_digests = Digests()


def digest_of_bits(tensor: Tensor) -> bytes:
    """Return the SHA-256 of the bits of a dense tensor, in the order of its indices: 32 bytes."""
    return _digests.of(tensor)
