"""The vendor's own client, unmodified, against a real server: only `host` and `token` are ours."""

from __future__ import annotations

from typing import Any

import pytest

from tests.clients.conftest import Drive
from tests.clients.server import Server

SCRIPT = "drive_aleph_alpha.py"
TEXT = "Anna lives in Oslo. Ben lives in Rome.\n\nAnna lives in"
TARGET = " Oslo."
PIECES = {
    "word": TEXT.split(),
    "sentence": ["Anna lives in Oslo.", "Ben lives in Rome.", "Anna lives in"],
    "sentence as a string": ["Anna lives in Oslo.", "Ben lives in Rome.", "Anna lives in"],
    "paragraph": ["Anna lives in Oslo. Ben lives in Rome.", "Anna lives in"],
    "custom": ["Anna lives in Oslo. Ben lives in Rome.", "Anna lives in"],
}


@pytest.fixture(scope="module")
def answers(drive: Drive) -> Any:
    return drive(SCRIPT, "explain")


def pieces(answer: Any, explanation: int = 0, item: int = 0) -> list[str]:
    scores = answer["explanations"][explanation]["items"][item]["scores"]
    return [TEXT[score["start"] : score["start"] + score["length"]] for score in scores]


def scores(answer: Any, explanation: int = 0, item: int = 0) -> list[float]:
    return [score["score"] for score in answer["explanations"][explanation]["items"][item]["scores"]]


@pytest.mark.parametrize("granularity", PIECES)
def test_granularities_cut_the_text_where_they_say(answers: Any, granularity: str) -> None:
    assert pieces(answers[granularity]) == PIECES[granularity]


def test_every_answer_names_the_weights_and_ends_with_the_target(answers: Any) -> None:
    assert len({answer["model_version"] for answer in answers.values()}) == 1
    for answer in answers.values():
        for explanation in answer["explanations"]:
            assert all("start" in score for score in explanation["items"][-1]["scores"])


def test_target_tokens_join_to_the_target_and_sum_to_the_complete_explanation(answers: Any) -> None:
    each = answers["each target token"]
    assert "".join(explanation["target"] for explanation in each["explanations"]) == TARGET
    for position, explanation in enumerate(each["explanations"]):
        assert len(explanation["items"][-1]["scores"]) == position
    whole = [sum(parts) for parts in zip(*(scores(each, t) for t in range(len(each["explanations"]))), strict=True)]
    assert whole == pytest.approx(scores(answers["complete"]), abs=1e-6)


def test_the_control_factor_acts(answers: Any) -> None:
    assert scores(answers["factor 1"]) == pytest.approx([0, 0, 0], abs=1e-4)
    for name in ("factor 0", "multiplicative", "threshold 0", "suppressed", "amplified"):
        assert scores(answers[name]) != pytest.approx(scores(answers["sentence"]), abs=1e-4), name


def test_scores_are_processed_as_asked(answers: Any) -> None:
    each = answers["each target token"]["explanations"]
    by_token = [scores(answers["each target token"], position) for position in range(len(each))]
    absolute = [sum(abs(part) for part in parts) for parts in zip(*by_token, strict=True)]
    square = [sum(part * part for part in parts) for parts in zip(*by_token, strict=True)]
    assert scores(answers["absolute"]) == pytest.approx(absolute, abs=1e-6)
    assert scores(answers["square"]) == pytest.approx(square, abs=1e-6)
    normalized = scores(answers["normalized"])
    assert (min(normalized), max(normalized)) == (0.0, 1.0)


def test_token_ids_get_one_bare_score_each(answers: Any) -> None:
    assert len(scores(answers["token ids"], item=1)) == 3
    assert len(answers["token ids"]["explanations"][0]["items"]) == 3


def test_the_async_client_gets_the_same_answers(drive: Drive, answers: Any) -> None:
    assert drive(SCRIPT, "explain, async") == answers


def test_hosts_ending_in_v1_and_nice_clients_are_served(drive: Drive, answers: Any) -> None:
    assert drive(SCRIPT, "nice", path="/v1") == answers["sentence"]


