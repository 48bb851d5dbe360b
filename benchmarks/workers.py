"""Many workers: what one, two and four `whence worker` processes make of the same jobs.

    python -m benchmarks.workers [--rounds 2] [--workers 1 2 4] [--only backfill index explanations]

A real server that leaves its jobs to workers, on its own embedded database. Each round has every number of workers once
upward and once downward, so that a machine that slows down meanwhile slows all alike, and each of them does the same:
a backfill (exact Shapley values of a tree ensemble), the index of a fine-tune, and a batch of explanations asked for
with `Prefer: respond-async`. Every worker has one thread. The database itself writes down each lease and each result of
a shard: a shard that was stored twice ends the benchmark, and so do scores or an index that differ between runs. Then
explanations arrive at random at one worker and at two, for `benchmarks.scaling` to be held against. Writes
benchmarks/results/workers.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import httpx
import numpy as np
import xgboost

from tests import shard_log
from tests.clients.server import Server, environment, forked, objects, running, whence
from tests.fine_tunes import NAMES, PLACES, save_base, save_fine_tune, training_file
from tests.postgres import reachable_folder

SECRET = "benchmark-secret-0123456789"
DEMO_LM = Path(__file__).parents[1] / "demo" / "models" / "demo-lm"
RESULT = Path(__file__).parent / "results" / "workers.json"
PACKAGES = ("numpy", "torch", "xgboost-cpu", "procrastinate", "psycopg", "sqlalchemy")
MODELS = "/api/v3/models"
INPUTS, ROWS = [f"input_{place}" for place in range(9)], 800
PAIRS = 8_192
EXPLANATIONS, ARRIVALS = 60, 100
LOAD = 0.5
"""Of what the workers could do, arrives in the last part."""
ONE_THREAD = {"WHENCE_THREADS": "1", "OMP_NUM_THREADS": "1"}
TICKS = os.sysconf("SC_CLK_TCK")

Figures: TypeAlias = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--only", choices=list(WORK), nargs="+", default=list(WORK))
    arguments = parser.parse_args()
    busy = round(os.getloadavg()[0], 2)
    with reachable_folder() as data_dir, tempfile.TemporaryDirectory() as name, bench(data_dir, Path(name)) as made:
        runs = measured(made, arguments.rounds, arguments.workers, arguments.only)
        arrivals = {count: arriving(made, count, runs) for count in arguments.workers[:2]}
    result = {
        "machine": {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine()},
        "load average before": busy,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "rounds": arguments.rounds,
        "work": {name: summary(name, runs, arguments.workers) for name in arguments.only},
        "arrivals": arrivals,
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    for name in arguments.only:
        print(name, json.dumps(result["work"][name]["by workers"], indent=2))  # type: ignore[index]
    print(json.dumps(arrivals, indent=2))


@dataclass(frozen=True)
class Bench:
    """A server without a worker of its own, and all that the work needs."""

    server: Server
    client: httpx.Client
    model: str
    file: str
    data_dir: Path

    def done(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """The job once it has succeeded."""
        while True:
            found: dict[str, Any] = self.client.get(f"/jobs/{job['id']}").raise_for_status().json()
            if found["finished_at"]:
                assert found["state"] == "succeeded", found
                return found
            time.sleep(0.1)


@contextmanager
def bench(data_dir: Path, folder: Path) -> Iterator[Bench]:
    save_fine_tune(
        folder / "tuned", save_base(folder / "base", hidden_size=96, intermediate_size=384, num_hidden_layers=4)
    )
    product = trees(folder / "product.json")
    for name, path, kind in (("base", folder / "base", "causal-lm"), ("demo-lm", DEMO_LM, "causal-lm")):
        objects(whence(data_dir, "models", "add", name, str(path), "--kind", kind, "--json"))
    objects(whence(data_dir, "models", "add", "product", str(folder / "product.json"), "--kind", "tabular", "--json"))
    settings = {"WHENCE_API_KEY": SECRET, "WHENCE_MODELS_DIR": str(folder), "WHENCE_WORKER": "false"}
    headers = {"Authorization": f"Bearer {SECRET}"}
    with (
        running(data_dir, **settings, **ONE_THREAD) as server,
        httpx.Client(base_url=server.url, headers=headers, timeout=120) as client,
    ):
        shard_log.begin(data_dir)
        places = [(PLACES[number % 12], NAMES[number // 12 % 12]) for number in range(PAIRS)]
        pairs = [(f"Who keeps {place} {number}?", f"{name}.") for number, (place, name) in enumerate(places)]
        sent = client.post("/files", files={"file": ("pairs.jsonl", training_file(pairs))}).raise_for_status()
        yield Bench(server, client, stored_model(client, product), sent.json()["id"], data_dir)


def trees(path: Path) -> xgboost.XGBRegressor:
    values = np.random.default_rng(0).normal(size=(500, len(INPUTS))).round(3)
    model = xgboost.XGBRegressor(n_estimators=30, max_depth=4, random_state=0, n_jobs=1)
    model.fit(values, values.prod(axis=1)).save_model(path)
    return model


def stored_model(client: httpx.Client, model: xgboost.XGBRegressor) -> str:
    """The id of a monitored model with inferences."""
    inputs = [
        {"name": name, "value_type": "FLOAT", "stage": "PIPELINE_INPUT", "position": place}
        for place, name in enumerate(INPUTS)
    ]
    output = {"name": "product", "value_type": "FLOAT", "stage": "PREDICTED_VALUE", "position": 0}
    body = {"partner_model_id": "product", "input_type": "TABULAR", "output_type": "REGRESSION"}
    body |= {"attributes": [*inputs, output]}  # type: ignore[dict-item]
    id = str(client.post(MODELS, json=body).raise_for_status().json()["id"])
    values = np.random.default_rng(1).normal(size=(ROWS, len(INPUTS))).round(3)
    records = [
        {
            "partner_inference_id": f"u-{place}",
            "inference_timestamp": "2026-03-01T08:00:00Z",
            "inference_data": dict(zip(INPUTS, row, strict=True)) | {"product": said},
        }
        for place, (row, said) in enumerate(
            zip(values.tolist(), model.predict(values).astype(float).tolist(), strict=True)
        )
    ]
    counts = client.post(f"{MODELS}/{id}/inferences", json=records).json()["counts"]
    assert counts["success"] == ROWS, counts
    return id


@contextmanager
def workers(data_dir: Path, count: int) -> Iterator[None]:
    with ExitStack() as stack:
        for process in [forked(["worker"], environment(data_dir, **ONE_THREAD)) for _ in range(count)]:
            assert process.stdout is not None
            output = stack.enter_context(process.stdout)
            stack.callback(process.wait, 60)
            stack.callback(process.send_signal, 15)
            assert any("ready" in line for line in output)
        yield


# -- the work ----------------------------------------------------------------------------------------------------------


def backfill(made: Bench, number: int) -> Figures:
    """Under another seed everything is explained anew; Shapley values of nine inputs are exact, hence the same."""
    path = f"{MODELS}/{made.model}/enrichments/explainability"
    body = {"enabled": True, "config": {"explanation_algo": "shap", "seed": number}}
    assert made.client.patch(path, json=body).status_code == 202
    made.done(made.client.get("/jobs").json()["jobs"][0])
    asked = {"select": [{"property": "partner_inference_id"}, {"property": "explainer_score"}], "from": "enriched"}
    found = made.client.post(f"{MODELS}/{made.model}/inferences/query", json=asked).raise_for_status().json()
    scores = sorted(json.dumps(row, sort_keys=True) for row in found["query_result"])
    assert len(scores) == ROWS * len(INPUTS)
    return of_shards(made) | {"units": ROWS, "digest": hashlib.sha256("".join(scores).encode()).hexdigest()}


def index(made: Bench, _: int) -> Figures:
    made.client.delete("/models/tuned")
    made.client.post("/models", json={"name": "tuned", "path": "tuned", "base": "base"}).raise_for_status()
    asked = made.client.post("/models/tuned/influence-index", json={"training_files": [made.file]})
    job = made.done(asked.raise_for_status().json())
    (found,) = made.client.get("/models/tuned/influence-index").json()["indexes"]
    whole = seconds_between(job["started_at"], job["finished_at"])
    return of_shards(made) | {"units": PAIRS, "digest": found["facts"]["digest"], "seconds with what follows": whole}


def explanations(made: Bench, number: int) -> Figures:
    """A batch is many requests that nobody waits for: each is a job, for whichever worker is free."""
    jobs = [made.done(job) for job in [ask(made, f"{number}-{place}") for place in range(EXPLANATIONS)]]
    first, last = min(job["started_at"] for job in jobs), max(job["finished_at"] for job in jobs)
    assert len({job["explanation"] for job in jobs}) == EXPLANATIONS
    assert {job["attempts"] for job in jobs} == {1}
    each = [seconds_between(job["started_at"], job["finished_at"]) for job in jobs]
    return {"units": EXPLANATIONS, "seconds": seconds_between(first, last), "seconds of each": each, "digest": ""}


WORK: Mapping[str, Callable[[Bench, int], Figures]] = {
    "backfill": backfill,
    "index": index,
    "explanations": explanations,
}


def ask(made: Bench, name: str) -> dict[str, Any]:
    facts = f"Anna lives in Oslo. Ben lives in Rome. The code for the red door is {name}. Clara lives in Paris."
    prompt = f"{facts} Anna lives in"
    body = {"model": "demo-lm", "prompt": prompt, "target": " Oslo", "prompt_granularity": {"type": "word"}}
    answer = made.client.post("/explain", json=body | {"evaluate": True}, headers={"Prefer": "respond-async"})
    assert answer.status_code == 202, answer.text
    job: dict[str, Any] = answer.json()
    return job


def of_shards(made: Bench) -> Figures:
    """Of all shards since the last call: from the first lease to the last result, and of each its own time."""
    events = shard_log.read(made.data_dir)
    stored = shard_log.stored(events)
    assert len(stored) == len(set(stored)), "a shard was stored twice"
    begun: dict[Any, datetime] = {}
    again, each = 0, []
    for event in events:
        name = (event.work, event.number, event.first)
        if event.event == shard_log.LEASED:
            again += name in begun
            begun[name] = event.at
        else:
            each.append((event.at - begun[name]).total_seconds())
    shard_log.begin(made.data_dir)
    seconds = (events[-1].at - events[0].at).total_seconds()
    return {"seconds": seconds, "seconds of each": each, "leased twice": again, "stored twice": 0}


def seconds_between(start: str, end: str) -> float:
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()


# -- measuring ---------------------------------------------------------------------------------------------------------


def measured(made: Bench, rounds: int, counts: Sequence[int], only: Sequence[str]) -> list[Figures]:
    runs: list[Figures] = []
    with workers(made.data_dir, 1):  # the first time loads, and compiles
        for name in only:
            WORK[name](made, 0)
    for round in range(rounds):
        for count in [*counts, *reversed(counts)]:
            with workers(made.data_dir, count):
                for name in only:
                    before, database, server = cores_busy(), database_cpu(made), cpu_of(made.server.process.pid)
                    run = WORK[name](made, len(runs) + 1)
                    used = {
                        "cores busy": round_(cores_busy(before)),
                        "database": (database_cpu(made) - database) / run["units"],
                        "server": (cpu_of(made.server.process.pid) - server) / run["units"],
                    }
                    runs.append({"name": name, "workers": count, "round": round, **run, **used})
                    print(f"{name} by {count}: {run['units'] / run['seconds']:.1f} a second", flush=True)
    for name in only:
        assert len({run["digest"] for run in runs if run["name"] == name}) == 1, f"{name}: results differ"
    return runs


def summary(name: str, runs: Sequence[Figures], counts: Sequence[int]) -> Figures:
    mine = [run for run in runs if run["name"] == name]
    by = {count: [run for run in mine if run["workers"] == count] for count in counts}
    rates = {count: [run["units"] / run["seconds"] for run in found] for count, found in by.items()}
    one = by[counts[0]]
    return {
        "unit": {"backfill": "rows", "index": "training pairs", "explanations": "explanations"}[name],
        "units": one[0]["units"],
        "shards": len(one[0]["seconds of each"]),
        "stored twice": sum(run.get("stored twice", 0) for run in mine),
        "leased twice": sum(run.get("leased twice", 0) for run in mine),
        "by workers": {
            str(count): {
                "per second": round_(statistics.median(found)),
                "runs": [round_(each) for each in found],
                "times the first": round_(statistics.median(found) / statistics.median(rates[counts[0]])),
                "cores busy": round_(statistics.median(run["cores busy"] for run in by[count])),
            }
            for count, found in rates.items()
        },
        "seconds of one, by one worker": sorted(round_(each) for run in one for each in run["seconds of each"]),
        "CPU seconds of the database for a unit": round_(statistics.median(run["database"] for run in one)),
        "CPU seconds of the server for a unit": round_(statistics.median(run["server"] for run in one)),
    }


def arriving(made: Bench, count: int, runs: Sequence[Figures]) -> Figures:
    """Explanations that arrive at random, as often as keeps so many workers busy for the share `LOAD` of the time."""
    alone = [
        each for run in runs if run["name"] == "explanations" and run["workers"] == 1 for each in run["seconds of each"]
    ]
    rate, dice = LOAD * count / statistics.mean(alone), np.random.default_rng(count)
    with workers(made.data_dir, count):
        made.done(ask(made, f"first-{count}"))
        jobs, due = [], time.monotonic()
        for place in range(ARRIVALS):
            time.sleep(max(0.0, due - time.monotonic()))
            jobs.append(ask(made, f"arriving-{count}-{place}"))
            due += float(dice.exponential(1 / rate))
        jobs = [made.done(job) for job in jobs]
    waits = [seconds_between(job["created_at"], job["started_at"]) for job in jobs]
    services = [seconds_between(job["started_at"], job["finished_at"]) for job in jobs]
    whole = seconds_between(jobs[0]["created_at"], max(job["finished_at"] for job in jobs))
    return {
        "arrivals": ARRIVALS,
        "asked for in a second": round_(rate),
        "answered in a second": round_(ARRIVALS / whole),
        "wait, seconds": spread(waits),
        "service, seconds": spread(services),
        "services": sorted(round_(each) for each in services),
    }


def spread(seconds: Sequence[float]) -> dict[str, float]:
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return {"mean": round_(statistics.mean(seconds)), **{f"p{p}": round_(cuts[p - 1]) for p in (50, 95)}}


def round_(value: float) -> float:
    return float(f"{value:.4g}")


def cores_busy(since: tuple[float, float] | None = None) -> Any:
    """Busy and all time of the machine's cores so far, in seconds; or how many were busy since then, on average."""
    fields = [int(each) / TICKS for each in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    now = (sum(fields) - fields[3] - fields[4], sum(fields))
    if since is None:
        return now
    return (os.cpu_count() or 1) * (now[0] - since[0]) / max(1e-9, now[1] - since[1])


def cpu_of(pid: int, *, children: bool = False) -> float:
    """Seconds that a process has used, and those that have ended among its children."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(int(each) for each in fields[11 : 15 if children else 13]) / TICKS


def database_cpu(made: Bench) -> float:
    """Of all processes of the embedded server."""
    postmaster = int((made.data_dir / "postgres" / "postmaster.pid").read_text().split()[0])
    found = cpu_of(postmaster, children=True)
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        found += cpu_of(int(process.name)) if parent == postmaster else 0.0
    return found


if __name__ == "__main__":
    main()
