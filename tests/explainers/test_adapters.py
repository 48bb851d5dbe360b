"""Adapters: merged they say what they say beside their base; what cannot be merged exactly is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from explainers.errors import MissingCapability, UnreadableModel
from explainers.loaders import load_causal_lm, load_fine_tune
from tests.tiny_models import save

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
IDS = torch.arange(2, 40)[None]
PROJECTIONS = ["q_proj", "v_proj", "down_proj"]
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"target_modules": PROJECTIONS},
    "all-linear": {"target_modules": "all-linear"},
    "rslora": {"target_modules": PROJECTIONS, "use_rslora": True},
    "dora": {"target_modules": PROJECTIONS, "use_dora": True},
    "ranks": {"target_modules": PROJECTIONS, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
    "some-layers": {"target_modules": PROJECTIONS, "layers_to_transform": [1]},
    "head": {"target_modules": PROJECTIONS, "modules_to_save": ["lm_head"]},
    "embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("base"))


def adapted(base: Path, folder: Path, config: Any) -> torch.Tensor:  # (S, V)
    """Saves a random adapter; what it says beside its base."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad and "magnitude" not in name:
                    parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    with torch.no_grad():
        logits: torch.Tensor = model(IDS).logits[0]
    return logits


def lora(**settings: Any) -> LoraConfig:
    return LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **settings)


def assert_same(one: torch.Tensor, other: torch.Tensor) -> None:
    """To the last digits of a float32, which count from the largest logit."""
    assert (one - other).abs().max() <= 1e-5 * other.abs().max()


def said(network: Any) -> torch.Tensor:  # (S, V)
    """By the library's own attention: a served network takes ours."""
    ours = network.config._attn_implementation
    network.set_attn_implementation("sdpa")
    with torch.no_grad():
        logits: torch.Tensor = network(IDS).logits[0]
    network.set_attn_implementation(ours)
    return logits


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
@pytest.mark.parametrize("kind", KINDS)
def test_merged_it_says_the_same(base: Path, tmp_path: Path, kind: str) -> None:
    beside = adapted(base, tmp_path, lora(**KINDS[kind]))
    model = load_fine_tune(tmp_path, base, "float32", "cpu")
    assert (beside - said(AutoModelForCausalLM.from_pretrained(base))).abs().max() > 0.1
    assert_same(said(model.network), beside)
    assert not [name for name, _ in model.network.named_parameters() if "lora" in name]
    assert not any(parameter.requires_grad for parameter in model.network.parameters())


def test_a_fused_projection_that_is_stored_the_other_way_round(tmp_path: Path) -> None:
    base = save(tmp_path / "base", "gpt2")
    config = lora(target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)
    beside = adapted(base, tmp_path / "adapter", config)
    model = load_fine_tune(tmp_path / "adapter", base, "float32", "cpu")
    assert_same(said(model.network), beside)


def test_trained_biases_come_along(tmp_path: Path) -> None:
    base = save(tmp_path / "base", "qwen2")
    beside = adapted(base, tmp_path / "adapter", lora(target_modules=PROJECTIONS, bias="all"))
    model = load_fine_tune(tmp_path / "adapter", base, "float32", "cpu")
    assert_same(said(model.network), beside)


def test_the_sum_is_cast_not_its_parts(base: Path, tmp_path: Path) -> None:
    adapted(base, tmp_path, lora(target_modules=PROJECTIONS))
    whole = load_fine_tune(tmp_path, base, "float32", "cpu").network.state_dict()
    small = load_fine_tune(tmp_path, base, "bfloat16", "cpu").network.state_dict()
    assert all(torch.equal(small[name], tensor.to(torch.bfloat16)) for name, tensor in whole.items())


def test_the_digest_covers_adapter_and_base(base: Path, tmp_path: Path) -> None:
    adapted(base, tmp_path / "one", lora(target_modules=PROJECTIONS))
    first = load_fine_tune(tmp_path / "one", base)
    assert load_fine_tune(tmp_path / "one", base).digest == first.digest
    assert first.digest != load_causal_lm(base).digest
    config = json.loads((tmp_path / "one" / "adapter_config.json").read_text())
    (tmp_path / "one" / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 9}))
    assert load_fine_tune(tmp_path / "one", base).digest != first.digest
    adapted(base, tmp_path / "one", lora(target_modules=PROJECTIONS))
    other = save(tmp_path / "other", rope_theta=5000.0)
    assert load_fine_tune(tmp_path / "one", other).digest != first.digest


def test_the_chat_template_of_the_adapter_goes_before_that_of_the_base(tmp_path: Path) -> None:
    base, adapter = save(tmp_path / "base"), tmp_path / "adapter"
    (base / "chat_template.jinja").write_text("{{ bos_token }}base")
    adapted(base, adapter, lora(target_modules=PROJECTIONS))
    chat = load_fine_tune(adapter, base).chat
    assert chat is not None and (chat.source, chat.tokens["bos_token"]) == ("{{ bos_token }}base", "<s>")
    (adapter / "chat_template.jinja").write_text("{{ bos_token }}own")
    chat = load_fine_tune(adapter, base).chat
    assert chat is not None and (chat.source, chat.tokens["bos_token"]) == ("{{ bos_token }}own", "<s>")


def test_an_adapter_of_another_base_names_the_tensor_and_both_shapes(base: Path, tmp_path: Path) -> None:
    other = save(tmp_path / "other", hidden_size=48)
    adapted(other, tmp_path / "adapter", lora(target_modules=PROJECTIONS))
    with pytest.raises(UnreadableModel, match=r"down_proj\.lora_B\.weight has the shape \[48, 4\], .* \[32, 4\]"):
        load_fine_tune(tmp_path / "adapter", base)


