"""A user of the unmodified `arthurai` who has inferences explained: prints what the client returned as JSON.

python drive_arthur_explanations.py begin|end HOST TOKEN FILE

FILE is JSON: of each model its name, the name of its project, columns of inputs and outputs, and rows of both.
`begin` is before there are predictors; `end` is after they have been registered.
"""

import json
import logging
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
from arthurai import ArthurAI
from arthurai.common.constants import Enrichment, InputType, OutputType
from arthurai.common.exceptions import ArthurError

WHEN = pd.Timestamp("2026-03-01", tz="UTC")
SENT = 12
ALGORITHM, OUTPUT, SCORE = "explainer_algo", "explainer_predicted_attribute", "explainer_score"
SCORES = [{"property": name} for name in (ALGORITHM, OUTPUT, "explainer_attribute", SCORE)]
CELLS = 6
"""Scores of an inference: three inputs times two outputs."""
SECONDS = 200

PROJECT = """
import json
from pathlib import Path

KNOWN = json.loads(Path(__file__).with_name("known.json").read_text())

def predict(rows):
    return [KNOWN[json.dumps([each if isinstance(each, str) else float(each) for each in row])] for row in rows]
"""
"""What the client packs, and runs itself on the rows of the sample; the server never does."""


def refused(call, *arguments, **named):
    """What the client says of an error."""
    try:
        call(*arguments, **named)
    except ArthurError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def frame_of(told):
    """Inputs and outputs of all rows, and the class that came true: the likelier one, except in every fifth row."""
    frame = pd.DataFrame(told["rows"], columns=told["inputs"]).astype(told["types"])
    frame[told["outputs"]] = told["predictions"]
    frame["truth"] = [int(row[-1] > 0.5) ^ (place % 5 == 0) for place, row in enumerate(told["predictions"])]
    return frame


def project_of(told):
    """A folder as the client wants it: code, requirements and whatever the code reads."""
    folder = Path(tempfile.mkdtemp())
    seen = [[each if isinstance(each, str) else float(each) for each in row] for row in told["rows"]]
    known = {json.dumps(row): output for row, output in zip(seen, told["predictions"], strict=True)}
    (folder / "known.json").write_text(json.dumps(known))
    (folder / f"{told['project']}.py").write_text(PROJECT)
    (folder / "requirements.txt").write_text("numpy==1.23.5\n")
    return folder


def saved(arthur, told, **kind):
    """A model, saved with its reference set."""
    model = arthur.model(partner_model_id=told["name"], output_type=OutputType.Multiclass, **kind)
    *no, yes = told["outputs"]
    model.build(
        frame_of(told),
        pred_to_ground_truth_map={**dict.fromkeys(no, 0), yes: 1},
        ground_truth_column="truth",
        positive_predicted_attr=yes,
        set_reference_data=False,
    )
    model.save()
    model.set_reference_data(data=frame_of(told))
    return model


def enabled(model, told, **config):
    """Packs the project as the client does, and has explanations enabled."""
    return model.enable_explainability(
        df=frame_of(told),
        project_directory=str(project_of(told)),
        user_predict_function_import_path=told["project"],
        python_version="3.8",
        **config,
    )


def sent(model, told, first, prefix, **named):
    """Records with what the model predicted for them; their counts."""
    rows = frame_of(told)[first : first + SENT]
    return model.send_inferences(
        rows[told["inputs"]],
        predictions=rows[told["outputs"]],
        partner_inference_ids=[f"{prefix}/{place}" for place in range(len(rows))],
        inference_timestamps=[WHEN] * len(rows),
        **named,
    )["counts"]


def sent_in_a_file(model, told, first, prefix):
    rows = frame_of(told)[first : first + SENT].drop(columns=["truth"])
    folder = Path(tempfile.mkdtemp())
    names = [f"{prefix}/{place}" for place in range(len(rows))]
    rows.assign(partner_inference_id=names, inference_timestamp=WHEN).to_parquet(folder / "rows.parquet")
    return model.send_bulk_inferences(directory_path=str(folder))[0]["counts"]


def of(inference, algorithm=None):
    pairs = {"partner_inference_id": inference} | ({ALGORITHM: algorithm} if algorithm else {})
    return [{"property": name, "comparator": "eq", "value": value} for name, value in pairs.items()]


def until(model, body, count):
    """The rows of a query, as soon as there are so many."""
    ends = time.monotonic() + SECONDS
    while len(rows := model.query(body)) != count:
        if time.monotonic() > ends:
            raise TimeoutError(f"{len(rows)} rows instead of {count}, and no more come")
        time.sleep(0.1)
    return rows


def scores_of(algorithm):
    condition = {"property": ALGORITHM, "comparator": "eq", "value": algorithm}
    return {"select": SCORES, "from": "enriched", "filter": [condition]}


def asked(model, inference):
    """An inference on demand and as a query; the regions of its algorithms."""
    region = {"function": "regionalFeatureImportances"}
    found = {}
    for algorithm in ("lime", "shap"):
        parameters = {"predicted_attribute_name": "leaves", "explanation_algorithm": algorithm}
        found[algorithm] = {
            "on demand": model.explain_inference(inference, algorithm),
            "query": model.query({"select": SCORES, "from": "enriched", "filter": of(inference, algorithm)}),
            "region": model.query({"select": [region | {"parameters": parameters}], "from": "enriched"}),
        }
    found["sorted"] = model.explain_inference(inference, "shap", sort="-value", page=1, page_size=2)
    found["samples"] = model.explain_inference(inference, "lime", n_samples=50)["explanation"]
    return found


