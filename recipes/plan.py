"""What a run will need, before renting the GPUs: memory by part, micro-batch, tokens, seconds an
iteration, hours and cost.  From the config alone, no weights.

    python recipes/plan.py --gpus 8 --gradient-checkpointing --price 2.5      (Qwen2.5-7B-Instruct)
    python recipes/plan.py --gpus 1 --lora-rank 64 --gradient-checkpointing
    python recipes/plan.py --model FOLDER --env webshop --card H200

How the memory is counted stands in support/memory.py, which the update asks for its micro-batches.

How the seconds of an iteration are counted (P parameters, b bytes of one, E episodes a GPU):

    update      flops of `update_flops` / (matrix rate x share).  Measured on an H200: .43 for 1.5B,
                .35 for 7B with LoRA and checkpointing (docs/gpus.md).  Sharded: or, where longer,
                weights gathered and gradients shared out, for every micro-batch, over the slowest
                link
    rollout     steps x response x one token position: all weights and the cache of E episodes are
                read once, and what the program itself needs (`POSITION`); and 2 P flops for each
                prompt token
    sync        shards gathered; vLLM: its weights to the host and back (sleep, wake), and the copy
    host        what no GPU shortens: every process reads all records and packs all rows (`HOST`)

update and host are measured rates; rollout and sync follow from data sheets and are checked on one
GPU with a small model only.  gpu.py measures yours: --matmul-tflops, --update-share, --position-ms.
"""

import math
import random
import sys
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASSES

sys.path.insert(0, str(Path(__file__).parents[1]))
from envs import UserError  # noqa: E402
from envs.alfworld import AlfWorld  # noqa: E402
from envs.webshop import WebShop  # noqa: E402
from support.cli import Parser, number, run_script, text, whole  # noqa: E402
from support.memory import (  # noqa: E402
    FREE,
    GB,
    Sizes,
    bytes_of,
    fitting_tokens,
    micro_batch_bytes,
    peak,
    weights_bytes,
)
from support.models import lacking, reason_of  # noqa: E402

# Facts from the config.json files of huggingface.co/Qwen (2.5: Instruct, too), for machines that
# cannot reach the Hub.
# model type, hidden size, MLP width, layers, query heads, key heads, head size, vocabulary, one
# matrix for embedding and output
SHAPES = {
    "Qwen2.5-0.5B": ("qwen2", 896, 4864, 24, 14, 2, 64, 151936, True),
    "Qwen2.5-1.5B": ("qwen2", 1536, 8960, 28, 12, 2, 128, 151936, True),
    "Qwen2.5-3B": ("qwen2", 2048, 11008, 36, 16, 2, 128, 151936, True),
    "Qwen2.5-7B": ("qwen2", 3584, 18944, 28, 28, 4, 128, 152064, False),
    "Qwen3-0.6B": ("qwen3", 1024, 3072, 28, 16, 8, 128, 151936, True),
    "Qwen3-1.7B": ("qwen3", 2048, 6144, 28, 16, 8, 128, 151936, True),
    "Qwen3-4B": ("qwen3", 2560, 9728, 36, 32, 8, 128, 151936, True),
    "Qwen3-8B": ("qwen3", 4096, 12288, 36, 32, 8, 128, 151936, False),
}
FIELDS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "vocab_size", "tie_word_embeddings",
)  # fmt: skip
NEEDED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
          "vocab_size")  # fmt: skip  # a model may leave out the others

# Where no tokenizer is at hand: characters per token of chat prompts from random play with Qwen's
# vocabulary of 151,643 tokens (2026-11-22: ALFWorld 3.16, 2,000 prompts, WebShop 2.94, 498
# prompts), and tokens that the chat template adds.
CHARACTERS_PER_TOKEN = {"alfworld": 3.16, "webshop": 2.94}
TEMPLATE_TOKENS = 30
STEPS = {"alfworld": 50, "webshop": 15}  # of an episode, at most


