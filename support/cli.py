"""The command line of the scripts: arguments with ranges and true defaults, mistakes in one line.

    make_parser, base_parser    the arguments that the training phases share; those that evaluation
                                and the recipes share with them
    run_name                    a type beside those of envs/arguments.py: behind the parser no
                                value is checked again
    by_preset                   a default that differs between --preset laptop and paper, written at
                                the option
    parse_args                  defaults, what the run that is read says (world, model, preset), and
                                `check`: combinations
    run_script                  runs main(); a user's mistake becomes one line and exit code 2

On resuming, arguments are of three kinds (support/runs.py checks them): FREE ones may change, for
they change no result but the last bits; GROWING ones may grow; all others are fixed.  Nothing slow
is imported up here.
"""

import argparse
import os
import re
import sys
from importlib.util import find_spec

from envs import UserError, arguments
from envs.arguments import (
    Parser,
    Steady,
    end_by_file,
    failed_file,
    number,
    one_line,
    text,
    whole,
)

# --max-prompt changes what a prompt that is too long keeps; but then a message asks to change it
FREE = {
    "overwrite", "device", "threads", "rollout_batch", "max_prompt", "micro_batch_tokens",
    "gradient_checkpointing", "save_every", "snapshots", "track", "allow_malformed", "traces",
}  # fmt: skip
GROWING = {"iterations", "minutes"}
ANY_NUMBER = 10_000  # iterations of a phase that minutes end


# ---- running a script ----------------------------------------------------------------------------


def quiet_interrupt(kind, error, traceback):
    """Ctrl-C while packages are being imported, which takes seconds: one line, as later."""
    if not issubclass(kind, KeyboardInterrupt):
        return sys.__excepthook__(kind, error, traceback)
    print("\nstopped before anything was read or written", file=sys.stderr)


sys.excepthook = quiet_interrupt


