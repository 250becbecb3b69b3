"""Paired proportions against published digits and independent solvers."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import binom, norm

from resdeploy import stats

TABLES = st.integers(1, 400).flatmap(
    lambda n: st.tuples(st.integers(0, n), st.integers(0, n), st.just(n)).filter(lambda t: t[0] + t[1] <= t[2])
)


def constrained_score(lost: int, gained: int, images: int, drop: float) -> float:
    """Tango's statistic with the nuisance share found by maximising the multinomial likelihood numerically."""
    low, high = max(0.0, -drop), (1 - drop) / 2

    def deviance(share: float) -> float:
        cells = ((lost, share + drop), (gained, share), (images - lost - gained, 1 - 2 * share - drop))
        return -sum(count * math.log(max(p, 1e-300)) for count, p in cells if count)

    inside = minimize_scalar(deviance, bounds=(low, high), method="bounded", options={"xatol": 1e-13})
    share = min((float(inside.x), low, high), key=deviance)
    excess = lost - gained - images * drop
    return excess / math.sqrt(images * (2 * share + drop * (1 - drop)))


def test_tango_1998_contact_lenses() -> None:
    """Tango (1998) section 6.1, table V: Z = 1.709 at the margin 0.1, and -0.096 as the lower 90 % limit."""
    assert round(-float(stats.tango_score(1, 0, 44, 0.1)), 3) == 1.709
    assert round(float(norm.sf(1.7086)), 3) == 0.044
    # There the difference is new minus standard: our drop with its sign turned.
    assert round(-stats.tango_interval(1, 0, 44, tail=0.05)[1], 3) == -0.096


def test_tango_1998_sleeping_difficulties() -> None:
    """Tango (1998) section 6.2: 9 and 3 discordant of 32 pairs, 95 % interval -0.027 to 0.390."""
    low, high = stats.tango_interval(9, 3, 32, tail=0.025)
    assert (round(low, 3), round(high, 3)) == (-0.027, 0.390)


def test_tango_interval_of_airway_reactivity() -> None:
    """Fagerland, Lydersen, Laake, Stat. Med. 33 (2014) 2850, table V: -0.517 to -0.026 for 1 and 7 of 21."""
    low, high = stats.tango_interval(1, 7, 21, tail=0.025)
    assert (round(low, 3), round(high, 3)) == (-0.517, -0.026)


def test_tango_interval_of_consolidation_therapy() -> None:
    """The R package contingencytables (Fagerland et al., 2017, chapter 8): -0.1240 to -0.0054 for 6, 16 of 161."""
    low, high = stats.tango_interval(6, 16, 161, tail=0.025)
    assert (round(low, 4), round(high, 4)) == (-0.1240, -0.0054)


@pytest.mark.parametrize(
    ("lost", "gained", "midp", "digits"),
    [(1, 7, 0.039, 3), (6, 16, 0.034690, 6)],
)
def test_mcnemar_of_published_tables(lost: int, gained: int, midp: float, digits: int) -> None:
    """Fagerland et al. (2013) for 1 against 7; contingencytables for 6 against 16."""
    assert round(stats.mcnemar_midp(lost, gained), digits) == midp


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_agrees_with_scipys_binomial(lost: int, gained: int) -> None:
    """The mid-p value equals that of the binomial distribution, at equal counts and at zero too."""
    fewer, flips = min(lost, gained), lost + gained
    twice_mid = 2 * (binom.cdf(fewer, flips, 0.5) - binom.pmf(fewer, flips, 0.5) / 2)
    midp = 1.0 if flips == 0 else 1 - binom.pmf(fewer, flips, 0.5) / 2 if lost == gained else twice_mid
    assert stats.mcnemar_midp(lost, gained) == pytest.approx(midp, rel=1e-9)


