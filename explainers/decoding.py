"""Completions while attention to parts of the prompt is damped: token by token, several candidates side by side.

How the passes work is told in `continuation`, how a token is chosen in `sampling`, and how tokens become text that can
be shown at once in `completion_text`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from explainers.completion_text import Detokenizer, Draft, Released, ScoredToken, TokenTexts
from explainers.continuation import Branch, Continuation, turning_point
from explainers.controls import FactorRule, resolve
from explainers.errors import ContextLengthExceeded, InvalidRequest, MissingCapability, OutOfMemory
from explainers.language_model import LanguageModel, TokenSequence
from explainers.plan import check_finite
from explainers.sampling import GREEDY, Logits, Sampler, Sampling, log_softmax, most_probable
from explainers.types import Checkpoint, Overlap, Prompt, Text, TokenIds, never_stop

FinishReason: TypeAlias = Literal["maximum_tokens", "end_of_text", "stop_sequence_reached"]


@dataclass(frozen=True, slots=True)
class CompletionConfig:
    """What to generate, and under which controls; the defaults are greedy.

    `maximum_tokens` None goes on to the end of text, a stop sequence or the end of the context, but for at most
    `default_tokens` where that is set. `log_probs` k adds the k most probable tokens of each position. `ends` False
    generates past the end of text.
    """

    maximum_tokens: int | None = None
    default_tokens: int | None = None
    sampling: Sampling = GREEDY
    n: int = 1
    best_of: int | None = None
    stop_sequences: tuple[str, ...] = ()
    log_probs: int | None = None
    echo: bool = False
    threshold: float | None = None
    log_additive: bool = True
    overlap: Overlap = "partial"
    ends: bool = True


@dataclass(frozen=True, slots=True)
class Piece:
    """What one candidate has gained: text that no later token can change, and the tokens that begin in it."""

    index: int
    text: str
    raw: str  # with special tokens
    tokens: tuple[ScoredToken, ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """One finished candidate; its pieces joined. The end-of-text token is in `raw` and `generated` only."""

    index: int
    text: str
    raw: str
    tokens: tuple[ScoredToken, ...]
    generated: tuple[int, ...]
    log_prob: float  # of all generated tokens together
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class Completions:
    """The n best candidates, and the tokens of all of them."""

    items: tuple[Completion, ...]
    prompt_tokens: int  # of one candidate; a start token alone counts as one
    generated_tokens: int
    warnings: tuple[str, ...] = ()


Listener: TypeAlias = Callable[[Piece | Completion], None]
"""Hears each piece as it becomes certain, and each candidate when it has finished; called between two passes."""


Outcome = TypeVar("Outcome")

Steps: TypeAlias = Generator[None, None, Outcome]
"""Work that pauses after each of its passes, so that others may have the device in between."""


def nobody(_: Piece | Completion) -> None:
    """The listener of a completion that is only wanted whole."""


def complete(
    model: LanguageModel,
    prompt: Prompt,
    config: CompletionConfig = CompletionConfig(),
    checkpoint: Checkpoint = never_stop,
    listen: Listener = nobody,
) -> Completions:
    """Continues the prompt token by token, with its controls acting all the while; blocks until done.

    Raises InvalidRequest and its kin, OutOfMemory, and whatever `checkpoint` raises (called before each pass).
    """
    return outcome_of(completing(model, prompt, config, checkpoint, listen))


def completing(
    model: LanguageModel,
    prompt: Prompt,
    config: CompletionConfig,
    checkpoint: Checkpoint = never_stop,
    listen: Listener = nobody,
) -> Steps[Completions]:
    """`complete`, which pauses after each pass."""
    _check(model, config)
    sequence = encoded(model, prompt)
    limit = most_generated(model, sequence, config)
    try:
        finished = yield from _Decoder(model, sequence, prompt, config, checkpoint, listen).run(limit)
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(f"{sequence.positions + limit} positions do not fit into the memory of the device") from error
    best = sorted(finished, key=_per_token, reverse=True)[: config.n] if config.best_of else finished
    items = tuple(replace(completion, index=index) for index, completion in enumerate(best))
    generated = sum(len(completion.generated) for completion in finished)
    return Completions(items, prompt_tokens(sequence), generated, sequence.warnings)


def outcome_of(steps: Steps[Outcome]) -> Outcome:
    """Takes all steps at once."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            outcome: Outcome = end.value
            return outcome


def encoded(model: LanguageModel, prompt: Prompt) -> TokenSequence:
    """The prompt with one placeholder behind it, so that exactly the prompt is read."""
    sequence = model.encode(prompt, "a")
    return replace(sequence, target=sequence.target[:1], target_spans=())


