"""One GRPO update and one rollout, here and elsewhere: TRL's GRPOTrainer, and plain `generate`.
Prints one line of JSON.

    python benchmarks/update_vs_trl.py      pip install trl (Apache-2.0) first; CPU, a few minutes
    python benchmarks/update_vs_trl.py --device cuda --hidden 1536 --mlp 8960 --layers 28 \\
        --vocab 151936 --rows 128
    python benchmarks/update_vs_trl.py --skip trl            without TRL

What is the same: the model (random weights), rows (real ALFWorld chat prompts, random responses of
half to all of --response tokens, advantages +1 and -1), dtype, threads, temperature, AdamW,
gradient norm clipping, one optimizer step over all rows, the loss (clipped policy gradient, mean
over all response tokens, no reference policy, pi_old as sampled), and padded tokens per forward
pass: TRL's micro-batch holds as many rows as --tokens allow at the batch's longest prompt + longest
response, which is what it pads to.  Nothing is generated in the update.  The default shape gives
the logits 15 % of the parameters, as Qwen2.5-1.5B's are.  Every figure comes from a process of its
own; the peak is the highest of the updates after the first, beyond what the process held before it
loaded the model. Seconds are the process's CPU time where it has one thread (not the wall clock: a
shared machine would decide), else wall-clock. Rollouts: the same episodes with our KV-cached
sampler, with vLLM where it is installed (chat prompts), and with `model.generate` on left-padded
prompts at every step. """

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import common  # noqa: E402
from benchmarks import measure  # noqa: E402
from envs import UserError  # noqa: E402
from envs.alfworld import AlfWorld  # noqa: E402
from envs.arguments import Parser, whole  # noqa: E402
from support import cli  # noqa: E402


def our_arguments(args, *more):
    """The arguments of a phase, from its own parser."""
    sys.argv = ["bench", "--device", args.device, "--threads", str(args.threads), *more]
    return cli.parse_args(cli.make_parser("bench"))


def rows_for(policy, args):
    return measure.random_rows(
        policy, measure.chat_prompts(args.rows, env=AlfWorld(houses=True)), args.response
    )


def clock(args):
    """Seconds; with one CPU thread those that the process computed, so that a shared machine's
    other programs do not count."""
    return (
        time.process_time() if args.device == "cpu" and args.threads == 1 else time.perf_counter()
    )


class Watch:
    """Notes time and peak memory of every update but the first, which sets things up."""

    def __init__(self, args, at_start):
        self.args, self.at_start, self.seconds, self.peaks = args, at_start, [], []

    def begin(self):
        if self.args.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        else:
            measure.reset_peak()
        self.begun = clock(self.args)

    def end(self):
        measure.synchronize(self.args.device)
        self.seconds.append(clock(self.args) - self.begun)
        peak = (
            torch.cuda.max_memory_allocated()
            if self.args.device == "cuda"
            else measure.resident("VmHWM")
        )
        self.peaks.append(peak - self.at_start)

    def result(self, tokens):
        seconds = float(np.median(self.seconds[1:]))
        return {
            "tokens_per_second": tokens / seconds,
            "seconds": seconds,
            "peak_mib": max(self.peaks[1:]) / 2**20,
        }


def held_now(args):
    return torch.cuda.memory_allocated() if args.device == "cuda" else measure.resident("VmRSS")


def ours(folder, args):
    """{tokens_per_second, seconds, peak_mib} of common.update."""
    watch = Watch(args, held_now(args))
    policy = common.Policy(folder, args.device)
    rows = rows_for(policy, args)
    fused = args.device == "cuda" or None
    optimizer = torch.optim.AdamW(
        policy.model.parameters(), lr=1e-6, weight_decay=0.01, fused=fused
    )
    loss = partial(common.gigpo_loss, entropy_coef=0.0)
    how = dict(mini_batch_rows=10**9, micro_batch_tokens=args.tokens, recompute_old=False)
    for k in range(args.repeat + 1):
        watch.begin()
        stream = np.random.default_rng(k)
        common.update(policy, optimizer, rows, stream, loss, threads=args.threads, **how)
        watch.end()
    return watch.result(real_tokens(rows))


def real_tokens(rows):
    """Without padding, so that nobody is credited for it."""
    return sum(len(r.prompt_ids) + len(r.response_ids) for r in rows)


