"""What is forecast is what is then done, or a little more."""

from __future__ import annotations

from dataclasses import replace

import pytest

from explainers.cost import Cost, cost
from explainers.faithfulness import faithfulness
from explainers.language_model import LanguageModel
from explainers.noise import noise_floor
from explainers.plan import Plan, plan
from explainers.registry import METHODS
from explainers.types import AblationConfig, AtmanConfig, Prompt, ScreenedConfig, Text, TokenIds

PROMPT: Prompt = (Text("Anna lives in Oslo. Ben is in Rome. " * 6), TokenIds((260, 270, 260)))
TARGET = " Oslo, Anna"
CONFIGS = [
    AtmanConfig(granularity="word"),
    AtmanConfig(granularity="token", target_granularity="token", control_factor=0.0),
    ScreenedConfig(granularity="word", exact=3, postprocessing="absolute"),
]


def forecast(asked: Plan, method: str, **extras: bool) -> Cost:
    return cost(asked, gradient=METHODS[method].gradient, exact=METHODS[method].exact, **extras)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("method", METHODS)
def test_passes_and_rows(llama: LanguageModel, method: str, config: AtmanConfig) -> None:
    if method == "ablation":
        config = AblationConfig(granularity=config.granularity, samples=20)
    asked = plan(llama, PROMPT, TARGET, config)
    told, facts = forecast(asked, method), METHODS[method].explain(asked, lambda: None).facts
    assert facts["rows"] <= told.rows <= (2.5 if method == "screened" else 2) * facts["rows"]
    assert facts["forwards"] <= told.forwards + 2 <= facts["forwards"] + 4
    assert facts.get("backwards", 0) == told.backwards
    assert told.bytes > 0 and told.operations > 0


def test_extras_cost_extra(llama: LanguageModel) -> None:
    config = AtmanConfig(granularity="word")
    asked = plan(llama, PROMPT, TARGET, config)
    found = METHODS["atman"].explain(asked, lambda: None)
    plain, noisy = forecast(asked, "atman"), forecast(asked, "atman", uncertainty=True)
    judged = forecast(asked, "atman", evaluate=True)
    assert noisy.forwards == plain.forwards + noise_floor(METHODS["atman"].explain, asked, found).forwards
    sampled = plan(llama, PROMPT, TARGET, AblationConfig(granularity="word"))
    assert forecast(sampled, "ablation", uncertainty=True) == forecast(sampled, "ablation")
    removed = faithfulness(llama, PROMPT, TARGET, config, found, 7)
    assert removed.rows <= judged.rows - plain.rows
    assert plain.operations < judged.operations and plain.operations < noisy.operations


def test_nothing_to_explain_is_one_pass(llama: LanguageModel) -> None:
    for prompt in ((), (Text(""),)):
        asked = plan(llama, prompt, TARGET, AtmanConfig())
        assert (forecast(asked, "atman").forwards, forecast(asked, "gradient").backwards) == (1, 1)
        assert forecast(asked, "atman", evaluate=True).rows == 2 * asked.sequence.positions


def test_more_work_is_more(llama: LanguageModel) -> None:
    asked = [plan(llama, (Text("Anna lives in Oslo. " * n),), TARGET, AtmanConfig(granularity="word")) for n in (2, 9)]
    less, more = (forecast(each, "atman") for each in asked)
    assert less.operations < more.operations and less.bytes < more.bytes
    twice = replace(asked[1], variants=asked[1].variants * 2)
    assert forecast(twice, "atman").rows > more.rows
