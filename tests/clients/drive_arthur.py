"""A user of the unmodified `arthurai`, on the ordinary journey: prints what the client returned as JSON.

python drive_arthur.py HOST TOKEN
"""

import json
import sys
import tempfile
from pathlib import Path

import pandas as pd
from arthurai import ArthurAI
from arthurai.common.constants import InputType, OutputType

COUNT = 30
NORTH = {"property": "region", "comparator": "eq", "value": "north"}
WHEN = pd.Timestamp("2026-03-01", tz="UTC")


def reference():
    """Rows of every attribute, made without chance."""
    frame = pd.DataFrame({"income": [1000.0 + 37 * n for n in range(COUNT)], "tenure": range(COUNT)})
    frame["region"] = ["north" if n % 3 else "south" for n in range(COUNT)]
    frame["churn_yes"] = [n / COUNT for n in range(COUNT)]
    frame["churn_no"] = 1 - frame.churn_yes
    frame["churned"] = (frame.churn_yes > 0.5).astype(int)
    return frame


def record(name):
    data = {"income": 2100.0, "tenure": 3, "region": "north", "churn_yes": 0.7, "churn_no": 0.3}
    return {"partner_inference_id": name, "inference_timestamp": WHEN.isoformat(), "inference_data": data}


def truth(name):
    data = {"partner_inference_id": name, "ground_truth_timestamp": WHEN.isoformat()}
    return data | {"ground_truth_data": {"churned": 1}}


def folder_with(frame):
    folder = Path(tempfile.mkdtemp())
    frame.to_parquet(folder / "rows.parquet")
    return str(folder)


def journey(host, token):
    arthur = ArthurAI(url=host, access_key=token, allow_insecure=True)
    model = arthur.model(partner_model_id="churn/7", input_type=InputType.Tabular, output_type=OutputType.Multiclass)
    frame = reference()
    model.build(
        frame,
        pred_to_ground_truth_map={"churn_no": 0, "churn_yes": 1},
        ground_truth_column="churned",
        positive_predicted_attr="churn_yes",
    )
    model.save()
    names = [f"b-{n}" for n in range(COUNT)]
    rows = frame.drop(columns=["churned"]).assign(partner_inference_id=names, inference_timestamp=WHEN)
    truths = pd.DataFrame({"partner_inference_id": names, "churned": frame.churned, "ground_truth_timestamp": WHEN})
    found = {
        "sent": model.send_inferences([record(f"u-{n}") for n in range(20)])["counts"],
        "again": model.send_inferences([record("u-0")], fail_silently=True)["counts"],
        "truths": model.update_inference_ground_truths([truth(f"u-{n}") for n in range(20)])["counts"],
        "file": model.send_bulk_inferences(directory_path=folder_with(rows))[0]["counts"],
        "truth file": model.send_bulk_ground_truths(directory_path=folder_with(truths))["counts"],
    }
    rate = {"function": "accuracyRate", "alias": "accuracy"}
    found["query"] = model.query({"select": [{"function": "count"}, rate], "filter": [NORTH]})
    model.get_attribute("income").label = "Income"
    model.update()
    same = arthur.get_model("churn/7", id_type="partner_model_id")
    found["found"] = [same.id == model.id, same.get_attribute("income").label]
    found["attributes"] = {a.name: a.attribute_link for a in same.attributes}
    model.archive()
    return found


found = json.dumps(journey(*sys.argv[1:]))
sys.stdout.write(f"\nfound {found}\n")
