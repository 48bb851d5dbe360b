"""What is said of rows that were sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, Field

from app.ingest import Result
from app.uploads import Report
from app.wire import Count, Wire

inference_example = [
    {
        "partner_inference_id": "u-1",
        "inference_timestamp": "2026-03-01T08:00:00Z",
        "inference_data": {"income": 2100, "tenure": 3, "churn_yes": 0.7, "churn_no": 0.3},
        "ground_truth_timestamp": "2026-03-02T08:00:00Z",
        "ground_truth_data": {"churned": 1},
    }
]
truth_example = [
    {
        "partner_inference_id": "u-1",
        "ground_truth_timestamp": "2026-03-02T08:00:00Z",
        "ground_truth_data": {"churned": 1},
    }
]


class Counts(BaseModel):
    success: int = Field(description="Stored.", examples=[1])
    failure: int = Field(description="Not stored.", examples=[0])
    total: int = Field(description="Both.", examples=[1])


class RecordResult(BaseModel):
    message: str = Field(description="`success`, or what is wrong.", examples=["success"])
    status: int = Field(description="As in HTTP: 200, 400, 404 or 409.", examples=[200])
    partner_inference_id: str | None = Field(None, description="Of a bad record, if it has one.", examples=["u-1"])


class Counted(BaseModel):
    """What became of the records."""

    counts: Counts = Field(description="How many.")
    results: list[RecordResult] = Field(description="One per record, in order.")


class CountedFile(BaseModel):
    """What became of the rows of a file."""

    counts: Counts = Field(description="How many.")
    failures: list[RecordResult] = Field(description="The first 1,000 of the rows that were not stored.")


class Accepted(BaseModel):
    message: str = Field(description="`success`.", examples=["success"])


class ReferenceEnd(Wire):
    status: str | None = Field(None, description="`uploaded`.", examples=["uploaded"])
    total_record_count: Count = Field(description="How many rows the set has, or 400.", examples=[30])


class BatchEnd(Wire):
    status: str | None = Field(None, description="`uploaded`.", examples=["uploaded"])
    total_record_count: Count | None = Field(
        None, description="Rows of the last upload; not compared: a batch may be sent in several.", examples=[30]
    )


def counted(results: Sequence[Result]) -> dict[str, Any]:
    failure = sum(result.status >= 300 for result in results)
    counts = {"success": len(results) - failure, "failure": failure, "total": len(results)}
    return {"counts": counts, "results": [result_of(result) for result in results]}


def counted_file(report: Report) -> dict[str, Any]:
    counts = {"success": report.success, "failure": report.failure, "total": report.success + report.failure}
    return {"counts": counts, "failures": [result_of(result) for result in report.failures]}


def result_of(result: Result) -> dict[str, Any]:
    shown = {"message": result.message, "status": result.status}
    return shown if result.id is None else shown | {"partner_inference_id": result.id}