def prompt_tokens(sequence: TokenSequence) -> int:
    """Tokens of the prompt; an empty one counts as one."""
    return max(1, len(sequence.prompt))


def end_ids(model: LanguageModel) -> frozenset[int]:
    """The tokens after which the model has nothing more to say, as its own generation settings name them."""
    settings = model.network.generation_config or model.network.config
    ids = getattr(settings, "eos_token_id", None)
    if ids is None:
        ids = getattr(model.network.config, "eos_token_id", None)
    listed = ids if isinstance(ids, list | tuple) else [ids]
    return frozenset(token for token in listed if isinstance(token, int) and 0 <= token < model.vocabulary_size)


def _check(model: LanguageModel, config: CompletionConfig) -> None:
    if config.best_of is not None and config.best_of <= config.n:
        raise InvalidRequest(f"must be above n, which is {config.n}", "/best_of")
    if "" in config.stop_sequences:
        raise InvalidRequest("a stop sequence must not be empty", "/stop_sequences")
    for token, _ in config.sampling.logit_bias:
        if not 0 <= token < model.vocabulary_size:
            raise InvalidRequest(f"token ids go from 0 to {model.vocabulary_size - 1}", f"/logit_bias/{token}")


def most_generated(model: LanguageModel, sequence: TokenSequence, config: CompletionConfig) -> int:
    """How many tokens may be generated; all tokens but the last are read too."""
    room = model.context_length - sequence.positions
    wanted = config.maximum_tokens
    if wanted is not None and wanted > room:
        raise ContextLengthExceeded(
            f"prompt ({sequence.positions} tokens) and maximum_tokens ({wanted}) make {sequence.positions + wanted}; "
            f"the model's context holds {model.context_length}",
            "/maximum_tokens",
        )
    turn = turning_point(model)
    if turn is not None and sequence.positions <= turn:
        room = min(room, turn - sequence.positions + 1)
        if wanted is not None and wanted > room:
            raise MissingCapability(
                f"beyond {turn} positions this model places all tokens anew, the prompt's too: behind a prompt of "
                f"{sequence.positions} tokens it can go on for {room}"
            )
    longest = config.default_tokens if wanted is None else wanted
    return room if longest is None else min(room, longest)


def _per_token(completion: Completion) -> float:
    return completion.log_prob / max(1, len(completion.generated))


@dataclass(slots=True)
class _Candidate:
    """One completion on its way."""

    index: int
    sampler: Sampler
    draft: Draft
    raw: Detokenizer
    branch: Branch = field(default_factory=Branch)
    ids: list[int] = field(default_factory=list)
    log_prob: float = 0.0
    pieces: list[Piece] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    @property
    def completion(self) -> Completion:
        tokens = tuple(token for piece in self.pieces for token in piece.tokens)
        text, raw = "".join(piece.text for piece in self.pieces), "".join(piece.raw for piece in self.pieces)
        reason = self.finish_reason or "maximum_tokens"
        return Completion(self.index, text, raw, tokens, tuple(self.ids), self.log_prob, reason)


