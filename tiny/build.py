"""Builds a laptop stand-in: a causal LM of about a million parameters that brings to one
environment, in small, what an instruct model brings.

    it acts somewhat               without a skill in its prompt it plays like a careless scripted
                                   player (5-25 % of episodes won)
    it does what a hint says       with a skill in its prompt it does what that skill says, clause
                                   by clause
    it can say what an episode did continuing a winning transcript, it writes the skill that the
    transcript shows

All three are imitated from scripted players in GENERATED houses and shops.  What is taught lies
beside: alfworld_lessons.py (players.py) and webshop_lessons.py (shoppers.py) hold vocabulary,
examples and gates; this file holds the model and the training, which are the same.  The result is
an ordinary Hugging Face folder, tiny/ENV: the phases do not know what it is.

    python tiny/build.py [--env webshop]      trains (resumable, hours on two cores; the weights
                                              ship with the repository), then checks
    python tiny/build.py --start MODEL        the same from a folder's weights and vocabulary
                                              instead of random ones
    python tiny/build.py --check              only plays the gates, on generated worlds never
                                              trained on: exit code 1 if one fails
"""

import json
import os
import random
import sys
import time
from pathlib import Path
from pickle import UnpicklingError

import torch
import torch.nn.functional as F
from torch.func import functional_call
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from envs import UserError  # noqa: E402
from envs.arguments import Parser, number, run_tool, whole  # noqa: E402
from tiny import alfworld_lessons, webshop_lessons  # noqa: E402

HERE = Path(__file__).resolve().parent
LESSONS = {"alfworld": alfworld_lessons, "webshop": webshop_lessons}


# ---- model ---------------------------------------------------------------------------------------


