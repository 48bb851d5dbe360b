"""Cursors of lists that are read newest first, page by page: where the last row of a page stands."""

from __future__ import annotations

import base64
import binascii
from datetime import UTC, datetime, timedelta
from uuid import UUID

from storage.errors import InvalidCursor

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def cursor_at(created_at: datetime, id: UUID) -> str:
    """24 bytes, microseconds since 1970 and the id, as text."""
    microseconds = (created_at - EPOCH) // timedelta(microseconds=1)
    return base64.urlsafe_b64encode(microseconds.to_bytes(8) + id.bytes).decode()


def position(cursor: str) -> tuple[datetime, UUID]:
    """Time and id of the row that the cursor stands at. Raises InvalidCursor."""
    try:
        packed = base64.b64decode(cursor, altchars="-_", validate=True)
        if len(packed) != 24:
            raise InvalidCursor("not a cursor of this list")
        return EPOCH + timedelta(microseconds=int.from_bytes(packed[:8])), UUID(bytes=packed[8:])
    except (binascii.Error, ValueError, OverflowError):
        raise InvalidCursor("not a cursor of this list") from None
