"""Intervals and tests: numbers in, numbers out.

`proportions` serves the accuracy gate (paired right/wrong outcomes), `timing` the medians, percentiles and ratios
of measured times, `validity` the question whether a run is reliable at all. Shares are fractions here, never
percent; times are in any unit, the same on both sides.
"""

from resdeploy.stats.clusters import design_effect
from resdeploy.stats.means import mean_interval
from resdeploy.stats.proportions import (
    calibration_error,
    holm,
    images_to_decide,
    mcnemar_midp,
    newcombe_interval,
    tango_interval,
    tango_score,
    wilson_interval,
)
from resdeploy.stats.timing import Estimate, log_ratios, minimum_queries, percentile, ratio_of_medians, ratio_of_pairs
from resdeploy.stats.validity import Doubt, cached, dip, doubts, surely_not_zero

__all__ = [
    "Doubt",
    "Estimate",
    "cached",
    "calibration_error",
    "design_effect",
    "dip",
    "doubts",
    "holm",
    "images_to_decide",
    "log_ratios",
    "mcnemar_midp",
    "mean_interval",
    "minimum_queries",
    "newcombe_interval",
    "percentile",
    "ratio_of_medians",
    "ratio_of_pairs",
    "surely_not_zero",
    "tango_interval",
    "tango_score",
    "wilson_interval",
]
