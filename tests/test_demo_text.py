"""The shipped classifier of messages is what its card and its data say, and explanations of it find the known cues."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import numpy as np
import pytest

from app.ingest import read_inference
from app.model_body import ModelBody
from app.rows import Layout
from demo.evaluate_text import Rule, accuracy, cue_first, negates
from demo.messages import (
    NEGATIONS,
    ROUTINE,
    URGENT,
    Message,
    decisive,
    held_out,
    is_held_out,
    is_strange,
    lesson,
    priority_of,
    vocabulary,
    words_of,
)
from demo.records import read_lines, schema_of
from demo.text_data import FOLDER, inferences, predictor, schema_body
from demo.text_model import CLASSES, build_tokenizer
from explainers.methods import integrated_gradients, text_shapley
from explainers.predictors.binding import BoundTexts
from explainers.sequence_classifier import SequenceClassifier
from explainers.text_masks import cut
from explainers.types import Span

INFERENCES: list[dict[str, Any]] = read_lines(FOLDER / "inferences.jsonl")
SCHEMA: dict[str, Any] = json.loads((FOLDER / "schema.json").read_text(encoding="utf-8"))
NOTES = [record["inference_data"]["note"] for record in INFERENCES]


@pytest.fixture(scope="module")
def model() -> BoundTexts:
    return predictor()


def card() -> str:
    return (FOLDER / "README.md").read_text(encoding="utf-8")


def told(row: str) -> list[float]:
    """The shares in a row of the card's table."""
    (found,) = re.findall(rf"^\| {row} \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", card(), re.MULTILINE)
    return [float(share) for share in found]


@pytest.mark.parametrize(
    ("text", "priority"),
    [
        ("There is smoke in the hall.", "urgent"),
        ("There is no smoke in the hall.", "routine"),
        ("No smoke or fire in the hall.", "routine"),
        ("No smoke, fire in the hall.", "urgent"),
        ("The lamp is no longer burning. A leak near the pump.", "urgent"),
        ("The lamp is not in the hall, there is smoke.", "urgent"),
        ("Thanks for the invoice. A fire near the pump.", "urgent"),
        ("Thanks for the invoice.", "routine"),
        ("We are not in the hall.", "neither"),
        ("", "neither"),
    ],
)
def test_what_makes_a_message_urgent(text: str, priority: str) -> None:
    assert priority_of(words_of(text)) == priority


def test_what_an_answer_rests_on() -> None:
    words = words_of("No fire. Thanks for the lamp, Anna is not in the hall.")
    assert [words[place] for place in decisive(words)] == ["no", "thanks"]
    words = words_of("No fire. Thanks for the lamp, but smoke in the hall and a leak.")
    assert [words[place] for place in decisive(words)] == ["smoke", "leak"]


def test_nothing_held_out_is_in_a_lesson() -> None:
    rng = random.Random(1)  # noqa: S311
    assert not any(is_held_out(lesson(rng).text) for _ in range(2000))
    assert all(is_held_out(message.text) and is_strange(message.text) for message in held_out(200, 2, strange=True))


def test_it_is_small() -> None:
    sizes = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
    weights = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert set(sizes) == weights | {"README.md", "schema.json", "inferences.jsonl"}
    assert sum(sizes.values()) <= 1_000_000


def test_its_tokens_are_the_words_of_the_messages() -> None:
    assert set(vocabulary()) >= URGENT | ROUTINE | NEGATIONS
    stored = json.loads((FOLDER / "tokenizer.json").read_text(encoding="utf-8"))
    assert stored == json.loads(build_tokenizer().backend_tokenizer.to_str())


def test_every_record_is_one_that_the_server_takes() -> None:
    definition = ModelBody.model_validate(SCHEMA).to_domain()
    assert [(a.name, a.positive) for a in definition.of_stage("PREDICTED_VALUE")] == [
        ("urgent", True),
        ("routine", False),
    ]
    assert schema_of(SCHEMA).classes == CLASSES
    layout = Layout(definition)
    for record in INFERENCES:
        arrival = read_inference(layout, record)
        right = record["ground_truth_data"]["priority"]
        assert layout.value(arrival.row, "gt_urgent") == (right == "urgent")


def test_stored_predictions_are_those_of_the_model(model: BoundTexts) -> None:
    stored = [[record["inference_data"][name] for name in CLASSES] for record in INFERENCES]
    np.testing.assert_allclose(model.predict(NOTES), stored, atol=1e-6, rtol=0)


def test_the_files_are_what_the_program_writes(model: BoundTexts) -> None:
    """But for predictions, which another processor may round otherwise."""
    assert schema_body() == SCHEMA
    made = inferences(model)
    for record in (*made, *INFERENCES):
        assert record["ground_truth_data"]["priority"] == priority_of(words_of(record["inference_data"]["note"]))
    plain = [
        [record | {"inference_data": record["inference_data"]["note"]} for record in records]
        for records in (made, INFERENCES)
    ]
    assert plain[0] == plain[1] and len(set(NOTES)) == 60 and all(is_held_out(note) for note in NOTES)


@pytest.mark.parametrize("strange", [False, True])
def test_the_card_tells_how_good_it_is(model: BoundTexts, strange: bool) -> None:
    messages = held_out(2000, 1, strange)
    negated = [message for message in messages if negates(message)]
    found = [accuracy(model, some) for some in (messages, negated)]
    shares = told("negated anew" if strange else "held out")[:2]
    assert shares == [pytest.approx(100 * share.right / share.total, abs=0.3) for share in found]


@pytest.mark.parametrize("strange", [False, True])
def test_the_decisive_word_has_the_greatest_weight(model: BoundTexts, strange: bool) -> None:
    """In as large a share of some messages as the card tells of more of them."""
    first = cue_first(model, held_out(25, 7, strange), samples=1000)
    assert sum(first) / len(first) >= told("negated anew" if strange else "held out")[2] / 100 - 0.08


def test_the_rule_itself_is_explained_by_its_words() -> None:
    assert all(cue_first(Rule(), held_out(25, 7)))


def test_a_negation_turns_a_cue_around(model: BoundTexts) -> None:
    found = model.predict(["There is smoke in the hall.", "There is no smoke in the hall.", "We are in the hall."])[
        :, 0
    ]
    assert found[0] > 0.9 and found[1] < 0.1 and found[2] == pytest.approx(0.5, abs=0.1)


def test_words_that_it_does_not_know_mean_nothing(model: BoundTexts) -> None:
    known, unknown = model.predict(["There is smoke in the hall.", "There is smoke in the zeppelin."])[:, 0]
    assert known == pytest.approx(unknown, abs=0.02)


def test_other_methods_find_the_cue_too(model: BoundTexts) -> None:
    message = Message("We are in the hall. There is smoke near the pump.", "urgent")
    (place,) = decisive(message.words)
    (shap,) = text_shapley.attribute(model, [message.text], ["a"])
    features = cut(message.text, SCHEMA["text_delimiter"]).features
    pieces = [feature.place for feature in features if isinstance(feature.place, Span)]
    assert isinstance(model.artifact, SequenceClassifier)
    gradients = integrated_gradients.attribute(model.artifact, message.text, pieces)
    assert int(shap.values[0].argmax()) == int(gradients.values[0].argmax()) == place
