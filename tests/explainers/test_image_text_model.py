"""Image-text models: tiles and rectangles against whole forward passes, vision tower included, and their invariants."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from explainers.chunks import TILES_PER_SIDE, nearest_to_thirty
from explainers.controls import FactorRule, addressed, resolve
from explainers.decoding import CompletionConfig, complete
from explainers.errors import ContextLengthExceeded, InvalidRequest, MissingCapability
from explainers.image_text_model import ImageTextModel
from explainers.language_model import LanguageModel, Token, TokenSequence
from explainers.loaders import load_image_text_lm
from explainers.methods.atman import attribute
from explainers.pictures import grid
from explainers.registry import METHODS
from explainers.suppression import log_probabilities
from explainers.types import AtmanConfig, Control, Feature, Image, Overlap, Prompt, Text, Tile, TokenIds, never_stop
from tests import tiny_models
from tests.explainers import brute_force, plain_images

WIDE, TALL = plain_images.png(90, 40, 1), plain_images.png(30, 50, 2)
TARGET = " Oslo, in"
CONTROLS = (Control(Tile(0.1, 0.0, 0.35, 0.5), 0.2), Control(Tile(0.25, 0.25, 0.5, 0.55), 3.0, "complete"))
PLAIN: Prompt = (Text("Ben"), Image(WIDE), Text(" lives in "))
CONTROLLED: Prompt = (Image(TALL, CONTROLS[1:]), TokenIds((260, 270)), Image(WIDE, CONTROLS), Text("Anna lives in"))


@pytest.fixture(scope="session", params=list(tiny_models.IMAGE_FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def model(family: str, tmp_path_factory: pytest.TempPathFactory) -> ImageTextModel:
    return load_image_text_lm(tiny_models.save_image_text(tmp_path_factory.mktemp("models") / family, family))


@pytest.fixture(scope="session")
def llava(tmp_path_factory: pytest.TempPathFactory) -> ImageTextModel:
    return load_image_text_lm(tiny_models.save_image_text(tmp_path_factory.mktemp("models") / "llava", "llava"))


def brute_scores(
    model: ImageTextModel, family: str, prompt: Prompt, config: AtmanConfig, features: list[Feature]
) -> tuple[Any, Any]:  # (T,), F of (T,)
    """Base log-probabilities and raw scores of features on images, by one whole forward pass each."""
    columns = plain_images.columns_of(model, family, prompt, TARGET)
    sequence = model.encode(prompt, TARGET)
    assert list(sequence.read) == [column.token for column in columns]
    pixels = plain_images.pixels(family, plain_images.images_of(prompt), sequence.read)

    def passed(*extra: tuple[int, Control]) -> Any:
        placed = [*plain_images.own_controls(prompt), *extra]
        factors = plain_images.factors(columns, placed, config.overlap)
        return brute_force.log_probabilities(model, sequence, factors, config.log_additive, pixels)

    base = passed()
    return base, [base - passed((f.item, Control(f.place, config.control_factor))) for f in features]


@pytest.mark.parametrize("prompt", [PLAIN, CONTROLLED], ids=["one image", "two images, controls"])
@pytest.mark.parametrize(
    "config",
    [
        AtmanConfig(granularity="sentence"),
        AtmanConfig(granularity="word", overlap="complete", control_factor=0.0),
        AtmanConfig(granularity="paragraph", log_additive=False),
        AtmanConfig(granularity="token", control_factor=3.0),
    ],
    ids=["sentence", "word, complete, removed", "paragraph, multiplicative", "token, amplified"],
)
def test_tiles_equal_one_whole_forward_pass_each(
    model: ImageTextModel, family: str, prompt: Prompt, config: AtmanConfig
) -> None:
    found = attribute(model, prompt, TARGET, replace(config, target_granularity="token"))
    tiles = [column for column, feature in enumerate(found.features) if isinstance(feature.place, Tile)]
    assert len(tiles) == len(plain_images.images_of(prompt)) * TILES_PER_SIDE[config.granularity or "token"] ** 2
    some = tiles[:: max(1, len(tiles) // 9)]
    base, scores = brute_scores(model, family, prompt, config, [found.features[column] for column in some])
    assert found.base_values is not None
    np.testing.assert_allclose(found.base_values, base, atol=1e-4)
    np.testing.assert_allclose(found.values[:, some], np.array(scores).T, atol=1e-4)
    assert np.abs(scores).max() > 0.003, "tiles must matter, or the comparison shows nothing"


def test_without_images_it_is_a_language_model(model: ImageTextModel) -> None:
    sequence = model.encode((Text("Anna lives in Oslo. Ben lives in"),), TARGET)
    base, changed = np.ones(sequence.positions), np.ones(sequence.positions)
    changed[3:6] = 0.1
    fast = log_probabilities(model, sequence, base, [changed], log_additive=True)
    np.testing.assert_allclose(fast.base, brute_force.log_probabilities(model, sequence, base), atol=1e-4)
    np.testing.assert_allclose(fast.variants[0], brute_force.log_probabilities(model, sequence, changed), atol=1e-4)


def test_neither_packing_nor_order_changes_scores(model: ImageTextModel) -> None:
    sequence = model.encode(CONTROLLED, TARGET)
    rule = FactorRule(model, sequence, None)
    standing = rule.combine(resolve(sequence, CONTROLLED, "partial"))
    tiles = [addressed(sequence, 2, Control(tile, 0.1), "partial") for tile in grid(3, 3)]
    variants = [rule.combine([tile], standing).factors for tile in tiles]
    packed = log_probabilities(model, sequence, standing.factors, variants, log_additive=True)
    again = log_probabilities(model, sequence, standing.factors, variants, log_additive=True)
    alone = log_probabilities(model, sequence, standing.factors, variants, log_additive=True, packed_rows=1)
    backwards = log_probabilities(model, sequence, standing.factors, variants[::-1], log_additive=True)
    assert (packed.variants == again.variants).all()
    np.testing.assert_allclose(alone.variants, packed.variants, atol=1e-5)
    np.testing.assert_allclose(backwards.variants[::-1], packed.variants, atol=1e-5)


def test_images_are_read_alone(model: ImageTextModel) -> None:
    """What the vision tower makes of an image does not depend on the others."""
    both = model.inputs(model.encode((Image(WIDE), Image(TALL)), "x"))
    one = model.inputs(model.encode((Image(TALL),), "x"))
    assert both.embeddings is not None and one.embeddings is not None
    tail = len(one.ids) - len(model.start)
    assert (both.embeddings[-tail:] == one.embeddings[-tail:]).all()


def test_the_model_is_unchanged_afterwards(model: ImageTextModel) -> None:
    network: Any = model.network
    before, hooks = digest(network), hooks_of(network)
    attribute(model, CONTROLLED, TARGET, AtmanConfig(granularity="paragraph", threshold=0.5))
    assert digest(network) == before
    assert hooks_of(network) == hooks
    assert hooks_of(network.get_decoder()) == 0
    assert network.config.vision_config._attn_implementation == "sdpa"
    assert network.config.text_config._attn_implementation == "whence_suppressed"


def hooks_of(network: torch.nn.Module) -> int:
    """The library leaves some of its own in vision towers whose inner layers it reads out."""
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules())


def digest(network: torch.nn.Module) -> str:
    found = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        found.update(name.encode() + tensor.numpy().tobytes())
    return found.hexdigest()


def blind(model: ImageTextModel) -> None:
    """Let no patch hear of the others: the last map of each attention of the vision tower becomes zero."""
    network: Any = model.network
    for name, module in network.named_modules():
        if name.endswith(("out_proj", "attn.proj")) and ("vision" in name or "visual" in name):
            torch.nn.init.zeros_(module.weight)
            torch.nn.init.zeros_(module.bias)


@pytest.mark.parametrize("size", [(96, 64), (40, 120)])
def test_visual_tokens_lie_where_they_say(family: str, size: tuple[int, int], tmp_path: Any) -> None:
    """In a tower without attention, pixels of one cell move the embeddings of the tokens there, and no others."""
    model = load_image_text_lm(tiny_models.save_image_text(tmp_path / family, family))
    blind(model)
    width, height = size
    grey = Pillow.new("RGB", size, (128, 128, 128))
    image = Image(plain_images.encoded(grey))
    rows, columns = plain_images.grid_of(family, image)
    for row, column in {(0, 0), (0, columns - 1), (rows - 1, 0), (rows // 2, columns // 2)}:
        spot = (int((column + 0.4) * width / columns), int((row + 0.4) * height / rows))
        dotted = grey.copy()
        dotted.paste((255, 0, 0), (*spot, spot[0] + 2, spot[1] + 2))
        one, other = (model.encode((item,), "x") for item in (image, Image(plain_images.encoded(dotted))))
        before, after = model.inputs(one).embeddings, model.inputs(other).embeddings
        assert before is not None and after is not None
        change = (after - before).abs().sum(dim=-1)[len(model.start) :]
        where = Tile(spot[0] / width, spot[1] / height, 2 / width, 2 / height)
        inside = addressed(one, 0, Control(where, 0.0), "complete")
        assert inside, "or nothing is shown"
        most = int(change.argmax()) + len(model.start)
        assert most in inside
        # Resampling carries a dot no farther than to the next token.
        area = one.tokens[most - len(model.start)].area
        assert area is not None
        near = Tile(*around(area))
        reached = addressed(one, 0, Control(near, 0.0), "complete")
        assert set((change.nonzero().flatten() + len(model.start)).tolist()) <= set(reached)


def around(area: Tile) -> tuple[float, float, float, float]:
    left, top = max(0.0, area.left - area.width / 2), max(0.0, area.top - area.height / 2)
    right, bottom = min(1.0, area.left + 1.5 * area.width), min(1.0, area.top + 1.5 * area.height)
    return left, top, right - left, bottom - top


def test_the_whole_image_is_read(model: ImageTextModel) -> None:
    """Every corner of a wide image moves the visual embeddings: nothing is cropped."""
    grey = Pillow.new("RGB", (120, 40), (128, 128, 128))
    before = model.inputs(model.encode((Image(plain_images.encoded(grey)),), "x")).embeddings
    for corner in ((0, 0), (114, 0), (0, 34), (114, 34)):
        dotted = grey.copy()
        dotted.paste((255, 0, 0), (*corner, corner[0] + 6, corner[1] + 6))
        after = model.inputs(model.encode((Image(plain_images.encoded(dotted)),), "x")).embeddings
        assert before is not None and after is not None
        assert not torch.equal(before, after)


def test_marks_belong_to_no_tile(model: ImageTextModel, family: str) -> None:
    sequence = model.encode(PLAIN, TARGET)
    before, after = plain_images.marks_of(family)
    own = sequence.tokens_of(1)
    everything = addressed(sequence, 1, Control(Tile(0, 0, 1, 1), 0.1), "partial")
    first = len(model.start) + own.start + len(before)
    assert list(everything) == list(range(first, len(model.start) + own.stop - len(after)))
    assert set(everything.values()) == {0.1}


def test_similar_visual_tokens(llava: ImageTextModel) -> None:
    """A plain area has visual tokens that are alike; each is a kind of its own, and no text token is like them."""
    half = Pillow.new("RGB", (48, 48), "white")
    half.paste("black", (0, 0, 24, 48))
    prompt = (Image(plain_images.encoded(half), (Control(Tile(0, 0, 0.1, 0.1), 0.1, "complete"),)), Text("Anna"))
    sequence = llava.encode(prompt, "x")
    kinds, cosine = llava.similarities(sequence)
    visual = [column for column, token in enumerate(sequence.read) if token == llava.image_token]
    assert len({int(kinds[column]) for column in visual}) == 36
    embeddings = llava.inputs(sequence).embeddings
    assert embeddings is not None
    vectors = embeddings.double().numpy()
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(cosine[np.ix_(kinds, kinds)], unit @ unit.T, atol=1e-9)
    rule = FactorRule(llava, sequence, 0.9)
    found = rule.combine(resolve(sequence, prompt, "partial")).factors
    similar = (unit @ unit.T)[visual[0]]
    expected = np.where(similar >= 0.9, 1 - 0.9 * similar, 1.0)
    expected[visual[0]], expected[0] = 0.1, 1.0
    np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize(
    ("prompt", "chosen"),
    [
        ((Image(WIDE),), "word"),  # 144, 36, 9, 1
        ((Image(WIDE), Image(TALL)), "sentence"),  # 288, 72, 18, 2
        ((Image(WIDE), Text("Anna lives in Oslo. " * 10)), "sentence"),  # 9 + 10
        ((Image(WIDE), TokenIds((5,) * 25)), "sentence"),  # 9 + 25
        ((Text("Anna"),), "token"),
    ],
)
def test_the_automatic_granularity_counts_tiles(llava: ImageTextModel, prompt: Prompt, chosen: str) -> None:
    assert nearest_to_thirty(prompt, llava.encode(prompt, "x")) == chosen


def test_text_must_not_hold_the_marks_of_images(model: ImageTextModel, family: str) -> None:
    mark = "<|image_pad|>" if "qwen" in family else "<image>"
    number = model.tokenizer.token_to_id(mark)
    for prompt, target, pointer in (
        ((Text("Anna"), Text(f"a {mark} b")), "x", "/prompt/1/data"),
        ((TokenIds((5, number)),), "x", "/prompt/0/data"),
        ((Text("Anna"),), f"x{mark}", "/target"),
    ):
        with pytest.raises(InvalidRequest, match="own mark for an image") as refused:
            model.encode(prompt, target)
        assert refused.value.pointer == pointer


def test_visual_tokens_count_for_the_context_length(llava: ImageTextModel) -> None:
    assert llava.context_length == 256
    room = 256 - 1 - 6 * 36 - 1
    llava.encode((*[Image(WIDE)] * 6, TokenIds((5,) * room)), "x")
    with pytest.raises(ContextLengthExceeded, match="257 tokens"):
        llava.encode((*[Image(WIDE)] * 6, TokenIds((5,) * (room + 1))), "x")
    with pytest.raises(ContextLengthExceeded):
        llava.encode((Image(WIDE),) * 1000, "x")


def test_many_small_files_of_many_pixels_are_refused_before_any_is_decoded(
    llava: ImageTextModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = plain_images.encoded(Pillow.new("1", (6000, 6000)))
    assert len(data) < 10_000
    monkeypatch.setattr("explainers.image_text_model.decode", None)
    with pytest.raises(InvalidRequest, match="100000000 pixels in all") as refused:
        llava.encode((Text("Anna"), *[Image(data)] * 3), "x")
    assert refused.value.pointer == "/prompt/3"


def test_an_image_alone_can_be_the_prompt(model: ImageTextModel) -> None:
    found = attribute(model, (Image(WIDE),), " Oslo", AtmanConfig(granularity="sentence"))
    assert [feature.name for feature in found.features[:4]] == [
        "row 1, column 1",
        "row 1, column 2",
        "row 1, column 3",
        "row 2, column 1",
    ]
    assert np.isfinite(found.values).all()


@pytest.mark.parametrize(
    "place",
    [Tile(-0.1, 0, 0.5, 0.5), Tile(0.6, 0, 0.5, 0.5), Tile(0, 0, 0.5, -0.5), Tile(0, float("nan"), 0.5, 0.5), 3],
)
def test_controls_outside_the_image_are_refused(llava: ImageTextModel, place: Any) -> None:
    prompt = (Image(WIDE, (Control(place, 0.1),)),)
    with pytest.raises(InvalidRequest) as refused:
        resolve(llava.encode(prompt, "x"), prompt, "partial")
    assert refused.value.pointer == "/prompt/0/controls/0"


def test_a_rectangle_without_area_does_nothing(llava: ImageTextModel) -> None:
    for place in (Tile(0.3, 0.3, 0, 0.5), Tile(0.5, 0.5, 0, 0), Tile(1, 1, 0, 0)):
        assert addressed(llava.encode((Image(WIDE),), "x"), 0, Control(place, 0.1), "complete") == {}


def test_what_had_to_be_done_to_an_image_is_said(llava: ImageTextModel) -> None:
    clear = plain_images.encoded(Pillow.new("RGBA", (20, 20), (0, 0, 0, 9)))
    found = attribute(llava, (Text("Anna"), Image(clear)), "x", AtmanConfig())
    assert found.facts["warnings"] == ["/prompt/1: the image was shown on white where it is transparent"]


def test_too_long_and_narrow_an_image_is_refused(tmp_path: Any) -> None:
    model = load_image_text_lm(tiny_models.save_image_text(tmp_path / "qwen", "qwen2_vl"))
    with pytest.raises(InvalidRequest, match="too long and narrow") as refused:
        model.encode((Image(plain_images.png(3000, 3, 1)),), "x")
    assert refused.value.pointer == "/prompt/0"


sides = st.integers(0, 60).flatmap(lambda a: st.tuples(st.just(a), st.integers(0, 60 - a)))
tiles = st.builds(lambda x, y: Tile(x[0] / 60, y[0] / 60, x[1] / 60, y[1] / 60), sides, sides)


def seen(rows: int, columns: int) -> TokenSequence:
    """An image of that many visual tokens, between two texts."""
    tokens = [Token(1, index, area=area) for index, area in enumerate(grid(rows, columns))]
    ids = (5,) * (len(tokens) + 2)
    return TokenSequence((0,), ids, (7,), (Token(0, 0), *tokens, Token(2, 0)), ())


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 13), st.integers(1, 13), tiles, st.sampled_from(["partial", "complete"]))
def test_overlap_is_the_share_of_the_area(rows: int, columns: int, tile: Tile, overlap: Overlap) -> None:
    found = addressed(seen(rows, columns), 1, Control(tile, 3.0), overlap)
    expected = {}
    for number in range(rows * columns):
        area = plain_images.cell(number // columns, number % columns, rows, columns)
        share = plain_images.share(area, plain_images.place_of(tile))
        if share:
            expected[2 + number] = 3.0 if overlap == "complete" else pytest.approx(1 + 2 * float(share), abs=1e-8)
    assert found == expected


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 13), st.integers(1, 13), st.sampled_from([1, 3, 6, 12]))
def test_tiles_cover_the_image_once(rows: int, columns: int, side: int) -> None:
    """Over all tiles, each visual token lies inside wholly, and a tile on the token grid touches no neighbour."""
    sequence = seen(rows, columns)
    found = [addressed(sequence, 1, Control(tile, 0.0), "partial") for tile in grid(side, side)]
    for number in range(rows * columns):
        assert sum(1 - tile.get(2 + number, 1.0) for tile in found) == pytest.approx(1, abs=1e-6)
    if rows % side == 0 and columns % side == 0:
        touched = [addressed(sequence, 1, Control(tile, 0.0), "complete") for tile in grid(side, side)]
        assert all(len(tile) == rows * columns // side**2 for tile in touched)
        assert touched == found


def test_an_image_is_nothing_for_a_model_of_text(llama: LanguageModel) -> None:
    with pytest.raises(MissingCapability, match="reads text only"):
        attribute(llama, (Image(WIDE),), "x", AtmanConfig())


@pytest.mark.parametrize("prompt", [PLAIN, CONTROLLED], ids=["one image", "two images, controls"])
def test_a_completion_sees_the_images(model: ImageTextModel, family: str, prompt: Prompt) -> None:
    """Greedy tokens and their log-probabilities are those of whole forward passes."""
    found = complete(model, prompt, CompletionConfig(maximum_tokens=4, ends=False)).items[0]
    text_target = replace(model.encode(prompt, "x"), target=(*found.generated,))
    columns = plain_images.columns_of(model, family, prompt, "x")
    placed = plain_images.factors(columns, plain_images.own_controls(prompt), "partial")
    factors = np.concatenate([placed, np.ones(len(found.generated) - 1)])
    pixels = plain_images.pixels(family, plain_images.images_of(prompt), text_target.read)
    rows = brute_force.logits(model, text_target.read, factors, True, pixels)[text_target.first_scored :]
    assert rows.argmax(-1).tolist() == list(found.generated)
    expected = rows.log_softmax(-1).amax(-1).sum()
    assert found.log_prob == pytest.approx(float(expected), abs=1e-4)


def test_first_order_scores_see_the_images(model: ImageTextModel) -> None:
    """For a factor close to 1 the gradient is all there is."""
    config = AtmanConfig(granularity="sentence", control_factor=0.99)
    exact = attribute(model, PLAIN, " Oslo", config).values
    first_order = METHODS["gradient"].attribute(model, PLAIN, " Oslo", config, never_stop).values
    np.testing.assert_allclose(first_order, exact, atol=0.05 * np.abs(exact).max())
