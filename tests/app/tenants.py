"""Two tenants on one server, every route of it, and how each thing that a request can name is made.

A route that is new fails `test_isolation.py` until its path parameters are in OBJECTS and its bodies in ASKS.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import httpx
from fastapi.routing import APIRoute

from app.dependencies import KeyedRoute
from app.deployments import deployment_id
from app.dialects.arthur import missing_routes as arthur_missing
from app.dialects.arthur.model_routes import MODELS
from app.dialects.seekr import missing_routes as seekr_missing
from tests.app.conftest import PROMPT, TARGET, Running
from tests.app.indexes import ended
from tests.app.predictors import INPUTS, WHEN, definition, records, rows
from tests.fine_tunes import PAIRS, training_file

MARK = "alphaonly"
"""Part of every name that the first tenant gives."""
ANYTHING = "x"

OBJECTS: Mapping[str, str | None] = {
    "/models/{model}": "model",
    "/models/{name}": "model",
    "/jobs/{id}": "job",
    "/explanations/{id}": "explanation",
    "/explorer/stored/{id}": "explanation",
    "/explorer/training/{id}": "explanation",
    "/explorer/jobs/{id}": "job",
    "/explorer/prompt/{id}": "explanation",
    "/files/{id}": "file",
    "/v1/flow/files/{id}": "file",
    "/v1/flow/deployments/{id}": "deployment",
    "/v1/flow/explain/models/{model_id}": "model",
    "/v1/flow/fine-tunes/{rest}": None,
    "/api/v3/models/{model_id}": "monitored",
    "/api/v3/models/{model_id}/inferences/{inference}": "inference",
    "/api/v3/models/{model_id}/inferences/query/{partner_inference_id}": "inference",
    "/api/v3/models/{model_id}/inferences/images/{image_id}": None,
    "/api/v3/models/{model_id}/enrichments/{name}": "enrichment",
    "/api/v3/models/{model_id}/batches/{batch_id}": "batch",
    "/api/v3/models/{model_id}/alert_rules/{alert_rule_id}": None,
    "/api/v3/alerts/{alert_id}": None,
    "/api/v3/model_groups/{model_group_id}": None,
    "/api/v4/models/{model_id}": "monitored",
    "/api/v4/models/{model_id}/metrics/{metric_id}": None,
}
"""By path up to the parameter: what it names. None: a thing that this server has not, whoever asks."""

CHILDREN = {"inference", "batch", "file", "deployment"}
"""What can be asked for beside something of one's own."""


class Names(dict[str, str]):
    """What a request names, by noun; remembers which were asked for."""

    def __init__(self, names: Mapping[str, str]) -> None:
        super().__init__(names)
        self.used: set[str] = set()

    def __getitem__(self, noun: str) -> str:
        self.used.add(noun)
        return super().__getitem__(noun)


Ask = Callable[[Names], dict[str, Any]]


def told(**body: Any) -> dict[str, Any]:
    return {"json": body}


def with_file(part: str, content: bytes, name: str) -> Ask:
    return lambda _: {"files": {part: (name, content)}}


FLAT = json.dumps([dict(zip(INPUTS, row, strict=True)) for row in rows(3).tolist()]).encode()
PROMPTED = {"prompt": PROMPT, "target": TARGET}
SAID = [{"role": "user", "content": "Anna"}]
COUNT = {"select": [{"function": "count"}]}
SIDES = {"base": {"source": "reference"}, "target": {"source": "inference"}, "num_bins": 3}
ENDED = {"status": "uploaded", "total_record_count": 60}
ROW = [{"attribute_name": name, "attribute_value": 0.5} for name in INPUTS]
PREDICTIONS = "/explorer/predictions"
TRIED = {f"input.{name}": "0.5" for name in INPUTS}
ASYNC = {"headers": {"Prefer": "respond-async"}}
DRAWN = {"headers": {"Accept": "image/svg+xml"}}
CONTEXT = {"context": PROMPT, "query": "", "response": TARGET}


def truth(n: Names) -> dict[str, Any]:
    row = {"partner_inference_id": n["inference"], "ground_truth_timestamp": WHEN, "ground_truth_data": {"left": 1}}
    return {"json": [row]}


def inference(_: Names) -> dict[str, Any]:
    values = dict.fromkeys(INPUTS, 0.5) | {"stays": 0.5, "leaves": 0.5}
    sent = {"partner_inference_id": f"n-{uuid4()}", "inference_timestamp": WHEN, "inference_data": values}
    return {"json": [sent]}


def question(noun: str, **more: Any) -> Ask:
    return lambda n: told(model_id=n[noun], question=PAIRS[0][0], answer=PAIRS[0][1], **more)


