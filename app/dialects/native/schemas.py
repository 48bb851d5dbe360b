"""Whence's own wire: stored explanations, models, health."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, Field

from app.definitions import Definition
from app.model_body import ModelBody
from app.models import Entry, NewModel
from app.scaling import Scaling, scaling_record
from app.wire import Number, Whole, Wire
from storage.explanations import Page, Summary

Id = Field(description="Id of the explanation.", examples=["0197c1c6-5f0a-7cc0-8a86-5f5ce4c0a1b2"])
Kind = Field(
    description="Which question was asked: `completion`, `context-attribution` or `influence`.", examples=["completion"]
)
ModelField = Field(description="Name of the model at that time.", examples=["demo-lm"])
Digest = Field(description="Names the exact weights.", examples=["sha256:5f1c0a"])
Seconds = Field(description="Time the computation took.", examples=[0.021])
Forwards = Field(description="Passes through the model that it took.", examples=[5])
CreatedAt = Field(description="When it was stored.", examples=["2026-01-31T12:00:00Z"])


class FeatureRecord(BaseModel):
    """A part of the input that carries a score."""

    name: str = Field(description="The piece itself, or the token id.", examples=["Oslo is in Norway."])
    item: int = Field(description="Index of the prompt item; one past the last: the target itself.", examples=[0])
    place: int | list[float] = Field(
        description="Characters as [start, stop], a tile as [left, top, width, height], a token id by its position.",
        examples=[[0, 18]],
    )


class TargetRecord(BaseModel):
    """An output that is explained."""

    text: str = Field(description="The target, or one of its tokens.", examples=[" Norway"])
    span: list[int] | None = Field(description="Its characters as [start, stop].", examples=[[0, 7]])


class AttributionRecord(BaseModel):
    """The scores: one row per target, one column per feature."""

    method: str = Field(description="How they were computed.", examples=["atman"])
    features: list[FeatureRecord] = Field(description="The columns.")
    targets: list[TargetRecord] = Field(description="The rows.")
    values: list[list[float]] = Field(
        description="Scores; positive supports the target. A target token's own column is 0 for itself and before.",
        examples=[[1.84, -0.02, 0.31]],
    )
    base_values: list[float] | None = Field(
        description="Log-probability of each target before anything was changed.", examples=[[-0.4]]
    )
    uncertainty: list[list[float]] | None = Field(description="Standard errors, where known.", examples=[None])
    facts: dict[str, Any] = Field(
        description="How it was computed: granularity, counts, warnings, ...", examples=[{"granularity": "sentence"}]
    )


class TraceRecord(BaseModel):
    """Of kind `influence`: the training pairs behind an answer."""

    method: str = Field(description="How they were found.", examples=["gain-weighted-gradients"])
    results: list[dict[str, Any]] = Field(
        description="All pairs that stand out, best first, as `POST /influence` has them.",
        examples=[[{"id": "3f0c8f52-6f0e-5a7e-9a53-5d1f6e0c2b11", "influence_level": "high", "score": 1.62}]],
    )
    answer: str = Field(description="The answer that they explain.", examples=["Anna keeps the mill."])
    lift: float | None = Field(
        description="What fine-tuning added to its log-probability; null without a base model.", examples=[7.9]
    )
    facts: dict[str, Any] = Field(
        description="Digest of the index, pairs found, warnings of its build.", examples=[{"index": "sha256:5f1c0a"}]
    )


class ExplanationResponse(BaseModel):
    """A stored explanation, complete."""

    id: str = Id
    kind: str = Kind
    model: str = ModelField
    model_digest: str = Digest
    request: dict[str, Any] = Field(
        description="The canonical request: method, prompt, target and configuration with all defaults.",
        examples=[{"method": "atman", "prompt": [], "target": " Norway", "config": {"control_factor": 0.1}}],
    )
    attribution: AttributionRecord | TraceRecord = Field(
        description="The scores; of kind `influence` the training pairs."
    )
    seconds: float = Seconds
    forwards: int = Forwards
    created_at: datetime = CreatedAt


class ExplanationSummary(BaseModel):
    """A stored explanation without its request and scores."""

    id: str = Id
    kind: str = Kind
    model: str = ModelField
    model_digest: str = Digest
    prompt: str = Field(
        description="How the texts of the prompt, or the question, begin: at most 200 characters.",
        examples=["Oslo is in Norway. Oslo lies in"],
    )
    target: str = Field(
        description="How the target, or the answer, begins: at most 200 characters.", examples=[" Norway"]
    )
    seconds: float = Seconds
    forwards: int = Forwards
    created_at: datetime = CreatedAt


class ExplanationPage(BaseModel):
    explanations: list[ExplanationSummary] = Field(description="Newest first.")
    next_cursor: str | None = Field(
        description="Ask for the following page with it; null on the last one.", examples=[None]
    )


class ExplanationExport(BaseModel):
    """Many stored explanations, complete."""

    explanations: list[ExplanationResponse] = Field(description="Newest first.")


class ScalingBody(Wire):
    """How a model is spread over a Ray cluster; without one it has no effect."""

    min_replicas: Whole = Field(
        1,
        ge=0,
        le=1000,
        description="Replicas that are always there. 0: none, and the first request waits until there is one.",
        examples=[1],
    )
    max_replicas: Whole = Field(1, ge=1, le=1000, description="Replicas at most.", examples=[4])
    target_requests: Number = Field(
        2.0,
        ge=0.1,
        le=200,
        description="Requests under way in each replica that are aimed at: with more there are more replicas.",
        examples=[2.0],
    )
    cpus: Number = Field(1.0, ge=0, le=1024, description="CPU cores that each replica is given.", examples=[4.0])
    gpus: Number | None = Field(
        None,
        ge=0,
        le=1,
        description="GPUs that each replica is given: 1, 0 or a part of one that it shares. Default: 1 where the "
        "cluster has any.",
        examples=[1.0],
    )

    def to_domain(self) -> Scaling:
        return Scaling(**self.model_dump())


class ModelResponse(BaseModel):
    """A registered model."""

    name: str = Field(description="What `model` names in requests.", examples=["demo-lm"])
    kind: str = Field(description="What kind of model it is.", examples=["causal-lm"])
    base: str | None = Field(description="Of a fine-tune: the model it was trained from.", examples=["demo-lm"])
    digest: str | None = Field(description="Names the exact weights.", examples=["sha256:5f1c0a"])
    dtype: str | None = Field(description="Number format it is run in, if it was chosen.", examples=["float32"])
    device: str | None = Field(description="Where it runs, if that was chosen.", examples=["cpu"])
    scaling: ScalingBody | None = Field(description="How it is spread over a cluster, if that was chosen.")
    description: str = Field(description="As given when it was registered.", examples=["a small language model"])
    state: Literal["registered", "loading", "loaded", "refused"] = Field(
        description="How far this server is with it.", examples=["loaded"]
    )
    reason: str | None = Field(description="Why it is refused.", examples=[None])
    facts: dict[str, Any] = Field(
        description="What its load-time test found.", examples=[{"architecture": "LlamaForCausalLM"}]
    )
    created_at: datetime = Field(description="When it was registered.", examples=["2026-01-31T12:00:00Z"])


class ModelList(BaseModel):
    models: list[ModelResponse] = Field(description="By name.")


class NewModelRequest(Wire):
    """Registers a file or folder of the server's own disk."""

    name: str = Field(
        description="Name to serve it under: at most 200 letters, digits and `. _ - /`, as in `my-lm` or `org/my-lm`.",
        examples=["my-lm"],
    )
    kind: str = Field(
        "causal-lm", description="causal-lm, image-text-lm, tabular or text-classifier.", examples=["causal-lm"]
    )
    path: str = Field(
        min_length=1, description="Folder or file, relative to the server's WHENCE_MODELS_DIR.", examples=["my-lm"]
    )
    base: str | None = Field(
        None,
        description="Of a fine-tune: the registered model it was trained from. `path` is then a whole model, or "
        "the folder of a PEFT adapter, which is merged into that base.",
        examples=["demo-lm"],
    )
    dtype: str | None = Field(
        None, description="float32, float16 or bfloat16; default: as stored, on a CPU float32.", examples=["float32"]
    )
    device: str | None = Field(None, description="cpu, cuda:0, ...; default: the server's.", examples=["cpu"])
    scaling: ScalingBody | None = Field(
        None, description="How a model that completes prompts is spread over a Ray cluster; default: one replica."
    )
    description: str = Field("", max_length=2000, description="For people.", examples=["a small language model"])
    rows: ModelBody | None = Field(
        None, alias="schema", description="Of a predictor: its rows, as `POST /api/v3/models` has them."
    )

    @property
    def definition(self) -> Definition | None:
        return None if self.rows is None else self.rows.to_domain()

    def to_domain(self) -> NewModel:
        scaling = None if self.scaling is None else self.scaling.to_domain()
        return NewModel(self.name, self.kind, self.path, self.dtype, self.device, self.description, self.base, scaling)


