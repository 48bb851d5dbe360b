"""The server: HTTP, the vendors' dialects, use cases, the runtime, the command line. No maths, no SQL.

Context: three vendors' clients, people with curl and other services ask the same questions in different words.
Decision: a dialect translates the wire into the words of `explainers.types` and back, nothing else; a use case
(`explain`) speaks no HTTP, so that it can be called by a route, a command or the worker of durable jobs; one table
(`errors.ANSWERS`) turns every error of the other rooms into a status. Models are touched by one thread at a time
(`device`), behind a bounded queue; requests that ask the same at the same time share one computation (`flights`); the
database is written after computing, never during.
Consequence: one process uses one device fully and predictably; more devices mean more processes on the same Postgres,
or replicas on a cluster (`cluster`).
"""
