"""Explanations of the tiny llama, recorded so that a change of any score is noticed and meant.

`python -m tests.explainers.golden` records them anew; look at the difference before committing it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from explainers.language_model import LanguageModel
from explainers.loaders import load_causal_lm
from explainers.methods.atman import attribute
from explainers.types import AtmanConfig, Attribution, Control, Prompt, Span, Text, TokenIds
from tests import tiny_models

FILE = Path(__file__).with_name("golden.json")
FACTS = Text("Anna lives in Oslo. Ben lives in Rome.\n\nThe key is in the red box. Anna lives in")
TARGET = " Oslo, in Norway."
CASES: Mapping[str, tuple[Prompt, str, AtmanConfig]] = {
    "defaults": ((FACTS,), TARGET, AtmanConfig()),
    "sentences": ((FACTS,), TARGET, AtmanConfig(granularity="sentence")),
    "paragraphs, removed": ((FACTS,), TARGET, AtmanConfig(granularity="paragraph", control_factor=0.0)),
    "custom, amplified, whole tokens": (
        (FACTS,),
        TARGET,
        AtmanConfig(granularity="custom", delimiter="n", control_factor=2.0, overlap="complete"),
    ),
    "words, multiplicative": ((FACTS,), TARGET, AtmanConfig(granularity="word", log_additive=False)),
    "tokens, similar ones too": ((FACTS,), TARGET, AtmanConfig(granularity="token", threshold=0.3)),
    "each target token, squared, normalised": (
        (FACTS,),
        TARGET,
        AtmanConfig(granularity="sentence", target_granularity="token", postprocessing="square", normalize=True),
    ),
    "several items, own controls": (
        (
            Text("Anna lives in Oslo. 👩‍👩‍👧 日本", (Control(Span(2, 12), 0.3), Control(Span(5, 12), 3.0, "complete"))),
            TokenIds((260, 270, 260), (Control(1, 0.0),)),
            Text(""),
        ),
        " Ro👩me",
        AtmanConfig(granularity="word", target_granularity="token", threshold=0.2, postprocessing="absolute"),
    ),
    "no prompt": ((), TARGET, AtmanConfig(target_granularity="token")),
}


def record_of(attribution: Attribution) -> dict[str, Any]:
    assert attribution.base_values is not None
    return {
        "granularity": attribution.facts["granularity"],
        "features": [
            [feature.item, asdict(feature.place) if isinstance(feature.place, Span) else feature.place, feature.name]
            for feature in attribution.features
        ],
        "targets": [target.text for target in attribution.targets],
        "base_values": attribution.base_values.round(6).tolist(),
        "values": attribution.values.round(6).tolist(),
    }


def explained(model: LanguageModel, case: str) -> dict[str, Any]:
    return record_of(attribute(model, *CASES[case]))


def record() -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = load_causal_lm(tiny_models.save(Path(folder) / "tiny-llama", "llama"))
        cases = {case: explained(model, case) for case in CASES}
    lines = (f"{json.dumps(case)}: {json.dumps(found, ensure_ascii=False)}" for case, found in cases.items())
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    record()
