"""What one GPU does: updates and rollouts of models of Qwen2.5's shapes with random weights, on
real ALFWorld prompts.  One line of JSON.

    python benchmarks/gpu.py --size 1.5B                      all weights
    python benchmarks/gpu.py --size 1.5B --own-norms          as before norms were one kernel
    python benchmarks/gpu.py --size 7B --lora-rank 64 --gradient-checkpointing
    python benchmarks/gpu.py --size 7B --lora-rank 64         shorter micro-batches, nothing twice
    python benchmarks/gpu.py --size tiny --device cpu         tries the script out

    matmul      measured rate of bf16 matrix products (8192 x 8192) on this card, TFLOP/s
    position    milliseconds of one token position of sampling, --rows rows at once (goal at 1.5B
                and 128 rows: 40), and of the draw in it
    rollout     common.rollout with transformers: environment steps/s and sampled tokens/s
    update      common.update, one optimizer step: tokens/s without padding, its rate in TFLOP/s,
                share of the matmul rate (goal: 0.45), share of padding among the tokens fed
    memory      measured peak beside the estimate of support/memory.py, both in GB

The micro-batch is the one that the update chooses from free memory, unless --micro-batch-tokens
says otherwise.  FLOPs counted: 6 per parameter and token of a decoder layer (2 forward, 4 backward;
LoRA: 4, as frozen weights get no gradient, and 6 for the adapters), 6 (4) V d per response token
for the logits, 6 T^2 q per row of T tokens and layer for causal attention, half of which is
masked.  Padding, and what gradient checkpointing computes twice, is not counted, so the share is of
useful work.  Nothing is downloaded: prompts come from generated houses where there are no games,
the tokenizer is trained on them.

Status: run on one H200 on 2026-11-27: position 44 to 47 ms, updates at .43 of the matrix rate
(1.5B) and .35 (7B with LoRA, checkpointing), with the models' own norms; docs/gpus.md.  Norms in
one kernel, and 7B without checkpointing, have not been timed.
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
from envs.arguments import Parser, whole  # noqa: E402
from recipes import plan  # noqa: E402
from support import cli, large, memory, models, packing, sampler  # noqa: E402

TINY = dict(
    hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, head_dim=32, vocab_size=2000, tie_word_embeddings=True,
)  # fmt: skip


def useful_flops(s, rows, lora_rank):
    """Floating-point operations of one update of all rows, as the docstring counts them."""
    per_weight = 4 if lora_rank else 6
    total = 0.0
    for row in rows:
        length, targets = len(row.prompt_ids) + len(row.response_ids), len(row.response_ids)
        total += per_weight * (length * s.layers * s.layer + targets * s.vocab * s.d)
        # scores and weighted values are 2 x 2 T q forward, half of it masked away; the backward
        # pass costs twice that, LoRA or not
        total += 6 * length * length * s.q * s.layers
        total += 6 * length * lora_rank * s.adapter
    return total


def arguments(args):
    """The phases' own arguments, the paper's settings."""
    typed = f"--preset paper --device {args.device} --dtype {args.dtype} --beta 0 --threads 1"
    typed += f" --lora-rank {args.lora_rank} --lr 1e-6"
    typed += " --gradient-checkpointing" * args.gradient_checkpointing
    sys.argv = ["gpu", *typed.split()]
    return cli.parse_args(cli.make_parser("gpu"))


def write_model(folder, args):
    """Random weights in the computing dtype, drawn on the device."""
    shape = TINY
    if args.size != "tiny":
        config = plan.read_config(f"Qwen2.5-{args.size}")
        shape = {field: getattr(config, field) for field in plan.FIELDS}
    how = dict(dtype=args.dtype, device=args.device, max_position_embeddings=32768)
    measure.make_model(folder, "qwen2", measure.chat_prompts(200), **how, **shape)


def of_position(policy, args):
    """{rows, tokens, ms, draw_ms}: milliseconds per token position of a response of many rows."""
    prompts = measure.chat_prompts(args.rows, env=AlfWorld())
    prompts = [policy.encode_prompt(text) for text in prompts]
    ends, policy.eos_ids = policy.eos_ids, set()  # no row ends before the others
    one = sampler.Sampler(policy, len(prompts))

    def respond(n):
        streams = [np.random.default_rng(i) for i in range(len(prompts))]
        begun = time.perf_counter()
        one.sample(
            prompts, [None] * len(prompts), streams, n
        )  # ends with a transfer, so it is done
        return 1000 * (time.perf_counter() - begun)

    with torch.inference_mode():
        respond(2)  # reads the prompts, which stay in the cache
        seconds = respond(args.response) / args.response
        logits = torch.randn(len(prompts), policy.model.config.vocab_size, device=policy.device)
        uniform, options = [0.5] * len(prompts), [None] * len(prompts)
        draw = measure.seconds(lambda: one.tokens(logits.clone(), uniform, options), 5, args.device)
    policy.eos_ids = ends
    length = max(map(len, prompts)) + args.response
    return {"rows": len(prompts), "longest_row": length, "ms": seconds, "draw_ms": 1000 * draw}


def of_rollout(policy, args):
    """The prompts in which a run spends its time; responses of random weights are as long as
    allowed."""
    env = AlfWorld(max_steps=args.steps)
    plays = [common.Play(task, task, ("gpu", task)) for task in env.tasks("train")[: args.episodes]]
    begun = time.perf_counter()
    records = common.rollout(policy, env, plays, 1.0, len(plays), args.response)
    measure.synchronize(args.device)
    seconds = time.perf_counter() - begun
    steps = [step for record in records for step in record["steps"]]
    sampled = sum(len(step["response_ids"]) for step in steps)
    return {
        "steps_per_second": len(steps) / seconds,
        "sampled_tokens_per_second": sampled / seconds,
    }


def measure_all(args, folder):
    chosen = arguments(args)
    result = {"size": args.size, "lora_rank": args.lora_rank, "dtype": args.dtype}
    cuda = args.device == "cuda"
    result["device"] = torch.cuda.get_device_name() if cuda else "cpu"
    result["torch"] = torch.__version__
    result["matmul_tflops"] = measure.matmul_rate(args.device, 8192 if cuda else 256) / 1e12

    if args.own_norms:
        models.fuse_norms = lambda model: None
    policy = common.load_policy(folder, chosen, trained=True)
    policy.chunk = args.logit_chunk or policy.chunk
    optimizer = torch.optim.AdamW(large.trained(policy), lr=chosen.lr, fused=cuda or None)
    result["position"] = of_position(policy, args)
    result["rollout"] = of_rollout(policy, args)

    rows = measure.random_rows(
        policy, measure.chat_prompts(args.rows, env=AlfWorld()), args.response
    )
    how = dict(
        mini_batch_rows=10**9, micro_batch_tokens=args.micro_batch_tokens, recompute_old=False
    )
    how["checkpointing"] = args.gradient_checkpointing

    def update():
        common.update(policy, optimizer, rows, np.random.default_rng(0), **how)

    seconds = measure.seconds(update, args.repeat, args.device)
    s = memory.Sizes(policy.model.config)
    tokens = sum(len(row.prompt_ids) + len(row.response_ids) for row in rows)
    rate = useful_flops(s, rows, args.lora_rank) / seconds / 1e12
    parts = list(packing.micro_batches(packing.merge_prefixes(rows), policy.room))
    fed = sum(len(part) * len(part[0].ids) for part in parts)
    result["update"] = {
        "micro_batch_tokens": policy.room,
        "tokens_per_second": tokens / seconds,
        "tflops": rate,
        "share_of_matmul": rate / result["matmul_tflops"],
        "padding": 1 - tokens / fed,
    }

    how = dict(dtype=args.dtype, lora_rank=args.lora_rank)
    most = 0
    for part in parts:
        size = (len(part) * len(part[0].ids), sum(len(one.positions) for one in part))
        kept = memory.micro_batch_bytes(
            s, *size, checkpointing=args.gradient_checkpointing, logit_chunk=policy.chunk, **how
        )
        most = max(most, memory.peak(*kept))
    stays = sum(memory.weights_bytes(s, 1, beta=0, **how).values())
    if policy.sampling is not policy.model:  # the copy that samples
        stays += sum(p.numel() * p.element_size() for p in policy.sampling.parameters())
    estimated = (stays + most) / memory.GB
    result["memory"] = {"estimated_gb": estimated}
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        update()
        torch.cuda.synchronize()
        measured = torch.cuda.max_memory_allocated() / memory.GB
        result["memory"] |= {
            "measured_gb": measured,
            "estimated_over_measured": estimated / measured,
        }
    return result


def rounded(value):
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main():
    p = Parser(
        description=__doc__.split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    sizes = ["tiny", "0.5B", "1.5B", "3B", "7B"]
    p.add_argument("--size", default="1.5B", choices=sizes, help="whose shape")
    p.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="torch device")
    p.add_argument(
        "--dtype", default="bfloat16", choices=["float32", "bfloat16"], help="of computing"
    )
    p.add_argument("--lora-rank", type=whole(0), default=0, help="0: all weights")
    p.add_argument("--own-norms", action="store_true", help="norms in several kernels, as they are")
    about = "compute activations again in the backward pass"
    p.add_argument("--gradient-checkpointing", action="store_true", help=about)
    about = "padded tokens per forward pass (default: what free memory holds)"
    p.add_argument("--micro-batch-tokens", type=whole(1), help=about)
    p.add_argument(
        "--logit-chunk", type=whole(1), help="response tokens whose logits are there at once"
    )
    p.add_argument(
        "--rows", type=whole(1), default=128, help="of a token position and of the update"
    )
    p.add_argument("--response", type=whole(1), default=256, help="tokens of the longest response")
    p.add_argument(
        "--repeat", type=whole(1), default=3, help="updates measured, after one that is not"
    )
    p.add_argument("--episodes", type=whole(1), default=128, help="of the rollout")
    p.add_argument("--steps", type=whole(1), default=2, help="of each")
    args = p.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise common.UserError(
            "--device cuda: no CUDA device found; try the script out with --size tiny --device cpu"
        )
    with tempfile.TemporaryDirectory() as folder:
        write_model(folder, args)
        print(json.dumps(rounded(measure_all(args, folder))))


if __name__ == "__main__":
    cli.run_script(main)
