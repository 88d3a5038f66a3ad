# %% [markdown]
# # 2 · Warm-up
#
# **Goal.** Write phase 0 out: play, credit, update; watch success rise; know when to stop.
#
# **Read.** `warmup.py` (all of it), `common.py`: `policy_loss`, `gigpo_loss`, `update`.
#
# **Minutes.** 40, of which about three are computing.

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
# (9): the ratio of new to old probability times the advantage, clipped so that one update cannot go
# far. **Predict**: at which ratio does the gradient vanish for A = +1? For A = -1?

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
# ## The loop
#
# Six lines, the same as in `warmup.py` without files, clock and checkpoints.


# %%
def train(iterations, omega=1.0, seed=0):
    policy, env = policy_after(), world()
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=5e-4, weight_decay=0.01)
    tasks, lines, wins = train_tasks(env), [], []
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
        if enough_successes(wins, window=2, stop_at=0.2, episodes=len(records)):  # (13)
            print(f"(13) would stop here: iteration {k}")
    return lines


lines = train(budget(8, 2))
keys = ("success_plain", "no_signal", "mean_steps", "entropy", "clip_fraction", "grad_norm")
table([[k] + [float(line[key]) for key in keys] for k, line in enumerate(lines)], head=["k", *keys])

# %% [markdown]
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
# Section 2 of the report: success, entropy and groups without signal. A group that was won by all
# or by none teaches nothing by (4).
#
# ## Exercises
#
# * **E7** `python warmup.py --run nostep --omega 0 --stop-at 0 --minutes 3` against the default,
#   evaluated on the same games.
# * **E6** write the leave-one-out baseline as a patch of `normalise`: a try is compared with the
#   mean of the *others*. `python -m course.check E6` runs your patch on a known group.
# * Which metric tells first that the learning rate is ten times too high? Try it: `lr=5e-3` in the
#   cell above.
#
# > **What would break it?** Old log-probs computed again after every optimizer step: all ratios are
# > 1, nothing is ever clipped, and every metric but one looks healthy. It is one of the four silent
# > bugs of `course/bugs/` (E8).
