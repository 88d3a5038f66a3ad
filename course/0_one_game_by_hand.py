# %% [markdown]
# # 0 · One game by hand
#
# **Goal.** See what the agent sees: a task, observations, a list of actions, a reward at the end
# and nowhere else.
#
# **Read.** `envs/__init__.py` (one page: what a world is), `common.py`: `Episode`, `rollout`.
#
# **Minutes.** 30, of which half a minute is computing.

# %%
import sys
from pathlib import Path

sys.path.insert(
    0, str(next(p for p in [Path.cwd(), *Path.cwd().parents] if (p / "warmup.py").exists()))
)
from course.lesson import *

from common import Play, rollout

env = world()
tasks = env.tasks(env.split_names[0])
print(env.describe(env.split_names[0]))

# %% [markdown]
# ## You are the agent
#
# `reset` begins a game, `step` plays one action. An action that the world does not know is
# answered, never an exception.

# %%
step = env.reset(tasks[0])
print(step.observation)
print("\nyou may:", ", ".join(step.admissible[:12]), "...")


# %%
def play(actions):
    """Plays a list of actions in the first game."""
    step = env.reset(tasks[0])
    for t, action in enumerate(actions, 1):
        step = env.step(action)
        print(f"{t:2d} > {action}\n     {step.observation[:110]}")
        if step.done:
            break
    print("won" if step.won else "not won", "· reward", step.reward)


play(step.admissible[:3])

# %% [markdown]
# **Your turn.** Win this game: change the list and run the cell again. How many steps did you need?
# What did you know that the agent does not?
#
# ## What the policy reads
#
# A stand-in reads a compact prompt that only grows; an instruct model reads a chat prompt that is
# written anew at every step. The observation, the history and the allowed actions are the same.

# %%
step = env.reset(tasks[0])
styles = ["compact"] if IS_TINY else ["compact+note", "chat"]
for style in styles:
    print(f"---- {style} ----")
    print(env.prompt(env.task, [], step, [], style)[:900])

# %% [markdown]
# With a skill in it the same prompt has one more line. Nothing else changes, and that is the whole
# of an intervention:

# %%
skill = {"condition": "you look for something", "strategy": "open what is closed"}
print(env.prompt(env.task, [], step, [skill], styles[0])[:300])

# %% [markdown]
# ## What the policy does
#
# `rollout` plays many episodes side by side. A *play* names a task, a *group* (tries of the same
# game), and a random stream.

# %%
policy = policy_after()
plays = [
    Play(task, group_id=f"g{g}", key=(0, "by hand", g, i))
    for g, task in enumerate(tasks[: budget(6, 2)])
    for i in range(4)
]
records = rollout(policy, env, plays)
print(
    f"{sum(r['success'] for r in records)} of {len(records)} won, "
    f"{sum(len(r['steps']) for r in records) / len(records):.1f} steps on average"
)
one = max(records, key=lambda r: (r["success"], -len(r["steps"])))
print("\n" + one["task"], "· won" if one["success"] else "· lost")
for s in one["steps"][:8]:
    print(
        f"{s['t'] + 1:2d} > {s['action']:40s} log-prob {sum(s['logprobs']):6.2f} of "
        f"{len(s['admissible'])} actions"
    )

# %% [markdown]
# Every step is one *row* of the training data: a prompt, a response, the log-probs it was sampled
# with. The reward of the whole game stands in its last step; all others have 0. Which of the steps
# was good? That is chapter 1.

# %%
print(
    {
        key: (value if not isinstance(value, list) else f"{len(value)} ...")
        for key, value in one["steps"][-1].items()
        if key != "observation"
    }
)

# %% [markdown]
# ## Exercises
#
# 1. Play the same four keys again. Is anything different? Change one number in `key`: what changes,
#    and what does not?
# 2. `env.parse("<think>hm</think> <action>GO TO desk 1</action>", "chat", step)`: what is the
#    action, and is it *valid*? Now leave out `</think>`. Why does an ill-formed response cost 0.1
#    while an impossible action costs nothing but a step?
# 3. The anchor of a step is the raw observation (`env.anchor`). Name two states of a game that
#    share an anchor and are not the same state. (Look at what the agent carries.)
#
# > **What would break it?** If `step` raised an error for an unknown action, one odd token would
# > end an iteration. If two tasks could share a group, the comparisons of chapter 1 would compare
# > games instead of tries. If the prompt were decoded and encoded again between sampling and
# > training, the log-probs would belong to other tokens.