def make_model(tokenizer, args):
    """A random model for a tokenizer; args: seed, width, layers."""
    torch.manual_seed(args.seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=args.width,
        intermediate_size=args.width * 5 // 2,
        num_hidden_layers=args.layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=args.width // 4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    return Qwen3ForCausalLM(config)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised (Jordan et al. 2024): as torch.optim.Muon, but in float32, since
    bfloat16 products crawl on most CPUs."""

    def __init__(self, matrices, lr, momentum=0.95):
        super().__init__(matrices, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        group = self.param_groups[0]
        for p in group["params"]:
            mean = self.state[p].setdefault("mean", torch.zeros_like(p))
            mean.lerp_(p.grad, 1 - group["momentum"])
            x = p.grad.lerp(mean, group["momentum"])  # Nesterov
            x = (x.T if p.shape[0] > p.shape[1] else x) / (x.norm() + 1e-7)
            for _ in range(5):  # Newton-Schulz: all singular values to about 1
                square = x @ x.T
                x = 3.4445 * x + (-4.775 * square + 2.0315 * square @ square) @ x
            x = x.T if p.shape[0] > p.shape[1] else x
            p.add_(x, alpha=-group["lr"] * max(1, p.shape[0] / p.shape[1]) ** 0.5)


class Composed:
    """Embedding table as sums: (tokens, parts) 0/1 matrix times (parts, width) vectors.  Without
    any sum, the vectors are the table."""

    def __init__(self, parts_of_tokens, width, seed):
        parts = {
            part: i for i, part in enumerate(dict.fromkeys(p for ps in parts_of_tokens for p in ps))
        }
        where = [(t, parts[p]) for t, ps in enumerate(parts_of_tokens) for p in ps]
        self.matrix = None
        if len(where) > len(parts):
            self.matrix = torch.zeros(len(parts_of_tokens), len(parts))
            self.matrix[tuple(zip(*where))] = 1.0
        generator = torch.Generator().manual_seed(seed)
        self.vectors = torch.nn.Parameter(
            torch.randn(len(parts), width, generator=generator) * 0.02
        )

    def table(self):
        return self.vectors * 1 if self.matrix is None else self.matrix @ self.vectors


# ---- training ------------------------------------------------------------------------------------


def make_batch(lessons, tokenizer, size, *key):
    """(ids, learn), each (size, T); depends on the key only, so that training resumes exactly."""
    stream = random.Random("/".join(map(str, key)))
    examples = []
    while len(examples) < size:
        pieces = lessons.example(stream)
        if pieces is None:
            continue
        ids, learn = [], []
        for text, wanted in pieces:
            tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
            ids += tokens
            learn += [wanted] * len(tokens)
            if wanted and len(ids) > lessons.MAX_TOKENS:
                break
        examples.append((ids, learn))
    examples.sort(key=lambda example: len(example[0]))
    length = min(lessons.MAX_TOKENS + 64, len(examples[-1][0]))
    ids = torch.tensor([(i + [0] * length)[:length] for i, _ in examples])
    return ids, torch.tensor([(t + [0] * length)[:length] for _, t in examples], dtype=torch.bool)


def train(rank, args):
    """One of args.processes identical processes, each with its own part of the batch: small
    matrices gain nothing from more threads."""
    torch.set_num_threads(1)
    parent = os.getppid()
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{args.state}.rendezvous", rank=rank, world_size=args.processes
    )
    lessons = LESSONS[args.env]
    lessons.CARELESS.update(
        {clause: min(1.0, chance * args.procedure) for clause, chance in lessons.CARELESS.items()}
    )
    tokenizer = (
        AutoTokenizer.from_pretrained(args.start) if args.start else lessons.make_tokenizer()
    )
    model = (
        Qwen3ForCausalLM.from_pretrained(args.start) if args.start else make_model(tokenizer, args)
    )
    # sums cannot be taken apart
    parts = (
        [[token] for token in range(len(tokenizer))] if args.start else lessons.parts_of(tokenizer)
    )
    composed = Composed(parts, model.config.hidden_size, args.seed)
    if args.start:
        composed.vectors.data.copy_(model.model.embed_tokens.weight)
    body = [p for name, p in model.model.named_parameters() if name != "embed_tokens.weight"]
    # Muon learns to copy in half the steps that AdamW needs (docs/lab.md)
    matrices = [p for p in body if p.dim() == 2]
    others = [p for p in body if p.dim() != 2] + [composed.vectors]
    optimizers = [
        Muon(matrices, lr=args.muon_lr),
        torch.optim.AdamW(others, lr=args.lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    size = sum(p.numel() for p in body) + len(tokenizer) * model.config.hidden_size
    say = print if rank == 0 else lambda *args, **kwargs: None
    say(
        f"{size:,} parameters, {len(tokenizer)} tokens, {composed.vectors.shape[0]} embedding "
        "parts",
        flush=True,
    )
    state, first = Path(args.state), 0
    if state.exists():
        saved = torch.load(state, weights_only=True)
        model.load_state_dict(saved["model"])
        composed.vectors.data.copy_(saved["vectors"])
        for optimizer, kept in zip(optimizers, saved["optimizers"]):
            optimizer.load_state_dict(kept)
        first = saved["step"]
        say(f"going on from step {first}", flush=True)
    began, seen, recent = time.time(), 0, []
    for k in range(first, args.steps):
        if os.getppid() != parent:
            # else this one would work on unseen
            sys.exit(
                "the main process was killed; the same command goes on from the last saved step"
            )
        ids, learn = make_batch(lessons, tokenizer, args.batch, args.seed, k, rank)
        # warm-up, then linear to almost 0
        schedule = min(1.0, (k + 1) / 100) * max(0.02, 1 - k / args.steps)
        for optimizer, rate in zip(optimizers, (args.muon_lr, args.lr)):
            optimizer.param_groups[0]["lr"] = rate * schedule
            optimizer.zero_grad(set_to_none=True)
        loss = 0.0
        total = learn.sum()
        for part in torch.arange(len(ids)).split(args.micro):  # sorted by length: little padding
            width = int((ids[part] > 0).any(0).nonzero()[-1]) + 1
            x, y = ids[part, :width], learn[part, :width]
            table = composed.table()
            hidden = functional_call(
                model.model,
                {"embed_tokens.weight": table},
                (),
                {"input_ids": x, "use_cache": False},
            )
            logits = hidden.last_hidden_state[:, :-1] @ table.T
            each = F.cross_entropy(
                logits.flatten(0, 1), x[:, 1:].flatten(), reduction="none"
            ).view_as(y[:, 1:])
            piece = each[y[:, 1:]].sum() / total
            # what the world answers is not the policy's business, but reading closely enough to
            # foresee it teaches to read
            rest = each[(x[:, 1:] > 0) & ~y[:, 1:]].sum() / (x > 0).sum() * len(part) / len(learn)
            (piece + args.world * rest).backward()
            loss += piece.item()
            seen += x.numel()
        flat = torch.cat([p.grad.flatten() for p in [*body, composed.vectors]]) / args.processes
        torch.distributed.all_reduce(flat)
        for p, grad in zip(
            [*body, composed.vectors], flat.split([p.numel() for p in [*body, composed.vectors]])
        ):
            p.grad.copy_(grad.view_as(p))
        torch.nn.utils.clip_grad_norm_([*body, composed.vectors], 1.0)
        for optimizer in optimizers:
            optimizer.step()
        recent = (recent + [loss])[-50:]
        if (k + 1) % 25 == 0:
            rate = args.processes * seen / (time.time() - began)
            say(
                f"step {k + 1}/{args.steps}  loss {sum(recent) / len(recent):.4f}  {rate:.0f} "
                "tokens/s",
                flush=True,
            )
        if rank == 0 and ((k + 1) % 100 == 0 or k + 1 == args.steps):
            part = f"{state}.part"
            saved = {
                "model": model.state_dict(),
                "vectors": composed.vectors.data,
                "step": k + 1,
                "origin": origin(args),
            }
            saved["optimizers"] = [optimizer.state_dict() for optimizer in optimizers]
            torch.save(saved, part)
            os.replace(part, state)
            with torch.no_grad():
                model.model.embed_tokens.weight.copy_(composed.table())
                model.lm_head.weight = model.model.embed_tokens.weight
            model.save_pretrained(args.out)
            tokenizer.save_pretrained(args.out)


# ---- gates ---------------------------------------------------------------------------------------


def check(args, lessons, device="cpu"):
    """Plays the gates in worlds never trained on; prints one JSON line and returns whether all
    hold."""
    from common import Play, Policy, rollout
    from support.writing import generate

    torch.set_num_threads(1)
    policy = Policy(args.out, device)
    env, tasks, arms = lessons.checks(args.games)
    report, episodes = {}, {}
    for arm, skills_for in arms.items():
        skills = {
            task: [{"skill_id": f"oracle{i}"} | skill for i, skill in enumerate(skills_for(task))]
            for task in tasks
        }
        plays = [Play(task, task, ("check", arm, task), skills[task]) for task in tasks]
        episodes[arm] = rollout(policy, env, plays, temperature=1.0, threads=args.processes)
        wins = {}
        for record in episodes[arm]:
            wins.setdefault(record["task_type"], []).append(record["success"])
        report[arm] = round(sum(r["success"] for r in episodes[arm]) / len(tasks), 3)
        report[arm + "_by_type"] = {
            kind: round(sum(w) / len(w), 3) for kind, w in sorted(wins.items())
        }
        report[arm + "_steps"] = round(sum(len(r["steps"]) for r in episodes[arm]) / len(tasks), 1)
    won = [r for arm in ("plain", "skills") for r in episodes[arm] if r["success"]]
    keys = [("write", r["traj_id"]) for r in won]
    # as mine.py's laptop preset writes; a chat model's JSON takes more tokens
    room = 160 if policy.style == "chat" else 64
    answers = generate(policy, [env.summary_prompt(r, policy.style) for r in won], keys, 0.2, room)
    parsed, exact, true = 0, 0, 0

    def parts(skill):
        return set(skill["strategy"].removeprefix("look in ").split(" , "))

    for record, answer in zip(won, answers):
        try:
            skill = env.parse_skill(answer, policy.style)
        except ValueError:
            continue
        parsed += 1
        same = [s for s in lessons.shown(record) if s["condition"] == skill["condition"]]
        exact += any(s["strategy"] == skill["strategy"] for s in same)
        # nothing that the transcript does not show; it may leave something out
        true += any(parts(skill) <= parts(s) for s in same)
    written = max(1, len(won))
    report |= {"games": len(tasks), "written": len(won), "parsed": round(parsed / written, 3)}
    report |= {"true": round(true / written, 3), "exact": round(exact / written, 3)}
    report["attainable"] = round(lessons.attainable(env, tasks), 3)
    gates = {
        "plain success 5-25 %": 0.05 <= report["plain"] <= 0.25,
        "every task type below 50 % plain": max(report["plain_by_type"].values()) < 0.5,
        "with good skills at least 85 % of what is attainable": report["skills"]
        >= 0.85 * report["attainable"],
        "at least 95 % of written skills parse": report["parsed"] >= 0.95,
        "at least 80 % say what the transcript shows": report["true"] >= 0.8,
    }
    print(json.dumps(report | {"gates": gates}), flush=True)
    return all(gates.values())


def origin(args):
    """What a training state must have in common with the command that goes on from it."""
    return {"--start": args.start, "--procedure": args.procedure, "--seed": args.seed}


def origin_of(state):
    """The same of a training state's file; None where there is none."""
    if not Path(state).exists():
        return None
    try:
        return torch.load(state, weights_only=True).get("origin")
    except (UnpicklingError, RuntimeError, AttributeError, EOFError):
        raise UserError(f"{state} is no training state: name another one with --state") from None


def main():
    parser = Parser(
        description="Pretrains the laptop stand-in for an environment and checks its gates."
    )
    parser.add_argument("--env", choices=LESSONS, default="alfworld", help="environment")
    parser.add_argument("--out", help="model folder (default: tiny/ENV)")
    parser.add_argument("--state", help="training state, for resuming (default: runs/tiny/ENV.pt)")
    parser.add_argument(
        "--start",
        metavar="MODEL",
        help="model folder to go on from: its weights and vocabulary, a fresh optimizer",
    )
    parser.add_argument(
        "--procedure",
        type=number(above=0),
        default=1.0,
        help="factor on how often players do right what no skill asks for",
    )
    parser.add_argument("--check", action="store_true", help="only play the gates")
    parser.add_argument("--games", type=whole(1), default=300, help="episodes per gate")
    parser.add_argument("--steps", type=whole(1), default=2500, help="optimizer steps")
    parser.add_argument("--batch", type=whole(1), default=24, help="examples per step and process")
    parser.add_argument("--micro", type=whole(1), default=12, help="examples per forward pass")
    parser.add_argument(
        "--lr",
        type=number(above=0),
        default=3e-3,
        help="peak learning rate of embeddings and norms (AdamW)",
    )
    parser.add_argument(
        "--muon-lr",
        type=number(above=0),
        default=0.02,
        help="peak learning rate of the matrices (Muon)",
    )
    parser.add_argument(
        "--world",
        type=number(least=0),
        default=0.3,
        help="weight of predicting what the world answers",
    )
    parser.add_argument("--width", type=whole(1), default=128, help="hidden size")
    parser.add_argument("--layers", type=whole(1), default=3, help="layers")
    parser.add_argument(
        "--processes", type=whole(1), default=2, help="training processes, one core each"
    )
    parser.add_argument("--seed", type=whole(0), default=0, help="of weights and data")
    args = parser.parse_args()
    args.out, args.state = (
        args.out or str(HERE / args.env),
        args.state or f"runs/tiny/{args.env}.pt",
    )
    if args.width % 8:  # four heads, whose halves rotate
        raise UserError(f"--width: expected a multiple of 8, found {args.width}")
    if args.start and not (Path(args.start) / "config.json").is_file():
        raise UserError(f"--start {args.start}: expected a model's folder, found no config.json")
    if not args.check:
        Path(args.state).resolve().parent.mkdir(parents=True, exist_ok=True)
        Path(f"{args.state}.rendezvous").unlink(missing_ok=True)
        args.state = str(Path(args.state).resolve())
        theirs = origin_of(args.state)
        if theirs not in (None, origin(args)):
            raise UserError(
                f"{args.state} was trained with {theirs}, not {origin(args)}: name "
                "another --state, or delete it to begin anew"
            )
        torch.multiprocessing.spawn(train, (args,), nprocs=args.processes)
    sys.exit(0 if check(args, LESSONS[args.env]) else 1)


if __name__ == "__main__":
    run_tool(main)