def of_region(noun: str, *, inference: bool = False) -> Ask:
    return lambda n: {"params": {"model": n[noun]} | ({"inference": n["inference"]} if inference else {})}


def nothing(_: Names) -> dict[str, Any]:
    return {}


FILE = training_file(PAIRS[:2])
ASKS: Mapping[str, Sequence[Ask]] = {
    "POST /explain": (
        lambda n: told(model=n["model"], **PROMPTED),
        lambda n: told(model=n["model"], **PROMPTED, dry_run=True),
        lambda n: told(model=n["model"], **PROMPTED) | ASYNC,
    ),
    "POST /tokenize": (lambda n: told(model=n["model"], prompt=PROMPT, tokens=True, token_ids=True),),
    "POST /detokenize": (lambda n: told(model=n["model"], token_ids=[70, 71]),),
    "POST /evaluate": (lambda n: told(model=n["model"], prompt=PROMPT, completion_expected=TARGET),),
    "POST /complete": (
        lambda n: told(model=n["model"], prompt=PROMPT, maximum_tokens=2),
        lambda n: told(model=n["model"], prompt=PROMPT, maximum_tokens=2, stream=True),
    ),
    "POST /chat/completions": (lambda n: told(model=n["model"], messages=SAID, maximum_tokens=2),),
    **{f"POST /{name}": (lambda _: told(model=ANYTHING),) for name in (
        "embed", "embeddings", "semantic_embed", "batch_semantic_embed", "instructable_embed", "rerank", "translate",
        "steering_concepts",
    )},
    "POST /explorer/sign-out": (nothing,),
    "POST /explorer/jobs/{id}/cancel": (nothing,),
    "POST /explorer/training": (
        lambda n: {"data": {"model": n["model"], "question": PAIRS[0][0], "answer": PAIRS[0][1]}},
    ),
    "GET /explorer/stored/{id}/export": tuple(
        (lambda _, form=form: {"params": {"format": form}}) for form in ("json", "csv", "html", "svg")
    ),
    "POST /explorer/prompt": (
        lambda n: {"data": {"model": n["model"], **PROMPTED}},
        lambda n: {"data": {"model": n["model"], **PROMPTED, "other_factor": "0.5"}},
        lambda n: {"data": {"model": n["model"], **PROMPTED}, "headers": {"HX-Request": "true"}},
        lambda n: {"data": {"model": n["model"], **PROMPTED, "pictured": n["explanation"]}},
    ),
    "GET /explorer/prompt/{id}": (nothing, lambda n: {"params": {"other": n["explanation"]}}),
    "POST /api/v3/login": (lambda _: told(login=ANYTHING, password=ANYTHING),),
    "PUT /api/v3/organizations/current": (lambda n: told(organization_id=n["tenant"]),),
    f"POST {MODELS}": (lambda _: told(**definition(f"new-{uuid4()}")),),
    f"POST {MODELS}/{{model_id}}/retry": (nothing,),
    f"PUT {MODELS}/{{model_id}}": (lambda _: told(display_name="Churn"),),
    f"POST {MODELS}/{{model_id}}/what_if": (
        lambda _: told(model_pipeline_input=ROW),
        lambda n: told(model_pipeline_input=ROW, compare_to=n["inference"]),
        lambda _: told(model_pipeline_input=ROW, dry_run=True),
        lambda _: told(model_pipeline_input=ROW) | DRAWN,
    ),
    f"PATCH {MODELS}/{{model_id}}/enrichments": (lambda _: told(explainability={"enabled": True}),),
    f"PATCH {MODELS}/{{model_id}}/enrichments/{{name}}": (lambda _: told(enabled=True),),
    "POST /query": (lambda n: told(model_id=n["monitored"], **COUNT), lambda n: told(model_id=n["partner"], **COUNT)),
    f"POST {MODELS}/{{model_id}}/inferences/query": (lambda _: told(**COUNT), lambda _: told(**COUNT) | DRAWN),
    f"GET {MODELS}/{{model_id}}/inferences/{{inference}}/explanation": (nothing, lambda _: DRAWN),
    f"POST {MODELS}/{{model_id}}/inferences/query/data_drift": (
        lambda _: told(properties=["income"], metric="PSI", **SIDES),
    ),
    f"POST {MODELS}/{{model_id}}/inferences/query/data_drift_psi_bucket_calculation_table": (
        lambda _: told(property="income", **SIDES),
    ),
    f"POST {MODELS}/{{model_id}}/inferences": (inference,),
    f"PATCH {MODELS}/{{model_id}}/inferences": (truth,),
    f"PATCH {MODELS}/{{model_id}}/ground_truth": (truth,),
    f"POST {MODELS}/{{model_id}}/inferences/file": (with_file("inference_data", FLAT, "rows.json"),),
    f"POST {MODELS}/{{model_id}}/reference_data": (with_file("reference_data", FLAT, "rows.json"),),
    f"PATCH {MODELS}/{{model_id}}/reference_data": (lambda _: told(**ENDED),),
    f"PATCH {MODELS}/{{model_id}}/batches/{{batch_id}}": (lambda _: told(**ENDED),),
    "PUT /v1/flow/files": (with_file("files", FILE, "f.jsonl"),),
    "PUT /v1/flow/bulk_files": (with_file("files", FILE, "f.jsonl"),),
    "PUT /v1/flow/files/{id}/rename": (lambda _: told(new_filename=f"{MARK}-2.jsonl"),),
    "POST /influence": (
        question("model"), question("model", dry_run=True), lambda n: question("model")(n) | ASYNC,
        question("deployment"), question("deployment", dry_run=True), lambda n: question("deployment")(n) | ASYNC,
    ),
    "GET /v1/flow/explain/models/{model_id}/influential-finetuning-data": (
        lambda _: {"params": {"question": PAIRS[0][0], "answer": PAIRS[0][1]}},
    ),
    "POST /v1/inference/chat/completions": tuple(
        (lambda n, noun=noun: told(model=n[noun], messages=SAID, max_tokens=2)) for noun in ("model", "deployment")
    ),
    "POST /v1/inference/completions": tuple(
        (lambda n, noun=noun: told(model=n[noun], prompt=PROMPT, max_tokens=2)) for noun in ("model", "deployment")
    ),
    "POST /v1/explainability/context-attributor": tuple(
        (lambda n, noun=noun: told(model=n[noun], **CONTEXT)) for noun in ("model", "deployment")
    ),
    "POST /v1/flow/deployments": (
        lambda n: told(name=MARK, description=MARK, model_type="Base Model", model_id=n["model"]),
    ),
    "PUT /v1/flow/deployments/{id}/promote": (nothing,),
    "PUT /v1/flow/deployments/{id}/demote": (nothing,),
    "POST /files": (with_file("file", FILE, "f.jsonl"),),
    "POST /models": (lambda n: told(name=f"new-{uuid4()}", kind="causal-lm", path="tiny-lm", base=n["model"]),),
    "POST /models/{name}/influence-index": (lambda n: told(training_files=[n["file"]]),),
    "GET /explanations/{id}": (
        nothing, lambda _: {"headers": {"Accept": "text/html"}}, lambda _: DRAWN,
        lambda _: {"headers": {"Accept": "text/csv"}},
    ),
    "GET /jobs/{id}/events": (nothing, lambda _: {"headers": {"Last-Event-ID": "1"}}),
    f"GET {PREDICTIONS}": (nothing, of_region("monitored"), of_region("partner")),
    f"GET {PREDICTIONS}/rows": (of_region("monitored"), of_region("partner")),
    **{f"GET {PREDICTIONS}/{name}": (of_region("monitored", inference=True),) for name in (
        "one", "scores",
    )},
    f"POST {PREDICTIONS}/explained": (
        lambda n: {"data": {"model": n["monitored"], "inference": n["inference"]}},
    ),
    f"POST {PREDICTIONS}/what-if": (
        lambda n: {"data": {"model": n["monitored"], "inference": n["inference"]} | TRIED},
    ),
    f"GET {MODELS}/{{model_id}}": (
        nothing, lambda n: {"params": {"id_type": "partner_model_id"}, "path": {"model_id": n["partner"]}},
    ),
}  # fmt: skip
"""By operation: what is sent with it. Every one with a body must be here; some ask in several ways."""