# GB of memory; TFLOP/s of bf16 matrix products as measured (benchmarks/gpu.py, 8192 cubed); TB/s of
# memory by the data sheet
CARDS = {"H100": (80, 760, 3.35), "H200": (141, 790, 4.8)}
# of the matrix rate, in updates, by whether activations are computed again: 1.5B, and 7B with LoRA,
# on an H200
UPDATE_SHARE = {False: 0.43, True: 0.35}
PREFILL_SHARE = 0.4  # and reading prompts: not measured
MEMORY_SHARE = 0.6  # of the data sheet's memory rate that sampling reaches: not measured
# seconds of a token position besides the memory's: fixed, and per layer.  On an H200 vLLM took 7 ms
# with 30 layers and 64 episodes, prompts included; transformers 44 to 47 ms with 28 layers
POSITION = {"vllm": (5e-3, 0.0), "transformers": (5e-3, 1.5e-3)}
# bytes/s: between a machine's GPUs; between machines; between GPU and host
LINK, NETWORK, TO_HOST = 300e9, 50e9, 25e9
# seconds per row of an iteration in every process, on a shared CPU core of 2026-11: .25 ms to read
# what the others played, .1 to pack it for the update, .2 to write it down (process 0)
HOST = 0.55e-3
LAYOUTS = [(1, 1), (2, 1), (8, 1), (8, 2)]  # GPUs of a machine, machines: of 8 GPUs where several


def read_config(name):
    """The Hugging Face config of a folder, of a name in SHAPES, or of the Hub.  UserError where
    there is none."""
    short = name.split("/")[-1].removesuffix("-Instruct")
    if not Path(name).is_dir() and short in SHAPES:
        kind, *values = SHAPES[short]
        return AutoConfig.for_model(kind, **dict(zip(FIELDS, values)))
    known = f"use a folder or {', '.join(SHAPES)}"
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # damaged files fail in many ways
        if Path(name, "config.json").is_file():
            found = f"its config.json is damaged ({reason_of(error)})"
            raise UserError(f"--model {name}: {found}") from None
        message = f"--model {name}: no config there, and the Hub is not reachable; {known}"
        raise UserError(message) from None


def sizes_of(name):
    """The Sizes of a model by name.  UserError for what is not counted here: quantised weights,
    experts, layers or fields of other kinds; and for a config that leaves a size to transformers'
    defaults, which are some other model's."""
    config = read_config(name)
    if getattr(config, "quantization_config", None):
        raise UserError(f"--model {name}: its weights are quantised, and those are not counted")
    experts = ("num_experts", "num_local_experts", "n_routed_experts")
    if any(getattr(config, key, None) for key in experts):
        raise UserError(f"--model {name}: it has experts, and those are not counted")
    try:
        # a config that names no class gets that of its kind
        config.architectures = config.architectures or [CLASSES.get(config.model_type)]
        sizes = None if lacking(config) else Sizes(config)
    except Exception:  # other names, and numbers that are none
        sizes = None
    if sizes is None:
        fix = "a dense decoder with the fields of Llama or Qwen is (docs/models.md)"
        raise UserError(f"--model {name}: a {config.model_type} is not counted here; {fix}")
    written = config.get_config_dict(name)[0] if config.name_or_path else dict.fromkeys(NEEDED, 1)
    if absent := [field for field in NEEDED if not written.get(field)]:
        fix = "put the model's own file there"
        raise UserError(f"--model {name}: its config.json has no {', '.join(absent)}; {fix}")
    return sizes


# ---- tokens --------------------------------------------------------------------------------------