def tabular(arthur, told):
    """There is a predictor: everything is ready at once."""
    model = saved(arthur, told, input_type=InputType.Tabular)
    found = {"id": model.id, "before": model.get_enrichments(), "sent": sent(model, told, 0, "u")}
    found["categories"] = [each.value for each in model.get_attribute("region").categories]
    found["too early"] = refused(model.explain_inference, "u/0")
    found["enabled"] = enabled(model, told, explanation_algo="lime", explanation_nsamples=300, seed=7)
    found["waited"] = sent(model, told, SENT, "late", wait_for_enrichments=True)
    found["file"] = sent_in_a_file(model, told, 2 * SENT, "file")
    truths = frame_of(told)["truth"][:SENT].tolist()
    names = [f"u/{place}" for place in range(SENT)]
    found["truths"] = model.update_inference_ground_truths(truths, partner_inference_ids=names)["counts"]
    found["lime"] = until(model, scores_of("lime"), 3 * SENT * CELLS)
    found["status"] = model.get_enrichment(Enrichment.Explainability)
    change = {"explanation_algo": "shap", "streaming_explainability_enabled": True}
    found["changed"] = model.update_enrichment(Enrichment.Explainability, True, change)
    found["shap"] = until(model, scores_of("shap"), 3 * SENT * CELLS)
    found["asked"] = asked(model, "late/3")
    found["unknown"] = refused(model.explain_inference, "nothing/here")
    return found


def without(arthur, told):
    """There is no predictor: what the client is told."""
    model = saved(arthur, told, input_type=InputType.Tabular)
    found = {"id": model.id, "sent": sent(model, told, 0, "u")}
    found["no files"] = refused(model.update_enrichment, Enrichment.Explainability, True, {"explanation_algo": "shap"})
    found["enabled"] = enabled(model, told, explanation_algo="shap", explanation_nsamples=300)
    found["status"] = model.get_enrichment(Enrichment.Explainability)
    found["waits"] = refused(sent, model, told, SENT, "late", wait_for_enrichments=True)
    found["asked"] = refused(model.explain_inference, "u/0")
    return found


def after(model):
    """The predictor has come, and nobody has enabled anything again."""
    found = {
        "status": model.get_enrichment(Enrichment.Explainability),
        "rows": len(until(model, scores_of("shap"), SENT * CELLS)),
    }
    found["asked"] = model.explain_inference("u/0", "shap")
    return found


def text(arthur, told):
    """A model of texts: tokens have scores. The client asks for lime whatever it is told."""
    model = saved(arthur, told, input_type=InputType.NLP, text_delimiter=r"\W+")
    found = {"id": model.id, "sent": sent(model, told, 0, "n")}
    found["enabled"] = enabled(model, told, explanation_algo="shap", explanation_nsamples=200)
    tokens = {"function": "nlp_explanation", "parameters": {"nlp_predicted_attribute": told["outputs"][1]}}
    found["query"] = until(model, {"select": [{"property": "partner_inference_id"}, tokens]}, SENT)
    found["status"] = model.get_enrichment(Enrichment.Explainability)
    found["lime"], found["shap"] = (model.explain_inference("n/1", algorithm) for algorithm in ("lime", "shap"))
    greater = {"property": "nlp_explanation.value", "comparator": "gt", "value": 0}
    first = {"property": "nlp_explanation.value", "direction": "desc"}
    found["positive"] = model.query({"select": [tokens], "filter": [*of("n/1"), greater], "order_by": [first]})
    return found


def documented(model):
    """The change that the client's own documentation shows."""
    config = {
        "streaming_explainability_enabled": False,
        "explanation_nsamples": 1000,
        "explanation_algo": "lime",
        "inference_consumer_score_percent": "1.0",
    }
    off = {"enabled": False}
    change = {"anomaly_detection": off, "explainability": {"config": config, "enabled": True}, "hotspots": off}
    return [model.update_enrichments(change), model.get_enrichments()]


def ended(model):
    """Changed, switched off, and archived."""
    found = {"documented": documented(model), "lime": len(until(model, scores_of("lime"), SENT * CELLS))}
    model.delete_explainer()
    found["deleted"] = [model.get_enrichment(Enrichment.Explainability), refused(model.explain_inference, "u/0")]
    found["kept"] = len(model.query(scores_of("lime")))
    model.archive()
    return found | {"archived": refused(model.get_enrichments)}


def begin(arthur, told):
    return {"without": without(arthur, told["without"])}


def end(arthur, told):
    late = arthur.get_model(told["without"]["name"], id_type="partner_model_id")
    found = {"after": after(late), "ended": ended(late)}
    return found | {"tabular": tabular(arthur, told["tabular"]), "text": text(arthur, told["text"])}


logging.disable(logging.WARNING)
scene, host, token, file = sys.argv[1:]
arthur = ArthurAI(url=host, access_key=token, allow_insecure=True)
found = {"begin": begin, "end": end}[scene](arthur, json.loads(Path(file).read_text()))
sys.stdout.write(f"\nfound {json.dumps(found)}\n")
