"""Measures ``demo-text`` on messages it was never trained on: ``python -m demo.evaluate_text``.

Prints the share of right answers, and in how many messages the token with the greatest LIME weight for the right class
is one of the words that the right answer rests on; the latter also for the rule itself in place of the model, to tell
what the model gets wrong from what an explanation by removal cannot show.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from demo.messages import Message, cues, decisive, held_out, priority_of, words_of
from demo.text_data import FOLDER, predictor
from demo.text_model import CLASSES
from demo.train_text import SHARES
from explainers.methods import text_lime
from explainers.methods.text_lime import TextLimeConfig
from explainers.predictor import TextPredictor
from explainers.predictors.binding import BoundTexts
from explainers.types import Attribution

SAMPLES = 2000


class Share(NamedTuple):
    right: int
    total: int

    def __str__(self) -> str:
        return f"{self.right} of {self.total} ({100 * self.right / max(1, self.total):.1f} %)"


@dataclass(frozen=True, slots=True)
class Rule:
    """What makes a message urgent, as a model that knows nothing else."""

    outputs: tuple[str, ...] = CLASSES
    space: Literal["probability"] = "probability"
    digest: str = "rule"

    def predict(self, texts: Sequence[str]) -> NDArray[np.float64]:  # n -> (n, 2)
        return np.array([SHARES[priority_of(words_of(text))] for text in texts])


def accuracy(model: BoundTexts, messages: Sequence[Message]) -> Share:
    found = model.predict([message.text for message in messages]).argmax(axis=1)
    right = [model.outputs[place] == message.priority for place, message in zip(found, messages, strict=True)]
    return Share(sum(right), len(messages))


def top_place(message: Message, explained: Attribution) -> int:
    """Of the token that speaks most for the right class."""
    targets = [target.text for target in explained.targets]
    return int(explained.values[targets.index(message.priority)].argmax())


def cue_first(model: TextPredictor, messages: Sequence[Message], samples: int = SAMPLES) -> list[bool]:
    """For each message whether its top token decides."""
    texts, config = [message.text for message in messages], TextLimeConfig(samples=samples)
    found = text_lime.attribute(model, texts, texts, config)
    pairs = zip(messages, found, strict=True)
    return [top_place(message, explained) in decisive(message.words) for message, explained in pairs]


def negates(message: Message) -> bool:
    return any(negation is not None for _, _, negation in cues(message.words))


def main() -> None:
    """Print the shares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=FOLDER)
    parser.add_argument("--messages", type=int, default=2000)
    parser.add_argument("--explained", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    model = predictor(arguments.model)
    for strange in (False, True):
        messages = held_out(arguments.messages, arguments.seed, strange)
        print("negated by a word that never negates it in training:" if strange else "held out:")
        print(f"  right answers          {accuracy(model, messages)}", flush=True)
        print(f"  with a negation        {accuracy(model, [one for one in messages if negates(one)])}")
        for name, explained in (("the model", model), ("the rule", Rule())):
            show_first(name, explained, messages[: arguments.explained])


def show_first(name: str, model: TextPredictor, messages: Sequence[Message]) -> None:
    first = cue_first(model, messages)
    negated = [top for top, message in zip(first, messages, strict=True) if negates(message)]
    print(f"  decisive word first    {Share(sum(first), len(first))} explaining {name}")
    print(f"  with a negation        {Share(sum(negated), len(negated))} explaining {name}", flush=True)


if __name__ == "__main__":
    main()