def prompt_tokens(env_name, model, games=8):
    """(mean, largest, note) tokens of chat prompts, from random play of a few games of the
    environment."""
    env, stream = {"alfworld": AlfWorld, "webshop": WebShop}[env_name](), random.Random(0)
    texts = []
    for task_id in stream.sample(env.tasks("train"), games):
        step, history = env.reset(task_id), []
        while not step.done:
            texts.append(env.prompt(env.task, history, step, [], "chat"))
            action = stream.choice(step.admissible).replace("<your query>", env.task)
            history.append((step, action))
            step = env.step(action)
    try:
        # of a folder, or downloaded earlier
        tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
        lengths = [len(tokenizer(text)["input_ids"]) + TEMPLATE_TOKENS for text in texts]
        how = "its own tokenizer"
    except (OSError, ValueError):
        lengths = [len(text) / CHARACTERS_PER_TOKEN[env_name] + TEMPLATE_TOKENS for text in texts]
        how = f"{CHARACTERS_PER_TOKEN[env_name]} characters a token"
    return sum(lengths) / len(lengths), max(lengths), f"{len(texts)} prompts of random play, {how}"


# ---- seconds -------------------------------------------------------------------------------------


@dataclass
class Work:
    """What an iteration has to do.  Tokens are means, per row."""

    episodes: int
    steps: float
    prompt: float
    response: float
    mini_batch: int  # rows

    @property
    def rows(self):
        return self.episodes * self.steps


def update_flops(s, rows, prompt, response, lora_rank=0, passes=1.0):
    """Floating-point operations over `rows` rows: 6 a parameter and token of a decoder layer (2
    forward, 4 backward; LoRA: 4, as frozen weights get no gradient, and 6 for the adapters), 6 (4)
    V d per response token for the logits, 6 T^2 q for causal attention.  What gradient
    checkpointing computes twice is not counted.  passes: the same in forward passes only, added to
    one update."""
    per_weight, length = (4 if lora_rank else 6) + 2 * passes, prompt + response
    flops = per_weight * (length * s.layers * s.layer + response * s.vocab * s.d)
    flops += (6 + 2 * passes) * length * length * s.q * s.layers
    return rows * (flops + (6 + 2 * passes) * length * lora_rank * s.adapter)


def seconds(s, work, args, gpus, machines, micro_batch):
    """{part: seconds} of one iteration on so many GPUs of so many machines.  micro_batch:
    tokens."""
    n, b = gpus * machines, bytes_of(args.dtype)
    sharded, link = n > 1 and not args.lora_rank, LINK if machines == 1 else NETWORK
    matrix, memory = args.matmul_tflops * 1e12, args.bandwidth * 1e12 * MEMORY_SHARE
    moved = (n - 1) / n / link  # seconds per byte of gathering or sharing out

    passes = 1 + (args.beta > 0)  # pi_old and the reference
    flops = update_flops(s, work.rows, work.prompt, work.response, args.lora_rank, passes)
    share = args.update_share or UPDATE_SHARE[args.gradient_checkpointing]
    computing = flops / n / (matrix * share)
    micro_batches = math.ceil(work.rows * (work.prompt + work.response) / n / micro_batch)
    talking = micro_batches * s.parameters * (b * (2 + passes) + 4) * moved if sharded else 0.0
    if args.lora_rank:  # adapters' gradients, once a mini-batch
        talking = math.ceil(work.rows / work.mini_batch) * 8 * args.lora_rank * s.adapter * moved

    at_once = math.ceil(work.episodes / n)
    cache = at_once * (work.prompt + work.response / 2) * 2 * s.layers * s.k * b
    fixed, per_layer = POSITION[args.engine]
    position = (s.parameters * b + cache) / memory + fixed + per_layer * s.layers
    if args.position_ms:
        position = args.position_ms / 1e3
    reading = work.rows / n * work.prompt * 2 * s.parameters / (matrix * PREFILL_SHARE)

    whole_weights = s.parameters * b
    sync = whole_weights * moved if sharded else 0.0
    if args.engine == "vllm":
        sync += 2 * whole_weights / TO_HOST + 2 * whole_weights / memory
    elif sharded:
        sync += 2 * whole_weights / memory
    return {
        "rollout": work.steps * work.response * position + reading,
        "update": max(computing, talking),
        "sync": sync,
        "host": work.rows * HOST,
    }


