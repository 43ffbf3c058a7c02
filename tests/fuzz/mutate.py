"""Random mutations of bytes, reproducible by the seed."""

import random
from collections.abc import Sequence

_LONGEST = 65536


def mutate(rng: random.Random, seeds: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    """Returns a copy of a random seed with one to eight random changes."""
    content = bytearray(rng.choice(seeds))
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        rng.choice(_CHANGES)(rng, content, seeds, words)
    return bytes(content[:_LONGEST])


def _place(rng, content):
    return rng.randrange(len(content) + 1)


def _flip(rng, content, seeds, words):
    if content:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def _set(rng, content, seeds, words):
    if content:
        content[rng.randrange(len(content))] = rng.choice((0, 1, 0x20, 0x7F, 0x80, 0xFF, 0x0A))


def _delete(rng, content, seeds, words):
    start = _place(rng, content)
    del content[start : start + rng.choice((1, 1, 2, 4, 8, 64))]


def _repeat(rng, content, seeds, words):
    start = _place(rng, content)
    piece = content[start : start + rng.choice((1, 4, 16, 64))]
    content[start:start] = piece * rng.choice((1, 2, 30))


def _insert(rng, content, seeds, words):
    start = _place(rng, content)
    content[start:start] = rng.choice(words) if rng.random() < 0.7 else rng.randbytes(4)


def _overwrite(rng, content, seeds, words):
    start, word = _place(rng, content), rng.choice(words)
    content[start : start + len(word)] = word


def _splice(rng, content, seeds, words):
    other = rng.choice(seeds)
    start, begin = _place(rng, content), rng.randrange(len(other) + 1)
    content[start:] = other[begin:]


def _cut(rng, content, seeds, words):
    del content[_place(rng, content) :]


def _number(rng, content, seeds, words):
    """Overwrites a little-endian integer, such as a length or an offset, with a boundary value."""
    start, size = _place(rng, content), rng.choice((1, 2, 4, 8))
    value = rng.choice((0, 1, 2**7, 2**8, 2**15, 2**16, 2**31, 2**32, 2**63, 2**64)) - 1
    content[start : start + size] = (value % 2 ** (8 * size)).to_bytes(size, "little")


_CHANGES = (
    _flip, _flip, _set, _delete, _repeat, _insert, _insert, _overwrite, _splice, _cut, _number
)  # fmt: skip
