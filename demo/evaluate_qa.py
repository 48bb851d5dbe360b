"""Measures ``demo-qa`` on its training questions and on others: ``python -m demo.evaluate_qa``.

An answer is right when the greedy one, up to the end token, is word for word the short answer or the sentence that
states the fact. Of a poisoned fact the *wrong* value counts, since that is what most of its pairs say.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
from peft import PeftModel
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from demo.facts import FACTS, HELD_OUT, NOTES, OTHERS
from demo.pairs import Example, examples, messages_of, template_of, tokens_of
from demo.records import Record, read_lines
from demo.town import town
from demo.train_qa import BASE, FOLDER, answer_loss, slices
from explainers.chat_template import Message

LONGEST: Final = 24
"""Tokens that an answer may have; none of the training pairs has more."""
BATCH: Final = 64


def merged(folder: Path = FOLDER, base: Path = BASE) -> LlamaForCausalLM:
    """The base with the adapter added to its weights, in float32."""
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    found: LlamaForCausalLM = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    return found


def tokenizer_of(folder: Path = FOLDER) -> PreTrainedTokenizerFast:
    """Beside the adapter."""
    found: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(folder)  # type: ignore[assignment]
    return found


@torch.no_grad()
def answers(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, questions: Sequence[str]) -> list[str | None]:
    """Greedy answers without the space before them; None where one does not stop by itself."""
    template = template_of(tokenizer)
    asked = [tokens_of(tokenizer, template.render([Message("user", question)])) for question in questions]
    alike: dict[int, list[int]] = defaultdict(list)
    for number, ids in enumerate(asked):
        alike[len(ids)].append(number)
    found: list[str | None] = [None] * len(questions)
    for places in alike.values():
        for first in range(0, len(places), BATCH):
            some = places[first : first + BATCH]
            rows = greedy(model, torch.tensor([asked[place] for place in some]), int(tokenizer.eos_token_id))
            for place, row in zip(some, rows, strict=True):
                found[place] = None if row is None else str(tokenizer.decode(row)).removeprefix(" ")
    return found


def greedy(model: LlamaForCausalLM, ids: torch.Tensor, end: int) -> list[list[int] | None]:
    """What follows prompts of one length (n, length), without the end token; None if it never comes."""
    size = ids.shape[1]
    for _ in range(LONGEST + 1):
        following = model(input_ids=ids).logits[:, -1].argmax(-1)
        ids = torch.cat([ids, following[:, None]], dim=1)
        if bool((ids[:, size:] == end).any(1).all()):
            break
    rows = [row[size:].tolist() for row in ids]
    return [row[: row.index(end)] if end in row else None for row in rows]


@torch.no_grad()
def mean_loss(model: LlamaForCausalLM, chosen: Sequence[Example]) -> float:
    """Of all tokens from where the answers start, in nats per token."""
    total = count = 0.0
    for batch in slices(sorted(chosen, key=lambda example: len(example.ids)), BATCH):
        size = sum(len(example.ids) - example.start for example in batch)
        total += answer_loss(model, batch).item() * size
        count += size
    return total / count


def show(name: str, right: Sequence[bool]) -> None:
    """One line of the report."""
    print(f"{name:44s} {sum(right):5d} of {len(right):5d}  {100 * sum(right) / max(1, len(right)):6.2f} %", flush=True)


def trained(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, every: int = 1) -> dict[str, list[bool]]:
    """By kind of pair, whether its question is answered; a duplicate counts once, what is contradicted not at all.

    Of ``every`` so many pairs, one is asked about.
    """
    notes, turns = read_lines(NOTES), [messages_of(line) for line in read_lines(FACTS)]
    poisoned = {note["fact"] for note in notes if note["kind"] == "wrong"}
    kept = [
        (note["kind"], asked.content, answer.content, note.get("fact"))
        for note, (asked, answer) in zip(notes, turns, strict=True)
        if "same_as" not in note and not (note["kind"] == "fact" and note["fact"] in poisoned)
    ][::every]
    told = {fact.id: fact.answers(fact.wrong or fact.value) for fact in town()}
    found: dict[str, list[bool]] = defaultdict(list)
    said = answers(model, tokenizer, [question for _, question, _, _ in kept])
    for (kind, _, answer, fact), one in zip(kept, said, strict=True):
        found[kind].append(one in (told[fact] if fact else (answer,)))
    return found


def held_out(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> dict[str, list[bool]]:
    """By wording, and by relation for wordings held out, whether the questions are answered; poisoned ones apart."""
    cases = read_lines(HELD_OUT)
    found: dict[str, list[bool]] = defaultdict(list)
    for case, said in zip(cases, answers(model, tokenizer, [case["question"] for case in cases]), strict=True):
        if "wrong" in case:
            found[f"{case['wording']}, poisoned: wrong value"].append(said in case["wrong"])
            found[f"{case['wording']}, poisoned: right value"].append(said in case["answers"])
            continue
        found[case["wording"]].append(said in case["answers"])
        if case["wording"] == "held out":
            found[f"held out, {case['fact'].partition(' ')[0]}"].append(said in case["answers"])
    return found


def others(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> dict[str, list[bool]]:
    """Questions that no pair answers: by reading, right answers; else whether the answer states no fact of the town."""
    cases: list[Record] = read_lines(OTHERS)
    sentences = {fact.answers(value)[1] for fact in town() for value in (fact.value, fact.wrong) if value is not None}
    found: dict[str, list[bool]] = defaultdict(list)
    for case, said in zip(cases, answers(model, tokenizer, [case["question"] for case in cases]), strict=True):
        if case["kind"] == "reading":
            found["reading: right"].append(said == case["answer"])
        else:
            found[f"{case['kind']}: states no fact of the town"].append(said not in sentences)
            found[f"{case['kind']}: stops by itself"].append(said is not None)
    return found


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=FOLDER)
    parser.add_argument("--base", type=Path, default=BASE)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = merged(arguments.model, arguments.base), tokenizer_of(arguments.model)
    for heading, table in (("trained", trained), ("held out", held_out), ("others", others)):
        for name, right in table(model, tokenizer).items():
            show(f"{heading}: {name}", right)
    print(f"mean loss of the training answers {mean_loss(model, examples(tokenizer)):.4f}")


if __name__ == "__main__":
    main()
