"""A causal language model as the methods see it: text in, log-probabilities of chosen tokens out."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer
from torch import Tensor, nn
from transformers import PreTrainedModel

from explainers.attention_control import AttentionPass, only_rows
from explainers.chat_template import ChatTemplate
from explainers.errors import ContextLengthExceeded, InvalidRequest, MissingCapability
from explainers.memory import told_alike
from explainers.pictures import Picture
from explainers.sizes import Sizes, sizes_of
from explainers.types import Elsewhere, Image, Item, Prompt, Span, Text, Tile, TokenIds

CHARACTERS_PER_TOKEN = 256
"""More than any text has on average: what is longer than this many for each position is not even tokenised."""

QUERIES = frozenset({"q_proj"})
KEYS_AND_VALUES = frozenset({"k_proj", "v_proj", "c_attn", "query_key_value", "qkv_proj"})  # the last three: all
OUTPUTS = frozenset({"o_proj", "out_proj", "c_proj", "dense"})
"""The linear parts of an attention module, as architectures call them; where one has another name, it computes all."""


@dataclass(frozen=True, slots=True)
class Token:
    """A token of a prompt item. Only tokens of a text have spans, only those of an image an area.

    What a chat template puts around a text has an empty span there and no body: it is part of no feature.
    `span` is what the tokenizer reports; `body` leaves leading white space out (unless there is nothing else). `area`
    is the part of the whole image that a visual token stands for; marks around an image have none.
    """

    item: int
    index: int
    span: Span | None = None
    body: Span | None = None
    area: Tile | None = None


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """Prompt and target as the model reads them: start tokens, prompt items, target; S = P + T - 1 positions.

    The spans of an item's tokens are in order: neither their starts nor their stops ever go back.
    """

    start: tuple[int, ...]
    prompt: tuple[int, ...]
    target: tuple[int, ...]  # T
    tokens: tuple[Token, ...]  # one per prompt id
    target_spans: tuple[Span, ...]  # one per target id
    warnings: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()  # one per image item

    @property
    def positions(self) -> int:
        """S: the last target token is only predicted, never read."""
        return len(self.start) + len(self.prompt) + len(self.target) - 1

    @property
    def first_scored(self) -> int:
        """The row P - 1, which predicts the first target token."""
        return len(self.start) + len(self.prompt) - 1

    @property
    def read(self) -> tuple[int, ...]:
        """The S ids that the model reads."""
        return (*self.start, *self.prompt, *self.target)[:-1]

    def tokens_of(self, item: int) -> range:
        """Where in `tokens` (and in `prompt`) a prompt item lies."""
        first = bisect_left(self.tokens, item, key=_item)
        return range(first, bisect_right(self.tokens, item, first, key=_item))

    def tokens_near(self, item: int, place: Span) -> range:
        """The tokens of a text item that touch `place`, edges included."""
        own = self.tokens_of(item)
        first = bisect_left(self.tokens, place.start, own.start, own.stop, key=_stop)
        return range(first, bisect_right(self.tokens, place.stop, first, own.stop, key=_start))


def _item(token: Token) -> int:
    return token.item


def _start(token: Token) -> int:
    return token.span.start if token.span else 0


def _stop(token: Token) -> int:
    return token.span.stop if token.span else 0


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the network reads, one row per position: ids, or embeddings where some rows are no token's."""

    ids: Tensor  # (R,)
    positions: Tensor  # (R,), or (A, R) for an architecture whose positions have several axes
    embeddings: Tensor | None = None  # (R, d)
    added: Tensor | None = None  # (L, R, d), what the first L layers add to their outputs

    def at(self, rows: Tensor) -> Inputs:
        return Inputs(
            self.ids[rows],
            self.positions[..., rows],
            None if self.embeddings is None else self.embeddings[rows],
            None if self.added is None else self.added[:, rows],
        )

    @property
    def arguments(self) -> dict[str, Tensor]:
        """As the network's forward method takes them."""
        positions = self.positions.unsqueeze(-2)  # (1, R) or (A, 1, R)
        if self.embeddings is None:
            return {"input_ids": self.ids.unsqueeze(0), "position_ids": positions}
        return {"inputs_embeds": self.embeddings.unsqueeze(0), "position_ids": positions}


