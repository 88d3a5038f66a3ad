"""A skill's life (15), (16) under two readings, simulated: python results/mining-default/lives.py >
results/mining-default/lives.md

A candidate of a true effect e meets games whose plain success varies (sd .25 about `plain`), as
does the effect (sd .2); a pair is 4 + 4 episodes. Readings: when three negative utilities in a row
retire (at any n, or from N_eval on), and what the first pairs weigh in the utility (first: u <- D,
then a = .2, so the first pair weighs .51 of four; even: a = max(.2, 1/n), the mean of the first
five)."""

import numpy as np


def lives(effect, n_eval, wait, even, plain=0.4, n=20_000, tau=0.05, ema=0.2, retire_after=3):
    """Shares of 20,000 candidates that are retired before N_eval, promoted in the end; and pairs
    spent on each."""
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
            if streak >= retire_after and (not wait or k >= n_eval):
                early += k < n_eval
                break
        pairs += k
    return early / n, promoted / n, pairs / n


print(
    "| N_eval | true effect | "
    + " | ".join(f"{w}, {e}" for w in ("any n", "from N_eval") for e in ("first", "even"))
    + " |"
)
print("|---" * 6 + "|")
for n_eval in (4, 8):
    for effect in (-0.2, -0.1, 0.0, 0.1, 0.2, 0.35):
        cells = [
            lives(effect, n_eval, wait, even) for wait in (False, True) for even in (False, True)
        ]
        print(
            f"| {n_eval} | {effect:+.2f} | "
            + " | ".join(
                f"retired early {a:.2f}, promoted {b:.2f}, {c:.1f} pairs" for a, b, c in cells
            )
            + " |"
        )
