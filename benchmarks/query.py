"""How scores may lie in Postgres, and how long it takes to look one explanation up and to average over all of them.

    python -m benchmarks.query

200,000 inferences with 20 inputs and 2 predicted attributes, stored by `storage`, whose layout is the first; the others
are made from it in the same database, with the same keys and row-level security. DuckDB reads the same scores, a row
for each, from Parquet. The layouts take turns, so that a busy machine slows all of them. All means are held against
numpy's. Writes benchmarks/results/query.json.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias
from uuid import UUID

import duckdb
import numpy as np
import psycopg
import pyarrow as pa
from numpy.typing import NDArray
from psycopg import sql

from storage import inferences, monitored_models, scores, tenants
from storage.cells import cells_of
from storage.database import Database
from storage.embedded import embedded_postgres
from storage.inferences import Rows
from storage.migrations import migrate
from storage.monitored_models import Attribute
from storage.query.answers import run as answers
from storage.query.compiler import compile_query
from storage.query.grammar import parse
from storage.query.schema import INPUT, PREDICTED, Explainability, QueryModel
from storage.query.schema import Attribute as Column
from storage.scores import Scores
from tests.postgres import connection

ROWS, INPUTS, OUTPUTS, ROUNDS, LOOKUPS = 200_000, 20, 2, 9, 300
BLOCK = 10_000
PLACES = INPUTS * OUTPUTS
THRESHOLD = 0.5  # of the third input: about three of ten inferences pass
START = np.datetime64("2026-03-01", "us")
TENANT, ALGORITHM = "bench", "lime"
RESULT = Path(__file__).parent / "results" / "query.json"
PACKAGES = ("duckdb", "numpy", "psycopg", "pyarrow", "sqlalchemy")
OWN = "Whence: arrays, elements named"
POLICY = "tenant_id = (SELECT current_setting('whence.tenant', true))"
Means: TypeAlias = Callable[[int, bool], Awaitable[list[float]]]
"""Of so many places from the first on, over all inferences or those that pass the filter."""
Lookup: TypeAlias = Callable[[str], Awaitable[list[float]]]


@dataclass(frozen=True, slots=True)
class Layout:
    """A table made from `inference_scores`: `columns` beside the keys, and what a statement over it says."""

    name: str
    table: str
    columns: str
    source: str  # FROM
    means: Callable[[int], str]  # SELECT, for so many places
    rest: Callable[[int], tuple[str, str]] = lambda _: ("", "")  # a condition, and GROUP BY
    key: str = ""
    read: Callable[[list[Any]], list[float]] = lambda rows: list(rows[0])
    lookup: str = "scores"
    more: str = ""  # FROM, of the statement


def by_place(rows: list[Any]) -> list[float]:
    return [mean for _, mean in sorted(rows)]


MAGNITUDES = "(SELECT array_agg(abs(score) ORDER BY place) FROM unnest(scores) WITH ORDINALITY AS each (score, place))"
LAYOUTS = (
    Layout(
        "arrays, unnested",
        "inference_scores",
        "",
        "",
        lambda _: "place, avg(abs(score))",
        lambda _: ("", "GROUP BY place"),
        read=by_place,
        more=", unnest(s.scores[1:{places}]) WITH ORDINALITY AS each (score, place)",
    ),
    Layout(
        "a row per score",
        "score_rows",
        "((place - 1) / 20)::smallint AS output, ((place - 1) % 20)::smallint AS input, score",
        ", unnest(scores) WITH ORDINALITY AS each (score, place)",
        lambda _: "output * 20 + input, avg(abs(score))",
        lambda places: ("AND output = 0" if places == INPUTS else "", "GROUP BY output, input"),
        key=", output, input",
        read=by_place,
        lookup="score",
    ),
    Layout(
        "a column per score",
        "score_columns",
        ", ".join(f"scores[{place + 1}] AS score_{place}" for place in range(PLACES)),
        "",
        lambda places: ", ".join(f"avg(abs(score_{place}))" for place in range(places)),
        lookup=", ".join(f"score_{place}" for place in range(PLACES)),
    ),
    Layout(
        "pgvector: magnitudes of all outputs, avg(vector)",
        "score_vectors",
        f"scores, {MAGNITUDES}::vector AS magnitudes",
        "",
        lambda _: "avg(magnitudes)",
        read=lambda rows: json.loads(rows[0][0]),
    ),
    Layout(
        "magnitudes of all outputs as float8[], summed by pgvector's vector_combine",
        "score_sums",
        f"scores, array_prepend(1::float8, {MAGNITUDES}) AS magnitudes",
        "",
        lambda _: "array_total(magnitudes)",
        read=lambda rows: [total / rows[0][0][0] for total in rows[0][0][1:]],
    ),
)
TOTAL = """
    CREATE AGGREGATE array_total (float8[]) (
        SFUNC = vector_combine, STYPE = float8[], COMBINEFUNC = vector_combine, INITCOND = '{0}', PARALLEL = SAFE
    )
