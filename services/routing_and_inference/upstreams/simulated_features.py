"""Vectors without a model: hashed words and letter triples, so that texts about the same things lie near each other.

Pure. Owns the hashing that `docs/simulated_upstream.md` describes; refuses to know requests.
"""

import hashlib
import math
import re
import sys
from array import array
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

DEFAULT_DIMENSIONS = 256
_WORD = re.compile(r"\w+")
_TRIPLE_WEIGHT = 0.3  # of a letter triple beside its word


def features(text: str) -> Mapping[str, float]:
    """A text's weighted features: its words, and the letter triples inside them."""
    weights: defaultdict[str, float] = defaultdict(float)
    for word in _WORD.findall(text.lower()):
        weights[word] += 1.0
        for at in range(len(word) - 2):
            weights[f"#{word[at : at + 3]}"] += _TRIPLE_WEIGHT
    return weights or {f"={text}": 1.0}


def features_of_ids(token_ids: Sequence[int]) -> Mapping[str, float]:
    """The same for token ids."""
    return {f"@{token}": float(times) for token, times in Counter(token_ids).items()}


def vector(weights: Mapping[str, float], dimensions: int) -> bytes:
    """Little-endian float32 of length 1: every feature is added to the place and with the sign that its hash says."""
    values = [0.0] * dimensions
    for feature, weight in weights.items():
        digest = int.from_bytes(hashlib.blake2b(feature.encode("utf-8", "replace"), digest_size=8).digest(), "little")
        values[(digest >> 1) % dimensions] += math.copysign(_damped(weight), 1 if digest & 1 else -1)
    length = math.sqrt(sum(value * value for value in values))
    if length == 0:  # features that cancel each other
        values[0] = length = 1.0
    packed = array("f", (value / length for value in values))
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def similarity(first: Mapping[str, float], second: Mapping[str, float]) -> float:
    """Cosine of two texts' features, 0..1."""
    shared = sum(_damped(weight) * _damped(second[feature]) for feature, weight in first.items() if feature in second)
    lengths = math.sqrt(_square(first) * _square(second))
    return min(shared / lengths, 1.0) if lengths else 0.0


def _damped(weight: float) -> float:
    return math.log1p(weight)


def _square(weights: Mapping[str, float]) -> float:
    return sum(_damped(weight) ** 2 for weight in weights.values())
