# %% [markdown]
# # 0 · One game by hand
#
# **Goal.** See what the agent sees: a task, observations, a list of actions, a reward at the end
# and nowhere else.
#
# **Words.** The *policy* is the language model that acts. An *episode* is one try at a game; a
# *step* of it is one observation, one response, one action. All words: `docs/method.md`.
#
# **Read.** `envs/__init__.py` (one page: what a world is), `common.py`: `Episode`, `rollout`.
#
# **Minutes.** 30, of which ten seconds are computing.

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
# **Your turn.** Win this game: in the last line of the cell put your own actions into the list, and
# run it again. (Take the keychain, go to where the desklamp is, `use desklamp 1`.) How many steps
# did you need? What did you know that the agent does not?
#
# ## What the policy reads
#
# Two kinds of policy play here. A *stand-in* is a tiny model (0.7 million parameters) that was
# taught in advance to act somewhat and to follow a hint. It reads a *compact* prompt that only
# grows. (`+note`: after a `go to` it also names two places where the agent has not been.) An
# instruct model of billions of parameters reads a *chat* prompt that is written anew at every step.
# Both know the same observations and history. The chat prompt lists the allowed actions; a stand-in
# is not told them, but sampling only offers it words that lead to one of them.

# %%
step = env.reset(tasks[0])
styles = ["compact"] if IS_TINY else ["compact+note", "chat"]
for style in styles:
    print(f"---- {style} ----")
    print(env.prompt(env.task, [], step, [], style)[:900])

# %% [markdown]
# A *skill* is a line of advice: when (a condition), do (a strategy). With a skill in it the same
# prompt has one more line, the hint. Nothing else changes:

# %%
skill = {"condition": "you look for something", "strategy": "open what is closed"}
print(env.prompt(env.task, [], step, [skill], styles[0])[:300])

# %% [markdown]
# ## What the policy does
#
# `rollout` plays many episodes side by side. A *play* names a task, a *group* (tries of the same
# game from the same start), and by its `key` the random numbers that it is sampled with. Here are
# six games with four tries each, and the shortest win step by step.

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
# with. Lists are shown by their length: so many prompt tokens, so many response tokens, and for
# each of these its log-prob and the tokens that were `allowed` there. A game that is won has the
# reward 10 in its last step; all other steps have 0. Which of the steps was good? That is chapter
# 1.

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
# 1. Play the same plays again (run that cell twice). Is anything different? Change one number in
#    `key`: what changes, and what does not?
# 2. `env.parse("<think>hm</think> <action>GO TO desk 1</action>", "chat", step)`: what is the
#    action, and is it *valid*, that is, well-formed? Now leave out `</think>`. An ill-formed
#    response costs 0.1, an impossible action nothing but a step. Why?
# 3. Chapter 1 compares steps that were taken in the same state. As the state's name, its *anchor*,
#    it takes the observation (`env.anchor`). Name two moments of a game that have the same
#    observation and are not the same state. (Look at what the agent carries.)
#
# <details><summary>Answers (try first)</summary>
#
# Your turn: four steps are enough: armchair 1, take the keychain, sidetable 1, use the lamp. You
# knew what a keychain and a desklamp are, and what the words of the task ask for.
#
# 1. The same key gives the same episode, to the last digit. Another key gives other responses; the
#    game and its start stay.
# 2. `go to desk 1`, valid: capitals do not matter. Without `</think>` the action is still found,
#    and valid is False. The form is under the model's control at every step, so it can be asked
#    for; what is possible has to be found out by trying.
# 3. "You arrive at armchair 1 ..." with and without the keychain in the hand, if it came from
#    another place.
#
# </details>
#
# > **What would break it?** If `step` raised an error for an unknown action, one odd token would
# > end an iteration. If two tasks could share a group, the comparisons of chapter 1 would compare
# > games instead of tries. If the prompt were decoded and encoded again between sampling and
# > training, the log-probs would belong to other tokens.
