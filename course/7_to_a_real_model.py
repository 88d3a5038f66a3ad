# %% [markdown]
# # 7 · To a real model
#
# **Goal.** What changes between 0.7 million parameters and 7 billion: arguments, prompts, memory,
# money. The method does not.
#
# **Read.** `docs/gpus.md`, `support/chat.py`, `recipes/plan.py`, `support/models.py` (what is
# checked before a run).
#
# **Words.** *LoRA*: the model's weights stay, and small added matrices (adapters) are trained. *KV
# cache*: what a model keeps of the tokens it has read while it samples. *vLLM*: a fast sampler for
# GPUs.
#
# **Minutes.** 40, of which a quarter of a minute is computing. No GPU is needed for this chapter.

# %%
import sys
from pathlib import Path

sys.path.insert(
    0, str(next(p for p in [Path.cwd(), *Path.cwd().parents] if (p / "warmup.py").exists()))
)
from course.lesson import *

import os
import subprocess
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
from common import Play, Policy, make_env, rollout
from distill import action_token_mask
from tests.conftest import make_chat_model

# %% [markdown]
# ## A chat model in miniature
#
# Random weights, but all else as in Qwen2.5-Instruct: a chat template, tokens made of bytes, and
# responses that may be anything (not constrained to the allowed actions, as a stand-in's are).

# %%
folder = make_chat_model(Path(tempfile.mkdtemp()) / "model")
policy = Policy(folder)
env = make_env("alfworld", "fast", 3)
record = rollout(policy, env, [Play(env.tasks("train")[0], "g", (0, "chat"))], max_response=40)[0]
s = record["steps"][0]
print("style:", policy.style, "· constrained:", policy.constrain)
print(policy.tokenizer.decode(s["prompt_ids"])[:700], "...")

# %% [markdown]
# A random model answers nonsense, so `valid` is False and the step costs 0.1:

# %%
print(repr(s["response"][:120]), "· valid:", s["valid"], "· action:", repr(s["action"][:40]))

# %% [markdown]
# ## Where is the action? (E9)
#
# Which tokens of a response are taught? Tokens of real models do not end where words do. **Predict
# M for each**, then run.

# %%
for response in (
    "<think>a drawer</think>\n<action>open drawer 1</action>",
    "<THINK>x</THINK><ACTION>go to desk 1</ACTION>",
    "<think>x</think><action>a</action>",
):
    ids = policy.encode(response)
    mask = action_token_mask(
        policy, {"response_ids": ids, "response": policy.decode(ids), "valid": True}
    )
    print(
        " ".join(f"[{policy.decode([i])}]" if m else policy.decode([i]) for i, m in zip(ids, mask))
    )

# %% [markdown]
# ## What a run will need
#
# From the model's config alone: memory by part, seconds, money. `--price` is that of a GPU hour.
# Look for three lines: the sum of the memory while updating, whether the sampler's cache fits, and
# the cost of all three phases (150 iterations).


# %%
def plan(*arguments):
    command = [sys.executable, str(ROOT / "recipes" / "plan.py"), *arguments]
    made = subprocess.run(command, capture_output=True, text=True)
    print(made.stdout[-2500:] or made.stderr[-500:])


plan("--gpus", "1", "--lora-rank", "64", "--gradient-checkpointing", "--price", "2.5")

# %% [markdown]
# ## The commands
#
# The same four scripts (`bash recipes/qwen_lora.sh alfworld 1.5B` has them with all options):
#
# ```
# python warmup.py  --preset paper --model Qwen/Qwen2.5-1.5B-Instruct --dtype bfloat16 --engine vllm
# python mine.py    ...
# python distill.py ...
# python evaluate.py
# ```
#
# | | laptop | paper |
# |---|---|---|
# | prompts | grow, compact | written anew, chat |
# | responses | among the allowed actions | free, `<think>` and `<action>` |
# | advantages | mean only | mean and std |
# | pi_old | the sampler's log-probs | computed again by the trainer |
# | KL to the base | off | beta = 0.01 |
# | learning rate | 5e-4 | 1e-6 (adapters: 3e-6 to 1e-5) |
#
# ## Exercises
#
# 1. `plan` for two cards of your choice. What does `--gradient-checkpointing` cost, what does it
#    save?
# 2. The sampler (vLLM) and the trainer compute the same policy by different kernels. Which metric
#    shows the difference, and which line corrects it? (Glossary of the report: `sampler_gap`.)
# 3. A model with a thinking mode: where is it switched off, and why?
#
# > **What would break it?** A mask made from token ids (`== pad`) where pad is the end token. A
# > learning rate copied from the laptop: 5e-4 destroys a 7B model in one step. Text that is decoded
# > and encoded again on the way to the trainer. Evaluating the 7B model once, with one seed, and
# > calling two points a gain.