@dataclass(frozen=True, slots=True)
class Encoded:
    """The ids of one prompt item, and what they were made from."""

    ids: Sequence[int]
    encoding: Encoding | None = None
    picture: Picture | None = None
    around: tuple[int, int] = (0, 0)  # how many ids stand before and after those of the text itself


@dataclass(slots=True)
class PackedRows:
    """The most rows of one pass that are known to fit into memory; None: it never ran out."""

    most: int | None = None


@dataclass(slots=True)
class Passes:
    """What the passes of a network came to since it was loaded; written by whoever runs them, one thread at a time."""

    forwards: int = 0
    tokens: int = 0  # positions that were read, padding included
    packed: int = 0  # of them in passes that are filled with several parts
    room: int = 0  # what these passes had room for
    halvings: int = 0  # passes that ran out of memory, and were tried again in smaller ones

    def ran(self, tokens: int) -> None:
        self.forwards += 1
        self.tokens += tokens

    def filled(self, rows: int, room: int) -> None:
        self.packed += rows
        self.room += max(rows, room)


@dataclass(frozen=True)
class LanguageModel:
    """A loaded causal LM whose attention is under our control (`explainers.attention_control`)."""

    network: PreTrainedModel
    tokenizer: Tokenizer
    digest: str
    context_length: int
    start: tuple[int, ...]  # ids the tokenizer puts before any text (BOS), possibly none
    separator: int | None  # an end-of-text token, which stands in for BOS before an empty prompt
    facts: Mapping[str, Any] = field(default_factory=dict)
    placeholders: frozenset[int] = frozenset()  # ids that mark where something else stands; no text may hold them
    packed_rows: PackedRows = field(default_factory=PackedRows, compare=False, kw_only=True)
    passes: Passes = field(default_factory=Passes, compare=False, kw_only=True)
    chat: ChatTemplate | None = None
    elsewhere: Elsewhere | None = field(default=None, kw_only=True)  # of an outline, which runs nothing itself

    @property
    def reads_images(self) -> bool:
        return False

    @property
    def architecture(self) -> str:
        return type(self.network).__name__

    @cached_property
    def device(self) -> torch.device:
        return torch.device(self.elsewhere.device) if self.elsewhere else self.network.device

    @property
    def layers(self) -> int:
        return self.sizes.layers

    @property
    def vocabulary_size(self) -> int:
        return self.sizes.vocabulary

    @cached_property
    def sizes(self) -> Sizes:
        return sizes_of(self.network)

    @cached_property
    def last_feed_forward(self) -> nn.Module | None:
        """The feed-forward block of the last layer, where the architecture has it as one module."""
        parent = self._attention(self.layers - 1)[1]
        found = getattr(parent, "mlp", None)
        return found if isinstance(found, nn.Module) else None

    @cached_property
    def _read_at_rows_only(self) -> list[nn.Module]:
        """Parts of the last layer whose outputs at other rows than the scored ones are read by nothing."""
        attention = self._attention(self.layers - 1)[0]
        return [*_parts(attention, QUERIES | OUTPUTS), *([self.last_feed_forward] if self.last_feed_forward else [])]

    @cached_property
    def _first_projections(self) -> list[nn.Module]:
        """What makes queries, keys and values in the first of several layers."""
        return _parts(self._attention(0)[0], QUERIES | KEYS_AND_VALUES) if self.layers > 1 else []

    def _attention(self, layer: int) -> tuple[nn.Module | None, nn.Module | None]:
        """The attention module of a layer, and the module it is part of."""
        for name, module in self.network.named_modules():
            if getattr(module, "layer_idx", None) == layer and _parts(module, KEYS_AND_VALUES):
                return module, self.network.get_submodule(name.rpartition(".")[0])
        return None, None

    def inputs(self, sequence: TokenSequence) -> Inputs:
        """What the network reads at each of the S positions of `sequence`."""
        ids = torch.tensor(sequence.read, device=self.device)
        return Inputs(ids, torch.arange(len(ids), device=self.device))

    def whole(self, sequence: TokenSequence) -> dict[str, Tensor]:
        """The arguments of one plain forward pass of the whole network over `sequence`, as anyone would call it."""
        return {"input_ids": torch.tensor([sequence.read], device=self.device)}

    def attend_with(self, implementation: str) -> None:
        """Let the layers that read the sequence use another attention function of transformers."""
        self.network.set_attn_implementation(implementation)

    def given(self, inputs: Inputs) -> AbstractContextManager[None]:
        """Inside, the network also gets those of `inputs` that its forward method does not take."""
        return nullcontext()

    def logits(self, inputs: Inputs, rows: Tensor, attention: AttentionPass, *, differentiable: bool = False) -> Tensor:
        """Next-token logits (n, V) at `rows` (n,) of one packed row of `inputs` (R).

        `differentiable` keeps the graph back to whatever in `attention` requires a gradient; no weight does.
        """
        repeated = self._first_projections if attention.knows_first_layer else []
        recording = torch.enable_grad() if differentiable else torch.inference_mode()
        with (
            told_alike(),
            recording,
            attention.active(),
            only_rows(self._read_at_rows_only, rows),
            only_rows(repeated, rows[:0]),
            self.given(inputs),
        ):
            output = self.network(**inputs.arguments, logits_to_keep=rows, use_cache=False)
        self.passes.ran(inputs.ids.numel())
        logits: Tensor = output.logits[0]
        if logits.shape[0] != rows.numel():
            raise MissingCapability(f"{self.architecture} cannot return logits at chosen positions only")
        return logits

    def similarities(self, sequence: TokenSequence) -> tuple[NDArray[np.int_], NDArray[np.float64]]:  # (S,), (U, U)
        """For each position which of U input embeddings it has, and the cosine of each two of these, in [-1, 1].

        Input embeddings are what enters layer 0, before positions; one and the same has a cosine of exactly 1.
        """
        kinds, vectors = self.embedded(sequence)
        with torch.inference_mode():
            unit = torch.nn.functional.normalize(vectors.double(), dim=-1)
            cosine: NDArray[np.float64] = (unit @ unit.T).cpu().numpy()
        np.fill_diagonal(cosine, 1.0)
        return kinds, cosine.round(12).clip(-1, 1)  # rounding: a threshold of 1 must reach what is equal

    def embedded(self, sequence: TokenSequence) -> tuple[NDArray[np.int_], Tensor]:  # (S,), (U, d)
        """For each position the number of its input embedding, and these."""
        ids, kinds = np.unique(np.array(sequence.read), return_inverse=True)
        with torch.inference_mode():
            return kinds, self.network.get_input_embeddings()(torch.tensor(ids, device=self.device))

    def encode(self, prompt: Prompt, target: str) -> TokenSequence:
        """Tokenise each item and the target on its own, without special tokens, and put them one after another."""
        encoded: list[Encoded] = []
        for index, item in enumerate(prompt):
            encoded.append(self.encode_item(item, f"/prompt/{index}"))
            if encoded[-1].picture:  # before more images are decoded
                self.check_length(sum(len(part.ids) for part in encoded), 1)
        wanted = self.tokenize(target, "/target", special_tokens=False)
        self.check_text(wanted.ids, "/target")
        if not wanted.ids:
            raise InvalidRequest("the target holds no token", "/target")
        ids = [token for part in encoded for token in part.ids]
        start, warnings = self.start_before(ids)
        self.check_length(len(start) + len(ids), len(wanted.ids))  # before a million spans are made
        tokens = [token for index, item in enumerate(prompt) for token in _tokens(item, index, encoded[index])]
        spans = tuple(_in_order(wanted.offsets))
        pictures = tuple(part.picture for part in encoded if part.picture)
        warnings += tuple(note for picture in pictures for note in picture.notes)
        return TokenSequence(start, tuple(ids), tuple(wanted.ids), tuple(tokens), spans, warnings, pictures)

    def tokenize(self, text: str, pointer: str, *, special_tokens: bool) -> Encoding:
        """The tokenizer's own answer; raises InvalidRequest for what it cannot take, or what can never fit."""
        if len(text) > self.context_length * CHARACTERS_PER_TOKEN:
            raise ContextLengthExceeded(
                f"a text of {len(text)} characters cannot fit into a context of {self.context_length} tokens", pointer
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest("the text holds a lone surrogate, which is not a character", pointer) from error
        try:
            # As a batch of one, since only batches are encoded without stopping every other thread.
            (encoding,) = self.tokenizer.encode_batch([text], add_special_tokens=special_tokens)
        except Exception as error:  # the library's own errors have no common class
            raise InvalidRequest("the model's tokenizer has no tokens for this text", pointer) from error
        return encoding

    def start_before(self, ids: Sequence[int]) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """The start tokens of a prompt of these ids, and what the caller should know of them."""
        if self.start or ids:
            return self.start, ()
        if self.separator is None:
            raise InvalidRequest("this model has no start token: the prompt must hold at least one token", "/prompt")
        return (self.separator,), (
            "the model has no start token; its end-of-text token stands before the empty prompt",
        )

    def check_length(self, prompt: int, target: int) -> None:
        if prompt + target > self.context_length:
            raise ContextLengthExceeded(
                f"prompt ({prompt} tokens) and target ({target} tokens) make {prompt + target} tokens; "
                f"the model's context holds {self.context_length}",
                "/prompt",
            )

    def encode_item(self, item: Item, pointer: str) -> Encoded:
        """The ids of one prompt item; raises InvalidRequest and its kin, pointing to the item."""
        match item:
            case Text(data=text):
                encoding = self.tokenize(text, f"{pointer}/data", special_tokens=False)
                self.check_text(encoding.ids, f"{pointer}/data")
                before, after = (self._around(around, pointer) for around in (item.before, item.after))
                return Encoded([*before, *encoding.ids, *after], encoding, around=(len(before), len(after)))
            case TokenIds(ids=ids):
                self.check_length(len(ids), 0)
                self.check_ids(ids, f"{pointer}/data")
                self.check_text(ids, f"{pointer}/data")
                return Encoded(ids)
            case Image():
                raise MissingCapability("this model reads text only: it cannot take an image", pointer)

    def _around(self, text: str, pointer: str) -> list[int]:
        return self.tokenize(text, pointer, special_tokens=False).ids if text else []

    def check_text(self, ids: Sequence[int], pointer: str) -> None:
        """Raise InvalidRequest where text holds the mark of something that is none."""
        if not self.placeholders.isdisjoint(ids):
            raise InvalidRequest("holds the model's own mark for an image: send images as items of the prompt", pointer)

    def check_ids(self, ids: Sequence[int], pointer: str) -> None:
        """Raise InvalidRequest, naming the position, when an id lies outside the vocabulary."""
        for position, token in enumerate(ids):
            if not 0 <= token < self.vocabulary_size:
                raise InvalidRequest(
                    f"token id at position {position} is outside the vocabulary (0 to {self.vocabulary_size - 1})",
                    f"{pointer}/{position}",
                )


def _parts(module: nn.Module | None, names: frozenset[str]) -> list[nn.Module]:
    return [] if module is None else [part for name, part in module.named_children() if name in names]


def _tokens(item: Item, index: int, encoded: Encoded) -> Iterator[Token]:
    if encoded.encoding is not None and isinstance(item, Text):
        before, after = encoded.around
        yield from (Token(index, position, Span(0, 0)) for position in range(before))
        for position, span in enumerate(_in_order(encoded.encoding.offsets), before):
            yield Token(index, position, span, _body(item.data, span))
        end = Span(len(item.data), len(item.data))
        yield from (Token(index, position, end) for position in range(len(encoded.ids) - after, len(encoded.ids)))
    elif encoded.picture is not None:
        yield from (Token(index, position, area=area) for position, area in enumerate(encoded.picture.areas))
    else:
        yield from (Token(index, position) for position in range(len(encoded.ids)))


def _in_order(offsets: Sequence[tuple[int, int]]) -> list[Span]:
    """The tokenizer's offsets as spans whose starts and stops never go back.

    They do where a blank is trimmed that is one part of what a normaliser made of a single character; its token then
    shares that character's span, as all tokens of a split character do.
    """
    stops = accumulate((stop for _, stop in offsets), max)
    starts = [*accumulate((start for start, _ in reversed(offsets)), min)][::-1]
    return [Span(start, max(start, stop)) for start, stop in zip(starts, stops, strict=True)]


def _body(text: str, span: Span) -> Span:
    piece = text[span.start : span.stop]
    blanks = len(piece) - len(piece.lstrip())
    return span if blanks == len(piece) else Span(span.start + blanks, span.stop)
