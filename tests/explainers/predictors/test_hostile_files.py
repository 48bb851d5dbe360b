"""Files that claim, crash or carry code: refused with a reason, nothing executed, the process alive."""

from __future__ import annotations

import io
import json
import pickle
import random
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from explainers.errors import ExplainerError, UnreadableModel
from explainers.predictors import lightgbm_trees, onnx_wire, ubjson, xgboost_trees
from explainers.predictors.binding import Mismatch, TablePredictor, bind
from explainers.predictors.contents import Content, read
from explainers.predictors.formats import FORMATS, load_artifact
from tests.explainers.predictors.makers import VALUE, Made, numbers

Make = Callable[[str], Made]


class Trap:
    """Writes a file where it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return Path.touch, (self.canary,)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


def written(folder: Path, name: str, data: bytes) -> Path:
    (path := folder / name).write_bytes(data)
    return path


def pickles(canary: Path, folder: Path) -> dict[str, bytes]:
    torch.save({"x": Trap(canary)}, buffer := io.BytesIO())
    joblib.dump(Trap(canary), folder / "j", compress=3)
    joblib.dump(Trap(canary), folder / "plain")
    found = {f"protocol {number}": pickle.dumps(Trap(canary), protocol=number) for number in range(6)}
    return found | {
        "torch": buffer.getvalue(),
        "joblib": (folder / "plain").read_bytes(),
        "compressed joblib": (folder / "j").read_bytes(),
    }


@pytest.mark.parametrize("ending", FORMATS)
def test_pickles_are_refused_under_any_name(ending: str, tmp_path: Path, canary: Path) -> None:
    for kind, data in pickles(canary, tmp_path).items():
        with pytest.raises(UnreadableModel) as caught:
            load_artifact(written(tmp_path, f"model{ending}", data))
        assert "could run code" in str(caught.value), kind
    assert not canary.exists()
    pickle.loads(pickles(canary, tmp_path)["protocol 5"])  # noqa: S301 - the trap works
    assert canary.exists()


def test_files_are_read_within_a_limit(tmp_path: Path) -> None:
    path = written(tmp_path, "model.txt", b"x" * 1001)
    with pytest.raises(UnreadableModel, match="larger than the limit of 1000 bytes"):
        load_artifact(path, limit=1000)
    with pytest.raises(UnreadableModel, match="empty"):
        read(written(tmp_path, "none.txt", b""))
    with pytest.raises(UnreadableModel, match="cannot be read"):
        read(tmp_path / "missing.txt")


def external(data: bytes, where: str) -> bytes:
    """The first weights of a graph, moved into another file."""
    model = onnx.load_from_string(data)
    tensor = model.graph.initializer[0] if model.graph.initializer else model.graph.initializer.add()
    tensor.ClearField("raw_data")
    tensor.ClearField("float_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=where)
    return model.SerializeToString()


@pytest.mark.parametrize("where", ["weights.bin", "../../etc/passwd", "/etc/passwd"])
def test_weights_in_other_files_are_refused(where: str, made: Make, tmp_path: Path) -> None:
    data = external(made("onnx_matrix").path.read_bytes(), where)
    with pytest.raises(UnreadableModel, match="keeps weights in other files"):
        load_artifact(written(tmp_path, "model.onnx", data))


def test_weights_in_other_files_are_found_however_deep() -> None:
    tensor = onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL)
    attribute = onnx.AttributeProto(name="a", t=tensor)
    node = onnx.NodeProto(op_type="Constant", attribute=[attribute])
    inner = onnx.NodeProto(op_type="If", attribute=[onnx.AttributeProto(g=onnx.GraphProto(node=[node]))])
    for model in (
        onnx.ModelProto(graph=onnx.GraphProto(node=[inner])),
        onnx.ModelProto(graph=onnx.GraphProto(node=[onnx.NodeProto(op_type="A")]), functions=[{"node": [inner]}]),
        onnx.ModelProto(graph=onnx.GraphProto(node=[inner], sparse_initializer=[{"values": tensor}])),
    ):
        assert onnx_wire.survey(model.SerializeToString()).external
    plain = onnx.ModelProto(graph=onnx.GraphProto(node=[onnx.NodeProto(op_type="Abs")]))
    assert not onnx_wire.survey(plain.SerializeToString()).external


@pytest.mark.parametrize("name", ["onnx_matrix", "xgboost_binary", "xgboost_ubj", "lightgbm_binary"])
def test_truncated_files_are_refused(name: str, made: Make) -> None:
    path = made(name).path
    data, load = path.read_bytes(), FORMATS[path.suffix]
    places = [0, 1, 2, 9, *range(10, len(data) - 1, max(1, len(data) // 40))]
    if name == "lightgbm_binary":  # what follows the trees is not read
        places = [place for place in places if place < data.index(b"end of trees")]
    for place in places:
        with pytest.raises(UnreadableModel):
            load(Content(data[:place], "", "m"))


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32), name=st.sampled_from(["xgboost_ubj", "xgboost_binary", "lightgbm_binary"]))
def test_changed_files_are_refused_or_answer(seed: int, name: str, made: Make) -> None:
    """Any bytes may change: what is still read predicts and explains without a crash, or is refused."""
    path, chance = made(name).path, random.Random(seed)  # noqa: S311 - a test's own chance
    data = bytearray(path.read_bytes())
    for _ in range(chance.randint(1, 6)):
        data[chance.randrange(len(data))] = chance.choice([chance.randrange(256), 0x2D, 0x39, 0x39])
    rows = made(name).table.take(slice(0, 5))
    try:
        artifact: Any = FORMATS[path.suffix](Content(bytes(data), "", "m"))
        if artifact.signature.width == 3:
            artifact.predict(rows)
            artifact.contributions(rows)
    except ExplainerError:
        pass


SAID = ("0", "-1", "1", "7", "2147483647", "-2147483648", "4294967296", "1e308", "inf", "nan", "0.5", "00", "x", "")


@pytest.mark.parametrize("name", ["lightgbm_binary", "lightgbm_categories"])
def test_lightgbm_is_told_nothing_that_it_cannot_read(name: str, made: Make) -> None:
    """Lists of other numbers, more or fewer; lines that are missing, and lines twice. It would end the process."""
    text, rows = made(name).path.read_text(), made(name).table.take(slice(0, 5))
    text = text[: text.index("Tree=2\n")]
    head, body = text[: text.index("Tree=0\n")], text[text.index("Tree=0\n") :]
    read = 0
    for seed in range(400):
        chance = random.Random(seed)  # noqa: S311 - a test's own chance
        lines = (head + body).split("\n")
        for _ in range(chance.randint(1, 2)):
            said_otherwise(lines, chance)
        changed = resized("\n".join(lines) + "end of trees\n")
        with suppress(ExplainerError):
            artifact = lightgbm_trees.load(Content(changed.encode(), "", "m.txt"))
            read += 1
            artifact.predict(rows)
            artifact.contributions(rows)
    assert 40 < read < 360


def said_otherwise(lines: list[str], chance: random.Random) -> None:
    place = chance.choice([place for place, line in enumerate(lines) if line != "Tree=0"])
    name, sign, said = lines[place].partition("=")
    words = said.split(" ")
    match chance.randrange(8):
        case 0:
            del lines[place]
        case 1:
            lines.insert(place, chance.choice(lines))
        case 2:
            words += [chance.choice(SAID)] * chance.choice([1, 1000])
        case _:
            words[chance.randrange(len(words))] = chance.choice(SAID)
    if sign and place < len(lines) and lines[place].startswith(name):
        lines[place] = f"{name}={' '.join(words)}"


def edited_tree(data: bytes, change: Callable[[Any], None]) -> bytes:
    document = json.loads(data)
    change(document["learner"])
    return json.dumps(document).encode()


def trees(learner: Any) -> Any:
    return learner["gradient_booster"]["model"]["trees"]


XGBOOST_LIES: dict[str, tuple[Callable[[Any], None], str]] = {
    "child outside": (lambda one: trees(one)[0]["left_children"].__setitem__(0, 10**6), "outside the tree"),
    "child loop": (lambda one: trees(one)[0]["left_children"].__setitem__(1, 1), "two parents"),
    "root below itself": (lambda one: trees(one)[0]["left_children"].__setitem__(0, 0), "outside the tree"),
    "one child": (lambda one: trees(one)[0]["right_children"].__setitem__(0, -1), "one child"),
    "column": (lambda one: trees(one)[0]["split_indices"].__setitem__(0, 3), "column that is not there"),
    "column number": (lambda one: trees(one)[0]["split_indices"].__setitem__(0, 2**40), "column that is not there"),
    "short list": (lambda one: trees(one)[0]["split_conditions"].pop(), "one number per node"),
    "texts": (lambda one: trees(one)[0].__setitem__("left_children", ["x"]), "whole numbers"),
    "a list in a list": (lambda one: trees(one)[0]["left_children"].__setitem__(0, [1]), "whole numbers"),
    "sizes": (lambda one: trees(one)[0]["tree_param"].__setitem__("num_nodes", "9999999"), "other sizes"),
    "many columns": (lambda one: one["learner_model_param"].__setitem__("num_feature", "4000000000"), "claims"),
    "many classes": (lambda one: one["learner_model_param"].__setitem__("num_class", "4000000000"), "claims"),
    "base score": (lambda one: one["learner_model_param"].__setitem__("base_score", "[1,2,3]"), "base_score"),
    "base code": (lambda one: one["learner_model_param"].__setitem__("base_score", "exit()"), "base_score"),
    "tree count": (
        lambda one: one["gradient_booster"]["model"]["gbtree_model_param"].__setitem__("num_trees", "7"),
        "claims others",
    ),
    "group": (lambda one: one["gradient_booster"]["model"]["tree_info"].__setitem__(0, 5), "tree_info"),
    "rounds": (lambda one: one["gradient_booster"]["model"]["iteration_indptr"].__setitem__(1, 9**9), "indptr"),
    "category": (lambda one: trees(one)[0]["split_type"].__setitem__(0, 1), "have no categories"),
    "objective": (lambda one: one["objective"].__setitem__("name", "binary:hinge"), "neither shares nor values"),
    "booster": (lambda one: one["gradient_booster"].__setitem__("name", "gblinear"), "not served"),
    "parent": (lambda one: trees(one)[0]["parents"].__setitem__(2, 5), "a parent is not that of its children"),
    "root": (lambda one: trees(one)[0]["parents"].__setitem__(0, 0), "the root without"),
    "deleted": (lambda one: trees(one)[0]["tree_param"].__setitem__("num_deleted", "2"), "hang nowhere"),
    "negative": (lambda one: trees(one)[0]["left_children"].__setitem__(0, -7), "outside the tree"),
    "place": (lambda one: trees(one)[0].__setitem__("id", 20), "claims another place"),
    "bits": (lambda one: trees(one)[0]["default_left"].__setitem__(0, 9), "neither 0 nor 1"),
    "best": (
        lambda one: one["attributes"].update(best_iteration="99", scikit_learn="{}"),
        "best_iteration is not an iteration",
    ),
}


@pytest.mark.parametrize("stored", [5, 0.5, "x", [[1], 2], [[1], [2]]])
def test_lies_about_categories_of_xgboost(stored: Any, made: Make) -> None:
    def damaged(learner: Any) -> None:
        categories = learner["gradient_booster"]["model"]["cats"]
        categories["enc"] = [{"values": stored, "offsets": []}] * len(categories["enc"])

    data = made("xgboost_categories").path.read_bytes()
    with pytest.raises(UnreadableModel):
        xgboost_trees.load(Content(edited_tree(data, damaged), "", "m.json"))


@pytest.mark.parametrize("case", XGBOOST_LIES)
def test_lies_of_an_xgboost_file(case: str, made: Make) -> None:
    change, words = XGBOOST_LIES[case]
    with pytest.raises(UnreadableModel) as caught:
        xgboost_trees.load(Content(edited_tree(made("xgboost_binary").path.read_bytes(), change), "", "m.json"))
    assert words in str(caught.value)


def test_a_chain_of_nodes_is_refused(made: Make) -> None:
    def chain(learner: Any) -> None:
        count = 4001
        tree = trees(learner)[0]
        for key in xgboost_trees.LISTS:
            tree[key] = [0] * count
        inner = count // 2
        leaves = [-1] * (count - inner)
        tree["left_children"] = [*range(1, inner + 1), *leaves]
        tree["right_children"] = [*range(inner + 1, count), *leaves]
        tree["split_indices"] = [0] * count
        tree["parents"] = [2**31 - 1, *range(inner), *range(inner)]
        tree["tree_param"]["num_nodes"] = str(count)

    data = edited_tree(made("xgboost_binary").path.read_bytes(), chain)
    with pytest.raises(UnreadableModel, match="deeper than 1000 levels"):
        xgboost_trees.load(Content(data, "", "m.json"))


def resized(text: str) -> str:
    """The text with tree_sizes that fit its trees."""
    head, rest = text.split("Tree=0\n", 1)
    body = "Tree=0\n" + rest[: rest.index("end of trees")]
    sizes = [str(len(("Tree=" + tree).encode())) for tree in body.split("Tree=")[1:]]
    lines = [f"tree_sizes={' '.join(sizes)}" if line.startswith("tree_sizes") else line for line in head.split("\n")]
    return "\n".join(lines) + body + rest[rest.index("end of trees") :]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("left_child=1 ", "left_child=9999999 ", "outside the tree|hangs nowhere"),
        ("left_child=1 ", "left_child=0 ", "outside the tree|hangs nowhere"),
        ("left_child=1 ", "left_child=-9999999 ", "outside the tree"),
        ("split_feature=", "split_feature=7", "column that is not there"),
        ("tree_sizes=", "tree_sizes=9", "tree_sizes"),
        ("num_leaves=", "num_leaves=1", "one number per"),
        ("num_cat=0", "num_cat=9", "num_cat"),
        ("max_feature_idx=2", "max_feature_idx=2000000", "max_feature_idx"),
        ("num_class=1", "num_class=0", "outputs"),
        ("num_tree_per_iteration=1", "num_tree_per_iteration=7", "outputs"),
        ("objective=binary", "objective=custom", "neither shares nor values"),
        ("version=v4", "version=v4\nversion=v5", "twice"),
        ("is_linear=0", "is_linear=1", "linear"),
        ("left_child=", "left_child=x ", "list of numbers"),
        # What LightGBM reads in another way than Python does.
        ("num_leaves=", "num_leaves=\N{ARABIC-INDIC DIGIT TWO}", "count"),
        ("num_class=1", "num_class=\N{FULLWIDTH DIGIT ONE}", "count"),
        ("left_child=1 ", "left_child=1_0 ", "list of numbers"),
        ("left_child=1 ", "left_child=1\t", "control"),
        ("left_child=1 ", "left_child=1\N{NO-BREAK SPACE}", "single spaces"),
        ("left_child=1 ", "left_child=1  ", "single spaces"),
        ("threshold=", "threshold=0x1p3 ", "list of numbers"),
        ("leaf_count=", "leaf_count=1e3 ", "list of numbers"),
        ("decision_type=", "decision_type=99", "decision_type"),
        ("num_cat=0\n", "num_cat=0\rnum_cat=1\n", "control"),
        ("num_cat=0\n", "num_cat=0\na line of nothing\n", "states nothing"),
        ("leaf_value=", "leaf_value=1e999 ", "too large"),
        ("leaf_value=", "leaf_value=nan ", "list of numbers"),
        ("objective=binary", "objective=binary num_class:9", "outputs"),
        ("objective=binary", "objective=multiclass num_class:3000000", "outputs"),
        ("objective=binary", "objective=multiclass num_class:\N{ARABIC-INDIC DIGIT ONE}", "not numbers"),
        ("objective=binary", "objective=binary sigmoid:x", "not numbers|twice"),
    ],
)
def test_lies_of_a_lightgbm_file(old: str, new: str, words: str, made: Make) -> None:
    text = made("lightgbm_binary").path.read_text()
    assert old in text
    changed = text.replace(old, new, 1)
    if old in text[text.index("Tree=0\n") :] and old not in text[: text.index("Tree=0\n")]:
        changed = resized(changed)  # so that the tree itself is looked at
    with pytest.raises(UnreadableModel, match=words):
        lightgbm_trees.load(Content(changed.encode(), "", "m.txt"))


def test_lies_about_categories(made: Make) -> None:
    text = made("lightgbm_categories").path.read_text()
    changed = text.replace("cat_boundaries=0 1\n", "cat_boundaries=0 9\n")
    assert changed != text
    with pytest.raises(UnreadableModel, match="cat_boundaries"):
        lightgbm_trees.load(Content(changed.encode(), "", "m.txt"))
    data = made("xgboost_categories").path.read_bytes()

    def far(learner: Any) -> None:
        tree = next(tree for tree in trees(learner) if tree["categories"])
        tree["categories"][0] = 2**31 - 2

    with pytest.raises(UnreadableModel, match="category is out of range"):
        xgboost_trees.load(Content(edited_tree(data, far), "", "m.json"))


@pytest.mark.parametrize(
    "data",
    [
        b"{L" + b"\x7f" * 8,
        b"{i\x01a[$l#L\x7f\xff\xff\xff\xff\xff\xff\xff",
        b"{i\x01a[#L\x7f\xff\xff\xff\xff\xff\xff\xff",
        b"{i\x01a[$T#l\x7f\xff\xff\xff",
        b"{i\x01a" + b"[" * 5000,
        b"{i\xff",
        b"{i\x01aSi\x05ab",
        b"{i\x01aZi\x01aZ}",
        b"{}x",
    ],
)
def test_lies_of_binary_json(data: bytes) -> None:
    with pytest.raises(UnreadableModel):
        ubjson.decode(data)


def test_deep_json_is_refused() -> None:
    with pytest.raises(UnreadableModel, match="no readable JSON"):
        xgboost_trees.load(Content(b'{"a":' + b"[" * 200_000, "", "m.json"))


@pytest.mark.parametrize("data", [b"\x08\x01", b"\x3a\xff\xff\xff\xff\x0f", b"\x0b" * 9, b"\xff" * 20, b"\x38\x01"])
def test_bytes_that_are_no_graph(data: bytes) -> None:
    with pytest.raises(UnreadableModel):
        onnx_wire.survey(data)


def test_a_split_of_a_graph_on_a_column_that_is_not_there(tmp_path: Path) -> None:
    from skl2onnx import to_onnx
    from sklearn.tree import DecisionTreeRegressor

    cells = numbers()
    model = to_onnx(DecisionTreeRegressor(max_depth=2).fit(cells, cells[:, 0]), cells[:1].astype(np.float32))
    for attribute in model.graph.node[0].attribute:
        if attribute.name == "nodes_featureids":
            attribute.ints[0] = 10**9
    path = written(tmp_path, "model.onnx", model.SerializeToString())
    with pytest.raises(Mismatch, match="fails on a row"):
        bind(load_artifact(path), VALUE)


def forged(folder: Path, schema: dict[str, Any], files: dict[str, bytes] | None = None) -> Path:
    """A .skops file with this description of an object."""
    path = folder / "forged.skops"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("schema.json", json.dumps({"protocol": 2, "_skops_version": "0.16.0"} | schema))
        for name, data in (files or {}).items():
            archive.writestr(name, data)
    return path


def test_archives_that_hide_things(tmp_path: Path, canary: Path) -> None:
    touch = {"__class__": "touch", "__module__": "pathlib.Path", "__loader__": "FunctionNode", "content": "x"}
    with pytest.raises(UnreadableModel, match=r"not trusted|scikit-learn model"):
        load_artifact(forged(tmp_path, touch))
    with pytest.raises(UnreadableModel, match="pickle in it"):
        load_artifact(forged(tmp_path, touch, {"data.pkl": pickle.dumps(Trap(canary))}))
    with pytest.raises(UnreadableModel, match="broken archive"):
        load_artifact(written(tmp_path, "model.skops", b"PK\x03\x04" + b"x" * 100))
    assert not canary.exists()


def test_other_names_do_not_help(made: Make, tmp_path: Path, bound: Callable[[str], TablePredictor]) -> None:
    """A good model under the ending of another format is refused too."""
    for name in ("xgboost_binary", "lightgbm_binary", "onnx_matrix"):
        path = made(name).path
        for ending in FORMATS:
            if FORMATS[ending] is not FORMATS[path.suffix]:
                with pytest.raises(UnreadableModel):
                    load_artifact(written(tmp_path, f"m{ending}", path.read_bytes()))
