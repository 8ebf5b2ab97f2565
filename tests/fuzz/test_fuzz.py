"""Mutate what strangers send: each reader takes it or refuses it by an error of ours.

TEST_FUZZ_SECONDS says for how long. What fails is written into the corpus, and is tried first from
then on.
"""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz.targets import DECLARED, TARGETS

CORPUS = Path(__file__).parent / "corpus"
SECONDS = float(os.environ.get("TEST_FUZZ_SECONDS", "2"))
BITS = (b"\r\n", b"\n", b"\0", b" ", b":", b'"', b"\\", b"{", b"}", b"[", b",", b"\xff", b"\x80")


def mutated(seed: bytes, chance: random.Random) -> bytes:
    """Change a few places."""
    data = bytearray(seed)
    for _ in range(chance.randint(1, 6)):
        at = chance.randint(0, len(data))
        kind = chance.randrange(4)
        if kind == 0:
            data[at:at] = chance.choice(BITS)
        elif kind == 1:
            del data[at : at + chance.randint(1, 8)]
        elif kind == 2:
            data[at : at + 1] = bytes([chance.randrange(256)])
        else:
            data[at:at] = data[at : at + chance.randint(1, 64)]
    return bytes(data)


def attempt(target: Callable[[bytes], None], data: bytes) -> None:
    """Try one input; one that fails joins the corpus."""
    try:
        target(data)
    except DECLARED:
        return
    except Exception as error:
        file = CORPUS / target.__name__ / hashlib.sha256(data).hexdigest()[:16]
        file.write_bytes(data)
        raise AssertionError(f"written to {file}") from error


@pytest.mark.timeout(SECONDS + 60)
@pytest.mark.parametrize("target", TARGETS, ids=lambda each: each.__name__)
def test_fuzz(target: Callable[[bytes], None]) -> None:
    """Only errors of ours come out."""
    seeds = [file.read_bytes() for file in sorted((CORPUS / target.__name__).iterdir())]
    assert seeds
    for seed in seeds:
        attempt(target, seed)
    chance = random.Random(os.urandom(8))
    ends = time.monotonic() + SECONDS
    while time.monotonic() < ends:
        attempt(target, mutated(chance.choice(seeds), chance))
