"""From evidence to the probability that a pair is mismatched, learnt without anybody saying which are.

A mismatched pair is one whose caption might as well have been drawn at random, and random pairs can be made at will. With m the density
of the evidence of matches, r that of random pairs and π the share of mismatches, the pairs of the corpus have (1 − π) m + π r. A
classifier that tells them from random pairs learns (1 − π) m / r + π: a function of m / r that only rises, so that by the lemma of Neyman
and Pearson it orders the pairs as well as one that had been shown the mismatches. P(mismatched) = π / ((1 − π) m / r + π).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

FOLDS = 3
KNOTS = 6
EM_STEPS = 20


@dataclass(frozen=True)
class Odds:
    """What is learnt of the pairs of a corpus.

    Attributes:
        ratio: float64 (P,), density among the pairs of the corpus over density among random pairs: the lower, the worse.
        share: π, estimated: of mismatched pairs in the corpus. Where matches overlap with random pairs it is an upper bound.
        mismatched: float64 (P,), probability that the pair is mismatched.
    """

    ratio: np.ndarray
    share: float
    mismatched: np.ndarray


def mismatch_odds(own: np.ndarray, made: np.ndarray, group: np.ndarray, made_group: np.ndarray) -> Odds:
    """Tell the pairs of a corpus from random ones.

    Args:
        own: float (P, E), evidence of the corpus's pairs; NaN where there is none.
        made: float (Q, E), that of random pairs.
        group: int64 (P,), the image of each: a pair is judged by a classifier that has not seen its image.
        made_group: int64 (Q,).
    """
    log_ratio, log_ratio_made = np.empty(len(own)), np.empty(len(made))
    fold, made_fold = group % FOLDS, made_group % FOLDS
    for number in range(FOLDS):
        of, of_made = fold == number, made_fold == number
        if not of.any():
            continue
        model = classifier()
        features = np.concatenate([own[~of], made[~of_made]])
        labels = np.concatenate([np.ones((~of).sum()), np.zeros((~of_made).sum())])
        model.fit(features, labels)
        prior = np.log((~of).sum() / (~of_made).sum())
        log_ratio[of] = model.decision_function(own[of]) - prior
        if of_made.any():
            log_ratio_made[of_made] = model.decision_function(made[of_made]) - prior
    share = mismatched_share(log_ratio, log_ratio_made)
    level = _level_ratio(log_ratio, log_ratio_made)
    return Odds(np.exp(log_ratio), share, np.minimum(1.0, share / np.maximum(level, 1e-300)))


def _level_ratio(own: np.ndarray, made: np.ndarray) -> np.ndarray:
    """The ratio of densities at each score of the corpus's pairs, from counts: any rising function of the score, so that
    probabilities do not depend on the form of the classifier."""
    from sklearn.isotonic import IsotonicRegression

    scores = np.concatenate([own, made])
    labels = np.concatenate([np.ones(len(own)), np.zeros(len(made))])
    weights = np.concatenate([np.full(len(own), 1 / len(own)), np.full(len(made), 1 / len(made))])
    chance = IsotonicRegression(out_of_bounds="clip").fit(scores, labels, sample_weight=weights).predict(own)
    return chance / np.maximum(1 - chance, 1e-9)


def revised(odds: Odds, score: np.ndarray) -> Odds:
    """Odds that know one more score of each pair, of which no random pair has any: what a run kept of its pairs while it trained.

    Two normal densities of one width, of matches and of mismatches, are fitted by expectation maximisation with each pair's own
    probability as its prior. One width, so that a better score never makes a pair worse.

    Args:
        odds: by other evidence.
        score: float (P,), high for matches; NaN where there is none.
    """
    known = np.isfinite(score)
    prior = np.clip(odds.mismatched[known], 1e-4, 1 - 1e-4)
    x = score[known].astype(np.float64)
    if len(x) < 2 or x.std() == 0:
        return odds
    posterior, shift = prior, np.zeros(len(x))
    for _ in range(EM_STEPS):
        bad, good = np.average(x, weights=posterior), np.average(x, weights=1 - posterior)
        if good <= bad:
            return odds
        width = np.mean(posterior * (x - bad) ** 2 + (1 - posterior) * (x - good) ** 2)
        shift = (good - bad) / width * ((good + bad) / 2 - x)
        posterior = 1 / (1 + np.exp(-np.clip(np.log(prior / (1 - prior)) + shift, -50, 50)))
    ratio, mismatched = odds.ratio.copy(), odds.mismatched.copy()
    ratio[known] *= np.exp(-np.clip(shift, -50, 50))
    mismatched[known] = posterior
    return Odds(ratio, odds.share, mismatched)


def mismatched_share(own: np.ndarray, made: np.ndarray) -> float:
    """π: how often a score is low in the corpus, against how often it is low among random pairs.

    Whatever threshold is taken, it is too large by the matches below it. So it is the least over thresholds below which enough random
    pairs lie for the count to mean something.
    """
    thresholds = np.quantile(made, np.linspace(0.2, 0.9, 15))
    # One more than were found: that none was seen does not make the share zero.
    below = (np.searchsorted(np.sort(own), thresholds, side="right") + 1) / len(own)
    below_made = np.searchsorted(np.sort(made), thresholds, side="right") / len(made)
    return float(np.clip((below / below_made).min(), 0, 1))


def classifier() -> Any:
    """Tells two kinds of rows of evidence, any of which may be missing: additive over smooth functions of each, in log-odds."""
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import SplineTransformer, StandardScaler

    return make_pipeline(
        SimpleImputer(strategy="median", keep_empty_features=True),
        StandardScaler(),
        SplineTransformer(n_knots=KNOTS, degree=3, knots="quantile", extrapolation="linear"),
        LogisticRegression(C=1.0, tol=1e-3, max_iter=300),
    )
