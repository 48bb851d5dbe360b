"""What is loaded, what is refused, and why."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from PIL.Image import Resampling
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from explainers import pictures
from explainers.errors import ExplainerError, MissingCapability, UnreadableModel
from explainers.language_model import LanguageModel
from explainers.loaders import LOADERS, load_causal_lm, load_image_text_lm
from explainers.types import Image
from tests import tiny_models
from tests.explainers import plain_images


@pytest.fixture
def folder(llama_folder: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(llama_folder, tmp_path / "model"))


def test_every_family_passes_its_self_test(any_model: LanguageModel) -> None:
    checks = any_model.facts["self_test"]
    assert len(checks) == 6
    assert all(check["passed"] for check in checks)
    json.dumps(any_model.facts)


@pytest.mark.parametrize("family", list(tiny_models.REFUSED))
def test_architectures_out_of_reach_are_refused(family: str, tmp_path: Path) -> None:
    with pytest.raises(MissingCapability):
        load_causal_lm(tiny_models.save(tmp_path / family, family))


def test_a_hybrid_says_which_check_failed(tmp_path: Path) -> None:
    with pytest.raises(MissingCapability, match="every layer's attention can be suppressed"):
        load_causal_lm(tiny_models.save(tmp_path / "hybrid", "qwen3_next"))


def test_the_digest_names_weights_configuration_and_tokenizer(llama: LanguageModel, folder: Path) -> None:
    assert load_causal_lm(folder).digest == llama.digest
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] *= 1.01
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert load_causal_lm(folder).digest != llama.digest


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json", "chat_template.jinja"])
def test_settings_that_decide_an_answer_belong_to_the_digest(llama: LanguageModel, folder: Path, name: str) -> None:
    path = folder / name
    path.write_text((path.read_text() if path.is_file() else "{}") + " ")
    assert load_causal_lm(folder).digest != llama.digest


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(UnreadableModel, match=name.removeprefix("model")):
        load_causal_lm(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_broken_file_is_an_unreadable_model(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"\x80\x04 not what it says")
    with pytest.raises(UnreadableModel):
        load_causal_lm(folder)


def test_pickled_weights_are_never_read(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UnreadableModel, match="safetensors"):
        load_causal_lm(folder)


@pytest.mark.parametrize("change", ["missing", "unexpected", "mismatched"])
def test_weights_that_do_not_fit_are_refused(folder: Path, change: str) -> None:
    weights = load_file(folder / "model.safetensors")
    if change == "missing":
        del weights["model.layers.1.mlp.up_proj.weight"]
    elif change == "unexpected":
        weights["model.layers.9.mlp.up_proj.weight"] = weights["model.layers.1.mlp.up_proj.weight"].clone()
    else:
        weights["model.norm.weight"] = weights["model.norm.weight"][:-1].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnreadableModel):
        load_causal_lm(folder)


def test_code_that_comes_with_a_model_is_not_run(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "their_own",
        "auto_map": {"AutoModelForCausalLM": "theirs.Model", "AutoConfig": "theirs.C"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(UnreadableModel):
        load_causal_lm(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("dtype", "device"), [("int8", None), (None, "tpu"), (None, "cuda:99")])
def test_unknown_dtype_or_device_is_said(folder: Path, dtype: str | None, device: str | None) -> None:
    with pytest.raises(ExplainerError, match=r"not served|no device|not available"):
        load_causal_lm(folder, dtype, device)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_passes_its_self_test(folder: Path, dtype: str) -> None:
    assert load_causal_lm(folder, dtype).facts["dtype"] == dtype


def test_models_can_be_loaded_at_the_same_time(tmp_path: Path) -> None:
    """The library exchanges functions of its classes while it loads; two loads that overlap would leave them so."""
    tied = tiny_models.save(tmp_path / "tied", "llama", tie_word_embeddings=True)
    before = PreTrainedModel.tie_weights
    with ThreadPoolExecutor(4) as threads:
        loaded = list(threads.map(load_causal_lm, [tied] * 8))
    assert PreTrainedModel.tie_weights is before
    for model in loaded:
        network: Any = model.network
        assert network.lm_head.weight is network.get_input_embeddings().weight


@pytest.fixture(scope="module")
def llava_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_image_text(tmp_path_factory.mktemp("models") / "llava")


@pytest.fixture
def images_folder(llava_folder: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(llava_folder, tmp_path / "image-model"))


def configured(folder: Path, **changes: Any) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def test_an_image_text_model_is_tested_with_and_without_an_image(images_folder: Path) -> None:
    model = load_image_text_lm(images_folder)
    checks = model.facts["self_test"]
    assert [check["name"].startswith("with an image") for check in checks] == [False] * 6 + [True] * 6
    assert all(check["passed"] for check in checks)
    assert model.reads_images
    json.dumps(model.facts)


def test_the_image_processor_belongs_to_the_digest(images_folder: Path) -> None:
    before = load_image_text_lm(images_folder).digest
    path = images_folder / "preprocessor_config.json"
    processor = json.loads(path.read_text())
    path.write_text(json.dumps(processor | {"image_mean": [0.1, 0.1, 0.1]}))
    assert load_image_text_lm(images_folder).digest != before


@pytest.mark.parametrize("resample", list(Resampling))
def test_pictures_are_resized_as_the_processor_says(images_folder: Path, resample: Resampling) -> None:
    path = images_folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"resample": int(resample)}))
    eyes = load_image_text_lm(images_folder).eyes
    noise = np.random.default_rng(0).integers(0, 256, (90, 50, 3), dtype=np.uint8)
    side = eyes.config.vision_config.image_size
    found = pictures._pixels(eyes, PIL.Image.fromarray(noise), side, do_center_crop=False, do_pad=False)
    resized = PIL.Image.fromarray(noise).resize((side, side), resample)
    expected = eyes.processor(images=resized, do_resize=False, return_tensors="pt", do_center_crop=False)
    assert torch.equal(found["pixel_values"], expected["pixel_values"])


@pytest.mark.parametrize("change", ["missing", "broken", "unknown", "with code"])
def test_without_a_known_image_processor_nothing_is_loaded(images_folder: Path, tmp_path: Path, change: str) -> None:
    path = images_folder / "preprocessor_config.json"
    processor = json.loads(path.read_text())
    code = {"image_processor_type": "Theirs", "auto_map": {"AutoImageProcessor": "theirs.Processor"}}
    (images_folder / "theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    texts = {
        "missing": None,
        "broken": "{",
        "unknown": json.dumps({"image_processor_type": "Theirs"}),
        "with code": json.dumps(processor | code),
    }
    path.unlink()
    if texts[change] is not None:
        path.write_text(str(texts[change]))
    with pytest.raises(UnreadableModel, match="image processor"):
        load_image_text_lm(images_folder)
    assert not (tmp_path / "ran").exists()


def test_the_wrong_kind_names_the_right_one(images_folder: Path, folder: Path) -> None:
    with pytest.raises(UnreadableModel, match="image-text-lm"):
        load_causal_lm(images_folder)
    with pytest.raises(UnreadableModel, match="causal-lm"):
        load_image_text_lm(folder)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("mllama", "cross-attention"),
        ("idefics2", "resampler"),
        ("blip-2", "resampler"),
        ("gemma3", "see later ones"),
        ("paligemma", "see later ones"),
        ("their_own", "known only for llava"),
    ],
)
def test_images_without_known_places_are_refused(images_folder: Path, kind: str, reason: str) -> None:
    with pytest.raises(MissingCapability, match=f"{kind} cannot be explained: .*{reason}"):
        load_image_text_lm(configured(images_folder, model_type=kind))


def test_a_llava_with_an_unknown_vision_tower_is_refused(images_folder: Path) -> None:
    with pytest.raises(MissingCapability, match="vision tower pixtral"):
        load_image_text_lm(configured(images_folder, vision_config={"model_type": "pixtral"}))


def test_a_tower_that_makes_more_tokens_than_its_grid_has_is_refused(images_folder: Path) -> None:
    """The class token of CLIP lies nowhere in the image."""
    with pytest.raises(MissingCapability, match="37 tokens of an image where its grid has 36"):
        load_image_text_lm(configured(images_folder, vision_feature_select_strategy="full"))


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_encoder_decoders_are_refused(tmp_path: Path, family: str) -> None:
    folder = tiny_models.save_encoder_decoder(tmp_path / family, family)
    for load in (load for kind, load in LOADERS.items() if kind != "tabular"):
        with pytest.raises(MissingCapability, match=f"{family} is an encoder-decoder"):
            load(folder, None, None)


@pytest.mark.parametrize("processor", [SiglipImageProcessorPil, LlavaImageProcessorPil])
def test_a_siglip_tower_has_no_token_but_patches(tmp_path: Path, processor: Any) -> None:
    """With processors that would pad or crop; none of that happens."""
    tower = {**tiny_models.PATCHES, "model_type": "siglip_vision_model", "image_size": 24}
    folder = tiny_models.save_image_text(
        tmp_path / "siglip", vision_config=tower, vision_feature_select_strategy="full", vision_feature_layer=-1
    )
    processor().save_pretrained(folder)
    model = load_image_text_lm(folder)
    assert type(model.eyes.processor) is processor
    sequence = model.encode((Image(plain_images.png(90, 40, 1)),), "x")
    assert sequence.pictures[0].arguments["pixel_values"].shape == (1, 3, 24, 24)
    assert len(sequence.prompt) == 36
