"""Logins that fail: bounded by address and by name, without a way to keep the owner of a name out."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from app.refusals import TooManyFailures
from app.throttle import MOST_REMEMBERED, Throttle, key_of_address
from tests.app.conftest import Running, Start
from tests.app.test_sessions import new_key

LOGIN = "/api/v3/login"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def tries(throttle: Throttle, address: str, name: str, times: int) -> int:
    """How many of these are heard, all of them wrong."""
    heard = 0
    for _ in range(times):
        try:
            throttle.begin(address, name)
        except TooManyFailures as refusal:
            assert 1 <= refusal.retry_after <= 200
        else:
            heard += 1
    return heard


def test_an_address_is_heard_so_often_and_later_again() -> None:
    clock = Clock()
    throttle = Throttle(20, clock=clock)
    assert tries(throttle, "10.0.0.1", "admin", 1000) == 20
    assert tries(throttle, "10.0.0.2", "admin", 5) == 5
    with pytest.raises(TooManyFailures) as caught:
        throttle.begin("10.0.0.1", "other")
    clock.now += caught.value.retry_after
    assert tries(throttle, "10.0.0.1", "admin", 10) == 1
    clock.now += 3600
    assert tries(throttle, "10.0.0.1", "admin", 100) == 20


def test_the_owner_of_a_name_under_attack_gets_in() -> None:
    """From many addresses, each of which has a guess, and no more."""
    throttle = Throttle(20, 50, clock=Clock())
    heard = [tries(throttle, f"10.1.{number // 250}.{number % 250}", "admin", 10) for number in range(500)]
    assert sum(heard[:5]) == 50 and set(heard[5:]) == {1}
    throttle.begin("10.9.9.9", "admin")
    throttle.forgive("10.9.9.9", "admin")
    for _ in range(100):  # and again as often as they like: what was right is not counted
        throttle.begin("10.9.9.9", "admin")
        throttle.forgive("10.9.9.9", "admin")
    assert tries(throttle, "10.1.0.1", "somebody", 10) == 10


def test_what_is_remembered_is_bounded() -> None:
    throttle = Throttle(clock=Clock())
    for number in range(MOST_REMEMBERED + 100):
        throttle.begin(f"host-{number}", f"name-{number}" * 10)
    assert len(throttle._addresses.counts) == len(throttle._names.counts) == MOST_REMEMBERED


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("10.0.0.1", "10.0.0.2", False),
        ("", "nonsense", False),
    ],
)
def test_addresses_of_one_household(one: str, other: str, same: bool) -> None:
    assert (key_of_address(one) == key_of_address(other)) == same


async def test_guesses_at_once_are_no_way_around(start: Start) -> None:
    async with start() as running:
        stands_still(running)
        wrong = [attempt(running, "admin", f"a-wrong-password-{number}") for number in range(60)]
        answers = await asyncio.gather(*wrong)
        assert sorted({answer.status_code for answer in answers}) == [401, 429]
        assert sum(answer.status_code == 401 for answer in answers) == 20
        late = next(answer for answer in answers if answer.status_code == 429)
        assert late.json()["code"] == "TOO_MANY_REQUESTS" and int(late.headers["retry-after"]) >= 1
        whoami = await running.client.get("/api/v3/users/me")  # a key itself needs no login
        assert whoami.status_code == 200


async def test_right_logins_are_not_counted(start: Start) -> None:
    async with start() as running:
        _, secret = await new_key(running)
        for _ in range(30):
            assert (await attempt(running, "ann", secret)).status_code == 200


def stands_still(running: Running) -> None:
    """No failure of this server is forgiven while a test runs, however long that takes."""
    running.server.logins._clock = Clock()


async def attempt(running: Running, login: str, password: str) -> httpx.Response:
    return await running.client.post(LOGIN, json={"login": login, "password": password})
