"""Memory that is short, told alike on every device: PyTorch has an error of its own for GPUs alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

REFUSED = ("can't allocate memory", "not enough memory", "ALLOC_FAILED")
"""In what PyTorch says of a CPU (Linux, Windows), and the libraries of a GPU of their work space."""


@contextmanager
def told_alike() -> Iterator[None]:
    """Inside, too little memory is `torch.OutOfMemoryError`, whatever the device."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or any(words in str(error) for words in REFUSED):
            raise torch.OutOfMemoryError("the device has too little memory") from error
        raise