VENDORS = ("/v1/flow/", "/v1/explainability/", "/v1/inference/")
"""Where /v1 is no prefix but the vendor's own."""
REFUSED = {path for path, _, _ in arthur_missing.MISSING} | {path for path, _, _ in seekr_missing.MISSING}
"""What this server has not."""


@dataclass(frozen=True, eq=False)
class Operation:
    method: str
    route: APIRoute

    @property
    def path(self) -> str:
        """Without the prefix under which a dialect has all its routes once more."""
        path = self.route.path_format
        return path if path.startswith(VENDORS) else path.removeprefix("/v1")

    @property
    def name(self) -> str:
        return f"{self.method} {self.route.path_format}"

    @property
    def asks(self) -> Sequence[Ask]:
        if self.method in ("GET", "DELETE") or self.route.path in REFUSED:
            return ASKS.get(f"{self.method} {self.path}", (nothing,))
        return ASKS[f"{self.method} {self.path}"]

    def request(self, ask: Ask, names: Names) -> dict[str, Any]:
        """What the client is called with; raises KeyError for a parameter that OBJECTS lacks."""
        given = ask(names)
        values = given.pop("path", {})
        for match in re.finditer(r"\{(\w+)\}", self.path):
            noun = OBJECTS[self.path[: match.end()]]
            values.setdefault(match[1], names[noun] if noun else ANYTHING)
        url = self.route.path_format.format(**{name: quote(value) for name, value in values.items()})
        return {"method": self.method, "url": url, **given}