def run_script(main):
    """Runs a script's main(); a user's mistake becomes one line and exit code 2."""
    from transformers.utils.logging import disable_progress_bar

    from support import parallel

    disable_progress_bar()  # of loading and saving: one per iteration otherwise
    sys.stdout, sys.stderr, rank = Steady(sys.stdout), Steady(sys.stderr), 0
    try:
        rank = parallel.rank()
        if rank:
            sys.stdout = open(os.devnull, "w")
        main()
    except UserError as mistake:
        if rank == 0 or parallel.alone:  # most are found by all processes, and told by one
            print(f"error: {one_line(mistake)}", file=sys.stderr)
        sys.exit(2)
    except FloatingPointError as broken:  # a gradient or logits that are no numbers any more
        back = (
            "nothing of this iteration is saved; start anew with --overwrite, or in another --run"
        )
        print(f"error: {one_line(broken)}; {back}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        end_by_file(error)
    except Exception as error:
        # safetensors and torch write files, too, and have errors of their own
        if full := re.search("No space left|Disk quota|File too large|failed writing", str(error)):
            print(f"error: {failed_file(full[0])}", file=sys.stderr)
            sys.exit(2)
        gone = re.search("closed by peer|reset by peer|[Bb]roken pipe", str(error))
        if parallel.world_size() == 1 or not gone:
            raise
        go_on = "the same command goes on from the last checkpoint"
        sys.exit(f"error: another process of this run has died; {go_on}")
    except KeyboardInterrupt:
        sys.exit("\nstopped; the same command goes on from the last checkpoint")


# ---- types with ranges ---------------------------------------------------------------------------


def run_name(typed):
    """The name of a run: one path component, so that nothing outside runs/ is ever written or
    deleted."""
    inside = re.fullmatch(r"[\w.\- ]{1,100}", typed) and len(typed.encode()) <= 200
    if not inside or typed.startswith((".", "-", " ")) or typed.endswith((".", " ")):
        wanted = "expected one name of letters, digits, '._-' and spaces for runs/NAME, not longer "
        wanted += "than 200 bytes"
        raise argparse.ArgumentTypeError(f"{wanted}, found {typed!r}")
    return typed


class by_preset(dict):
    """A default that differs by preset: by_preset(laptop=3, paper=None)."""


# ---- parser --------------------------------------------------------------------------------------


class Help(arguments.Help):
    """Help with what may change on resuming."""

    def _get_help_string(self, action):
        kept = "[free]" if action.dest in FREE else "[may grow]" if action.dest in GROWING else ""
        return f"{super()._get_help_string(action)} {kept}".strip()


def base_parser(doc):
    """The arguments that training and evaluation share."""
    resuming = "On resuming, arguments marked [free] may change and those marked [may grow] may "
    resuming += "grow; all others are fixed."
    p = Parser(description=doc.split("\n\n")[0], epilog=resuming, formatter_class=Help)
    g = p.add_argument_group("files")
    about = "name of the run: runs/NAME/"
    g.add_argument("--run", type=run_name, default="default", help=about)
    about = "throw away what this script has written there and start anew"
    g.add_argument("--overwrite", action="store_true", help=about)
    about = "set of defaults: a million parameters, or the paper's 7B "
    about += "(default: that of the run, laptop for a new one)"
    g.add_argument("--preset", choices=["laptop", "paper"], default="laptop", help=about)
    about = "of every random stream"
    g.add_argument("--seed", type=whole(0, 2**63 - 1), default=0, help=about)
    g = p.add_argument_group("policy and world")
    about = "Hugging Face folder or hub name of the base policy "
    about += "(default: that of the run; laptop: the stand-in, tiny/ENV)"
    model = by_preset(laptop=None, paper="Qwen/Qwen2.5-7B-Instruct")
    g.add_argument("--model", type=text, default=model, help=about)
    about = "alfworld, webshop, or MODULE:CLASS of your own "
    about += "(default: that of the run, alfworld for a new one)"
    g.add_argument("--env", type=text, help=about)
    about = "of ALFWorld: ours, or the official one"
    g.add_argument("--simulator", choices=["fast", "textworld"], default="fast", help=about)
    engines = ["transformers", "vllm"]
    g.add_argument("--engine", choices=engines, default="transformers", help="of sampling")
    about = "torch device (default: cuda where there is one, else cpu)"
    g.add_argument("--device", type=text, help=about)
    about = "of computing; trained weights stay in float32"
    g.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help=about)
    about = "CPU threads, each with its part of episodes and micro-batches"
    threads = min(2, os.cpu_count() or 1)
    g.add_argument("--threads", type=whole(1, 256), default=threads, help=about)
    g = p.add_argument_group("rollout")
    about = "steps per episode (default: 50 in ALFWorld, 15 in WebShop)"
    g.add_argument("--max-steps", type=whole(1, 1000), help=about)
    about = "tokens of a chat prompt, longer ones lose history "
    about += "(default: 2048; WebShop and with skills 4096)"
    g.add_argument("--max-prompt", type=whole(64, 10**6), help=about)
    about = "tokens per response"
    g.add_argument("--max-response", type=whole(1, 10**5), default=512, help=about)
    about = "episodes played in lockstep"
    g.add_argument("--rollout-batch", type=whole(1, 10**5), default=128, help=about)
    p.set_defaults(vllm_memory=0.8)  # share of the GPU's memory that vLLM takes while it samples
    return p


