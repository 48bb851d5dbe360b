"""From records to examples: a record as the trainer's model read it, and the tokens whose losses counted.

Where the chat template marks what the assistant says, its marks are the answer, as for transformers' own
`return_assistant_tokens_mask`. Where it does not, a chat is rendered up to each answer and once more with it: the first
must be a token prefix of the second, and that of the whole chat, or the record is refused with its line. An answer is
never searched for in the text, since templates trim, escape and leave out.

The end of a turn is the first special token behind an answer; what a template puts behind that is never generated and
has no loss. A model without a template reads question and answer one behind the other. An example ends with its last
token that has a loss, since later ones change nothing before them.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import TypeAlias

from tokenizers import Encoding

from explainers.chat_template import ChatTemplate, Message
from explainers.decoding import end_ids
from explainers.errors import ContextLengthExceeded, InvalidRequest, MissingCapability
from explainers.influence.examples import Example, Mask
from explainers.influence.records import BadLine, BadLines, Record, Tokens
from explainers.influence.texts import Words, words_of
from explainers.language_model import LanguageModel
from explainers.types import Span

PIECE = 1_000
"""Records that are tokenised at once."""
NAMED = 20
"""Lines that a warning names."""


@dataclass(frozen=True, slots=True)
class _Part:
    """What becomes an example: all ids, the positions with a loss, and where the question ends."""

    ids: Sequence[int]
    answer: Sequence[int]
    asked: int


_Reading: TypeAlias = Generator[Sequence[str], Sequence[Encoding], list[_Part]]
"""Yields the texts to be tokenised, is sent their encodings, and returns what is to be learnt."""


def render(model: LanguageModel, records: Sequence[Record], mask: Mask, first: int = 0) -> tuple[Example, ...]:
    """The examples of `records`, as `rendered` makes them."""
    return tuple(rendered(model, records, mask, first))


def rendered(model: LanguageModel, records: Sequence[Record], mask: Mask, first: int = 0) -> Iterator[Example]:
    """One after the other, in order; the first record has the index `first`.

    A chat has one example for each turn that counts, with everything before it. Records whose whole answer lies behind
    `mask.longest` have none: `left_out` names them. Raises BadLines at the end for all records that cannot be examples,
    and MissingCapability for a template that serves none.
    """
    reader, bad = _Reader(model, mask), list[BadLine]()
    for start in range(0, len(records), PIECE):
        for index, made in enumerate(reader.read(records[start : start + PIECE]), first + start):
            if isinstance(made, BadLine):
                bad.append(made)
            else:
                yield from (Example(index, tuple(part.ids), tuple(part.answer), part.asked) for part in made)
    if bad:
        raise BadLines(bad)


def left_out(records: Sequence[Record], kept: Iterable[int], first: int = 0) -> tuple[str, ...]:
    """A warning where records have no example, because their whole answer was cut off; `kept` are those with one."""
    known = frozenset(kept)
    lines = [record.line for index, record in enumerate(records, first) if index not in known]
    if not lines:
        return ()
    named = ", ".join(map(str, lines[:NAMED])) + (", ..." if len(lines) > NAMED else "")
    return (f"the answers of {len(lines)} records lie behind the cut and were not learnt: lines {named}",)


def render_question(
    model: LanguageModel, question: str, answer: str | None, system_prompt: str | None, mask: Mask
) -> Example:
    """A question, and an answer where there is one, as the model was trained to read them.

    Only the answer's tokens have a loss, whatever `mask.loss` says: it is the answer that is explained. Nothing is cut
    but the end of the turn behind an answer that fills the model's context: it had no room to say that.
    Raises InvalidRequest for what the template refuses or changes, ContextLengthExceeded.
    """
    turns = [] if system_prompt is None else [Message("system", system_prompt)]
    turns.append(Message("user", question))
    if answer is not None:
        turns.append(Message("assistant", answer))
    try:
        part = _question(model, turns, mask)
    except ContextLengthExceeded:
        if answer is None or not mask.end:
            raise
        part = _question(model, turns, replace(mask, end=False))
    return Example(0, tuple(part.ids), tuple(part.answer), part.asked)


def asked_words(model: LanguageModel, question: str, answer: str) -> Words:
    """The tokens of both on their own: what a template puts around them, as a system prompt, is not what is asked."""
    encodings = [model.tokenizer.encode(text, add_special_tokens=False) for text in (question, answer)]
    return words_of([token for encoding in encodings for token in encoding.ids])


def _question(model: LanguageModel, turns: Sequence[Message], mask: Mask) -> _Part:
    reader = _Reader(model, replace(mask, loss="last_assistant", longest=None))
    return reader.finished(reader.reading(turns) if turns[-1].role == "assistant" else reader.asking(turns))[-1]


class _Reader:
    """How one model reads records under one mask."""

    def __init__(self, model: LanguageModel, mask: Mask) -> None:
        self.model, self.mask = model, mask
        self.blanks: dict[int, bool] = {}

    def read(self, records: Sequence[Record]) -> Iterator[list[_Part] | BadLine]:
        """What to learn from each record, or why not."""
        readings = [self._record(record) for record in records]
        wanted = [self._begun(reading, record) for reading, record in zip(readings, records, strict=True)]
        try:
            encodings = iter(
                self._encoded([text for asked in wanted if not isinstance(asked, BadLine) for text in asked])
            )
        except InvalidRequest as error:
            alone = (self.read([record]) for record in records)
            yield from [_bad(records[0], error)] if len(records) == 1 else chain.from_iterable(alone)
            return
        for reading, record, asked in zip(readings, records, wanted, strict=True):
            if isinstance(asked, BadLine):
                yield asked
            else:
                yield self._ended(reading, [next(encodings) for _ in asked], record)

    def finished(self, reading: _Reading) -> list[_Part]:
        """One reading alone, whose errors are the caller's."""
        texts = next(reading)
        return self._sent(reading, self._encoded(texts))

    def _begun(self, reading: _Reading, record: Record) -> Sequence[str] | BadLine:
        try:
            return next(reading)
        except MissingCapability:
            raise
        except InvalidRequest as error:
            return _bad(record, error)

    def _ended(self, reading: _Reading, encodings: Sequence[Encoding], record: Record) -> list[_Part] | BadLine:
        try:
            return self._sent(reading, encodings)
        except InvalidRequest as error:
            return _bad(record, error)

    def _sent(self, reading: _Reading, encodings: Sequence[Encoding]) -> list[_Part]:
        try:
            reading.send(encodings)
        except StopIteration as end:
            parts: list[_Part] = end.value
            return [self._checked(part) for part in map(self._cut, parts) if part.answer or not self.mask.longest]
        raise RuntimeError("a reading asks for texts only once")

    def _encoded(self, texts: Sequence[str]) -> list[Encoding]:
        """As trainers tokenise what a template wrote: without special tokens, which are part of the text."""
        tokenizer = self.model.tokenizer
        marked = self.model.chat is not None and self.model.chat.marks_answers
        encode = tokenizer.encode_batch if marked else tokenizer.encode_batch_fast  # the fast one knows no places
        try:
            return encode(list(texts), add_special_tokens=False)
        except Exception as error:  # the library's own errors have no common class
            raise InvalidRequest("the model's tokenizer has no tokens for one of these texts") from error

    def _cut(self, part: _Part) -> _Part:
        """Without what lies behind the longest example, or behind the last token with a loss."""
        longest = self.mask.longest or len(part.ids)
        answer = [position for position in part.answer if position < longest]
        if not answer:
            return replace(part, answer=answer)
        return _Part(part.ids[: answer[-1] + 1], answer, min(part.asked, answer[-1] - 1))

    def _checked(self, part: _Part) -> _Part:
        """Raises InvalidRequest for ids that are not the model's to read, ContextLengthExceeded."""
        if len(part.ids) > self.model.context_length:
            raise ContextLengthExceeded(
                f"{len(part.ids)} tokens are more than the model's context of {self.model.context_length}"
            )
        if not all(0 <= token < self.model.vocabulary_size for token in (min(part.ids), max(part.ids))):
            raise InvalidRequest(f"the model's token ids go from 0 to {self.model.vocabulary_size - 1}")
        if not self.model.placeholders.isdisjoint(part.ids):
            raise InvalidRequest("the model's own mark for an image stands in it")
        return part

    def _record(self, record: Record) -> _Reading:
        if record.tokens is not None:
            return self._tokens(record.tokens)
        return self.reading(record.turns) if record.turns else self._text(record.text or "")

    def reading(self, turns: Sequence[Message]) -> _Reading:
        """A chat that ends with an answer."""
        if self.model.chat is None:
            return self._pair(turns)
        if self.model.chat.marks_answers:
            return self._marked(self.model.chat, turns)
        return self._chat(self.model.chat, turns)

    def asking(self, turns: Sequence[Message]) -> _Reading:
        """A chat that ends where the assistant's answer begins."""
        chat = self.model.chat
        (encoding,) = yield [chat.render(turns) if chat else self._bare(turns)]
        ids = encoding.ids if chat else [*self.model.start, *encoding.ids]
        if not ids:
            raise InvalidRequest("a model without a start token needs a question")
        return [_Part(ids, [], len(ids) - 1)]

    def _tokens(self, tokens: Tokens) -> _Reading:
        """As they are, whatever the mask says; the last answer is the last run of tokens with a loss."""
        yield ()
        scored = set(tokens.scored)
        asked = next(position for position in reversed(range(tokens.scored[-1])) if position not in scored)
        return [_Part(tokens.ids, tokens.scored, asked)]

    def _text(self, text: str) -> _Reading:
        (encoding,) = yield [text]
        ids = [*self.model.start, *encoding.ids, *self._last]
        if len(ids) < 2:
            raise InvalidRequest("a text of less than two tokens has nothing to learn")
        return [_Part(ids, range(1, len(ids)), max(0, len(self.model.start) - 1))]

    def _pair(self, turns: Sequence[Message]) -> _Reading:
        """Question and answer one behind the other, tokenised on their own."""
        question, answer = yield [self._bare(turns[:-1]), turns[-1].content]
        before = [*self.model.start, *question.ids]
        ids = [*before, *answer.ids, *self._last]
        if not before or len(ids) == len(before):
            raise InvalidRequest("an answer needs a token, and one before it")
        first = 1 if self.mask.loss == "all" else len(before)
        return [_Part(ids, range(first, len(ids)), len(before) - 1)]

    def _bare(self, turns: Sequence[Message]) -> str:
        if [turn.role for turn in turns] != ["user"]:
            raise InvalidRequest("the model has no chat template: it reads one question and one answer only")
        return turns[0].content

    def _chat(self, chat: ChatTemplate, turns: Sequence[Message]) -> _Reading:
        """Each answer is what a chat has more with it than up to it."""
        learnt = self._learnt(turns)
        texts = [chat.render(turns[:place]) for place in learnt]
        texts += [chat.render(turns[: place + 1], reply=False) for place in learnt]
        encodings = yield texts
        ids = [encoding.ids for encoding in encodings]
        whole, parts = ids[-1], []
        for before, own in zip(ids[: len(learnt)], ids[len(learnt) :], strict=True):
            end = self._end(own, len(before), len(own))
            stop = min(end + 1, len(own))
            if own[: len(before)] != before:
                raise InvalidRequest("its tokens up to an answer are others than with the answer behind them")
            if own[:stop] != whole[:stop]:
                raise InvalidRequest(
                    "an answer is rendered in another way once more turns follow: loss on the last only"
                )
            parts.append(_Part(own, range(len(before), stop if self.mask.end else end), len(before) - 1))
        return self._under_loss(parts, self._end(whole, len(before), len(whole)))

    def _marked(self, chat: ChatTemplate, turns: Sequence[Message]) -> _Reading:
        """Each answer is what the template marks."""
        text, spans = chat.render_marked(turns)
        answers = sum(turn.role == "assistant" for turn in turns)
        if len(spans) != answers:
            raise InvalidRequest(f"the model's chat template marks {len(spans)} of {answers} answers")
        (encoding,) = yield [text]
        parts = []
        for span in spans:
            first, stop = _tokens_in(encoding, span)
            end = self._end(encoding.ids, first, stop)
            parts.append(_Part(encoding.ids, range(first, stop if self.mask.end else end), first - 1))
        return self._under_loss(parts if self.mask.loss == "assistant" else parts[-1:], end)

    def _under_loss(self, parts: list[_Part], end: int) -> list[_Part]:
        """The parts as they are, or the whole chat where all of it counts; `end` is where its last turn ends."""
        if self.mask.loss == "all":
            whole = parts[-1].ids
            ends = whole[end] if end < len(whole) and not self.mask.end else None
            parts = [_Part(whole, [at for at in range(1, len(whole)) if whole[at] != ends], parts[-1].asked)]
        if any(not part.answer or part.asked < 0 for part in parts):
            raise InvalidRequest("an answer has no token to learn")
        return parts

    def _learnt(self, turns: Sequence[Message]) -> list[int]:
        """The places of the answers that count."""
        places = [place for place, turn in enumerate(turns) if turn.role == "assistant"]
        return places if self.mask.loss == "assistant" else places[-1:]

    def _end(self, ids: Sequence[int], first: int, stop: int) -> int:
        """Where the token stands that ends the turn of an answer in `first..stop-1`; `stop` where there is none.

        It is the first special one of those at the end that are special or white space.
        """
        last = stop
        while last > first and (ids[last - 1] in self._special or self._blank(ids[last - 1])):
            last -= 1
        return next((at for at in range(last, stop) if ids[at] in self._special), stop)

    @cached_property
    def _special(self) -> frozenset[int]:
        added = self.model.tokenizer.get_added_tokens_decoder()
        return frozenset(token for token, what in added.items() if what.special)

    def _blank(self, token: int) -> bool:
        if token not in self.blanks:
            self.blanks[token] = not self.model.tokenizer.decode([token], skip_special_tokens=False).strip()
        return self.blanks[token]

    @cached_property
    def _last(self) -> tuple[int, ...]:
        """What a trainer puts behind a plain text: the end-of-text token, where it counts and there is one."""
        known = end_ids(self.model) & self._special
        if self.model.chat is not None:
            named = self.model.tokenizer.token_to_id(self.model.chat.tokens.get("eos_token", ""))
            known = frozenset() if named is None else frozenset({named})
        return tuple(known) if self.mask.end and len(known) == 1 else ()


def _bad(record: Record, error: InvalidRequest) -> BadLine:
    return BadLine(record.line, f"cannot be read: {error}")


def _tokens_in(encoding: Encoding, span: Span) -> tuple[int, int]:
    """The tokens from that of the span's first character to that of its last, as transformers finds them."""
    first = encoding.char_to_token(span.start)
    last = encoding.char_to_token(span.stop - 1) if span.length else None
    if first is None or last is None:
        raise InvalidRequest("an answer begins or ends with a character that is in no token")
    return first, last + 1
