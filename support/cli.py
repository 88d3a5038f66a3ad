"""The command line of the five scripts: arguments with their ranges and defaults, and errors in one line."""

import argparse
import json
import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar

from envs import UserError
from support import parallel


def run_script(main):
    """Runs a script's main(); a user's mistake becomes one line and exit code 2."""
    disable_progress_bar()  # of loading and saving: one per iteration otherwise
    if parallel.rank():
        sys.stdout = open(os.devnull, "w")
    try:
        main()
    except UserError as mistake:
        if parallel.rank() == 0 or parallel.alone:  # most mistakes are found by all processes, and told by one
            print(f"error: {mistake}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        if parallel.world() == 1 or not re.search("closed by peer|reset by peer|[Bb]roken pipe", str(error)):
            raise
        sys.exit("error: another process of this run has died; the same command goes on from the last checkpoint")
    except KeyboardInterrupt:
        sys.exit("\nstopped; the same command goes on from the last finished iteration")


# What suits a million parameters and two cores does not suit 7B: two named sets of defaults, so that nobody mistakes one for the other.
# "paper" is method.md section 9 (GiGPO's published settings where SIRI's are unknown).
PRESETS = {
    "laptop": dict(
        groups=16, group_size=8, lr=5e-4, adv_mode="mean_norm", beta=0.0, entropy_coef=0.001, old_logprobs="sampler",
        micro_batch_tokens=4096, iterations=10_000, save_every=1,  # minutes end a long phase, not these iterations: a fast hour has 1,000
    ),
    "paper": dict(
        model="Qwen/Qwen2.5-7B-Instruct", groups=16, group_size=8, lr=1e-6, beta=0.01, entropy_coef=0.001,
        mini_batch_rows=256, old_logprobs="trainer", iterations=150, save_every=10,
    ),
}  # fmt: skip


def base_parser(doc):
    """The arguments that training and evaluation share."""
    p = argparse.ArgumentParser(description=doc.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    g = p.add_argument_group("files")
    g.add_argument("--run", default="default", help="name of the run: runs/NAME/")
    g.add_argument("--overwrite", action="store_true", help="throw away what this phase has written and start anew")
    g.add_argument("--preset", choices=list(PRESETS), default="laptop", help="set of defaults: a million parameters, or the paper's 7B")
    g.add_argument("--seed", type=int, default=0, help="of every random stream")
    g = p.add_argument_group("policy")
    g.add_argument("--model", help="Hugging Face folder or hub name of the base policy (laptop: the stand-in, tiny/ENV)")
    g.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="torch device")
    g.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="of computing; trained weights stay in float32")
    threads = min(2, os.cpu_count() or 1)
    g.add_argument("--threads", type=positive_int, default=threads, help="CPU threads, each with its part of episodes and micro-batches")
    g.add_argument("--constrain", action=argparse.BooleanOptionalAction, help="sample among admissible actions only (stand-in: on)")
    g.add_argument("--note", action=argparse.BooleanOptionalAction, default=True, help="agent-side note in compact prompts")
    g = p.add_argument_group("rollout")
    g.add_argument("--env", help="alfworld, webshop, or MODULE:CLASS of your own (default: that of the run, alfworld for a new one)")
    engines = ["fast", "textworld", "transformers", "vllm"]
    text = "of ALFWorld: fast (ours) or textworld (official); of sampling: transformers or vllm"
    g.add_argument("--engine", nargs="+", default=["fast", "transformers"], choices=engines, help=text)
    p.set_defaults(simulator="fast", sampler="transformers")
    g.add_argument("--vllm-memory", type=float, default=0.5, help="share of the GPU's memory that vLLM takes while it samples")
    g.add_argument("--max-steps", type=positive_int, help="steps per episode (default: 50 in ALFWorld, 15 in WebShop)")
    g.add_argument("--max-prompt", type=positive_int, help="tokens of a chat prompt (default: 2048, WebShop and with skills 4096)")
    g.add_argument("--max-response", type=positive_int, default=512, help="tokens per response")
    g.add_argument("--rollout-batch", type=positive_int, default=128, help="episodes played in lockstep")
    return p


