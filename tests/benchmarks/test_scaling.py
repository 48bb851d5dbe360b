"""The simulation of many devices: exact where queues are known exactly, and near what real workers did."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from benchmarks.scaling import ASSUMPTIONS, RESULTS, Load, compared, load_of, predicted, queue, random_load, simulate


def test_every_arrival_takes_the_server_that_is_free_first() -> None:
    arrivals, services = np.array([0.0, 1.0, 1.0, 2.0, 9.0]), np.array([3.0, 3.0, 1.0, 1.0, 1.0])
    begun, left = queue(arrivals, services, 2)
    assert begun.tolist() == [0.0, 1.0, 3.0, 4.0, 9.0] and left.tolist() == [3.0, 4.0, 4.0, 5.0, 10.0]


@pytest.mark.parametrize("servers", [1, 3, 10])
def test_waits_are_those_of_the_theory(servers: int) -> None:
    """Erlang's formula for random arrivals and exponential services."""
    load = 0.7 * servers
    terms = [load**k / math.factorial(k) for k in range(servers)]
    last = load**servers / math.factorial(servers) / (1 - 0.7)
    expected = last / (sum(terms) + last) / (servers - load)
    random = np.random.default_rng(0)
    found = simulate(random.exponential(1.0, 200_000), random.exponential(1 / load, 200_000).cumsum(), servers)
    assert found.wait_mean == pytest.approx(expected, rel=0.08)
    assert found.devices_busy == pytest.approx(0.7, rel=0.02) and found.answered == pytest.approx(load, rel=0.02)


def test_constant_services_wait_half_as_long() -> None:
    """Pollaczek and Khinchine."""
    services, arrivals = random_load([1.0], 0.8, 200_000, seed=1)
    assert simulate(services, arrivals, 1).wait_mean == pytest.approx(0.8 / (2 * 0.2), rel=0.05)


def test_the_database_is_the_limit_in_the_end() -> None:
    load = Load([0.1], units=10, database_seconds=0.02)
    few, many = (predicted(load, devices, 0.8, cores=2, price=3.6) for devices in (4, 100))
    assert (few["limit"], few["at most, units a second"]) == ("devices", 400)
    assert (many["limit"], many["at most, units a second"]) == ("database", 1000)
    assert few["units a second"] == pytest.approx(320, rel=0.02)
    assert many["units a second"] == pytest.approx(800, rel=0.02)
    assert few["price of a million units"] == pytest.approx(1e6 * 4 * 0.001 / 320, rel=0.02)


def test_it_is_near_what_real_workers_did() -> None:
    """Of the run in the repository: as many answers as simulated runs give that are as short as it was."""
    given = json.loads((RESULTS / "workers.json").read_text())
    measured = given["work"]["explanations"]["seconds of one, by one worker"]
    assert set(given["arrivals"]) == {"1", "2"} and len(ASSUMPTIONS) >= 5
    for count, real in given["arrivals"].items():
        for services in (measured, real["services"]):
            answered = compared(services, int(count), real)["answered in a second"]
            low, high = answered["nine of ten runs"]
            assert 0.9 * low <= answered["measured"] <= 1.1 * high
    assert load_of(given["work"]["backfill"], 1.0).units > 1