def operations(running: Running) -> Iterator[Operation]:
    """Those of the description, and those that it leaves out."""
    for route in running.app.routes:
        assert isinstance(route, APIRoute)
        for method in sorted(route.methods - {"HEAD"}):
            yield Operation(method, route)


def keyed(running: Running) -> list[Operation]:
    """What needs a key; lists first, as the audit log repeats what its tenant has asked for, and deletions last."""
    found = [each for each in operations(running) if isinstance(each.route, KeyedRoute)]
    return sorted(found, key=lambda each: (each.method == "DELETE", each.method != "GET" or "{" in each.path))


@dataclass(frozen=True)
class Tenant:
    """A tenant with one of everything; `names` by noun."""

    name: str
    key: dict[str, str]
    names: dict[str, str] = field(default_factory=dict)

    async def ask(self, running: Running, **request: Any) -> httpx.Response:
        headers = request.pop("headers", {}) | self.key
        return await running.client.request(**request, headers=headers)


def absent(names: Mapping[str, str]) -> dict[str, str]:
    """Names of the same form that nothing has."""
    some = {noun: str(uuid4()) for noun in names}
    forms = {"model": "none/", "file": "file-", "deployment": "deployment-"}
    forms |= dict.fromkeys(("tenant", "partner", "inference", "batch"), "none-")
    found = {noun: forms.get(noun, "") + some[noun] for noun in names}
    return found | {"enrichment": "explainability"}  # a word of the wire, which all tenants have


async def settled(running: Running, tenant: Tenant) -> None:
    view = Running(running.app, client_of(running, tenant))
    for job in (await view.client.get("/jobs?limit=500")).json()["jobs"]:
        await ended(view, f"/jobs/{job['id']}")


def client_of(running: Running, tenant: Tenant) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(running.app), base_url="http://whence", headers=tenant.key)


async def made(running: Running, mark: str, predictor: Path, *, whole: bool) -> Tenant:
    """A new tenant with models and rows; the `whole` one also with an index, an explanation and jobs."""
    name = f"{mark}-{uuid4().hex[:8]}"
    tenant = Tenant(name, await running.key("admin", tenant=name))
    model, partner, monitored = f"{mark}/lm", f"{mark}-churn", ""

    async def done(**request: Any) -> Any:
        answer = await tenant.ask(running, **request)
        assert answer.status_code < 300, answer.text
        return answer.json()

    await done(method="POST", url="/models", json={"name": model, "kind": "causal-lm", "path": "tiny-lm"})
    await done(method="POST", url="/models", json={"name": partner, "kind": "tabular", "path": predictor.name})
    monitored = (await done(method="POST", url=MODELS, json=definition(partner)))["id"]
    sent = [each | {"batch_id": f"{mark}-batch"} for each in records(predictor, rows(3), f"{mark}-u")]
    await done(method="POST", url=f"{MODELS}/{monitored}/inferences", json=sent)
    file = (await done(method="POST", url="/files", files={"file": (f"{mark}.jsonl", training_file())}))["id"]
    tenant.names.update(tenant=name, model=model, partner=partner, monitored=monitored, inference=f"{mark}-u-0")
    tenant.names.update(
        batch=f"{mark}-batch", file=file, deployment=deployment_id(name, model), enrichment="explainability"
    )
    if whole:
        await fill(running, tenant, done)
    return tenant


async def fill(running: Running, tenant: Tenant, done: Callable[..., Any]) -> None:
    names = tenant.names
    content = json.dumps([dict(zip(INPUTS, row, strict=True)) for row in rows(60, seed=1).tolist()])
    place = f"{MODELS}/{names['monitored']}"
    await done(method="POST", url=f"{place}/reference_data", files={"reference_data": ("rows.json", content)})
    enabled = {"enabled": True, "config": {"explanation_nsamples": 60}}
    await done(method="PATCH", url=f"{place}/enrichments/explainability", json=enabled)
    explained = await done(method="POST", url="/explain", json={"model": names["model"], **PROMPTED})
    again = {"model": names["model"], **PROMPTED, "fresh": True}
    await done(method="POST", url="/explain", json=again, headers={"Prefer": "respond-async"})
    index = {"training_files": [names["file"]]}
    job = await done(method="POST", url=f"/models/{names['model']}/influence-index", json=index)
    names.update(explanation=explained["id"], job=job["id"])
    await settled(running, tenant)
