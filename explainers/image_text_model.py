"""A language model that also reads images: the vision tower runs once per image, the engine sees one sequence.

Visual tokens are positions like any others, with embeddings of their own. Everything that is suppressed happens in the
text stack; the vision tower keeps its own attention.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as Pillow
from torch import Tensor, nn

from explainers.errors import InvalidRequest, MissingCapability
from explainers.images import MAX_PROMPT_PIXELS, decode, pixels
from explainers.language_model import Encoded, Inputs, LanguageModel, TokenSequence
from explainers.pictures import Eyes, Picture, same_dtype
from explainers.types import Image, Item, Prompt
from explainers.undivided import undivided

NOISE_SIZE = (80, 48)


@dataclass(frozen=True)
class ImageTextModel(LanguageModel):
    """A loaded image-text model; its network is one of `explainers.pictures.FAMILIES`."""

    eyes: Eyes = field(kw_only=True)

    @property
    def reads_images(self) -> bool:
        return True

    @cached_property
    def image_token(self) -> int:
        """The id that holds the place of a visual embedding."""
        return int(self.network.config.image_token_id)

    @cached_property
    def marks(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Ids before and after the visual tokens of each image."""
        family = self.eyes.family
        before, after = (
            tuple(token for piece in pieces for token in self.tokenizer.encode(piece, add_special_tokens=False).ids)
            for pieces in (family.before, family.after)
        )
        return before, after

    def encode(self, prompt: Prompt, target: str) -> TokenSequence:
        total = 0
        for index, item in enumerate(prompt):
            total += pixels(item.data, f"/prompt/{index}/data") if isinstance(item, Image) else 0
            if total > MAX_PROMPT_PIXELS:
                raise InvalidRequest(f"the images have more than {MAX_PROMPT_PIXELS} pixels in all", f"/prompt/{index}")
        return super().encode(prompt, target)

    def encode_item(self, item: Item, pointer: str) -> Encoded:
        if not isinstance(item, Image):
            return super().encode_item(item, pointer)
        decoded = decode(item.data, f"{pointer}/data")
        notes = tuple(f"{pointer}: the image was {note}" for note in decoded.notes)
        if item.cropped:
            notes += (f"{pointer}: x, y and size have no effect, the whole image is read",)
        try:
            return self.look(decoded.picture, notes)
        except InvalidRequest as error:
            raise type(error)(str(error), pointer) from error

    def look(self, picture: Pillow.Image, notes: tuple[str, ...] = ()) -> Encoded:
        """The ids of an image, marks included; the vision tower is not asked yet."""
        before, after = self.marks
        read = self.eyes.read(picture, len(before), len(after), notes)
        visual = len(read.areas) - len(before) - len(after)
        return Encoded((*before, *(self.image_token,) * visual, *after), picture=read)

    def inputs(self, sequence: TokenSequence) -> Inputs:
        ids = torch.tensor(sequence.read, device=self.device)
        visual = ids == self.image_token
        visual[len(sequence.start) + len(sequence.prompt) :] = False  # a model may well say the mark of an image
        with torch.no_grad():
            embeddings = self.network.get_input_embeddings()(ids)
            if not sequence.pictures:
                return Inputs(ids, torch.arange(len(ids), device=self.device), embeddings)
            seen = torch.cat([self._features(picture) for picture in sequence.pictures], dim=-2)  # (1 + L, n, d)
            embeddings[visual] = seen[0]
            added = embeddings.new_zeros(len(seen) - 1, *embeddings.shape)
            added[:, visual] = seen[1:]
        return Inputs(ids, self._positions(ids, visual, sequence), embeddings, added if len(added) else None)

    def whole(self, sequence: TokenSequence) -> dict[str, Tensor]:
        arguments = super().whole(sequence)
        if not sequence.pictures:
            return arguments
        given = [self._arguments(picture) for picture in sequence.pictures]
        # Idefics3 has an axis of images within a prompt; elsewhere images lie one behind the other
        axis = 1 if given[0]["pixel_values"].dim() == 5 else 0
        arguments |= {name: torch.cat([one[name] for one in given], dim=axis) for name in given[0]}
        if "image_grid_thw" in arguments:
            arguments["mm_token_type_ids"] = (arguments["input_ids"] == self.image_token).int()
        return arguments

    def attend_with(self, implementation: str) -> None:
        self.network.set_attn_implementation({"text_config": implementation})

    @contextmanager
    def given(self, inputs: Inputs) -> Iterator[None]:
        if inputs.added is None:
            yield
            return
        visual, added = inputs.ids == self.image_token, inputs.added
        extra = {"visual_pos_masks": visual.unsqueeze(0), "deepstack_visual_embeds": list(added[:, visual])}
        network: Any = self.network
        text: nn.Module = network.get_decoder()

        def give(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
            return arguments, named | extra

        hook = text.register_forward_pre_hook(give, with_kwargs=True)
        try:
            with undivided():
                yield
        finally:
            hook.remove()

    def embedded(self, sequence: TokenSequence) -> tuple[NDArray[np.int_], Tensor]:
        """Every visual token has an embedding of its own, though all of them share one id."""
        ids = np.array(sequence.read)
        own = np.where(ids == self.image_token, self.vocabulary_size + np.arange(len(ids)), ids)
        _, first, kinds = np.unique(own, return_index=True, return_inverse=True)
        embeddings = self.inputs(sequence).embeddings
        if embeddings is None:
            raise TypeError("an image-text model reads embeddings")
        return kinds, embeddings[torch.tensor(first, device=self.device)]

    def with_noise(self, sequence: TokenSequence, at: int, seed: int) -> TokenSequence:
        """The same sequence with an image of noise before prompt token `at`, to test the model with."""
        width, height = NOISE_SIZE
        levels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        image = self.look(Pillow.fromarray(levels))
        prompt = (*sequence.prompt[:at], *image.ids, *sequence.prompt[at:])
        return replace(sequence, prompt=prompt, pictures=(image.picture,) if image.picture else ())

    def _arguments(self, picture: Picture) -> dict[str, Tensor]:
        return same_dtype(picture.arguments, self.device, self.network.dtype)

    def _features(self, picture: Picture) -> Tensor:  # (1 + L, n, d)
        """The embeddings of the visual tokens, and what is added to them after each of the first L layers."""
        if picture.features is None:
            network: Any = self.network
            found = network.get_image_features(**self._arguments(picture), return_dict=True)
            layers = [found.pooler_output, *(getattr(found, "deepstack_features", None) or ())]
            features = torch.stack([torch.cat([*layer]) for layer in layers])
            tokens = sum(area is not None for area in picture.areas)
            if features.shape[1] != tokens:
                raise MissingCapability(
                    f"the vision tower makes {features.shape[1]} tokens of an image where its grid has {tokens}"
                )
            picture.features = features
        return picture.features

    def _positions(self, ids: Tensor, visual: Tensor, sequence: TokenSequence) -> Tensor:  # (S,) or (A, S)
        network: Any = self.network.base_model
        if not hasattr(network, "get_rope_index"):
            return torch.arange(len(ids), device=self.device)
        grids = torch.cat([self._arguments(picture)["image_grid_thw"] for picture in sequence.pictures])
        positions: Tensor = network.get_rope_index(
            ids.unsqueeze(0), mm_token_type_ids=visual.int().unsqueeze(0), image_grid_thw=grids
        )[0]
        return positions[:, 0]