def make_parser(doc):
    """The arguments of the training phases, grouped.  A phase adds its own and calls parse_args."""
    p = base_parser(doc)
    g = p.add_argument_group("training")
    g.add_argument("--from", dest="source", help="folder of the phase to start from (default: the phase before, in the same run)")
    g.add_argument("--groups", type=positive_int, help="B: task groups per iteration")
    g.add_argument("--group-size", type=positive_int, help="G: episodes per group")
    g.add_argument("--temperature", type=float, default=1.0, help="of sampling in training")
    g.add_argument("--train-games", type=int, default=0, help="train on that many games only (0: all but the held-out ones)")
    g = p.add_argument_group("method (symbols of the README's equations)")
    g.add_argument("--gamma", type=float, default=0.95, help="(1) discount of step returns")
    g.add_argument("--omega", type=float, default=1.0, help="(7) weight of the step advantage")
    g.add_argument("--invalid-cost", type=float, default=0.1, help="(2), (3) cost c of an ill-formed response")
    g.add_argument("--adv-mode", choices=["mean_std_norm", "mean_norm"], default="mean_std_norm", help="(8) divide by the std or not")
    g.add_argument("--episode-stats", choices=["rows", "trajectories"], default="rows", help="(4) statistics over rows or episodes")
    g.add_argument("--anchor-similarity", type=float, default=1.0, help="(5) below 1: cluster anchors by difflib ratio")
    g.add_argument("--adv-pool", choices=["pooled", "separate"], default="pooled", help="plain and skill episodes: one group or two")
    g.add_argument("--clip-low", type=float, default=0.2, help="(9) lower clip of the ratio")
    g.add_argument("--clip-high", type=float, default=0.2, help="(9) upper clip of the ratio")
    g.add_argument("--dual-clip", type=float, default=3.0, help="(9) C")
    g.add_argument("--old-logprobs", choices=["trainer", "sampler"], help="(9) pi_old computed by the trainer, or as sampled")
    g.add_argument("--tis-cap", type=float, default=2.0, help="(9) largest truncated importance weight pi_old / pi_sampler; 0: none")
    g.add_argument("--beta", type=float, help="(10) KL coefficient; 0: no reference policy is kept")
    g.add_argument("--entropy-coef", type=float, help="(11) entropy bonus")
    g = p.add_argument_group("optimiser")
    g.add_argument("--lr", type=float, help="AdamW learning rate")
    g.add_argument("--lr-end", type=float, default=1.0, help="beyond the paper: share of --lr at the end of the budget, reached linearly")
    g.add_argument("--weight-decay", type=float, default=0.01, help="AdamW weight decay")
    g.add_argument("--grad-clip", type=float, default=1.0, help="largest gradient norm")
    g.add_argument("--mini-batch-rows", type=positive_int, help="rows (steps) per optimizer step, about (laptop: 24 full episodes)")
    g.add_argument("--micro-batch-tokens", type=positive_int, default=8192, help="padded tokens per forward pass")
    g.add_argument("--logit-chunk", type=positive_int, help="tokens whose logits are there at once (default: 1 GiB of them)")
    g.add_argument("--gradient-checkpointing", action="store_true", help="compute activations again in the backward pass: slower, smaller")
    g.add_argument("--lora-rank", type=int, default=0, help="train adapters only, with about 10 times the --lr (0: all weights)")
    g = p.add_argument_group("budget")
    g.add_argument("--iterations", type=positive_int, help="at most that many")
    g.add_argument("--minutes", type=float, help="wall-clock budget of this phase; it ends after the iteration that passes it")
    g.add_argument("--save-every", type=positive_int, help="iterations between checkpoints")
    g.add_argument("--track", choices=["none", "trackio", "wandb"], default="none", help="metrics go there besides metrics.jsonl")
    g.add_argument("--snapshots", type=float, default=0.0, help="minutes between copies of the policy that are kept, for curves (0: none)")
    return p


def skill_arguments(parser):
    """The arguments of (15), (16), which phase 2 has too."""
    group = parser.add_argument_group("skills")
    group.add_argument("--ema", type=float, default=0.2, help="(15) a: weight of the newest effect in a skill's utility")
    group.add_argument("--n-eval", type=int, default=8, help="(16) paired groups before a candidate may become active")
    group.add_argument("--tau-act", type=float, default=0.05, help="(16) utility above which a candidate becomes active")
    group.add_argument("--promote-z", type=float, default=0.0, help="beyond the paper: mean - z * standard error must pass tau-act, too")
    group.add_argument("--retire-after", type=int, default=3, help="(16) updates in a row with negative utility that retire a skill")
    return group


def positive_int(text):
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, found {text!r}")
    return int(text)


def parse_args(parser, first=False, **phase_defaults):
    """Command line over preset over defaults.  first: this script begins a run, others play the environment that the run began with;
    phase_defaults: preset name -> this phase's own."""
    typed = parser.parse_known_args()[0]
    known = {action.dest for action in parser._actions}
    chosen = PRESETS[typed.preset] | phase_defaults.get(typed.preset, {})
    if getattr(typed, "iterations", None):
        chosen.pop("minutes", None)  # who asks for so many iterations gets them, whatever the preset's clock says,
    elif getattr(typed, "minutes", None):
        chosen["iterations"] = PRESETS["laptop"]["iterations"]  # and who asks for so many minutes gets those
    parser.set_defaults(**{key: value for key, value in chosen.items() if key in known})
    args = parser.parse_args()
    begun = Path("runs") / args.run / "warmup" / "args.json"
    if args.env is None:
        args.env = json.loads(begun.read_text())["args"]["env"] if begun.exists() and not first else "alfworld"
    if args.model is None:
        args.model = os.path.relpath(Path(__file__).parents[1] / "tiny" / args.env)
    for name in ("temperature", "minutes", "gamma"):
        if getattr(args, name, None) is not None and getattr(args, name) <= 0:
            raise UserError(f"--{name}: expected a number above 0, found {getattr(args, name)}")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {args.device}: no CUDA device found; use --device cpu")
    for kinds in ("fast", "textworld"), ("transformers", "vllm"):
        if set(kinds) <= set(args.engine):
            raise UserError(f"--engine: expected one of {' and '.join(kinds)}, found both")
    args.simulator = "textworld" if "textworld" in args.engine else "fast"
    args.sampler = "vllm" if "vllm" in args.engine else "transformers"
    if getattr(args, "lora_rank", 0) and not find_spec("peft"):
        raise UserError("--lora-rank needs peft: run pip install -e '.[gpu]'")
    if getattr(args, "track", "none") != "none" and not find_spec(args.track):
        raise UserError(f"--track {args.track}: no such package here; run pip install {args.track}")
    if args.sampler == "vllm":
        from support import vllm_engine

        vllm_engine.check(args)
    args.device = parallel.begin(args.device)
    torch.set_num_threads(1 if args.device == "cpu" else args.threads)  # --threads share episodes and micro-batches instead
    return args
