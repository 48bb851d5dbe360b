"""Runs the migrations on the connection that `storage.migrations` hands over; nothing else configures it.

To draft a migration from the difference between the declared tables and the existing ones (on a temporary database):

    python -c "from storage.migrations import draft; draft('what changes')"

Then check it by hand, and add what alembic does not see: row-level security and its policies (as in 0001) for every
new table. `tests/storage/test_migrations.py` fails where a table lacks them or a draft would find a difference.
"""

from alembic import context

from storage.migrations import OPTIONS, SCHEMA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=SCHEMA,
    **OPTIONS,
)
context.run_migrations()
