# %% [markdown]
# # 6 · Evaluating honestly
#
# **Goal.** Know how far a number can be trusted: intervals, pairs, games against episodes, seeds
# against luck.
#
# **Read.** `support/intervals.py`: `interval`, `design_effect`, `paired_difference`;
# `docs/results.md`.
#
# **Minutes.** 40, of which a quarter of a minute is computing.

# %%
import sys
from pathlib import Path

sys.path.insert(
    0, str(next(p for p in [Path.cwd(), *Path.cwd().parents] if (p / "warmup.py").exists()))
)
from course.lesson import *

import matplotlib.pyplot as plt
import numpy as np
from scipy import stats

from common import Play, rollout
from support.intervals import interval, paired_difference

# %% [markdown]
# ## Two policies, the same games
#
# The policy after warm-up and the one after distillation play the same games with the same random
# numbers, each game twice. In brackets: the interval that holds the true share 95 times of a
# hundred, computed over games.

# %%
env = world()
games = env.tasks(env.split_names[1])[: budget(24, 6)]
results = {}
for name in ("warmup", "distill"):
    plays = [Play(t, t, ("course", t, r)) for t in games for r in range(2)]
    results[name] = rollout(policy_after(name), env, plays, temperature=0.4)
wins = {
    name: {t: [int(r["success"]) for r in part if r["task_id"] == t] for t in games}
    for name, part in results.items()
}
for name in results:
    rate, low, high = interval(list(wins[name].values()))
    print(
        f"after {name:8s} {rate:.3f} [{low:.3f}, {high:.3f}] of {2 * len(games)} episodes, "
        f"{len(games)} games"
    )
print(
    "paired difference {:+.3f} [{:+.3f}, {:+.3f}]".format(
        *paired_difference(results["distill"], results["warmup"])
    )
)

# %% [markdown]
# A paired difference is taken game by game, and then averaged. It knows more than the two intervals
# side by side: what makes a game hard is the same for both policies and cancels.
#
# ## Repetitions are no new games
#
# Two tries of one game are alike. **Predict**: twenty games played five times each, or a hundred
# games once: which interval is wider, and what does a formula say that counts both as a hundred?

# %%
stream = np.random.default_rng(0)
p = stream.beta(0.6, 0.6, 4000)  # games are easy or hard
few = [
    stream.binomial(1, p[stream.integers(4000, size=20)][:, None], (20, 5)).mean()
    for _ in range(2000)
]
many = [stream.binomial(1, p[stream.integers(4000, size=100)]).mean() for _ in range(2000)]
print(
    f"standard deviation of the success: 20 games x 5 {np.std(few):.3f}, 100 games x 1 "
    f"{np.std(many):.3f}; the formula says {np.sqrt(0.25 / 100):.3f}"
)

# %% [markdown]
# Twenty games played five times are worth about 35 games, not a hundred. `design_effect` measures
# from the results themselves how much repetitions are worth, and `interval` is as wide as that.
#
# ## Two public exhibits
#
# Same method, same model, same games, three seeds: GRPO with a 7B model on ALFWorld won 104, 78 and
# 117 of 140 games (repository `alfworld-vanilla-grpo`, 2026-07). And GiGPO's published 7B values
# range from 83.9 to 90.8.

# %%
seeds = np.array([104, 78, 117]) / 140
half = stats.t.ppf(0.975, 2) * seeds.std(ddof=1) / np.sqrt(3)
print(f"three seeds: {seeds.round(3)}, mean {seeds.mean():.3f}, 95 % +- {half:.3f}")
print(
    "one seed's own interval (140 games): +- "
    f"{1.96 * np.sqrt(seeds.mean() * (1 - seeds.mean()) / 140):.3f}"
)
print(
    "the gain that the SIRI paper reports over GiGPO on ALFWorld: 0.930 - 0.908 = +0.022, one "
    "evaluation each"
)

# %%
figure, axis = plt.subplots(figsize=(7, 2.4))
axis.plot(seeds, [1] * 3, "o", color="#0072B2", label="GRPO 7B, three seeds of one recipe")
axis.plot([0.839, 0.908], [0.6] * 2, "s-", color="#D55E00", label="GiGPO 7B, published values")
axis.plot([0.908, 0.930], [0.2] * 2, "^-", color="#009E73", label="the gain that is reported")
axis.set(yticks=[], xlabel="success on ALFWorld", ylim=(0, 1.9))
axis.legend(fontsize=8, loc="upper left")
plt.show()

# %% [markdown]
# ## How many seeds?
#
# Runs differ by sigma, the standard deviation over seeds (above: .14). To see a difference of .02
# with three seeds per arm is hopeless; how many would it take?

# %%
for sigma in (0.14, 0.05, 0.02):
    needed = next(
        n
        for n in range(2, 100_000)
        if stats.t.ppf(0.975, 2 * n - 2) * sigma * np.sqrt(2 / n) < 0.02
    )
    print(f"seeds differ by {sigma}: {needed} seeds per arm until +-0.02")

# %% [markdown]
# ## Look
#
# Section 8 of the report, and the games that one policy wins and the other loses: read three of
# them before you believe a number.
#
# ## Exercises
#
# * **E5** `python -m course.check E5`: three ablations, predicted before they are looked up.
# * **E10** Write the two sentences that the hour on WebShop in `docs/results.md` allows.
#   `python -m course.check E10`
# * Evaluate at temperature 1.0 as well. Does the order of the arms stay? Whose number should be
#   reported?
# * Tune anything on the validation games for ten tries and take the best. How much better does it
#   look than it is? (Simulate it: the best of ten equal policies on 140 games.)

# %%
best = stream.binomial(140, 0.8, (5000, 10)).max(1).mean() / 140
print(f"the best of ten equal policies, all 0.800: {best:.3f}")

# %% [markdown]
# > **What would break it?** Different random streams for the arms; skills shown to one arm only and
# > forgotten in the table; a checkpoint chosen by the very games it is reported on. This project
# > tunes on *held-out training games* (`--split held_out`).
