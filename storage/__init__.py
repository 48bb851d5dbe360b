"""Storage: everything Whence keeps, in Postgres; no HTTP, no models, no environment variables.

Context: one server on one machine must start with nothing installed, and several tenants share one database.
Decisions: Postgres only, embedded by default (`embedded`); one file of plain functions per noun, which take the session
of a `Database.transaction(tenant)`; row-level security, forced on the owner too, keeps tenants apart, fed by a setting
that lives as long as the transaction; requests and results are JSON in ASCII in `json` columns, never `jsonb`, so that
prompts come back exactly, with NUL characters and lone surrogates; errors never quote rows.
Inferences of `/query` keep the values of all attributes in two arrays and their scores in a third (`cells`, `scores`),
and come in bulk through temporary tables (`staging`), since COPY does not pass row-level security.
Consequences: functions need no tenant argument and cannot forget a filter; a role above row-level security is refused;
two extra round trips per transaction; what JSON cannot carry (NaN, infinity) must be spelt another way by the caller.
The files from the bottom up: errors, values | ids, database | copying, tables | cursors | queue | staging,
monitored_tables | training_tables, then cells | leases | monitored_models, migrations beside one file per noun and the
query language; keeper, cluster, embedded stand beside them.
"""
