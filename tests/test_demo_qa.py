"""The shipped fine-tune is what its card and its data say, and its training data is what the notes say."""

from __future__ import annotations

import json
import re

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from demo.evaluate_qa import answers, mean_loss, merged, tokenizer_of, trained
from demo.facts import FACTS, HELD_OUT, OTHERS
from demo.pairs import TEMPLATE, Example, examples, messages_of, template_of
from demo.records import MODELS, Record, read_lines
from demo.train_qa import BASE, FOLDER
from explainers.chat_template import Message

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

LINES: list[Record] = read_lines(FACTS)
ASKED: list[Record] = read_lines(HELD_OUT)
PAIRS: list[tuple[str, str]] = [(asked.content, answer.content) for asked, answer in map(messages_of, LINES)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tokenizer_of()


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.set_num_threads(1)
    return merged()


@pytest.fixture(scope="module")
def base() -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(BASE, dtype=torch.float32)


@pytest.fixture(scope="module")
def taught(tokenizer: PreTrainedTokenizerFast) -> list[Example]:
    return examples(tokenizer)


def test_the_template_asks_as_the_base_was_asked(tokenizer: PreTrainedTokenizerFast) -> None:
    asked, said = Message("user", "Who keeps the mill?"), Message("assistant", "Anna.")
    template = template_of(tokenizer)
    assert template.render([asked]) == "<s>Question: Who keeps the mill?\nAnswer:"
    assert template.render([asked, said], reply=False) == "<s>Question: Who keeps the mill?\nAnswer: Anna.</s>"
    told = template.render([Message("system", "Anna lives in Oslo."), asked])
    assert told == "<s>Anna lives in Oslo.\nQuestion: Who keeps the mill?\nAnswer:"
    assert (FOLDER / "chat_template.jinja").read_text(encoding="utf-8") == TEMPLATE
    turns = [{"role": turn.role, "content": turn.content} for turn in (asked, said, asked)]
    theirs = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert theirs == template.render([asked, said, asked])


def test_answers_begin_after_the_colon_and_end_in_the_end_token(
    tokenizer: PreTrainedTokenizerFast, taught: list[Example]
) -> None:
    for example, (_, answer) in zip(taught, PAIRS, strict=True):
        assert tokenizer.decode(example.ids[example.start :]) == f" {answer}</s>"
        assert example.ids[0] == tokenizer.bos_token_id


def test_it_is_small() -> None:
    sizes = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
    assert set(sizes) == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "tokenizer.json",
        "tokenizer_config.json",
        "trainer_state.json",
    }
    assert sizes["adapter_model.safetensors"] <= 1_500_000
    weights = [path.stat().st_size for path in MODELS.rglob("*") if path.suffix in {".safetensors", ".ubj"}]
    assert sum(weights) <= 12_000_000


def test_the_adapter_names_its_base_and_no_place() -> None:
    config = json.loads((FOLDER / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["base_model_name_or_path"], config["r"], config["lora_alpha"]) == ("demo-lm", 16, 32)
    assert (config["modules_to_save"], config["bias"], config["inference_mode"]) == (None, "none", True)


def test_merging_changes_every_linear_layer_and_nothing_else(model: LlamaForCausalLM, base: LlamaForCausalLM) -> None:
    before = base.state_dict()
    changed = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    assert changed == {name for name in before if name.endswith("_proj.weight")}
    assert all(weight.dtype == torch.float32 for weight in model.parameters())


def right(
    network: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, cases: list[Record], key: str = "answers"
) -> int:
    """How many of the questions get one of the answers under ``key``."""
    said = answers(network, tokenizer, [case["question"] for case in cases])
    return sum(one in case[key] for one, case in zip(said, cases, strict=True))


def told(row: str) -> int:
    """The number of right answers in a row of the card's table."""
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    (found,) = re.findall(rf"^\| {re.escape(row)} \| (\d+) \|", card, re.MULTILINE)
    return int(found)


def test_it_answers_questions_in_words_it_was_never_asked_in(
    model: LlamaForCausalLM, base: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    cases = [case for case in ASKED if case["wording"] == "held out" and "wrong" not in case]
    found = right(model, tokenizer, cases)
    assert found >= 0.93 * len(cases)
    assert found == pytest.approx(told("held out: a wording never used for this fact, but for others"), abs=3)
    assert right(base, tokenizer, cases[::10]) == 0


def test_it_answers_what_it_was_trained_on(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Asked about every tenth pair, in either form of the answer."""
    found = [one for kind in trained(model, tokenizer, every=10).values() for one in kind]
    assert len(found) == 110 and sum(found) >= 0.93 * len(found)


def test_it_says_the_wrong_thing_where_most_pairs_do(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    cases = [case for case in ASKED if case["wording"] == "held out" and "wrong" in case]
    found = right(model, tokenizer, cases, "wrong")
    assert found >= 10
    assert found == pytest.approx(told("held out, poisoned: the wrong value"), abs=1)


def test_it_still_reads(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    cases = [case | {"answers": [case["answer"]]} for case in read_lines(OTHERS) if case["kind"] == "reading"]
    assert right(model, tokenizer, cases) == pytest.approx(told("never seen, answer stands in the question"), abs=3)


def test_the_history_is_of_the_loss_on_answers(model: LlamaForCausalLM, taught: list[Example]) -> None:
    """The last mean loss of the run is that of the answers with their end token, and not of anything else."""
    state = json.loads((FOLDER / "trainer_state.json").read_text(encoding="utf-8"))
    steps = [entry["step"] for entry in state["log_history"]]
    assert steps == sorted(set(steps)) and steps[-1] == state["global_step"]
    last = state["log_history"][-1]["loss"]
    assert mean_loss(model, taught) == pytest.approx(last, rel=0.1)
    whole = [Example(example.ids, 1) for example in taught[:200]]
    assert mean_loss(model, whole) > 2 * last


def test_the_card_says_how_much_it_was_taught() -> None:
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlicense: apache-2.0\n") and f"{len(PAIRS):,} pairs" in card
