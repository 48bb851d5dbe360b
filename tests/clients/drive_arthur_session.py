"""A user of the unmodified `arthurai` who logs in, and sends batches: prints what the client returned as JSON.

python drive_arthur_session.py HOST NAME SECRET
"""

import json
import sys
import tempfile
from pathlib import Path

import pandas as pd
from arthurai import ArthurAI
from arthurai.client.auth import AuthRefresher
from arthurai.client.helper import get_auth_info, user_login
from arthurai.common.constants import InputType, OutputType, Stage
from arthurai.common.exceptions import ArthurError

COUNT = 24
BATCH = "2026/03/01 a"
WHEN = pd.Timestamp("2026-03-01", tz="UTC")


def frame():
    """Rows of inputs and outputs, made without chance."""
    rows = pd.DataFrame({"income": [1000.0 + 37 * n for n in range(COUNT)]})
    rows["region"] = ["north" if n % 3 else "south" for n in range(COUNT)]
    rows["default_yes"] = [(n % 8) / 8 for n in range(COUNT)]
    rows["default_no"] = 1 - rows.default_yes
    rows["defaulted"] = (rows.default_yes > 0.6).astype(int)
    return rows


def refused(call, *arguments, **named):
    """What the client says of an error."""
    try:
        call(*arguments, **named)
    except ArthurError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def session(host, name, secret):
    """Connects in every way; the connection by login, and what was found."""
    arthur = ArthurAI(url=host, login=name, password=secret, allow_insecure=True)
    token, _ = user_login(host, "/api/v3", name, secret)
    refresher = AuthRefresher(host, name, secret, True)
    headers, wait = refresher.refresh()
    by_token = ArthurAI(url=host, access_key=token, allow_insecure=True)
    info = get_auth_info(host, "/api/v3", token)
    arthur.set_current_org("default")
    found = {
        "organization": [arthur.get_current_org(), by_token.get_current_org()],
        "known organization": ArthurAI(
            url=host, access_key=secret, organization_id="default", allow_insecure=True
        ).get_current_org(),
        "info": [info.username, info.organization_ids, info.roles],
        "refreshed": [list(headers), wait.total_seconds()],
        "token is not the key": token != secret and arthur.client.session.headers["Authorization"] != secret,
        "wrong": [
            refused(ArthurAI, url=host, login=name, password=secret + "x", allow_insecure=True),
            refused(ArthurAI, url=host, login="nobody", password=secret, allow_insecure=True),
            refused(ArthurAI, url=host, access_key="wrong", allow_insecure=True),
        ],
        "other organization": refused(arthur.set_current_org, "other"),
    }
    return arthur, found


def new_model(arthur, rows):
    """A batch model, saved with its reference set; its predicted attributes changed places afterwards."""
    model = arthur.model(
        partner_model_id="default risk/1",
        input_type=InputType.Tabular,
        output_type=OutputType.Multiclass,
        is_batch=True,
    )
    model.build(
        rows,
        pred_to_ground_truth_map={"default_no": 0, "default_yes": 1},
        ground_truth_column="defaulted",
        positive_predicted_attr="default_yes",
    )
    model.get_attribute("region").monitor_for_bias = True
    model.save()
    return model


def names(letter):
    return [f"{letter}-{n}" for n in range(COUNT)]


def folder_with(rows, when):
    """The rows twice: as a file of Parquet, and as one of JSON."""
    folder = Path(tempfile.mkdtemp())
    rows.assign(partner_inference_id=names("d"), inference_timestamp=when).to_parquet(folder / "rows.parquet")
    records = rows.assign(partner_inference_id=names("j"), inference_timestamp=when.isoformat())
    records.to_json(folder / "more.json", orient="records")
    return str(folder)


def sent(model, rows):
    """The rows as one bulk upload, as a folder of files, and as records: a batch and a day each."""
    predicted = rows.drop(columns=["defaulted"])
    truths = rows[["defaulted"]].assign(partner_inference_id=names("f"), ground_truth_timestamp=WHEN)
    return {
        "frame": model.send_bulk_inferences(
            batch_id=BATCH, data=predicted.assign(partner_inference_id=names("f"), inference_timestamp=WHEN)
        ),
        "folder": model.send_bulk_inferences(
            batch_id="b/2", directory_path=folder_with(predicted, WHEN + pd.Timedelta(days=1))
        ),
        "records": model.send_inferences(
            rows[["income", "region"]].to_dict(orient="records"),
            predictions=rows[["default_no", "default_yes"]].to_dict(orient="records"),
            partner_inference_ids=names("r"),
            inference_timestamps=[WHEN + pd.Timedelta(days=2)] * COUNT,
            ground_truths=rows.defaulted.tolist(),
            batch_id="b3",
        )["counts"],
        "truths": model.send_bulk_ground_truths(data=truths)["counts"],
        "closed again": [model.close_batch(BATCH, 3), model.close_batch(BATCH), model.close_batch("never/seen", 0)],
    }


def asked(model):
    by_batch = {"select": [{"property": "batch_id"}, {"function": "count"}], "group_by": [{"property": "batch_id"}]}
    model.await_inferences(min_count=COUNT)
    model.viz.timeline("region")
    model.viz.metric_series(["auc", "f1", "accuracyRate", "truePositiveRate"])
    drift = {
        "properties": ["income"],
        "num_bins": 4,
        "base": {"source": "reference"},
        "target": {"source": "inference"},
    }
    return {
        "drift": model.query(drift | {"metric": "PSI"}, query_type="drift"),
        "batches": model.query(by_batch | {"order_by": [{"property": "batch_id", "direction": "asc"}]}),
        "confusion": model.bias.metrics.group_confusion_matrices("region"),
        "confusion of a batch": model.bias.metrics.group_confusion_matrices("region", batch_id=BATCH),
        "positivity": model.bias.metrics.group_positivity_rates("region"),
    }


def missing(arthur, model):
    """What the client says of things that are not there."""
    return {
        "metrics": refused(model.get_metrics),
        "a metric": refused(model.create_metric, "m", {"select": [{"function": "count"}]}),
        "alert rules": refused(model.get_alert_rules),
        "alerts": refused(model.get_alerts),
        "accounts": refused(arthur.get_service_accounts),
        "group": refused(arthur.get_model_group, "g"),
        "hotspots": refused(model.find_hotspots, batch_id="b3"),
        "image": refused(model.get_image, "i", tempfile.mkdtemp()),
    }


def journey(host, name, secret):
    arthur, found = session(host, name, secret)
    rows = frame()
    model = new_model(arthur, rows)
    places = {each.name: each.position for each in model.get_attributes(stage=Stage.PredictedValue)}
    model.swap_predicted_attribute_positions()
    model.display_name, model.tags = "Risk", ["a", "b"]
    model.get_attribute("income").label = "Income"
    model.update()
    same = arthur.get_model(model.id)
    swapped = {each.name: each.position for each in same.get_attributes(stage=Stage.PredictedValue)}
    found["positions"] = [places, swapped]
    found["updated"] = [same.display_name, same.tags, same.get_attribute("income").label, same.is_batch]
    found["reference"] = same.query({"select": [{"function": "count"}], "from": "reference"})
    found |= {"sent": sent(same, rows), "asked": asked(same), "missing": missing(arthur, same)}
    model.archive()
    found["archived"] = [arthur.get_model(model.id).archived, refused(same.query, {"select": [{"function": "count"}]})]
    return found


found = json.dumps(journey(*sys.argv[1:]))
sys.stdout.write(f"\nfound {found}\n")
