"""What can go wrong while storing.

StorageError                  also: a statement that Postgres turned down for a reason the program did not foresee
├── DatabaseUnavailable       no connection now: not started, restarting, all connections taken; worth trying again
├── OutOfSpace                the disk is full; worth trying again once there is room
├── DatabaseRefused           this program must not use that database as it is; the message says what to do
├── EmbeddedServerFailed      the server that Whence starts itself cannot run here; the message says what to do
├── DumpFailed                pg_dump or pg_restore could not do it; the message is theirs
├── NotFound                  no such row, or another tenant's
├── AlreadyExists             the name or secret is taken
├── InUse                     other rows still need this one
└── InvalidValue              a value that cannot be stored or looked up
    ├── InvalidCursor         a page cursor that this program did not hand out
    └── InvalidQuery          a query that cannot be answered as it stands

Messages name tables, fields and limits, never the values of a row: rows hold prompts. Those of a query name what the
query names.
"""

from sqlalchemy.exc import DontWrapMixin


class StorageError(Exception):
    """The root of this room's errors."""


class DatabaseUnavailable(StorageError):
    """The database cannot be reached at the moment."""


class OutOfSpace(StorageError):
    """The disk of the database, or of the contents beside it, is full."""


class DatabaseRefused(StorageError):
    """The database can be reached but not used: newer schema, other Postgres major, a role above row-level security."""


class EmbeddedServerFailed(StorageError):
    """The embedded Postgres could not be set up or started."""


class DumpFailed(StorageError):
    pass


class NotFound(StorageError):
    """Nothing under that key for this tenant."""


class AlreadyExists(StorageError):
    """Something is stored under that key."""


class InUse(StorageError):
    """Something stored depends on it."""


class InvalidValue(StorageError, DontWrapMixin, ValueError):
    """A value that the database cannot hold, such as a name with a NUL character or a number that is not finite."""


class InvalidCursor(InvalidValue):
    """Not a cursor of this list."""


class InvalidQuery(InvalidValue):
    """A query with a mistake: `pointer` is its place in the request as a JSON pointer, `problem` says what it is.

    `suggestion` is the valid name nearest to the wrong one, where there is one.
    """

    def __init__(self, problem: str, pointer: str = "", suggestion: str | None = None) -> None:
        super().__init__(problem if suggestion is None else f"{problem}; did you mean '{suggestion}'?")
        self.problem = problem
        self.pointer = pointer
        self.suggestion = suggestion
