"""Where the blocks of a transformer are: its layers of attention and feed-forward, without embeddings and head."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from explainers.errors import MissingCapability


def blocks_of(network: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The name and the list of the blocks that read the text. Raises MissingCapability."""
    layers = int(network.config.get_text_config().num_hidden_layers)
    whole: Any = network  # transformers' own method has no types
    reader = whole.get_decoder()  # of a model that reads images too, the part that reads the text
    own = {id(part) for part in reader.modules()}
    for name, part in network.named_modules():
        if isinstance(part, nn.ModuleList) and len(part) == layers and id(part) in own:
            return name, part
    raise MissingCapability(f"{type(network).__name__} keeps its layers in no list")