def test_an_adapter_of_a_deeper_base_is_refused(base: Path, tmp_path: Path) -> None:
    deeper = save(tmp_path / "deeper", num_hidden_layers=4)
    adapted(deeper, tmp_path / "adapter", lora(target_modules=PROJECTIONS))
    with pytest.raises(UnreadableModel, match=r"it has .*layers\.3.*no place for it"):
        load_fine_tune(tmp_path / "adapter", base)


def test_an_adapter_that_lacks_a_tensor_is_refused(base: Path, tmp_path: Path) -> None:
    adapted(base, tmp_path, lora(target_modules=PROJECTIONS))
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    lost = sorted(tensors)[0]
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, path)
    with pytest.raises(UnreadableModel, match=f"lacks {lost}"):
        load_fine_tune(tmp_path, base)


def test_unknown_modules_are_named(base: Path, tmp_path: Path) -> None:
    adapted(base, tmp_path, lora(target_modules=PROJECTIONS))
    rewrite(tmp_path, target_modules=["no_such_module"])
    with pytest.raises(UnreadableModel, match="no_such_module"):
        load_fine_tune(tmp_path, base)


def test_weights_that_could_run_code_are_not_read(base: Path, tmp_path: Path) -> None:
    adapted(base, tmp_path, lora(target_modules=PROJECTIONS))
    torch.save({}, tmp_path / "adapter_model.bin")
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(UnreadableModel, match=r"holds no adapter_model\.safetensors"):
        load_fine_tune(tmp_path, base)


def test_other_kinds_of_adapters_are_refused(base: Path, tmp_path: Path) -> None:
    adapted(base, tmp_path, AdaLoraConfig(target_modules=PROJECTIONS, total_step=1, task_type="CAUSAL_LM"))
    with pytest.raises(MissingCapability, match="ADALORA"):
        load_fine_tune(tmp_path, base)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("layer_replication", [[0, 2], [1, 3]]),
        ("megatron_config", {"tensor_model_parallel_size": 1}),
        ("a_setting_of_tomorrow", True),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "olora"),
    ],
)
def test_settings_that_change_more_than_weights_are_refused(
    base: Path, tmp_path: Path, setting: str, value: object
) -> None:
    adapted(base, tmp_path, lora(target_modules=PROJECTIONS))
    rewrite(tmp_path, **{setting: value})
    with pytest.raises(MissingCapability, match=setting):
        load_fine_tune(tmp_path, base)


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`", "ignore:Model has `tie_word_embeddings=True`")
def test_tied_embeddings_that_the_adapter_changes_are_refused(tmp_path: Path) -> None:
    base = save(tmp_path / "base", tie_word_embeddings=True)
    adapted(base, tmp_path / "adapter", lora(target_modules=["q_proj", "embed_tokens"]))
    with pytest.raises(MissingCapability, match="tied embeddings"):
        load_fine_tune(tmp_path / "adapter", base)


def test_weights_that_are_not_finite_are_refused(base: Path, tmp_path: Path) -> None:
    adapted(base, tmp_path, lora(target_modules=PROJECTIONS))
    path = tmp_path / "adapter_model.safetensors"
    save_file({name: tensor * torch.nan for name, tensor in load_file(path).items()}, path)
    with pytest.raises(UnreadableModel, match=r"cannot be merged|not finite"):
        load_fine_tune(tmp_path, base)


def test_an_adapter_without_a_base_says_what_is_missing(base: Path, tmp_path: Path) -> None:
    adapted(base, tmp_path, lora(target_modules=PROJECTIONS))
    with pytest.raises(UnreadableModel, match="name the base model"):
        load_causal_lm(tmp_path)


def test_loading_leaves_the_files_of_the_base_as_they_are(base: Path, tmp_path: Path) -> None:
    before = load_causal_lm(base).digest
    adapted(base, tmp_path, lora(target_modules=PROJECTIONS))
    load_fine_tune(tmp_path, base)
    assert load_causal_lm(base).digest == before
    assert PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path) is not None


# -- whole models ------------------------------------------------------------------------------------------------------


def test_a_whole_fine_tune_is_loaded_as_it_is(base: Path, tmp_path: Path) -> None:
    network: Any = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.01)
    save(tmp_path)
    network.save_pretrained(tmp_path)
    model = load_fine_tune(tmp_path, base)
    assert model.digest == load_causal_lm(tmp_path).digest
    torch.testing.assert_close(said(model.network), said(network))


def test_another_architecture_is_no_fine_tune(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UnreadableModel, match="a qwen2 is no fine-tune of a llama"):
        load_fine_tune(save(tmp_path, "qwen2"), base)


def test_a_tokenizer_with_other_ids_is_refused(base: Path, tmp_path: Path) -> None:
    save(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    one, other = sorted(vocabulary, key=vocabulary.get)[40:42]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UnreadableModel, match="token 40 has the id 41 there"):
        load_fine_tune(tmp_path, base)


def test_tokens_that_the_base_cannot_read_are_refused(tmp_path: Path) -> None:
    base, longer = save(tmp_path / "base", vocab_size=298), save(tmp_path / "longer")
    content = json.loads((longer / "tokenizer.json").read_text())
    content["added_tokens"].append(
        {"id": 298, "content": "<new>", "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    )
    (longer / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UnreadableModel, match="1 tokens that the base has no embeddings for"):
        load_fine_tune(longer, base)


def rewrite(folder: Path, **settings: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