@settings(max_examples=150, deadline=None)
@given(TABLES, st.floats(-0.95, 0.95))
def test_tango_score_is_that_of_the_numerical_likelihood(table: tuple[int, int, int], drop: float) -> None:
    """The quadratic's root is the constrained maximum: the statistic agrees to 1e-6."""
    lost, gained, images = table
    expected = constrained_score(lost, gained, images, drop) if lost - gained != images * drop else 0.0
    assert float(stats.tango_score(lost, gained, images, drop)) == pytest.approx(expected, rel=1e-6, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(TABLES, st.sampled_from([0.05, 0.025, 0.005]))
def test_tango_limits_are_where_the_numerical_score_is_the_quantile(table: tuple[int, int, int], tail: float) -> None:
    """Both limits agree to 1e-6 with a root finder over the independent likelihood solver."""
    lost, gained, images = table
    low, high = stats.tango_interval(lost, gained, images, tail=tail)
    seen, z = (lost - gained) / images, norm.isf(tail)
    if lost < images:
        root = brentq(lambda d: constrained_score(lost, gained, images, d) + z, seen + 1e-9, 1 - 1e-9)
        assert high == pytest.approx(root, abs=1e-6)
    if gained < images:
        root = brentq(lambda d: constrained_score(lost, gained, images, d) - z, -1 + 1e-9, seen - 1e-9)
        assert low == pytest.approx(root, abs=1e-6)


@given(TABLES)
def test_tango_interval_brackets_the_drop_and_mirrors(table: tuple[int, int, int]) -> None:
    """It holds the observed drop, stays within [-1, 1], and turns over when the models change places."""
    lost, gained, images = table
    low, high = stats.tango_interval(lost, gained, images)
    assert -1 <= low <= (lost - gained) / images <= high <= 1
    assert stats.tango_interval(gained, lost, images) == (-high, -low)


def test_tango_interval_without_flips_is_wilsons_for_zero() -> None:
    """No flips: the limit is z^2 / (n + z^2), and never the zero width of Wald's interval."""
    z2 = norm.isf(0.05) ** 2
    low, high = stats.tango_interval(0, 0, 1000)
    assert high == pytest.approx(z2 / (1000 + z2), rel=1e-12)
    assert low == -high


def test_tango_interval_at_the_extremes() -> None:
    """Everything lost, everything gained, one image, and a million images with few flips."""
    assert stats.tango_interval(50, 0, 50)[1] == 1.0
    assert stats.tango_interval(0, 50, 50)[0] == -1.0
    assert stats.tango_interval(1, 0, 1)[0] < 0.4
    low, high = stats.tango_interval(3, 2, 1_000_000)
    assert low < 1e-6 < high < 1e-5


def test_tango_interval_refuses_impossible_tables() -> None:
    """Counts that no set of images can give."""
    for table in ((-1, 0, 5), (3, 3, 5), (0, 0, 0)):
        with pytest.raises(ValueError, match="no paired table"):
            stats.tango_interval(*table)


def test_wilson_interval_of_newcombes_example() -> None:
    """Newcombe, Stat. Med. 17 (1998) 857, table I, method 3: 81/263, 15/148, 0/20 and 1/29."""
    expected = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (successes, trials), limits in expected.items():
        assert tuple(round(x, 4) for x in stats.wilson_interval(successes, trials)) == limits
    assert stats.wilson_interval(0, 0) == (0.0, 1.0)
    assert stats.wilson_interval(7, 7)[1] == 1.0


def test_holm_by_hand() -> None:
    """Step-down multipliers, never decreasing, at most 1, in the order given."""
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert stats.holm([0.9, 0.8]) == (1.0, 1.0)
    assert stats.holm([]) == ()


@pytest.mark.parametrize(("flip_rate", "drop", "margin"), [(0.04, 0.0, 0.01), (0.02, 0.0, 0.005), (0.05, 0.004, 0.01)])
def test_images_to_decide_have_the_power_they_promise(flip_rate: float, drop: float, margin: float) -> None:
    """With that many images a true drop below the margin passes with probability 0.80 within 0.02 (exact sum)."""
    images = stats.images_to_decide(flip_rate, drop, margin)
    assert images is not None
    assert passing(images, flip_rate, drop, margin) == pytest.approx(0.80, abs=0.02)


def test_images_to_decide_without_flips_is_the_size_at_which_the_gate_passes() -> None:
    """No flips, limit 0.5 points: 539 images pass, 538 do not."""
    assert stats.images_to_decide(0.0, 0.0, 0.005) == 539
    assert stats.tango_interval(0, 0, 539)[1] <= 0.005 < stats.tango_interval(0, 0, 538)[1]


def test_images_to_decide_cannot_tell_equal_numbers_apart() -> None:
    """A drop that is the margin is never decided."""
    assert stats.images_to_decide(0.04, 0.01, 0.01) is None


@given(TABLES.filter(lambda t: t[2] > 20), st.floats(0.001, 0.5))
def test_an_undecided_table_needs_more_images_than_it_has(table: tuple[int, int, int], margin: float) -> None:
    """Where the bound does not decide, the advice is a larger number."""
    lost, gained, images = table
    low, high = stats.tango_interval(lost, gained, images)
    needed = stats.images_to_decide((lost + gained) / images, (lost - gained) / images, margin)
    if low < margin < high and needed is not None:
        assert needed > images


def test_calibration_error_by_hand() -> None:
    """Two bins: (0.9, 0.8) half right and (0.3) right: (2 x 0.35 + 0.7) / 3; the upper edge belongs to its bin."""
    assert stats.calibration_error([0.9, 0.8, 0.3], [1, 0, 1], bins=2) == pytest.approx((2 * 0.35 + 0.7) / 3)
    assert stats.calibration_error([1.0, 1.0], [1, 1]) == 0.0
    assert stats.calibration_error([0.5, 0.5000001], [1, 0], bins=2) == pytest.approx(0.5, abs=1e-6)


def passing(images: int, flip_rate: float, drop: float, margin: float) -> float:
    """Probability that the upper 95 % bound is within the margin: a sum over all tables but a tail of 1e-9."""
    z, total = norm.isf(0.05), 0.0
    for flips in range(int(binom.ppf(1e-9, images, flip_rate)), int(binom.isf(1e-9, images, flip_rate)) + 1):
        lost = np.arange(flips + 1)
        within = stats.tango_score(lost, flips - lost, images, margin) <= -z
        share = (flip_rate + drop) / 2 / flip_rate
        total += binom.pmf(flips, images, flip_rate) * binom.pmf(lost[within], flips, share).sum()
    return total


@pytest.mark.parametrize("images", [500, 2000, 10000])
@pytest.mark.parametrize("flip_rate", [0.02, 0.04, 0.08])
@pytest.mark.parametrize("margin", [0.005, 0.01])
def test_a_true_drop_of_the_margin_passes_at_most_5_5_percent(images: int, flip_rate: float, margin: float) -> None:
    """Exact probability of the wrong verdict, wherever ten flips are expected."""
    assert passing(images, flip_rate, margin, margin) <= 0.055


def test_an_unchanged_accuracy_passes_at_5000_images() -> None:
    """True drop 0, margin 1 point, 4 % flips, 5,000 images: passes at least 95 % of the time (exactly 96.9 %)."""
    assert passing(5000, 0.04, 0.0, 0.01) >= 0.95


def test_the_verdict_of_the_score_is_that_of_the_bound() -> None:
    """Enumerating with the statistic is enumerating with the bound: they decide alike on every table of 40 images."""
    z = norm.isf(0.05)
    for lost in range(41):
        for gained in range(41 - lost):
            bound = stats.tango_interval(lost, gained, 40)[1]
            assert (bound <= 0.05) == bool(stats.tango_score(lost, gained, 40, 0.05) <= -z)
