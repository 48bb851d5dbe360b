"""Writes what goes with ``demo-text``: ``python -m demo.text_data``.

`inferences.jsonl`: 60 messages that training never saw, at times of one month, with the model's own predictions as the
server computes them, and what is right.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Final

from demo.messages import held_out
from demo.records import MODELS, Record, class_attributes, moments, record, schema_of, write_json, write_lines
from demo.text_model import CLASSES
from explainers.loaders import load_text_classifier
from explainers.predictors.binding import BoundTexts, bind_texts

NAME: Final = "demo-text"
FOLDER: Final = MODELS / NAME
INFERENCES: Final = 60
SEED: Final = 60


def schema_body() -> Record:
    """What registers the model."""
    note: Record = {"name": "note", "label": "Message", "value_type": "UNSTRUCTURED_TEXT", "stage": "PIPELINE_INPUT"}
    return {
        "partner_model_id": NAME,
        "display_name": "Caretaker's desk",
        "description": "Whether a short message is urgent or routine.",
        "input_type": "NLP",
        "output_type": "MULTICLASS",
        "is_batch": False,
        "tags": ["demo"],
        "classifier_threshold": 0.5,
        "text_delimiter": r"\W+",
        "attributes": [
            note | {"position": 0, "categorical": False},
            *class_attributes({"name": "priority", "label": "Priority"}, CLASSES, ("Urgent", "Routine")),
        ],
    }


def predictor(folder: Path = FOLDER) -> BoundTexts:
    """The model as the server loads it, on a processor."""
    return bind_texts(load_text_classifier(folder, "float32", "cpu"), schema_of(schema_body()))


def inferences(model: BoundTexts) -> list[Record]:
    messages = held_out(INFERENCES, SEED)
    found = model.predict([message.text for message in messages]).tolist()
    times = moments(random.Random("arrivals"), INFERENCES)  # noqa: S311
    records = []
    for number, (message, shares, time) in enumerate(zip(messages, found, times, strict=True), 1):
        data = {"note": message.text} | dict(zip(CLASSES, shares, strict=True))
        records.append(record(f"message-{number:03d}", time, data, {"priority": message.priority}))
    return records


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=FOLDER)
    folder = parser.parse_args().model
    write_json(folder / "schema.json", schema_body())
    write_lines(folder / "inferences.jsonl", inferences(predictor(folder)))


if __name__ == "__main__":
    main()
