"""What the laptop path costs on one core: rollout and update rates, where the time goes, peak
memory. One JSON line.

    python benchmarks/laptop.py [--policy runs/default/distill/policy]

Rollout: 64 games of the training split, one thread, in lockstep.  Update: the rows of those
episodes, one pass, forward and backward.  Seconds are those that the process computed, so that a
shared machine's other programs do not count.  The share of the matrix rate counts 6 operations per
weight of the layers and token, and attention; everything else is overhead."""

import json
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import common  # noqa: E402
from benchmarks import measure  # noqa: E402
from envs.alfworld import AlfWorld  # noqa: E402
from envs.arguments import Parser, whole  # noqa: E402
from support import cli, sampler  # noqa: E402


def timed(clock, name, function):
    """The function, with the seconds that it takes added to clock[name]."""

    def call(*args, **kwargs):
        began = time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            clock[name] = clock.get(name, 0.0) + time.process_time() - began

    return call


def main():
    parser = Parser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--policy", default=str(ROOT / "tiny" / "alfworld"), help="model folder")
    parser.add_argument("--games", type=whole(1), default=64, help="episodes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    policy, env, clock = common.Policy(options.policy), AlfWorld(), {}
    tasks = env.tasks("train")
    tasks = tasks[:: max(1, len(tasks) // options.games)][: options.games]
    for task in tasks:
        env.game(task)  # parsing is done once per game and timed by envs/bench.py
    AlfWorld.step = timed(clock, "environment", AlfWorld.step)
    policy.prompt_ids = timed(clock, "prompts", policy.prompt_ids)
    sampler.Sampler.sample = timed(clock, "sampling", sampler.Sampler.sample)
    plays = [common.Play(task, task, ("benchmark", task)) for task in tasks]
    began = time.process_time()
    records = common.rollout(policy, env, plays)
    rollout_seconds = time.process_time() - began
    steps = sum(len(r["steps"]) for r in records)

    common.assign_advantages(records, env, mode="mean_norm")
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=1e-5)
    rows, how = common.rows_of(records), dict(mini_batch_rows=1200, micro_batch_tokens=4096)
    began = time.process_time()
    metrics = common.update(policy, optimizer, rows, np.random.default_rng(0), **how)
    update_seconds = time.process_time() - began
    tokens = metrics["update_tokens"]
    config = policy.model.config
    weights = sum(
        p.numel()
        for name, p in policy.model.named_parameters()
        if "embed" not in name and "lm_head" not in name
    )
    width = config.num_attention_heads * config.head_dim
    last = [r["steps"][-1] for r in records]
    lengths = [len(step["prompt_ids"]) + len(step["response_ids"]) for step in last]
    # causal: half of n x n, forward and backward
    attention = sum(12 * config.num_hidden_layers * width * n * n / 2 for n in lengths)
    rate = measure.matmul_rate("cpu", 1024, torch.float32)
    share = (6 * weights * tokens + attention) / update_seconds / rate
    shares = {name: round(seconds / rollout_seconds, 3) for name, seconds in clock.items()}
    result = {
        "episodes": len(records),
        "steps": steps,
        "success": round(sum(r["success"] for r in records) / len(records), 3),
        "rollout_steps_per_second": round(steps / rollout_seconds, 1),
        "rollout_shares": shares,
        "update_tokens_per_second": round(tokens / update_seconds, 1),
        "matrix_gflops": round(rate / 1e9, 1),
        "update_share_of_matrix_rate": round(share, 3),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    cli.run_script(main)