class Health(BaseModel):
    status: Literal["ok"] = Field(description="The process answers.", examples=["ok"])


class ModelCounts(BaseModel):
    """Models of all tenants by state."""

    loaded: int = Field(description="Ready to answer.", examples=[1])
    loading: int = Field(description="Being loaded, or about to be.", examples=[0])
    refused: int = Field(description="Cannot be loaded; GET /models says why.", examples=[0])


class Readiness(BaseModel):
    """Which part is ready."""

    ready: bool = Field(description="All parts are ready.", examples=[True])
    not_ready: list[str] = Field(description="The parts that are not.", examples=[[]])
    database: bool = Field(description="Postgres answers.", examples=[True])
    migrations: bool = Field(description="The tables are those of this release.", examples=[True])
    models: bool = Field(description="No model is still being loaded (refused ones do not count).", examples=[True])
    disk: bool = Field(description="There is room left where the data directory lies.", examples=[True])
    store: bool | None = Field(
        description="The store of files answers; null without one (`WHENCE_STORE_URL`).", examples=[None]
    )
    worker: bool | None = Field(
        description="This process looks for jobs in the queue; null where that is left to others.", examples=[True]
    )
    accepting: bool = Field(description="Requests are taken: the server has not been told to end.", examples=[True])
    model_counts: ModelCounts = Field(description="How many models are in which state.")


def page_answer(page: Page) -> dict[str, Any]:
    return {"explanations": [summary_answer(row) for row in page.rows], "next_cursor": page.next_cursor}


def summary_answer(row: Summary) -> dict[str, Any]:
    return {name: getattr(row, name) for name in ExplanationSummary.model_fields}


def model_answer(entry: Entry) -> dict[str, Any]:
    registration = entry.registration
    chosen = {
        name: getattr(registration, name)
        for name in ("name", "kind", "base", "digest", "dtype", "device", "created_at")
    }
    chosen["scaling"] = scaling_record(registration.scaling)
    about = {"description": entry.description, "state": entry.state, "reason": entry.reason, "facts": dict(entry.facts)}
    return chosen | about