def make_parser(doc, **defaults):
    """The arguments of the training phases, grouped.  A phase adds its own; `defaults` are its own
    values of the shared ones."""
    p = base_parser(doc)
    p.set_defaults(vllm_memory=0.5)  # the trainer wants some, too
    g = p.add_argument_group("training")
    about = "folder of the phase to start from (default: the phase before, in the same run)"
    g.add_argument("--from", dest="source", metavar="FOLDER", type=text, help=about)
    about = "train adapters only, with 3 to 10 times the --lr (0: all weights)"
    g.add_argument("--lora-rank", type=whole(0, 4096), default=0, help=about)
    about = "B: task groups per iteration"
    g.add_argument("--groups", type=whole(1, 4096), default=16, help=about)
    about = "G: episodes per group, at least 2: they are compared"
    g.add_argument("--group-size", type=whole(2, 1024), default=8, help=about)
    about = "go on though nearly all responses of the first iteration are cut or ill-formed"
    g.add_argument("--allow-malformed", action="store_true", help=about)
    g = p.add_argument_group("method (symbols of the equations in docs/method.md)")
    about = "(7) weight of the step advantage"
    g.add_argument("--omega", type=number(least=0, most=1000), default=1.0, help=about)
    about = "(10) KL coefficient; 0: no reference policy is kept"
    beta = by_preset(laptop=0.0, paper=0.01)
    g.add_argument("--beta", type=number(least=0, most=1000), default=beta, help=about)
    p.set_defaults(adv_mode=by_preset(laptop="mean_norm", paper="mean_std_norm"))  # (8)
    g = p.add_argument_group("optimiser")
    rate = by_preset(laptop=5e-4, paper=1e-6)
    about = "AdamW learning rate"
    g.add_argument("--lr", type=number(least=0, most=1), default=rate, help=about)
    about = "beyond the paper: share of --lr at the end of the budget, reached linearly"
    g.add_argument("--lr-end", type=number(least=0, most=1), default=1.0, help=about)
    about = "rows (steps) per optimizer step, about: episodes stay whole, and twins count "
    about += "(laptop: 24 full episodes)"
    rows = by_preset(laptop=None, paper=256)
    g.add_argument("--mini-batch-rows", type=whole(1), default=rows, help=about)
    about = "padded tokens per forward pass "
    about += "(paper: as many as free memory holds; on a CPU 8192 at most)"
    tokens = by_preset(laptop=4096, paper=None)
    g.add_argument("--micro-batch-tokens", type=whole(1), default=tokens, help=about)
    about = "compute activations again in the backward pass: slower, smaller"
    g.add_argument("--gradient-checkpointing", action="store_true", help=about)
    g = p.add_argument_group("budget")
    about = "at most that many; typed alone, no clock ends the phase"
    g.add_argument("--iterations", type=whole(1), default=ANY_NUMBER, help=about)
    about = "wall-clock budget of this phase; it ends after the iteration that passes it"
    g.add_argument("--minutes", type=number(above=0, most=10**6), help=about)
    about = "iterations between checkpoints"
    often = by_preset(laptop=1, paper=10)
    g.add_argument("--save-every", type=whole(1), default=often, help=about)
    about = "minutes between copies of the policy that are kept, for curves (0: none)"
    g.add_argument("--snapshots", type=number(least=0, most=10**6), default=0.0, help=about)
    about = "episodes per phase that are kept token by token, for the report"
    g.add_argument("--traces", type=whole(0), default=16, help=about)
    about = "metrics go there besides metrics.jsonl"
    g.add_argument("--track", choices=["none", "trackio", "wandb"], default="none", help=about)
    p.set_defaults(**defaults)
    return p


# ---- parsing -------------------------------------------------------------------------------------


def typed_values(parser, *dests):
    """What was typed for these options, None where nothing was; the rest of the command line may be
    wrong."""
    scan = Parser(add_help=False)
    for action in parser._actions:
        if action.dest in dests:
            kind = dict(type=action.type, nargs=action.nargs, choices=action.choices)
            scan.add_argument(*action.option_strings, dest=action.dest, **kind)
    found = scan.parse_known_args()[0]
    return [getattr(found, dest, None) for dest in dests]


def parse_args(parser, first=False):
    """Command line over what the run that is read says over the preset.

    first: this script begins a run; others play the world that the run began with.  UserError in
    one line for every mistake, before anything is opened for writing."""
    dests = ("run", "preset", "source", "policy", "model")
    run, preset, source, policies, model = typed_values(parser, *dests)
    begun = origin(run or "default", source, policies, model, first)
    preset = preset or begun.get("preset", "laptop")
    for values in [parser._defaults, *map(vars, parser._actions)]:
        for key, value in values.items():
            values[key] = value[preset] if isinstance(value, by_preset) else value
    parser.set_defaults(preset=preset)
    args = parser.parse_args()  # --help is printed here
    typed = {option.split("=")[0] for option in sys.argv[1:]}
    # who asks for so many iterations gets them, whatever the preset's clock says; and the reverse
    if "--iterations" in typed and "--minutes" not in typed:
        args.minutes = None
    elif "--minutes" in typed and "--iterations" not in typed:
        args.iterations = ANY_NUMBER
    check(args, begun, typed, first)
    args.env = args.env or begun.get("env", "alfworld")
    if begun and not first and "--model" not in typed:
        args.model = begun["model"]
    if args.model is None:
        root = os.path.join(os.path.dirname(__file__), "..")
        args.model = os.path.relpath(os.path.join(root, "tiny", args.env))
    import torch

    from support import parallel

    args.device = parallel.begin(device_of(args.device))
    # --threads share episodes and micro-batches instead
    torch.set_num_threads(1 if args.device == "cpu" else args.threads)
    return args


