"""What one GPU does: updates and rollouts of models of Qwen2.5's shapes with random weights, on real ALFWorld prompts.  One line of JSON.

    python benchmarks/gpu.py --size 1.5B                      all weights
    python benchmarks/gpu.py --size 7B --lora-rank 64         on one H200, or with --micro-batch-tokens 4096 on 80 GB
    python benchmarks/gpu.py --size tiny --device cpu         tries the script out

    matmul          measured rate of bf16 matrix products (8192 x 8192) on this card, TFLOP/s
    update          common.update, one optimizer step: tokens/s without padding, its rate in TFLOP/s, share of the matmul rate (goal: 0.4)
    memory          measured peak beside the estimate of recipes/plan.py, both in GB
    rollout         common.rollout with transformers: environment steps/s and sampled tokens/s

FLOPs counted: 6 per parameter and token of a decoder layer (2 forward, 4 backward; LoRA: 4, as frozen weights get no gradient, and 6 for
the adapters), 6 (4) V d per response token for the logits, 6 T^2 q per row of T tokens and layer for causal attention, half of which is
masked.  Padding, and what gradient checkpointing computes twice, is not counted, so the share is of useful work.  Nothing is downloaded:
prompts come from generated houses where there are no games, the tokenizer is trained on them.

Status: run on CPU in size tiny (tests/test_benchmarks.py).  No GPU was at hand: 1.5B and 7B have not been measured.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import common  # noqa: E402
from benchmarks import measure  # noqa: E402
from envs.alfworld import AlfWorld  # noqa: E402
from recipes import plan  # noqa: E402
from support import cli, large  # noqa: E402

TINY = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=32)


def useful_flops(s, rows, lora_rank):
    """Floating-point operations of one update of all rows, as the docstring counts them."""
    per_weight = 4 if lora_rank else 6
    total = 0.0
    for row in rows:
        length, targets = len(row.prompt_ids) + len(row.response_ids), len(row.response_ids)
        total += per_weight * (length * s.layers * s.layer + targets * s.vocab * s.d)
        # scores and weighted values are 2 x 2 T q forward, half of it masked away; the backward pass costs twice that, LoRA or not
        total += 6 * length * length * s.q * s.layers
        total += 6 * length * lora_rank * s.adapter
    return total


def arguments(args):
    """The phases' own arguments, the paper's settings."""
    flags = f"--preset paper --device {args.device} --dtype {args.dtype} --micro-batch-tokens {args.micro_batch_tokens} --beta 0"
    flags += f" --mini-batch-rows {10**9} --lora-rank {args.lora_rank} --lr 1e-6 --threads 1"
    sys.argv = ["gpu", *flags.split(), *(["--gradient-checkpointing"] if args.gradient_checkpointing else [])]
    ours = cli.parse_args(cli.make_parser("gpu", logit_chunk=args.logit_chunk, old_logprobs="sampler"))
    return ours


def write_model(folder, args):
    """Random weights in the computing dtype, drawn on the device."""
    config = plan.read_config(f"Qwen2.5-{args.size}") if args.size != "tiny" else None
    shape = {field: getattr(config, field) for field in plan.FIELDS} if config else dict(TINY, vocab_size=2000, tie_word_embeddings=True)
    texts = measure.chat_prompts(200)
    measure.make_model(folder, "qwen2", texts, dtype=args.dtype, device=args.device, max_position_embeddings=32768, **shape)


def held(device):
    return torch.cuda.memory_allocated() if device == "cuda" else 0


def measure_all(args, folder):
    chosen = arguments(args)
    result = {"size": args.size, "lora_rank": args.lora_rank, "dtype": args.dtype, "micro_batch_tokens": args.micro_batch_tokens}
    result |= {"device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu", "torch": torch.__version__}
    result["matmul_tflops"] = measure.matmul_rate(args.device, 8192 if args.device == "cuda" else 256) / 1e12

    policy = common.load_policy(folder, chosen, trained=True)
    s = plan.Sizes(policy.model.config)
    optimizer = torch.optim.AdamW(large.trained(policy), lr=chosen.lr)

    # rollout before the update: the same prompts in which a run spends its time, responses of random weights are as long as allowed
    env = AlfWorld(max_steps=args.steps)
    games = env.tasks("train")[: args.episodes]
    plays = [common.Play(task, task, ("gpu", task)) for task in games]
    begun = time.perf_counter()
    records = common.rollout(policy, env, plays, 1.0, len(plays), args.response)
    measure.synchronize(args.device)
    seconds = time.perf_counter() - begun
    steps = [step for record in records for step in record["steps"]]
    sampled = sum(len(step["response_ids"]) for step in steps)
    result["rollout"] = {"steps_per_second": len(steps) / seconds, "sampled_tokens_per_second": sampled / seconds}

    rows = measure.random_rows(policy, measure.chat_prompts(args.rows, env=AlfWorld()), args.response)
    tokens = sum(len(row.prompt_ids) + len(row.response_ids) for row in rows)

    def update():
        common.update(policy, optimizer, rows, chosen, np.random.default_rng(0))

    seconds = measure.seconds(update, args.repeat, args.device)
    rate = useful_flops(s, rows, args.lora_rank) / seconds / 1e12
    result["update"] = {"tokens_per_second": tokens / seconds, "tflops": rate, "share_of_matmul": rate / result["matmul_tflops"]}

    parts = list(common.micro_batches(common.merge_prefixes(rows), args.micro_batch_tokens))
    how = dict(dtype=args.dtype, lora_rank=args.lora_rank)
    sizes = [(len(part) * len(part[0].ids), sum(len(one.positions) for one in part)) for part in parts]
    most = max(
        plan.peak(*plan.micro_batch_bytes(s, *one, checkpointing=args.gradient_checkpointing, logit_chunk=args.logit_chunk, **how))
        for one in sizes
    )
    estimated = sum(plan.weights_bytes(s, 1, beta=0, **how).values()) + most
    result["memory"] = {"estimated_gb": estimated / plan.GB}
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        update()
        torch.cuda.synchronize()
        result["memory"] |= {"measured_gb": torch.cuda.max_memory_allocated() / plan.GB}
        result["memory"]["estimated_over_measured"] = result["memory"]["estimated_gb"] / result["memory"]["measured_gb"]
    return result


def rounded(value):
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--size", default="1.5B", choices=["tiny", "0.5B", "1.5B", "3B", "7B"], help="whose shape")
    p.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="torch device")
    p.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"], help="of computing")
    p.add_argument("--lora-rank", type=int, default=0, help="0: all weights")
    p.add_argument("--gradient-checkpointing", action="store_true", help="compute activations again in the backward pass")
    p.add_argument("--micro-batch-tokens", type=int, default=16384, help="padded tokens per forward pass")
    p.add_argument("--logit-chunk", type=int, help="response tokens whose logits are there at once")
    p.add_argument("--rows", type=int, default=256, help="of the update: one prompt and response each")
    p.add_argument("--response", type=int, default=256, help="tokens of the longest response")
    p.add_argument("--repeat", type=int, default=3, help="updates measured, after one that is not")
    p.add_argument("--episodes", type=int, default=64, help="of the rollout")
    p.add_argument("--steps", type=int, default=4, help="of each")
    args = p.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise common.UserError("--device cuda: no CUDA device found; use --size tiny --device cpu to try the script out")
    with tempfile.TemporaryDirectory() as folder:
        write_model(folder, args)
        print(json.dumps(rounded(measure_all(args, folder))))


if __name__ == "__main__":
    cli.run_script(main)
