"""What the laptop path costs on one core: rollout and update rates, where the time goes, peak memory.  One JSON line.

    python benchmarks/laptop.py [--policy runs/default/distill/policy]

Rollout: 64 games of the training split, one thread, in lockstep.  Update: the rows of those episodes, one pass, forward and backward.
The share of the matrix rate counts 6 operations per weight of the layers and token, and attention; everything else is overhead.
"""

import argparse
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
from support import cli, sampler  # noqa: E402


def timed(clock, name, function):
    """The function, with the seconds that it takes added to clock[name]."""

    def call(*args, **kwargs):
        began = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            clock[name] = clock.get(name, 0.0) + time.perf_counter() - began

    return call


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--policy", default=str(ROOT / "tiny" / "alfworld"), help="model folder")
    parser.add_argument("--games", type=int, default=64, help="episodes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    parser = cli.make_parser("benchmark")
    sys.argv = ["laptop", "--threads", "1", "--mini-batch-rows", "1200"]
    args = cli.parse_args(parser)
    policy, env, clock = common.Policy(options.policy), AlfWorld(), {}
    tasks = env.tasks("train")[:: max(1, len(env.tasks("train")) // options.games)][: options.games]
    for task in tasks:
        env.game(task)  # parsing is done once per game and timed by envs/bench.py
    AlfWorld.step = timed(clock, "environment", AlfWorld.step)
    policy.prompt_ids = timed(clock, "prompts", policy.prompt_ids)
    sampler.Sampler.sample = timed(clock, "sampling", sampler.Sampler.sample)
    began = time.perf_counter()
    records = common.rollout(policy, env, [common.Play(task, task, ("benchmark", task)) for task in tasks])
    rollout_seconds = time.perf_counter() - began
    steps = sum(len(r["steps"]) for r in records)

    common.assign_advantages(records, env, args)
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=1e-5)
    rows = common.rows_of(records)
    began = time.perf_counter()
    metrics = common.update(policy, optimizer, rows, args, np.random.default_rng(0))
    update_seconds = time.perf_counter() - began
    tokens = metrics["update_tokens"]
    config = policy.model.config
    weights = sum(p.numel() for name, p in policy.model.named_parameters() if "embed" not in name and "lm_head" not in name)
    width = config.num_attention_heads * config.head_dim
    lengths = [len(r["steps"][-1]["prompt_ids"]) + len(r["steps"][-1]["response_ids"]) for r in records]
    attention = sum(12 * config.num_hidden_layers * width * n * n / 2 for n in lengths)  # causal: half of n x n, forward and backward
    rate = measure.matmul_rate("cpu", 1024, torch.float32)
    print(
        json.dumps(
            {
                "episodes": len(records),
                "steps": steps,
                "success": round(sum(r["success"] for r in records) / len(records), 3),
                "rollout_steps_per_second": round(steps / rollout_seconds, 1),
                "rollout_shares": {name: round(seconds / rollout_seconds, 3) for name, seconds in clock.items()},
                "update_tokens_per_second": round(tokens / update_seconds, 1),
                "matrix_gflops": round(rate / 1e9, 1),
                "update_share_of_matrix_rate": round((6 * weights * tokens + attention) / update_seconds / rate, 3),
                "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            }
        )
    )


if __name__ == "__main__":
    main()
