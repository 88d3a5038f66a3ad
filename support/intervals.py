"""Intervals over games: repetitions of a game are no new games.  Tables, figures and
recipes/compare.py all use these.

    interval             of a success rate: Wilson's, of as many episodes as all of these are worth
    design_effect        how many episodes are worth one of a game of its own
    half_width           of a mean over pairs
    paired_difference    of two policies on the same games: bootstrap over games
"""

import numpy as np


def by_game(results):
    """{task_id: list of 0/1}."""
    games = {}
    for result in results:
        games.setdefault(result["task_id"], []).append(int(result["success"]))
    return games


def design_effect(games):
    """How many episodes tell as much as one of a game of its own: 1 where repetitions differ as
    games do, their number where they never differ.  games: a list of lists of 0/1.

    Kish's design effect, sum over games of (wins - p plays)^2 G / (G - 1) / (N p (1 - p))."""
    most = max(map(len, games))
    # Few games tell little of how games differ, and none where all are won.  Two more are imagined,
    # one always won, one always lost: without them the interval of 12 games x 50 repetitions misses
    # in 1 of 5 cases where most are won, with them in 1 of 50.
    usual = sum(map(len, games)) / len(games)
    plays = np.array([*map(len, games), usual, usual])
    wins = np.array([*map(sum, games), usual, 0])
    p, n = wins.sum() / plays.sum(), len(plays)
    between = ((wins - p * plays) ** 2).sum() * n / (n - 1)
    return float(np.clip(between / (plays.sum() * p * (1 - p)), 1.0, most))


def interval(games):
    """(rate, low, high): Wilson's 95 % interval, of as many episodes as all of these are worth.
    games: a list of lists of 0/1."""
    n, z = sum(map(len, games)), 1.959964
    rate, worth = sum(map(sum, games)) / n, n / design_effect(games)
    middle = (rate + z * z / (2 * worth)) / (1 + z * z / worth)
    inside = rate * (1 - rate) / worth + z * z / (4 * worth * worth)
    half = z * inside**0.5 / (1 + z * z / worth)
    return rate, max(0.0, middle - half), min(1.0, middle + half)


def half_width(d, games=None):
    """Half of the 95 % interval of a mean over pairs; nan for a single one.  d: array of
    differences; games: which game each is of, where games have several."""
    sums = {}  # game -> its part of the deviation from the mean
    for game, value in zip(range(len(d)) if games is None else games, d - np.mean(d)):
        sums[game] = sums.get(game, 0.0) + value
    if len(sums) < 2:
        return float("nan")
    between = sum(value**2 for value in sums.values()) * len(sums) / (len(sums) - 1)
    return float(1.96 * between**0.5 / len(d))


def paired_difference(a, b, seed=0):
    """(mean, low, high) of success(a) - success(b) over the games that both played: a bootstrap
    over games, 95 %."""
    from scipy import stats  # takes a second to load

    a, b = ({task: np.mean(wins) for task, wins in by_game(one).items()} for one in (a, b))
    d = np.array([a[task] - b[task] for task in sorted(a) if task in b])
    mean = float(d.mean())
    if len(d) < 2:
        return mean, float("nan"), float("nan")  # one game has no interval
    if np.all(d == d[0]):
        return mean, mean, mean
    how = dict(n_resamples=5000, method="percentile", rng=np.random.default_rng(seed))
    low, high = stats.bootstrap((d,), np.mean, **how).confidence_interval
    return mean, float(low), float(high)