def trl(folder, args):
    """The same of TRL's GRPOTrainer: its own loop, with the rows in the place of generated ones."""
    import trl as package
    from datasets import Dataset
    from datasets.table import InMemoryTable
    from transformers import TrainerCallback

    watch = Watch(args, held_now(args))
    policy = common.Policy(folder, args.device)  # for the rows' token ids; its model goes
    rows = rows_for(policy, args)
    del policy
    width = [max(len(getattr(r, part)) for r in rows) for part in ("prompt_ids", "response_ids")]
    size = max(
        n
        for n in range(1, len(rows) + 1)
        if len(rows) % n == 0 and (n == 1 or n * sum(width) <= args.tokens)
    )

    class Given(package.GRPOTrainer):
        def _generate_and_score_completions(self, inputs):
            """TRL's own layout: prompts padded on the left, responses on the right, one advantage a
            row."""

            def pad(lists, n, left):
                zeros = [[0] * (n - len(ids)) for ids in lists]
                return torch.tensor(
                    [z + ids if left else ids + z for ids, z in zip(lists, zeros)],
                    device=self.accelerator.device,
                )

            prompts, responses = [r.prompt_ids for r in rows], [r.response_ids for r in rows]
            masks = [[1] * len(ids) for ids in prompts], [[1] * len(ids) for ids in responses]
            return {
                "prompt_ids": pad(prompts, width[0], True),
                "prompt_mask": pad(masks[0], width[0], True),
                "completion_ids": pad(responses, width[1], False),
                "completion_mask": pad(masks[1], width[1], False),
                "advantages": torch.tensor(
                    [r.advantage for r in rows], device=self.accelerator.device
                ),
                "num_items_in_batch": torch.tensor(
                    float(sum(map(len, responses))), device=self.accelerator.device
                ),
            }

    class Observer(TrainerCallback):
        def on_step_begin(self, *given, **more):
            watch.begin()

        def on_step_end(self, *given, **more):
            watch.end()

    with tempfile.TemporaryDirectory() as out:
        config = package.GRPOConfig(
            output_dir=out,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=len(rows) // size,
            num_generations=2,
            max_steps=args.repeat + 1,
            learning_rate=1e-6,
            weight_decay=0.01,
            max_grad_norm=1.0,
            lr_scheduler_type="constant",
            beta=0.0,
            loss_type="dapo",
            temperature=1.0,
            max_completion_length=args.response,
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=args.device == "cpu",
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            model_init_kwargs={"dtype": "float32"},
        )
        # named by hand: some versions of pyarrow's tables cannot be hashed into a name
        data = Dataset(InMemoryTable.from_pydict({"prompt": ["x"] * len(rows)}), fingerprint="rows")
        Given(
            model=str(folder),
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            args=config,
            train_dataset=data,
            callbacks=[Observer()],
        ).train()
    return watch.result(real_tokens(rows)) | {"version": version("trl"), "rows_per_forward": size}


# ---- rollouts ------------------------------------------------------------------------------------


def rollouts(folder, args):
    """Environment steps per second of the same episodes, chat prompts with a random model and
    compact prompts with the stand-in: ours and plain `generate`.  Free responses in both."""
    found = {}
    for name, model, longest in (
        ("chat", folder, args.rollout_response),
        ("compact", Path(__file__).parents[1] / "tiny" / "alfworld", 8),
    ):
        policy = common.Policy(model, args.device, constrain=False)
        env = AlfWorld(houses=True, max_steps=args.steps)
        games = env.tasks("train")[: args.episodes]
        plays = [common.Play(task, task, ("bench", task)) for task in games]
        for who in (our_rollout, plain_rollout):
            begun = clock(args)
            steps, tokens = who(policy, env, plays, longest, args)
            measure.synchronize(args.device)
            seconds = clock(args) - begun
            found[f"{name}_{who.__name__}"] = {
                "steps_per_second": steps / seconds,
                "sampled_tokens_per_second": tokens / seconds,
            }
    return found


def vllm_rollout(folder, args):
    """The chat episodes of `rollouts` with --engine vllm, after one round that sets it up."""
    policy = common.load_policy(
        folder, our_arguments(args, "--engine", "vllm", "--rollout-batch", str(args.episodes))
    )
    env = AlfWorld(houses=True, max_steps=args.steps)
    plays = [
        common.Play(task, task, ("bench", task)) for task in env.tasks("train")[: args.episodes]
    ]
    our_rollout(policy, env, plays[:2], args.rollout_response, args)
    begun = clock(args)
    steps, tokens = our_rollout(policy, env, plays, args.rollout_response, args)
    seconds = clock(args) - begun
    return {"steps_per_second": steps / seconds, "sampled_tokens_per_second": tokens / seconds}


def our_rollout(policy, env, plays, longest, args):
    records = common.rollout(policy, env, plays, 1.0, len(plays), longest, threads=1)
    return sum(len(r["steps"]) for r in records), sum(
        len(s["response_ids"]) for r in records for s in r["steps"]
    )


