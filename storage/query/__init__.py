"""The query language of `/query`: from a request's JSON to one SQL statement over a closed set of columns.

Context: callers send arbitrary queries about their inferences and explanations, and must neither reach other tables
nor slip text into SQL; every mistake is told with its place and the name that was probably meant.
Decisions: `parse` (grammar) makes frozen dataclasses (ast) without a model; `compile_query` (compiler) resolves names
in the columns of a source and builds SQLAlchemy expressions that know their kind (typed); names of a request are only
ever compared with dictionaries, values are only ever bound, columns of an answer are c0, c1, ... inside SQL. Functions
and comparators are tables. Depth, entries and the weight of expressions are bounded, since aliases can double.
Consequences: a new function is one function and one line; SQL injection has no place to happen; a statement's text
does not depend on the request's values, except for their number.
The files from the bottom up: ast, schema, body, typed, comparators | lists, signature, aggregates | scalars |
evaluation | ranking, functions, grammar | sources, regional, nlp, scope, merging, unrolled, compiler, answers. Beside
them drift, a question of its own over the same columns: divergence | significance (maths), drift_request (grammar),
histograms (SQL), drift.
"""
