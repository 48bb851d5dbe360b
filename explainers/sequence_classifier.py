"""A Hugging Face classifier of whole texts: softmax over classes, a sigmoid per label, or plain values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from explainers.errors import ContextLengthExceeded
from explainers.predictors.artifact import Signature

Kind: TypeAlias = Literal["single-label", "multi-label", "value"]
BATCH_TOKENS = 4096
"""Padded tokens of one forward pass."""


@dataclass(frozen=True, slots=True)
class SequenceClassifier:
    """`TextPredictor`. Texts longer than `length` tokens are refused, not cut."""

    network: Any
    tokenizer: Tokenizer
    digest: str
    length: int
    classes: tuple[str, ...]  # K
    kind: Kind
    pad: int | None = None
    mask: int | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    format: str = "hugging-face"

    @property
    def outputs(self) -> tuple[str, ...]:
        return self.classes

    @property
    def space(self) -> Literal["probability", "value"]:
        return "value" if self.kind == "value" else "probability"

    @property
    def signature(self) -> Signature:
        generic = tuple(f"LABEL_{place}" for place in range(len(self.classes)))
        return Signature(
            width=1,
            outputs=len(self.classes),
            classes=None if self.classes == generic else self.classes,
            space=self.space,
            exclusive=self.kind == "single-label",
        )

    def predict_texts(self, texts: list[str]) -> NDArray[np.float64]:  # n -> (n, K)
        """Texts of like length together, so that little is padded. Raises ContextLengthExceeded."""
        encoded = [self.encode(text) for text in texts]
        found = np.zeros((len(texts), len(self.classes)))
        for batch in self._batches([len(encoding.ids) for encoding in encoded]):
            with torch.inference_mode():
                found[batch] = self.outputs_of(*self.tensors([encoded[place] for place in batch])).cpu().numpy()
        return found

    predict = predict_texts

    def encode(self, text: str) -> Encoding:
        """Its tokens, special ones included. Raises ContextLengthExceeded."""
        encoding = self.tokenizer.encode(text)
        if len(encoding.ids) > self.length:
            raise ContextLengthExceeded(f"the text has {len(encoding.ids)} tokens, the model reads {self.length}")
        return encoding

    def tensors(self, encoded: list[Encoding]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # (n, S) each
        """Token ids, which of them are there, and their types."""
        shape = (len(encoded), max(1, *(len(encoding.ids) for encoding in encoded)))
        ids, there, types = np.full(shape, self.pad or 0), np.zeros(shape, dtype=int), np.zeros(shape, dtype=int)
        for row, encoding in enumerate(encoded):
            count = len(encoding.ids)
            ids[row, :count], there[row, :count], types[row, :count] = encoding.ids, 1, encoding.type_ids
        device = self.network.device
        return torch.tensor(ids).to(device), torch.tensor(there).to(device), torch.tensor(types).to(device)

    def outputs_of(self, ids: torch.Tensor, there: torch.Tensor, types: torch.Tensor) -> torch.Tensor:  # (n, K)
        """The outputs in float64."""
        typed = {"token_type_ids": types} if getattr(self.network.config, "type_vocab_size", 0) > 1 else {}
        logits: torch.Tensor = self.network(input_ids=ids, attention_mask=there, **typed).logits.double()
        if self.kind == "value":
            return logits
        return logits.softmax(dim=-1) if self.kind == "single-label" else logits.sigmoid()

    def _batches(self, lengths: list[int]) -> Iterator[list[int]]:
        """Places of texts, shortest first, cut at the budget; one by one without a padding token."""
        batch: list[int] = []
        for place in sorted(range(len(lengths)), key=lengths.__getitem__):
            if batch and (self.pad is None or (len(batch) + 1) * lengths[place] > BATCH_TOKENS):
                yield batch
                batch = []
            batch.append(place)
        if batch:
            yield batch
