# %% [markdown]
# # 2 · Warm-up
#
# **Goal.** Write phase 0 out: play, credit, update; watch success rise; know when to stop.
#
# **Read.** `warmup.py` (all of it), `common.py`: `policy_loss`, `gigpo_loss`, `update`.
#
# **Minutes.** 40, of which one and a half are computing.

# %%
import sys
from pathlib import Path

sys.path.insert(
    0, str(next(p for p in [Path.cwd(), *Path.cwd().parents] if (p / "warmup.py").exists()))
)
from course.lesson import *

import matplotlib.pyplot as plt
import torch

from common import (
    assign_advantages,
    policy_loss,
    rollout,
    rows_of,
    sample_tasks,
    train_tasks,
    update,
)
from support.files import rng
from support.records import episode_metrics
from warmup import enough_successes, plain_groups

# %% [markdown]
# ## The loss of one token
#
# (9): the *ratio* rho is the token's probability now over that with which it was sampled. The loss
# is max(-A rho, -A clip(rho, 0.8, 1.2)), so that one update cannot go far; where A < 0 it is 3 |A|
# at most. Where the curve is flat the gradient is zero, and the token is left alone. **Predict**:
# at which ratios is that so for A = +1? For A = -1?

# %%
ratio = torch.linspace(0.2, 4, 200)
figure, axis = plt.subplots(figsize=(7, 3))
for A, line in ((1.0, "-"), (-1.0, "--")):
    l, clipped, capped = policy_loss(
        ratio.log(), torch.zeros_like(ratio), torch.full_like(ratio, A)
    )
    axis.plot(
        ratio,
        l,
        line,
        label=f"A = {A:+.0f}: flat for {int((clipped | capped).sum())} of 200 ratios",
    )
axis.set(xlabel="ratio rho = pi / pi_old", ylabel="loss (9)")
axis.legend()
plt.show()

# %% [markdown]
# A good token (A = +1) is raised up to rho = 1.2 and then left alone; a bad one is lowered down to
# 0.8. The flat part on the right (rho > 3, A = -1) is the bound 3 |A|: a token that has become much
# more likely since must not dominate the gradient.
#
# ## The loop
#
# Play, credit, update: the first lines of the loop below, as in `warmup.py` without files, clock
# and checkpoints. An iteration plays 8 games 8 times each. (13) stops the warm-up when a share
# `stop_at` of the last `window` iterations' tries were won: then there are successes to learn from.
# Here it only says so once, and goes on.


# %%
def train(iterations, omega=1.0, seed=0):
    """Metrics of each iteration of a warm-up from the base policy."""
    policy, env = policy_after(), world()
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=5e-4, weight_decay=0.01)
    tasks, lines, wins, stopped = train_tasks(env), [], [], False
    for k in range(iterations):
        chosen = sample_tasks(tasks, budget(8, 3), rng(seed, "course", k, "tasks"))
        records = rollout(policy, env, plain_groups(chosen, 8, seed, k))
        assign_advantages(records, env, omega=omega, mode="mean_norm")
        losses = update(
            policy,
            optimizer,
            rows_of(records),
            rng(seed, "course", k, "mini-batches"),
            mini_batch_rows=24 * env.max_steps,
        )
        wins.append(sum(r["success"] for r in records))
        lines.append(episode_metrics(records) | losses)
        if not stopped and enough_successes(wins, window=2, stop_at=0.2, episodes=len(records)):
            print(f"(13) would stop here: iteration {k}")
            stopped = True
    return lines


lines = train(budget(8, 2))
keys = ("success_plain", "no_signal", "mean_steps", "entropy", "clip_fraction", "grad_norm")
table([[k] + [float(line[key]) for key in keys] for k, line in enumerate(lines)], head=["k", *keys])

# %% [markdown]
# `no_signal`: the share of groups that were won by all tries or by none, which (4) learns nothing
# from. `entropy`: how undecided the policy is, per token. `clip_fraction`: the share of tokens on a
# flat part of (9). `grad_norm`: the length of the gradient. Success goes up and down by a tenth
# from one iteration to the next: 64 tries, eight games.
#
# ## Without the step advantage
#
# The same budget with omega = 0: only whole tries are compared (this is GRPO). **Predict first**:
# slower, faster, or the same?

# %%
without = train(budget(8, 2), omega=0.0)
figure, axis = plt.subplots(figsize=(7, 3))
axis.plot([line["success_plain"] for line in lines], "o-", label="omega = 1 (GiGPO)")
axis.plot([line["success_plain"] for line in without], "s--", label="omega = 0 (GRPO)")
axis.set(xlabel="iteration", ylabel="success while training", ylim=(0, 1))
axis.legend()
plt.show()

# %% [markdown]
# One seed and a handful of iterations: the difference may be luck. How many seeds would you need?
# (Chapter 6.)
#
# ## Look
#
# Section 2 of the report: success, entropy and groups without signal.
#
# ## Exercises
#
# * **E7** Where there are only a hundred training games, the step advantage does harm in the end.
#   Which, and why? `python -m course.check E7` asks; the answer is that of recorded runs.
# * **E6** write the leave-one-out baseline as a patch of `normalise`: a value is compared with the
#   mean of the *others*. `python -m course.check E6` says how, and runs your patch on known groups.
# * Which metric tells first that the learning rate is ten times too high? Try it: `lr=5e-3` in the
#   cell above.
#
# To see a warm-up with a hundred games, with and without the step advantage, takes twenty minutes
# more (`--run` names a folder of runs/; `--stop-at 0`: not before its time):
#
# ```
# git apply recipes/ablations/few-games.patch
# python warmup.py --run few --omega 1 --stop-at 0 --minutes 10
# python warmup.py --run few-nostep --omega 0 --stop-at 0 --minutes 10
# python evaluate.py --policy runs/few/warmup runs/few-nostep/warmup --out runs/few-both
# git apply -R recipes/ablations/few-games.patch
# ```
#
# > **What would break it?** Old log-probs computed again after every optimizer step: all ratios are
# > 1, nothing is ever clipped, and every metric but two looks healthy. It is one of the four silent
# > bugs of `course/bugs/` (E8).