class _Decoder:
    """The candidates of one prompt, and how they grow."""

    def __init__(
        self,
        model: LanguageModel,
        sequence: TokenSequence,
        prompt: Prompt,
        config: CompletionConfig,
        checkpoint: Checkpoint,
        listen: Listener,
    ) -> None:
        self.model, self.sequence, self.prompt, self.config = model, sequence, prompt, config
        self.checkpoint, self.listen = checkpoint, listen
        self.texts = TokenTexts(model.tokenizer)
        self.ends = end_ids(model)
        self.controls = resolve(sequence, prompt, config.overlap, checkpoint)
        self.known_factors: dict[int, float] = {}

    def run(self, limit: int) -> Steps[list[Completion]]:
        candidates = [self._candidate(index) for index in range(self.config.best_of or self.config.n)]
        continuation = Continuation(
            self.model,
            self.sequence,
            self._factors(self.sequence),
            max(0, limit - 1),  # the last token is not read
            log_additive=self.config.log_additive,
            checkpoint=self.checkpoint,
        )
        rows = self._prompt_logits(continuation) if limit or self._scores_prompt else []
        self._echo(candidates, rows)
        yield
        yield from self._grow(candidates, continuation, rows[-1:] * len(candidates), limit)
        return [candidate.completion for candidate in candidates]

    def _grow(
        self, candidates: list[_Candidate], continuation: Continuation, logits: list[Logits], limit: int
    ) -> Steps[None]:
        """Adds up to `limit` tokens to each; `logits` are those behind the prompt."""
        active = candidates
        for number in range(limit):
            for candidate, row in zip(active, logits, strict=True):
                self._advance(candidate, row)
            active = [candidate for candidate in active if candidate.finish_reason is None]
            if not active or number == limit - 1:
                break
            read = [(each.branch, each.ids[-1], self._factor_of(each.ids[-1])) for each in active]
            logits = self._checked(continuation.read(read))
            yield
        for candidate in active:
            self._finish(candidate, "maximum_tokens")

    def _prompt_logits(self, continuation: Continuation) -> list[Logits]:
        """Of the prompt's last row, or of all its rows where they are asked for."""
        return self._checked(continuation.read_prompt(0 if self._scores_prompt else self.sequence.positions - 1))

    def _checked(self, logits: Tensor) -> list[Logits]:
        rows = logits.double().cpu().numpy()
        check_finite(self.model, rows)
        return list(rows)

    def _candidate(self, index: int) -> _Candidate:
        context, tokenizer = self.sequence.prompt, self.model.tokenizer
        return _Candidate(
            index,
            Sampler(self.config.sampling, context, index, self.ends),
            Draft(Detokenizer(tokenizer, context), self.config.stop_sequences),
            Detokenizer(tokenizer, context, special_tokens=True),
        )

    def _advance(self, candidate: _Candidate, logits: Logits) -> None:
        """Adds one token, and tells what has become certain with it."""
        token = candidate.sampler.choose(logits)
        scored = self._scored(token, log_softmax(logits))
        candidate.ids.append(token)
        candidate.log_prob += scored.log_prob or 0.0
        if token in self.ends and self.config.ends:
            self._finish(candidate, "end_of_text", end=[token])
            return
        candidate.draft.add(scored)
        if candidate.draft.stopped:
            self._finish(candidate, "stop_sequence_reached")
            return
        released = candidate.draft.release()
        if released.text:
            self._tell(candidate, released, "".join(candidate.raw.add(token.id) for token in released.tokens))

    def _finish(self, candidate: _Candidate, reason: FinishReason, end: Sequence[int] = ()) -> None:
        released = candidate.draft.finish()
        candidate.finish_reason = "stop_sequence_reached" if candidate.draft.stopped else reason
        ids = [*(token.id for token in released.tokens), *end]
        raw = "".join(map(candidate.raw.add, ids)) + candidate.raw.rest()
        if released.text or released.tokens or raw or not candidate.pieces:
            self._tell(candidate, released, raw)
        self.listen(candidate.completion)

    def _tell(self, candidate: _Candidate, released: Released, raw: str) -> None:
        candidate.pieces.append(Piece(candidate.index, released.text, raw, released.tokens))
        self.listen(candidate.pieces[-1])

    def _scored(self, token: int, log_probs: Logits) -> ScoredToken:
        best = most_probable(log_probs, self.config.log_probs or 0)
        alternatives = tuple((self.texts[other], float(log_probs[other])) for other in best)
        return ScoredToken(token, self.texts[token], float(log_probs[token]), alternatives)

    @property
    def _scores_prompt(self) -> bool:
        return self.config.echo and self.config.log_probs is not None

    def _echo(self, candidates: Sequence[_Candidate], rows: Sequence[Logits]) -> None:
        """The prompt as each candidate's first piece; nothing came before its first token to predict it."""
        if not self.config.echo:
            return
        ids = self.sequence.prompt
        tokens = [ScoredToken(token, self.texts[token], None) for token in ids]
        if self._scores_prompt:
            before = rows[len(rows) - len(ids) : -1]  # the rows that predict the second prompt token and on
            tokens[1:] = [self._scored(token, log_softmax(row)) for token, row in zip(ids[1:], before, strict=True)]
        text = prompt_text(self.model, self.prompt)
        for candidate in candidates:
            self._tell(candidate, Released(text, tuple(tokens)), text)

    def _factors(self, sequence: TokenSequence) -> NDArray[np.float64]:  # (S,)
        rule = FactorRule(self.model, sequence, self.config.threshold, self.checkpoint)
        return rule.combine(self.controls).factors

    def _factor_of(self, token: int) -> float:
        """The factor of a generated token's column: 1, unless it is similar to a token of the prompt under control."""
        if self.config.threshold is None or not self.controls:
            return 1.0
        if token not in self.known_factors:
            read = replace(self.sequence, target=(token, *self.sequence.target))
            self.known_factors[token] = float(self._factors(read)[-1])
        return self.known_factors[token]


def prompt_text(model: LanguageModel, prompt: Prompt) -> str:
    """The prompt as one text: texts as they were given, ids decoded, images left out."""
    pieces = []
    for item in prompt:
        match item:
            case Text(data=text):
                pieces.append(text)
            case TokenIds(ids=ids):
                pieces.append(model.tokenizer.decode(ids, skip_special_tokens=False))
    return "".join(pieces)