@torch.inference_mode()
def plain_rollout(policy, env, plays, longest, args):
    """What a first version looks like: all prompts of a step through `generate`, nothing kept
    between steps."""
    worlds = [env.fork() for _ in plays]
    now = [world.reset(play.task_id) for world, play in zip(worlds, plays)]
    history, alive, steps, tokens = [[] for _ in plays], list(range(len(plays))), 0, 0
    pad = policy.tokenizer.pad_token_id or 0
    torch.manual_seed(0)
    while alive:
        prompts = [
            policy.encode_prompt(env.prompt(worlds[i].task, history[i], now[i], [], policy.style))
            for i in alive
        ]
        width = max(map(len, prompts))
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=policy.device)
        mask = torch.tensor(
            [[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=policy.device
        )
        out = policy.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=longest,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            eos_token_id=sorted(policy.eos_ids),
            pad_token_id=pad,
        )[:, width:].tolist()
        for i, response in zip(alive, out):
            end = next(
                (n + 1 for n, token in enumerate(response) if token in policy.eos_ids),
                len(response),
            )
            action, _ = env.parse(policy.decode(response[:end]), policy.style)
            history[i].append((now[i], action))
            now[i] = worlds[i].step(action)
            steps, tokens = steps + 1, tokens + end
        alive = [i for i in alive if not now[i].done]
    return steps, tokens


# ---- one run -------------------------------------------------------------------------------------


def in_child(part, exact, folder):
    """A part's result, measured in a process of its own.  exact: memory is counted, which makes
    allocating slow."""
    limit = {"MALLOC_MMAP_THRESHOLD_": "65536"} if exact else {}
    command = [sys.executable, __file__, *sys.argv[1:], "--child", part, folder]
    done = subprocess.run(command, env={**os.environ, **limit}, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise UserError(f"the part {part} failed with exit code {done.returncode}: see above")
    return json.loads(done.stdout.splitlines()[-1])


def main():
    p = Parser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    p.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="torch device")
    p.add_argument("--threads", type=whole(1), default=1, help="CPU threads")
    p.add_argument("--hidden", type=whole(1), default=256, help="of the random Qwen2")
    p.add_argument("--mlp", type=whole(1), default=1024, help="its MLP's width")
    p.add_argument("--layers", type=whole(1), default=6, help="its layers")
    p.add_argument("--vocab", type=whole(1), default=4096, help="its vocabulary")
    p.add_argument("--rows", type=whole(1), default=24, help="of the update")
    p.add_argument(
        "--response",
        type=whole(1),
        default=128,
        help="tokens of the longest response in the update",
    )
    p.add_argument("--tokens", type=whole(1), default=4096, help="padded tokens per forward pass")
    p.add_argument(
        "--repeat", type=whole(1), default=3, help="updates measured, after one that is not"
    )
    p.add_argument("--episodes", type=whole(1), default=16, help="of the rollouts")
    p.add_argument("--steps", type=whole(1), default=10, help="of each")
    p.add_argument(
        "--rollout-response",
        type=whole(1),
        default=32,
        help="tokens of a response in the rollouts with chat prompts",
    )
    p.add_argument(
        "--skip",
        nargs="*",
        default=[],
        choices=["trl", "update", "rollout"],
        help="parts not to run",
    )
    p.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = p.parse_args()
    if "trl" not in args.skip and "update" not in args.skip and not find_spec("trl"):
        raise UserError(
            "TRL is not installed: run `pip install trl`, or leave it out with --skip trl"
        )
    heads = max(2, args.hidden // (32 if args.hidden < 512 else 128))
    if args.hidden % (2 * heads) or heads % 2:
        fix = "expected a multiple of 64, from 512 on of 256"
        raise UserError(f"--hidden {args.hidden}: {fix}")
    cli.device_of(args.device)
    torch.set_num_threads(args.threads)
    if args.child:
        result = {"ours": ours, "trl": trl, "rollout": rollouts, "vllm": vllm_rollout}[
            args.child[0]
        ](args.child[1], args)
        return print(json.dumps(result))

    result = {
        "device": args.device,
        "threads": args.threads,
        "torch": torch.__version__,
        "load": round(os.getloadavg()[0], 1),
    }
    with tempfile.TemporaryDirectory() as folder:
        shape = dict(
            hidden_size=args.hidden,
            intermediate_size=args.mlp,
            num_hidden_layers=args.layers,
            vocab_size=args.vocab,
        )
        texts = measure.chat_prompts(100, env=AlfWorld(houses=True))
        measure.make_model(
            folder,
            "qwen2",
            texts,
            num_attention_heads=heads,
            num_key_value_heads=2,
            tie_word_embeddings=True,
            **shape,
        )
        parts = [] if "update" in args.skip else ["ours"] if "trl" in args.skip else ["ours", "trl"]
        for part in parts:
            result[part] = in_child(part, False, folder)
            if args.device == "cpu":
                result[part]["peak_mib"] = in_child(part, True, folder)["peak_mib"]
        if len(parts) == 2:
            result["speed_over_trl"] = (
                result["ours"]["tokens_per_second"] / result["trl"]["tokens_per_second"]
            )
            result["memory_over_trl"] = result["ours"]["peak_mib"] / result["trl"]["peak_mib"]
        if "rollout" not in args.skip:
            found = result["rollout"] = in_child("rollout", False, folder)
            if find_spec("vllm"):
                found["chat_vllm_rollout"] = in_child("vllm", False, folder)
            for name in ("chat_our", "chat_vllm", "compact_our"):
                if f"{name}_rollout" in found:
                    rate, plain = (
                        found[f"{name}_rollout"],
                        found[f"{name.split('_')[0]}_plain_rollout"],
                    )
                    result[f"{name}_over_generate"] = (
                        rate["sampled_tokens_per_second"] / plain["sampled_tokens_per_second"]
                    )
    print(json.dumps(rounded(result)))


def rounded(value):
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    return round(value, 3) if isinstance(value, float) else value


if __name__ == "__main__":
    cli.run_script(main)