def time_lines(s, args, work, longest, fitting):
    """The printed table.  longest: tokens of a row; fitting: (GPUs) -> tokens of a micro-batch that
    fits, 0 where none does."""
    rates = f"{args.matmul_tflops:g} TFLOP/s, {args.bandwidth:g} TB/s"
    means = f"{work.response:g} tokens a response, {work.steps:g} steps an episode"
    yield f"seconds of an iteration ({args.card}: {rates}; --engine {args.engine}; {means})"
    parts, money = ["rollout", "update", "sync", "host"], args.price is not None
    head = "".join(f"{part:>9s}" for part in [*parts, "sum", "hours"])
    yield f"  {'GPUs':18s}{head}" + ("       cost" if money else "")
    asked = (args.gpus, 1) if args.gpus <= 8 else (8, args.gpus // 8)
    for gpus, machines in sorted({*LAYOUTS, asked}, key=math.prod):
        n = gpus * machines
        micro_batch = args.micro_batch_tokens or fitting(n) or longest
        spent = seconds(s, work, args, gpus, machines, micro_batch)
        total = sum(spent.values())
        hours = total * args.iterations / 3600
        name = f"{n}" + (f" in {machines} machines" if machines > 1 else "")
        values = "".join(f"{value:9.1f}" for value in [*map(spent.get, parts), total, hours])
        cost = f"{hours * n * args.price:11,.0f}" if money else ""
        fits = 0 < (args.micro_batch_tokens or 1) <= fitting(n)
        yield f"  {name:18s}{values}{cost}" + ("" if fits else "   does NOT fit in memory")
    what = "hours and cost" if money else "hours"
    unsure = "rollout and sync were checked on one GPU with a small model only"
    yield f"  {what} of {args.iterations} iterations; {unsure}"


# ---- the plan ------------------------------------------------------------------------------------


def check(args):
    """UserError where arguments contradict each other: means beyond their limits, for instance."""
    steps = args.max_steps or STEPS[args.env]
    for option, mean, limit in (
        ("--mean-response", args.mean_response, args.max_response),
        ("--mean-steps", args.mean_steps, steps),
    ):
        if mean and mean > limit:
            limit_of = option.replace("mean", "max")
            raise UserError(f"{option} {mean:g}: more than the limit; {limit_of} is {limit}")
    if args.context and args.context < args.max_response + 64:
        found = f"--context {args.context}: it holds a prompt, of 64 tokens at least, and the"
        raise UserError(f"{found} response; --max-response is {args.max_response}")
    if args.gpus > 8 and args.gpus % 8:
        raise UserError(f"--gpus {args.gpus}: above 8, machines of 8 each; give a multiple of 8")


def report(args):
    """The printed lines."""
    check(args)
    s = sizes_of(args.model)
    how = dict(dtype=args.dtype, lora_rank=args.lora_rank)
    usable = args.memory * GB * (1 - FREE)

    def own_weights(gpus):
        """What samples: vLLM's own weights, asleep while updating; for transformers a copy that
        stays, where ours are split or wider."""
        copy, apart = s.parameters * bytes_of(args.dtype), gpus > 1 or args.dtype != "float32"
        return {"vllm": copy, "transformers": copy if apart and not args.lora_rank else 0.0}

    def staying(gpus):
        """Bytes by part of what stays while updating, and what is free while sampling."""
        parts = weights_bytes(s, gpus, args.dtype, args.lora_rank, args.beta)
        # while sampling, activations and gathered copies are not there
        free = usable - sum(parts.values()) + parts["computing copies"]
        if args.engine == "transformers":
            parts["copy that samples"] = own_weights(gpus)["transformers"]
        return parts, free

    (stays, rest), own = staying(args.gpus), own_weights(args.gpus)
    longest = args.context or (2048 if args.env == "alfworld" else 4096) + args.max_response
    mean, largest, note = prompt_tokens(args.env, args.model)
    # longer prompts lose history
    mean, largest = (min(x, longest - args.max_response) for x in (mean, largest))
    share = args.max_response / (mean + args.max_response)
    how |= dict(checkpointing=args.gradient_checkpointing, logit_chunk=args.logit_chunk)
    room = usable - sum(stays.values())
    tokens = fitting_tokens(s, room, share, longest, **how)
    shown = args.micro_batch_tokens or tokens or longest
    activations, logits, one_layer = micro_batch_bytes(s, shown, math.ceil(shown * share), **how)

    trained = args.lora_rank * s.adapter / 1e6
    kind = (
        f"LoRA of rank {args.lora_rank}, {trained:,.0f} million trained"
        if args.lora_rank
        else "all weights trained"
    )
    cards = f"{args.gpus} GPU(s) of {args.memory:g} GB, {args.dtype}, {args.env}"
    yield f"{args.model}: {s.parameters / 1e9:.2f} billion parameters, {kind}; {cards}"
    yield f"memory per GPU while updating, GB (estimated; {FREE:.0%} of {args.memory:g} left free)"
    for name, size in stays.items():
        yield f"  {name:20s}{size / GB:8.1f}"
    about = f"of a micro-batch of {shown:,} padded tokens"
    yield f"  {'activations':20s}{activations / GB:8.1f}   {about}"
    yield f"  {'logits':20s}{logits / GB:8.1f}"
    about = "after the logits: the larger of both counts"
    yield f"  {'one layer at work':20s}{one_layer / GB:8.1f}   {about}"
    total = sum(stays.values()) + peak(activations, logits, one_layer)
    yield f"  {'sum':20s}{total / GB:8.1f}"
    if tokens:
        yield f"fits: --micro-batch-tokens {tokens} at most (a row may have {longest:,})"
    else:
        less = "" if args.gradient_checkpointing else "--gradient-checkpointing, "
        less += "--lora-rank 64, more --gpus, or a smaller model"
        yield f"does NOT fit: a row may have {longest:,} tokens; try {less}"

    per_token = 2 * s.layers * s.k * bytes_of(args.dtype)
    episodes = args.groups * args.group_size
    wanted = math.ceil(episodes / args.gpus)
    needed = wanted * longest * per_token
    yield "memory per GPU while sampling, GB"
    about = f"of {wanted} episodes of {longest:,} tokens, {per_token / 1e3:.0f} kB each"
    yield f"  {'KV cache':20s}{needed / GB:8.1f}   {about}"
    for engine, weights in own.items():
        left = rest - weights
        verdict = f"{left / per_token / longest:.0f} episodes fit" if left > 0 else "does NOT fit"
        verdict = "they fit" if left >= needed else verdict
        cache = f"{max(0.0, left) / GB:.1f} left for the cache: {verdict}"
        yield f"  {'--engine ' + engine:22s}{weights / GB:6.1f}   of weights of its own, {cache}"
    steps = args.max_steps or STEPS[args.env]
    rows, whole = episodes * steps, mean + args.max_response
    product = f"{args.groups} x {args.group_size} episodes x {steps} steps"
    yield f"an iteration, at most: {product} = {rows:,} rows"
    yield f"  prompts of {mean:.0f} tokens on average, {largest:.0f} at most ({note})"
    millions = [x / 1e6 for x in (rows * mean, rows * args.max_response, rows * whole)]
    yield (
        f"  {millions[0]:.2f} million prompt tokens and, at {args.max_response} a response, "
        f"{millions[1]:.2f} million sampled; "
        f"update over {millions[2]:.2f} million, {millions[2] / args.gpus:.2f} per GPU"
    )
    work = Work(
        episodes, args.mean_steps or steps, mean, args.mean_response or args.max_response, 256
    )

    def fitting(gpus):
        stays, rest = staying(gpus)
        if rest <= own_weights(gpus)[args.engine]:
            return 0
        return fitting_tokens(s, usable - sum(stays.values()), share, longest, **how)

    yield from time_lines(s, args, work, longest, fitting)


def main():
    p = Parser(description=__doc__.split("\n\n")[0])
    about = f"folder, Hub name, or one of {', '.join(SHAPES)}"
    p.add_argument("--model", type=text, default="Qwen/Qwen2.5-7B-Instruct", help=about)
    p.add_argument("--gpus", type=whole(1, 1024), default=1, help="how many, for the memory")
    p.add_argument("--card", choices=sorted(CARDS), default="H100", help="whose memory and rates")
    p.add_argument(
        "--memory", type=number(above=0, most=10**5), help="of one, in GB (default: the card's)"
    )
    about = "of computing; trained weights stay in float32"
    p.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"], help=about)
    p.add_argument("--lora-rank", type=whole(0, 4096), default=0, help="0: all weights are trained")
    p.add_argument("--beta", type=number(least=0), default=0.01, help="0: no reference policy")
    about = "compute activations again in the backward pass"
    p.add_argument("--gradient-checkpointing", action="store_true", help=about)
    about = "padded tokens per forward pass (default: as many as fit)"
    p.add_argument("--micro-batch-tokens", type=whole(1), help=about)
    about = "response tokens whose logits are there at once (default: 1 GiB of logits)"
    p.add_argument("--logit-chunk", type=whole(1), help=about)
    p.add_argument(
        "--env", default="alfworld", choices=["alfworld", "webshop"], help="whose prompts"
    )
    about = (
        "longest prompt and response, tokens (default: 2048 or, WebShop, 4096, + --max-response)"
    )
    p.add_argument("--context", type=whole(1, 10**7), help=about)
    about = "tokens per response; what is counted with, so an upper bound"
    p.add_argument("--max-response", type=whole(1, 10**5), default=512, help=about)
    about = "steps per episode (default: 50, WebShop 15)"
    p.add_argument("--max-steps", type=whole(1, 1000), help=about)
    p.add_argument("--groups", type=whole(1, 4096), default=16, help="B")
    p.add_argument("--group-size", type=whole(2, 1024), default=8, help="G")
    g = p.add_argument_group("seconds and cost")
    g.add_argument("--engine", choices=sorted(POSITION), default="vllm", help="of sampling")
    about = "tokens of a response on average (default: the limit)"
    g.add_argument("--mean-response", type=number(above=0), help=about)
    about = "steps of an episode on average (default: the limit)"
    g.add_argument("--mean-steps", type=number(above=0), help=about)
    about = "iterations of all phases together"
    g.add_argument("--iterations", type=whole(1), default=150, help=about)
    g.add_argument("--price", type=number(least=0), help="of a GPU for an hour, in any currency")
    about = "matrix products in bf16 (default: the card's)"
    g.add_argument("--matmul-tflops", type=number(above=0), help=about)
    g.add_argument(
        "--bandwidth", type=number(above=0), help="of memory, TB/s (default: the card's)"
    )
    about = "of the matrix rate that an update reaches (default: as measured)"
    g.add_argument("--update-share", type=number(above=0, most=1), help=about)
    about = "milliseconds a token position as you measured it (default: from the memory's rate)"
    g.add_argument("--position-ms", type=number(above=0), help=about)
    args = p.parse_args()
    memory, tflops, bandwidth = CARDS[args.card]
    args.memory, args.matmul_tflops = args.memory or memory, args.matmul_tflops or tflops
    args.bandwidth = args.bandwidth or bandwidth
    for line in report(args):
        print(line)


if __name__ == "__main__":
    run_script(main)