"""


def main() -> None:
    busy = round(os.getloadavg()[0], 2)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o711)  # under root the server's user passes through
        with embedded_postgres(folder) as url:
            migrate(url)
            figures = asyncio.run(measured(url, folder))
    result = {
        "machine": {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine()},
        "load average before": busy,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "inferences": ROWS,
        "inputs": INPUTS,
        "outputs": OUTPUTS,
        **figures,
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


async def measured(url: str, folder: Path) -> dict[str, Any]:
    random = np.random.default_rng(0)
    inputs, values = random.normal(size=(ROWS, INPUTS)), random.normal(size=(ROWS, PLACES))
    database = Database.connect(url, pool_size=1)
    try:
        model_id = await filled(database, inputs, values)
        with connection(url) as plain:
            plain.execute(sql.SQL("SET whence.tenant = {}").format(TENANT))
            megabytes = made(plain)
            means: dict[str, Means] = {OWN: own_means(database, model_id)}
            lookups: dict[str, Lookup] = {OWN: own_lookup(database, model_id)}
            lookups["Whence: by a query"] = asked_lookup(database, model_id)
            for layout in LAYOUTS:
                means[layout.name] = layout_means(plain, model_id, layout)
                lookups[layout.name] = layout_lookup(plain, model_id, layout)
            means["DuckDB on Parquet"], lookups["DuckDB on Parquet"] = duck(folder, inputs, values)
            megabytes["DuckDB on Parquet"] = (folder / "scores.parquet").stat().st_size / 1e6
            return {
                "megabytes of scores": {name: round(size, 1) for name, size in megabytes.items()},
                "milliseconds of the lookup of one inference": await looked_up(lookups, values),
                "milliseconds of mean magnitudes": await averaged(means, inputs, values),
                "milliseconds of mean scores by input and day, one output": await by_day(database, model_id, folder),
            }
    finally:
        await database.close()


async def filled(database: Database, inputs: NDArray[np.float64], values: NDArray[np.float64]) -> UUID:
    attributes = [Attribute(f"input_{place}", "PIPELINE_INPUT", "FLOAT", place) for place in range(INPUTS)]
    attributes += [Attribute(f"output_{place}", "PREDICTED_VALUE", "FLOAT", place) for place in range(OUTPUTS)]
    async with database.transaction(TENANT) as session:
        await tenants.ensure(session, TENANT)
        model = await monitored_models.create(
            session,
            partner_model_id="bench",
            input_type="TABULAR",
            output_type="MULTICLASS",
            status="Ready",
            is_batch=False,
            definition={},
            attributes=attributes,
        )
        rows = await monitored_models.list_attributes(session, model.id)

        def blocks() -> Iterator[Rows]:
            for start in range(0, ROWS, BLOCK):
                columns = {f"input_{place}": inputs[start : start + BLOCK, place] for place in range(INPUTS)}
                times = START + np.arange(start, start + BLOCK) * np.timedelta64(1, "s")
                ids = [f"u-{place}" for place in range(start, start + BLOCK)]
                yield Rows(ids, times, cells_of(rows, columns, BLOCK))

        await inferences.add_all(session, model.id, blocks())
        for start in range(0, ROWS, BLOCK):
            facts: list[dict[str, Any]] = [{}] * BLOCK
            # The rows are the only ones of a new database: seq counts from 1.
            seqs = np.arange(start, start + BLOCK) + 1
            await scores.add(session, model.id, ALGORITHM, Scores(0, seqs, values[start : start + BLOCK], facts))
    return model.id


def made(plain: psycopg.Connection[Any]) -> dict[str, float]:
    """Makes the other layouts; the megabytes of all, with their indexes."""
    plain.execute(TOTAL)
    sizes = {}
    for layout in LAYOUTS:
        if layout.columns:
            make(plain, layout)
    plain.execute("VACUUM ANALYZE")
    for name, table in ((OWN, "inference_scores"), *((layout.name, layout.table) for layout in LAYOUTS)):
        row = plain.execute("SELECT pg_total_relation_size(%s::regclass) / 1e6", (table,)).fetchone()
        assert row is not None
        sizes[name] = float(row[0])
    return sizes


def make(plain: psycopg.Connection[Any], layout: Layout) -> None:
    keys = "tenant_id, model_id, algorithm, seq"
    columns = f"{keys}, {layout.columns}"
    run(plain, f"CREATE TABLE {layout.table} AS SELECT {columns} FROM inference_scores{layout.source}")  # noqa: S608
    run(plain, f"ALTER TABLE {layout.table} ADD PRIMARY KEY ({keys}{layout.key})")
    run(plain, f"ALTER TABLE {layout.table} ENABLE ROW LEVEL SECURITY")
    run(plain, f"ALTER TABLE {layout.table} FORCE ROW LEVEL SECURITY")
    run(plain, f"CREATE POLICY own ON {layout.table} USING ({POLICY})")


def run(plain: psycopg.Connection[Any], statement: str, **values: object) -> list[Any]:
    cursor = plain.execute(statement.encode(), values or None)
    return cursor.fetchall() if cursor.description else []


def layout_means(plain: psycopg.Connection[Any], model_id: UUID, layout: Layout) -> Means:
    async def means(places: int, filtered: bool) -> list[float]:
        condition, group = layout.rest(places)
        join = " JOIN inferences i USING (tenant_id, model_id, seq)" if filtered else ""
        where = " AND i.model_id = %(model)s AND i.numbers[3] > %(threshold)s" if filtered else ""
        found = run(
            plain,
            f"SELECT {layout.means(places)} FROM {layout.table} s{join}{layout.more.format(places=places)} "  # noqa: S608
            f"WHERE s.model_id = %(model)s AND algorithm = %(algorithm)s {condition}{where} {group}",
            model=model_id,
            algorithm=ALGORITHM,
            threshold=THRESHOLD,
        )
        return layout.read(found)

    return means


def layout_lookup(plain: psycopg.Connection[Any], model_id: UUID, layout: Layout) -> Lookup:
    order = f"ORDER BY {layout.key[2:]}" if layout.key else ""

    async def lookup(partner_id: str) -> list[float]:
        found = run(
            plain,
            f"SELECT {layout.lookup} FROM {layout.table} s JOIN inferences i USING (tenant_id, model_id, seq) "  # noqa: S608
            f"WHERE s.model_id = %(model)s AND i.model_id = %(model)s AND algorithm = %(algorithm)s "
            f"AND partner_inference_id = %(partner)s {order}",
            model=model_id,
            algorithm=ALGORITHM,
            partner=partner_id,
        )
        return [value for row in found for cell in row for value in (cell if isinstance(cell, list) else [cell])]

    return lookup


def own_means(database: Database, model_id: UUID) -> Means:
    """By the query language itself, as a request has it."""
    model = query_model(model_id)

    async def means(places: int, filtered: bool) -> list[float]:
        found: list[float] = []
        async with database.transaction(TENANT) as session:
            for output in range(places // INPUTS):
                rows = await answers(session, compile_query(parse(regional(output, filtered)), model))
                by_name = {row["explainer_attribute"]: row["regionalFeatureImportance"] for row in rows}
                found += [by_name[f"input_{place}"] for place in range(INPUTS)]
        return found

    return means


def regional(output: int, filtered: bool) -> dict[str, Any]:
    parameters = {"predicted_attribute_name": f"output_{output}"}
    query: dict[str, Any] = {"select": [{"function": "regionalFeatureImportances", "parameters": parameters}]}
    passes = {"property": "input_2", "comparator": "gt", "value": THRESHOLD}
    return query | ({"filter": [passes]} if filtered else {})


def query_model(model_id: UUID) -> QueryModel:
    inputs = [Column(f"input_{place}", INPUT, "FLOAT", place, "number", place + 1) for place in range(INPUTS)]
    outputs = [
        Column(f"output_{place}", PREDICTED, "FLOAT", place, "number", INPUTS + place + 1) for place in range(OUTPUTS)
    ]
    return QueryModel(model_id, (*inputs, *outputs), Explainability(True, ALGORITHM))


def own_lookup(database: Database, model_id: UUID) -> Lookup:
    async def lookup(partner_id: str) -> list[float]:
        async with database.transaction(TENANT) as session:
            row = await scores.find_by_partner_id(session, model_id, ALGORITHM, partner_id)
        assert row is not None
        return [score for score in row.scores if score is not None]

    return lookup


def asked_lookup(database: Database, model_id: UUID) -> Lookup:
    """The same by a query, a row for each score."""
    model = query_model(model_id)

    async def lookup(partner_id: str) -> list[float]:
        one = {"property": "partner_inference_id", "comparator": "eq", "value": partner_id}
        query = {"select": [{"property": "explainer_score"}], "from": "enriched", "filter": [one]}
        async with database.transaction(TENANT) as session:
            return [row["explainer_score"] for row in await answers(session, compile_query(parse(query), model))]

    return lookup


def duck(folder: Path, inputs: NDArray[np.float64], values: NDArray[np.float64]) -> tuple[Means, Lookup]:
    connected = duckdb.connect()
    seq = np.arange(ROWS)
    columns = {f"input_{place}": inputs[:, place] for place in range(INPUTS)}
    times = START + seq * np.timedelta64(1, "s")
    rows = pa.table({"seq": seq, "moment": times, "partner_id": [f"u-{place}" for place in range(ROWS)], **columns})
    each = pa.table(
        {
            "seq": np.repeat(seq, PLACES),
            "output": np.tile(np.repeat(np.arange(OUTPUTS, dtype=np.int16), INPUTS), ROWS),
            "input": np.tile(np.arange(INPUTS, dtype=np.int16), ROWS * OUTPUTS),
            "score": values.ravel(),
        }
    )
    for name, table in (("inferences", rows), ("scores", each)):
        connected.register("given", table)
        connected.execute(f"COPY given TO '{folder}/{name}.parquet'")
        connected.unregister("given")
    source = f"'{folder}/scores.parquet'"
    joined = f"{source} JOIN '{folder}/inferences.parquet' USING (seq)"

    async def means(places: int, filtered: bool) -> list[float]:
        conditions = [*(["output = 0"] if places == INPUTS else []), *(["input_2 > 0.5"] if filtered else [])]
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        statement = (
            f"SELECT output * 20 + input, avg(abs(score)) FROM {joined if filtered else source} {where} GROUP BY 1"  # noqa: S608
        )
        return by_place(connected.execute(statement).fetchall())

    async def lookup(partner_id: str) -> list[float]:
        statement = f"SELECT score FROM {joined} WHERE partner_id = ? ORDER BY output, input"  # noqa: S608
        return [score for (score,) in connected.execute(statement, [partner_id]).fetchall()]

    return means, lookup


DAYS = {
    "select": [
        {"property": "explainer_attribute"},
        {
            "function": "roundTimestamp",
            "alias": "day",
            "parameters": {"property": "inference_timestamp", "time_interval": "day"},
        },
        {"function": "avg", "alias": "mean", "parameters": {"property": "explainer_score"}},
    ],
    "from": "enriched",
    "filter": [{"property": "explainer_predicted_attribute", "comparator": "eq", "value": "output_0"}],
    "group_by": [{"property": "explainer_attribute"}, {"alias": "day"}],
}


async def by_day(database: Database, model_id: UUID, folder: Path) -> dict[str, Any]:
    """A mean for each input and day: an ordinary group of the query language."""
    connected, model = duckdb.connect(), query_model(model_id)
    statement = (
        f"SELECT input, date_trunc('day', moment) AS day, avg(score) FROM '{folder}/scores.parquet' "  # noqa: S608
        f"JOIN '{folder}/inferences.parquet' USING (seq) WHERE output = 0 GROUP BY 1, 2"
    )
    seconds: dict[str, list[float]] = {"Whence": [], "DuckDB on Parquet": []}
    for _ in range(ROUNDS):
        started = time.perf_counter()
        async with database.transaction(TENANT) as session:
            own = await answers(session, compile_query(parse(DAYS), model))
        between = time.perf_counter()
        peer = connected.execute(statement).fetchall()
        seconds["Whence"].append(between - started)
        seconds["DuckDB on Parquet"].append(time.perf_counter() - between)
    theirs = {(f"input_{place}", f"{day:%Y-%m-%d}"): mean for place, day, mean in peer}
    ours = {(row["explainer_attribute"], row["day"][:10]): row["mean"] for row in own}
    assert ours.keys() == theirs.keys()
    assert max(abs(ours[key] - theirs[key]) for key in ours) < 1e-12
    p50 = {name: statistics.median(spent) for name, spent in seconds.items()}
    return {
        **{name: round(spent * 1000, 1) for name, spent in p50.items()},
        "times DuckDB": round(p50["Whence"] / p50["DuckDB on Parquet"], 2),
    }


async def looked_up(lookups: dict[str, Lookup], values: NDArray[np.float64]) -> dict[str, dict[str, float]]:
    seconds: dict[str, list[float]] = {name: [] for name in lookups}
    for place in np.random.default_rng(1).integers(0, ROWS, LOOKUPS).tolist():
        for name, lookup in lookups.items():
            started = time.perf_counter()
            found = await lookup(f"u-{place}")
            seconds[name].append(time.perf_counter() - started)
            assert found == values[place].tolist(), name
    cuts = {name: statistics.quantiles(spent, n=100) for name, spent in seconds.items()}
    return {name: {f"p{p}": round(cut[p - 1] * 1000, 2) for p in (5, 50, 95)} for name, cut in cuts.items()}


async def averaged(means: dict[str, Means], inputs: NDArray[np.float64], values: NDArray[np.float64]) -> dict[str, Any]:
    here = inputs[:, 2] > THRESHOLD
    questions = {
        "one output, all inferences": (INPUTS, False),
        "one output, filtered": (INPUTS, True),
        "both outputs, all inferences": (PLACES, False),
        "both outputs, filtered": (PLACES, True),
    }
    answers: dict[str, Any] = {}
    for question, (places, filtered) in questions.items():
        expected = np.abs(values[here] if filtered else values).mean(axis=0)
        seconds: dict[str, list[float]] = {name: [] for name in means}
        errors = {}
        for turn in range(ROUNDS):
            for name, ask in means.items():
                if turn > 2 and statistics.median(seconds[name]) > 0.8:
                    continue
                started = time.perf_counter()
                found = await ask(places, filtered)
                seconds[name].append(time.perf_counter() - started)
                errors[name] = float(np.abs(np.array(found) / expected[: len(found)] - 1).max())
                assert len(found) >= places
        peer = statistics.median(seconds["DuckDB on Parquet"])
        answers[question] = {
            name: {
                "p50": round(statistics.median(spent) * 1000, 1),
                "times DuckDB": round(statistics.median(spent) / peer, 2),
                "largest relative error": float(f"{errors[name]:.1e}"),
            }
            for name, spent in seconds.items()
        }
    return answers


if __name__ == "__main__":
    main()
