"""Whose turn it is, as arithmetic: simulated devices on which time is what pieces are charged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.device import Priority
from app.schedule import FAIR_SHARE, NICE_SHARE, QUANTUM, Owner, Piece, Schedule


@dataclass
class Simulated:
    """A device on which passes take `step` seconds, and nothing else takes any time."""

    step: float = QUANTUM / 5
    schedule: Schedule = field(default_factory=Schedule)
    pieces: dict[Piece, float] = field(default_factory=dict)  # and how many seconds each needs
    ended: dict[Piece, float] = field(default_factory=dict)
    now: float = 0.0
    number: int = 0

    def add(self, seconds: float, owner: Owner = (), *, nice: bool = False, cost: float | None = None) -> Piece:
        self.number += 1
        piece = Piece(Priority(nice=nice, cost=cost), owner, self.number, self.now)
        self.pieces[piece] = seconds
        self.schedule.arrive(piece)
        return piece

    def turn(self) -> Piece:
        """The whole turn of one piece."""
        found = self.schedule.next(self.pieces)
        assert found is not None
        piece, granted = found
        end = self.now + QUANTUM
        while self.now < end - 1e-9:
            self.now += self.step
            others = [other for other in self.pieces if other is not piece]
            self.schedule.charge(piece, self.step, others, granted=granted)
            if piece.attained >= self.pieces[piece] - 1e-9:
                del self.pieces[piece]
                self.schedule.leave(piece)
                self.ended[piece] = self.now
                break
            if not granted and self.schedule.overtaking(piece, others):
                break
        piece.since = self.now
        return piece

    def until(self, time: float) -> None:
        while self.now < time and self.pieces:
            self.turn()


def test_order_of_arrival_otherwise() -> None:
    device = Simulated()
    pieces = [device.add(0.02) for _ in range(20)]
    device.until(9)
    assert list(device.ended) == pieces


def test_small_pieces_overtake_giants() -> None:
    device = Simulated()
    giants = [device.add(10.0) for _ in range(3)]
    device.until(5.0)
    small = device.add(0.02)
    device.until(5.0 + 2 * QUANTUM)
    assert small in device.ended and not any(giant in device.ended for giant in giants)


def test_a_giant_goes_on_however_many_small_pieces_come() -> None:
    device = Simulated()
    giant = device.add(1e9)
    device.until(1.0)
    before = giant.attained
    while device.now < 41.0:
        if len(device.pieces) < 6:  # each of them waits a shorter time than the giant
            device.add(0.02)
        device.turn()
    assert giant.attained - before == pytest.approx(40 * FAIR_SHARE, rel=0.15)


def test_nice_pieces_wait_but_not_for_ever() -> None:
    device = Simulated()
    nice = device.add(1e9, nice=True)
    first = device.add(0.02)
    assert device.turn() is first
    while device.now < 100.0:
        if len(device.pieces) < 6:
            device.add(0.02)
        device.turn()
    assert nice.attained == pytest.approx(100 * NICE_SHARE, rel=0.1)


def test_nobody_waits_for_nice_pieces_longer_than_a_turn() -> None:
    device = Simulated()
    for _ in range(5):
        device.add(1e9, nice=True)
    device.until(50.0)
    small = device.add(0.02)
    device.until(50.0 + QUANTUM + 0.1)
    assert small in device.ended


def test_a_predicted_giant_does_not_go_before_small_ones() -> None:
    device = Simulated()
    giant, small = device.add(5.0, cost=5.0), device.add(0.02)
    assert giant.level > small.level == 0
    assert device.turn() is small and device.turn() is giant


@pytest.mark.parametrize(("cost", "level"), [(None, 0), (0.0, 0), (float("nan"), 0), (0.15, 1), (float("inf"), 34)])
def test_any_prediction_has_a_level(cost: float | None, level: int) -> None:
    assert Simulated().add(1.0, cost=cost).level == level


def test_keys_and_tenants_get_equal_shares() -> None:
    """Also one that asks one thing at a time, beside one that asks a hundred."""
    device = Simulated()
    owners: list[Owner] = [("one", "a"), ("one", "b"), ("two", "c")]
    counts = dict.fromkeys(owners, 0.0)
    for owner, many in zip(owners, (100, 1, 1), strict=True):
        for _ in range(many):
            device.add(0.06, owner)
    while device.now < 60.0:
        piece = device.turn()
        counts[piece.owner] += 0.06
        device.add(0.06, piece.owner)
    assert [counts[owner] / sum(counts.values()) for owner in owners] == pytest.approx([0.25, 0.25, 0.5], abs=0.02)


def test_rest_saves_nothing_up_and_the_gone_are_forgotten() -> None:
    device = Simulated()
    device.add(1e9, ("busy", "a"))
    device.until(30.0)
    for _ in range(50):
        device.add(0.02, ("back", "b"))
    device.until(32.0)
    assert device.schedule.used["back",] >= 30.0
    for number in range(200):
        device.add(0.02, (f"passing-{number}", "key"))
    device.until(60.0)
    device.add(0.02)
    device.until(61.0)
    assert len(device.schedule.used) <= 4


MIXES = st.lists(
    st.tuples(st.sampled_from([0.02, 0.3, 4.0]), st.sampled_from([(), ("a", "k"), ("a", "l"), ("b", "m")]),
              st.booleans()), min_size=1, max_size=12,
)  # fmt: skip


@given(MIXES)
@settings(max_examples=60, deadline=None)
def test_whatever_comes_ends_without_a_pause(mix: Sequence[tuple[float, Owner, bool]]) -> None:
    """And the device never rests while somebody waits."""
    device = Simulated()
    for seconds, owner, nice in mix:
        device.add(seconds, owner, nice=nice)
    device.until(1e9)
    assert len(device.ended) == len(mix)
    assert device.now == pytest.approx(sum(seconds for seconds, _, _ in mix), rel=1e-6)
    assert device.schedule.used == {}