def test_the_client_finds_the_text_of_every_score(drive: Drive) -> None:
    last = drive(SCRIPT, "with text")["explanations"][-1]
    assert [score["text"] for score in last["items"][0]["scores"]] == PIECES["sentence"]
    joined = "".join(score["text"] for score in last["items"][-1]["scores"]).strip()
    assert joined and TARGET.strip().startswith(joined)


def test_mistakes_are_value_errors_that_say_what_is_wrong(drive: Drive) -> None:
    found = drive(SCRIPT, "mistakes")
    kinds = {name: (error["type"], error.get("status")) for name, error in found.items()}
    assert kinds == dict.fromkeys(found, ("ValueError", 400))
    assert found["image"]["body"]["code"] == "MISSING_CAPABILITY"
    assert found["too long"]["body"]["code"] == "CONTEXT_LENGTH_EXCEEDED"
    assert found["negative factor"]["body"]["errors"][0]["pointer"] == "/control_factor"


@pytest.mark.parametrize("scene", ["one mistake", "one mistake, async"])
def test_a_mistake_costs_one_call(drive: Drive, server: Server, scene: str) -> None:
    before = len(server.statuses("/explain"))
    assert drive(SCRIPT, scene)["status"] == 400
    assert server.statuses("/explain")[before:] == [400]


@pytest.mark.parametrize("scene", ["refused", "refused, async"])
def test_a_wrong_key_is_a_permission_error_at_once(drive: Drive, server: Server, scene: str) -> None:
    before = len(server.statuses("/explain"))
    error = drive(SCRIPT, scene, token="not-a-key-of-this-server")
    assert (error["type"], error["status"], error["body"]["code"]) == ("PermissionError", 401, "UNAUTHORIZED")
    assert server.statuses("/explain")[before:] == [401]


def test_an_unknown_model_is_a_runtime_error(drive: Drive) -> None:
    error = drive(SCRIPT, "unknown model")
    assert (error["type"], error["status"], error["body"]["code"]) == ("RuntimeError", 404, "UNKNOWN_MODEL")


@pytest.mark.parametrize("scene", ["around", "around, async"])
def test_version_models_and_tokenizer(drive: Drive, scene: str) -> None:
    found = drive(SCRIPT, scene)
    assert found["version"] == "1.19.0"
    models = {model["name"]: (model["max_context_size"], model["image_support"]) for model in found["models"]}
    assert models == {"tiny-lm": (256, False), "tiny-vision": (256, True)}
    assert found["tokenized"] == found["encoded"]
    assert found["detokenized"] == found["decoded"]


@pytest.fixture(scope="module")
def on_images(drive: Drive) -> Any:
    return drive(SCRIPT, "images")


def test_tiles_of_an_image_reach_the_client(on_images: Any) -> None:
    for name, answer in on_images.items():
        tiles = answer["explanations"][0]["items"][1]["scores"]
        assert len(tiles) == 9, name
        if name.endswith("in pixels"):
            places = [(tile["left"], tile["top"], tile["width"], tile["height"]) for tile in tiles]
            assert places == [(12 * (n % 3), 8 * (n // 3), 12, 8) for n in range(9)]


def test_an_image_is_the_same_from_wherever_it_comes(on_images: Any) -> None:
    assert scores(on_images["bytes"], item=1) == scores(on_images["path"], item=1) == scores(on_images["name"], item=1)
    assert scores(on_images["cropped"], item=1) == scores(on_images["bytes"], item=1), "images are read whole"


def test_controls_of_an_image_act(on_images: Any) -> None:
    assert scores(on_images["removed"], item=1) == [0.0] * 9
    assert scores(on_images["complete"], item=1) != pytest.approx(scores(on_images["bytes"], item=1), abs=1e-6)


def test_a_damaged_image_costs_one_call(drive: Drive, server: Server) -> None:
    before = len(server.statuses("/explain"))
    found = drive(SCRIPT, "no image")
    kinds = {name: (error["type"], error["status"]) for name, error in found.items()}
    assert kinds == dict.fromkeys(("text", "cut off", "empty"), ("ValueError", 400))
    assert server.statuses("/explain")[before:] == [400] * 3
