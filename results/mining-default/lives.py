"""A skill's life (15), (16) under two readings, simulated:

    python results/mining-default/lives.py > results/mining-default/lives.md

A candidate of a true effect e meets games whose plain success varies (sd .25 about `plain`), as
does the effect (sd .2); a pair is 4 + 4 episodes.  Readings: when three negative utilities in a row
retire (at any n, or from N_eval on), and what the first pairs weigh in the utility (first: u <- D,
then a = .2, so the first pair weighs .51 of four; even: a = max(.2, 1/n), the mean of five)."""

import numpy as np


def lives(effect, n_eval, wait, even, plain=0.4, n=20_000, tau=0.05, ema=0.2, after=3):
    """Shares of n candidates that are retired before N_eval, promoted in the end; pairs of each."""
    stream = np.random.default_rng(0)
    m = 3 * n_eval
    base = np.clip(plain + stream.normal(0, 0.25, (n, m)), 0.02, 0.98)
    skilled = np.clip(base + effect + stream.normal(0, 0.2, (n, m)), 0, 1)
    deltas = (stream.binomial(4, skilled) - stream.binomial(4, base)) / 4
    early = promoted = pairs = 0
    for life in deltas:
        u, streak = 0.0, 0
        for k, delta in enumerate(life, 1):
            u += (max(ema, 1 / k) if even or k == 1 else ema) * (delta - u)
            streak = streak + 1 if u < 0 else 0
            if k >= n_eval and u > tau:
                promoted += 1
                break
            if streak >= after and (not wait or k >= n_eval):
                early += k < n_eval
                break
        pairs += k
    return early / n, promoted / n, pairs / n


heads = [f"{when}, {weight}" for when in ("any n", "from N_eval") for weight in ("first", "even")]
print("| N_eval | true effect | " + " | ".join(heads) + " |")
print("|---" * 6 + "|")
for n_eval in (4, 8):
    for effect in (-0.2, -0.1, 0.0, 0.1, 0.2, 0.35):
        ways = [(wait, even) for wait in (False, True) for even in (False, True)]
        cells = [lives(effect, n_eval, *way) for way in ways]
        texts = [f"retired early {a:.2f}, promoted {b:.2f}, {c:.1f} pairs" for a, b, c in cells]
        print(f"| {n_eval} | {effect:+.2f} | " + " | ".join(texts) + " |")
