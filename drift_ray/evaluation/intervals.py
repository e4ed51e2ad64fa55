"""Intervals that know which samples belong together.

Samples of one prompt resemble each other, so the prompts, not the trajectories, are what was
drawn at random: every interval here is clustered by prompt.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """An estimate and its confidence interval; low <= estimate <= high."""

    estimate: float
    low: float
    high: float


def clustered_interval(
    success: npt.NDArray[np.bool_], clusters: npt.ArrayLike, *, confidence: float = 0.95
) -> Interval:
    """Interval of a mean of 0/1 values that were drawn cluster by cluster.

    Wilson's interval at the effective sample size n_eff = n / deff. The design effect deff is the
    cluster-robust variance of the mean over the variance of independent draws:

        deff = [C/(C-1) · Σ_c (Σ_{i∈c} (y_i - ȳ))² / n²] / [ȳ(1-ȳ) / (n-1)],   deff >= 1

    with C clusters; for one draw a cluster it is 1 and this is the plain Wilson interval. Where
    the data cannot tell (ȳ is 0 or 1, or C = 1), draws of a cluster count as copies of each other:
    n_eff = (Σm_c)²/Σm_c² for cluster sizes m_c. Unlike estimate ± 1.96·SE it stays within [0, 1]
    and keeps a width at 0 and 1. With few clusters it covers a little less than it says, as all
    intervals with an estimated deff.

    Sources: clustered standard errors of evaluations, Miller, arXiv 2411.00640 (2024); Wilson with
    an effective sample size, Franco, Little, Louis & Slud, J. Survey Stat. Methodol. 7 (2019) 334.

    Args:
        success: Shape ``[n]``, n >= 1.
        clusters: Shape ``[n]``, the cluster of every value.
        confidence: Coverage aimed at.

    Returns:
        Estimate and limits in [0, 1].
    """
    values = np.asarray(success, dtype=np.float64)
    n = len(values)
    _, codes, sizes = np.unique(np.asarray(clusters), return_inverse=True, return_counts=True)
    mean = float(values.mean())
    num_clusters = len(sizes)
    if num_clusters > 1 and 0.0 < mean < 1.0:
        residuals = np.bincount(codes, weights=values - mean)
        clustered = num_clusters / (num_clusters - 1) * np.square(residuals).sum() / n**2
        n_eff = n / max(1.0, clustered / (mean * (1.0 - mean) / (n - 1)))
    else:
        n_eff = n**2 / float(np.square(sizes).sum())
    return _wilson(mean, n_eff, _quantile(confidence))


def ratio_interval(
    parts: npt.ArrayLike,
    wholes: npt.ArrayLike,
    clusters: npt.ArrayLike,
    *,
    confidence: float = 0.95,
) -> Interval | None:
    """Interval of Σ parts / Σ wholes, for example of tokens per solved trajectory.

    The variance is that of the linearised ratio, e_c = Σ_{i∈c} (part_i - ratio · whole_i) for each
    of C clusters: C/(C-1) · Σ_c e_c² / (Σ wholes)²; the interval is symmetric in the logarithm, so
    it stays positive (delta method; clusters as in Miller, arXiv 2411.00640).

    Args:
        parts: Shape ``[n]``, non-negative.
        wholes: Shape ``[n]``, non-negative.
        clusters: Shape ``[n]``, the cluster of every value.
        confidence: Coverage aimed at.

    Returns:
        None if there is no ratio (either sum is 0) or but one cluster, which tells no spread.
    """
    part, whole = np.asarray(parts, np.float64), np.asarray(wholes, np.float64)
    _, codes = np.unique(np.asarray(clusters), return_inverse=True)
    num_clusters = int(codes.max(initial=-1)) + 1
    if num_clusters < 2 or not part.sum() or not whole.sum():
        return None
    ratio = float(part.sum() / whole.sum())
    residuals = np.bincount(codes, weights=part - ratio * whole)
    variance = num_clusters / (num_clusters - 1) * float(np.square(residuals).sum())
    relative = _quantile(confidence) * math.sqrt(variance) / float(part.sum())
    return Interval(
        estimate=ratio, low=ratio * math.exp(-relative), high=ratio * math.exp(relative)
    )


def difference_interval(
    differences: npt.ArrayLike, *, smallest: float = 1.0, confidence: float = 0.95
) -> Interval:
    """Interval of a mean of paired differences, one for each prompt.

    The mean of per-prompt differences and its standard error (Miller, arXiv 2411.00640: pairing
    and clustering by prompt in one), after two more prompts have been added in which the models
    differ by ``smallest`` either way. So it keeps a width when all prompts agree, and for single
    samples it is the adjusted Wald interval of Bonett & Price, J. Educ. Behav. Stat. 37 (2012) 479.

    Args:
        differences: Shape ``[n]``, n >= 1, each in [-1, 1].
        smallest: The least difference a prompt can show: 1 over the samples a prompt.
        confidence: Coverage aimed at.

    Returns:
        Estimate and limits in [-1, 1]; the estimate is the plain mean.
    """
    values = np.asarray(differences, np.float64)
    n, mean = len(values) + 2, float(values.mean())
    centre = float(values.sum()) / n
    variance = (float(np.square(values).sum()) + 2 * smallest**2) / n - centre**2
    half = _quantile(confidence) * math.sqrt(max(0.0, variance) / n)
    return Interval(
        estimate=mean,
        low=max(-1.0, min(mean, centre - half)),
        high=min(1.0, max(mean, centre + half)),
    )


def _quantile(confidence: float) -> float:
    """Of the normal distribution, for a two-sided interval."""
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def _wilson(mean: float, n: float, z: float) -> Interval:
    """Wilson, JASA 22 (1927) 209; clipped, as rounding may miss the estimate at 0 and 1."""
    shrink = 1.0 + z**2 / n
    centre = (mean + z**2 / (2 * n)) / shrink
    half = z / shrink * math.sqrt(mean * (1.0 - mean) / n + (z / (2 * n)) ** 2)
    return Interval(
        estimate=mean,
        low=max(0.0, min(mean, centre - half)),
        high=min(1.0, max(mean, centre + half)),
    )
