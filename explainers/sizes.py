"""The numbers of a network that memory and arithmetic follow from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Sizes:
    parameters: int  # of the whole network, tied ones counted once
    weights: int  # of all linear layers
    layers: int
    width: int
    inner_width: int  # of the feed-forward blocks
    keys: int  # numbers of one row's keys in one layer
    vocabulary: int
    itemsize: int

    @property
    def bytes_per_row(self) -> int:
        """About what one row of a pass takes at its peak: activations of one layer, and its logits."""
        return (8 * self.width + 4 * self.inner_width + self.vocabulary) * self.itemsize


def sizes_of(network: PreTrainedModel) -> Sizes:
    config: Any = network.config.get_text_config()
    embeddings: Any = network.get_input_embeddings()
    parameters = sum(parameter.numel() for parameter in network.parameters())
    heads, width = int(config.num_attention_heads), int(config.hidden_size)
    kept = getattr(config, "num_key_value_heads", None) or heads
    return Sizes(
        parameters=parameters,
        weights=parameters - int(embeddings.weight.numel()),
        layers=int(config.num_hidden_layers),
        width=width,
        inner_width=int(getattr(config, "intermediate_size", None) or 4 * width),
        keys=int(kept) * int(getattr(config, "head_dim", None) or width // heads),
        vocabulary=int(embeddings.weight.shape[0]),
        itemsize=int(network.dtype.itemsize),
    )
