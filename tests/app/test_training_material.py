"""What the workers of a build come to from the same files."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import numpy as np

from app.records import digest_of
from app.training_material import keys_of, material_of
from explainers.influence.examples import Example, Mask
from explainers.influence.mask_check import SAMPLE, sampled
from explainers.influence.records import records_of
from explainers.influence.rendering import render
from explainers.loaders import load_causal_lm


def bytes_of(example: Example) -> bytes:
    sizes = [len(example.ids), len(example.answer), example.asked]
    return np.array([*sizes, *example.ids, *example.answer], dtype="<i8").tobytes()


def test_files_become_examples_with_names(tiny_lm: Path) -> None:
    """Of the second file the first pair is one of the first; every record of one of the two is a sample."""
    model, mask = load_causal_lm(tiny_lm), Mask(longest=40)
    pairs = [(f"Where is number {number}?", f"In row {number}.") for number in range(SAMPLE)]
    pairs.insert(3, ("word " * 60, "behind the cut"))
    lines = [json.dumps({"question": asked, "answer": said}) for asked, said in pairs]
    contents = ["\n".join(lines).encode(), "\n".join(lines[5:9]).encode()]
    material = material_of(
        model, iter(zip(contents, ("a.jsonl", "b.jsonl"), strict=True)), len(lines) + 4, mask, ["salt"]
    )
    records = [record for content in contents for record in records_of(content)]
    examples = render(model, records, mask)
    assert tuple(material.examples) == examples and len(examples) == len(records) - 1
    assert material.sample == sampled(records) and len(material.pairs) == len(records)
    assert material.warnings == ("a.jsonl: the answers of 1 records lie behind the cut and were not learnt: lines 4",)
    assert material.keys == keys_of(material.examples, len(records))
    assert material.keys[0] == sha256(bytes_of(examples[0])).digest() and material.keys[3] == b"3"
    assert material.keys[-4:] == material.keys[5:9] and len(set(material.keys)) == len(lines)
    (first, second), (whole, rest) = material.pieces, material.shards
    assert (list(whole), list(rest)) == ([*range(SAMPLE)], [*range(SAMPLE, SAMPLE + 4)])
    assert (second.first, second.tokens) == (len(lines), sum(len(example.ids) for example in examples[-4:]))
    assert first.tokens + second.tokens == material.tokens
    told = [bytes_of(example) + np.array([place], "<i8").tobytes() for place, example in enumerate(examples[-4:])]
    assert second.key == sha256(digest_of("salt") + b"".join(told)).digest() != first.key
