"""Who is told of work as it goes on: once of each event, however often the work has to begin anew."""

from __future__ import annotations

from explainers.decoding import Completion, Listener, Piece, nobody


class Once:
    """Tells a listener every event once, also where the work has to begin again: it says the same again then."""

    def __init__(self, listen: Listener) -> None:
        self.listen = listen
        self.told = self.heard = 0

    @property
    def wanted(self) -> bool:
        """Whether anybody listens at all."""
        return self.listen is not nobody

    def from_the_start(self) -> Listener:
        self.heard = 0
        return self.hear

    def hear(self, event: Piece | Completion) -> None:
        self.heard += 1
        self.tell(self.heard, event)

    def tell(self, number: int, event: Piece | Completion) -> None:
        """Passes on the event of that number, from 1, unless it has been told."""
        if number > self.told:
            self.told = number
            self.listen(event)
