"""p-values beside scipy's, and where theirs underflow."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from storage.query.significance import EXACT, chi_squared, kolmogorov_smirnov, log_chi_squared


@pytest.mark.parametrize("freedom", [1, 2, 5, 60, 999])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0, 1.5, 3.0])
def test_chi_squared_distribution(freedom: int, share: float) -> None:
    statistic = share * freedom
    wanted = stats.chi2.sf(statistic, freedom)
    if wanted > 0:
        assert log_chi_squared(statistic, freedom) == pytest.approx(math.log(wanted), rel=1e-9, abs=1e-12)


def test_where_a_p_value_is_smaller_than_a_double() -> None:
    assert log_chi_squared(100_000.0, 2) == pytest.approx(-50_000.0)  # exp(-x / 2) exactly
    assert kolmogorov_smirnov(1.0, 400, 600) == pytest.approx(math.log(2) - math.log(math.comb(1000, 400)))
    assert kolmogorov_smirnov(1.0, 100_000, 100_000) == pytest.approx(-100_000, rel=0.01)


def test_chi_squared_of_counts() -> None:
    generator = np.random.default_rng(2)
    for bins in (2, 3, 12):
        counts = generator.integers(0, 30, (2, bins)).astype(float)
        counts[:, 0] = [5, 9]
        seen = counts[:, counts.sum(axis=0) > 0]
        wanted = stats.chi2_contingency(seen, correction=False).pvalue
        assert chi_squared(counts) == pytest.approx(math.log(wanted), rel=1e-9)
    assert chi_squared(np.array([[3.0, 0.0], [9.0, 0.0]])) == 0.0


@pytest.mark.parametrize(("n", "m"), [(1, 1), (2, 9), (50, 60), (100, 100), (200, 350)])
@pytest.mark.parametrize("shift", [0.0, 0.5, 2.0])
def test_two_small_samples(n: int, m: int, shift: float) -> None:
    generator = np.random.default_rng(n + m)
    wanted = stats.ks_2samp(generator.normal(size=n), generator.normal(shift, size=m), method="exact")
    found = kolmogorov_smirnov(wanted.statistic, n, m)
    assert found == pytest.approx(math.log(wanted.pvalue), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(("n", "m"), [(501, 500), (1000, 1000), (3000, 600), (5000, 4000)])
@pytest.mark.parametrize("shift", [0.02, 0.1, 0.3])
def test_two_large_samples(n: int, m: int, shift: float) -> None:
    assert n * m > EXACT
    generator = np.random.default_rng(n)
    wanted = stats.ks_2samp(generator.normal(size=n), generator.normal(shift, size=m), method="exact")
    found = kolmogorov_smirnov(wanted.statistic, n, m)
    assert found == pytest.approx(math.log(wanted.pvalue), rel=0.02, abs=0.02)
    assert kolmogorov_smirnov(0.0005, n, m) == 0.0