def origin(run, source, policies, model, first):
    """The arguments of the phase that the weights come from, {} where they come from no phase.
    UserError where policies that are compared come from different worlds."""
    from support.phases import begun_with

    if first:
        return begun_with(source or model) if source or model else {}
    if source or not policies:
        return begun_with(source or f"runs/{run}/warmup")
    found = {policy: begun_with(policy) for policy in policies}
    known = {policy: args["env"] for policy, args in found.items() if args}
    for policy, env in known.items():
        if env != (other := next(iter(known.values()))):
            both = f"--policy {policy} played {env}, another one {other}"
            raise UserError(f"{both}: evaluate them apart")
    return next((args for args in found.values() if args), {})


def check(args, begun, typed, first):
    """What no single argument's type can see: arguments that contradict each other, or what is
    read, or this machine."""
    if args.env and begun and args.env != begun["env"]:
        found = f"--env {args.env}: the policy that is read was trained in {begun['env']}"
        raise UserError(f"{found}; leave --env out, or read another one")
    if not first and "--model" in typed and begun and not same_place(args.model, begun["model"]):
        found = f"--model {args.model}: the run that is read began with {begun['model']}"
        raise UserError(f"{found}; leave --model out")
    if first and {"--from", "--model"} <= typed:
        raise UserError("--from and --model both name the weights to start from: give one of them")
    env = args.env or begun.get("env", "alfworld")
    if args.simulator == "textworld" and env != "alfworld":
        found = f"--simulator textworld is ALFWorld's official engine, found --env {env}"
        raise UserError(f"{found}: leave it out, or use --env alfworld")
    if args.max_steps and env not in ("alfworld", "webshop"):
        raise UserError(f"--max-steps: {env} says itself how many; leave it out")
    if getattr(args, "lora_rank", 0) and not find_spec("peft"):
        raise UserError("--lora-rank needs peft: run pip install -e '.[gpu]'")
    track = getattr(args, "track", "none")
    if track != "none" and not find_spec(track):
        raise UserError(f"--track {track}: no such package here; run pip install {track}")
    options = {word for word in typed if word.startswith("--")} - {"--report", "--run"}
    if getattr(args, "report", False) and options:
        raise UserError(f"--report only reads what is in runs/NAME: leave {min(options)} out")
    for option in ("policy", "split", "arms", "seeds"):
        values = getattr(args, option, None) or []
        if twice := [value for value in values if values.count(value) > 1]:
            raise UserError(f"--{option}: {twice[0]} is named twice; name it once")
    if args.engine == "vllm":
        from support import vllm_engine

        vllm_engine.check(args)


def same_place(a, b):
    """Whether two names of a model are the same folder, or the same hub name."""
    return a == b or (os.path.exists(a) and os.path.realpath(a) == os.path.realpath(b))


def device_of(name):
    """The torch device that is named; cuda where there is one and none is named.  UserError where
    this machine has none such."""
    import torch

    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    name = name or ("cuda" if found else "cpu")
    unknown = UserError(f"--device: expected cpu, cuda or cuda:NUMBER, found {name!r}")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise unknown from None
    if device.type == "cuda" and not found:
        raise UserError(f"--device {name}: no CUDA device found; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= found:
        here = f"this machine has {found} CUDA devices, cuda:0 to cuda:{found - 1}"
        raise UserError(f"--device {name}: {here}")
    if device.type not in ("cpu", "cuda", "mps"):
        raise unknown
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise unknown
    return "cpu" if device.type == "cpu" else name  # cpu:0 is the same
