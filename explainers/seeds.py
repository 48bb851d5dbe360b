"""Random numbers that derive from the question, so that the same question has the same answer everywhere.

A seed is the first 8 bytes of the sha256 of: the model's digest, the algorithm, its number of samples, its other
options, the id of the background, and a part. The part is the number of a bucket where rows share draws, and the id of
the row where they do not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import numpy as np


def derived(
    digest: str, algorithm: str, samples: int, options: Mapping[str, int | str | bool], background: str, part: int | str
) -> int:
    """A seed of 64 bits."""
    material = json.dumps([digest, algorithm, samples, dict(options), background, part], sort_keys=True)
    return int.from_bytes(hashlib.sha256(material.encode()).digest()[:8])


def bucket(id: str, buckets: int) -> int:
    """Which of the shared draws a row takes: by its id alone, so that its company does not matter."""
    return int.from_bytes(hashlib.sha256(id.encode(errors="surrogatepass")).digest()[:8]) % buckets


def generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))
