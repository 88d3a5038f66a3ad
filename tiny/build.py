"""Builds the laptop stand-in: a causal LM of about a million parameters that brings to ALFWorld, in small, what an instruct model brings.

    it acts somewhat               without a skill in its prompt it plays like a careless scripted player (5-25 % of games won)
    it does what a hint says       with a skill in its prompt it does what that skill says, clause by clause (tiny/players.py)
    it can say what an episode did continuing a winning transcript, it writes the skill that the transcript shows

All three are imitated from scripted players on GENERATED houses (envs/houses.py, rooms that no split of the phases ever plays); nothing
about ALFWorld's own games goes in.  The result is an ordinary Hugging Face folder, tiny/alfworld: the phases do not know what it is.

    python tiny/build.py             trains (resumable, hours on two cores; the weights ship with the repository), then checks
    python tiny/build.py --check     only plays the gates, on generated houses never trained on: exit code 1 if one fails

Trick worth knowing: "mug 2" is one token, whose embedding is the sum of a vector for mug and one for 2 while pretraining, so that the model
knows every instance from the start.  The sums are written out when the model is saved, and the phases train them as plain embeddings.
"""

import argparse
import json
import os
import random
import sys
import time
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch.func import functional_call
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from envs import Step, alfworld_prompts, houses, houses_tables  # noqa: E402
from envs.alfworld_prompts import read_task  # noqa: E402
from tiny.players import CONDITIONS, Player, clauses_of, describe, general_skill, where_skill  # noqa: E402

HERE = Path(__file__).resolve().parent
MAX_STEPS, MAX_TOKENS = 50, 900
PAD, UNK, EOS = "[pad]", "[unk]", "\n"
NUMBERS = 10  # object instances per class that have a token; a receptacle class has as many as any room can have
OTHER_WORDS = """task hint room : . , ; when you something things two need a an some it them put look at examine the under with hot cool
clean heat find and in on go open close take from move to use slice inventory help see nothing closed next none face hold fails
ok normal won search every place once what is its both one then"""


# ---- vocabulary and model ------------------------------------------------------------------------------------------------------


def vocabulary():
    """Tokens in order, and for each the names of the vectors that its embedding is the sum of."""
    objects, receptacles = houses.vocabulary()
    tokens = {token: [token] for token in (PAD, UNK, EOS, "go to")}
    for word in OTHER_WORDS.split() + list(objects) + list(receptacles):
        tokens.setdefault(word, [word])
    for name, count in [(name, NUMBERS) for name in objects] + list(receptacles.items()):
        for i in range(1, count + 1):
            tokens[f"{name} {i}"] = [name, f"number {i}", "instance"]
    return tokens


def make_tokenizer(tokens):
    one = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token=UNK))
    one.pre_tokenizer = pre_tokenizers.Split(Regex(r"go to|[a-z]+ \d+|[a-z]+|\n|[^\sa-z]"), behavior="removed", invert=True)
    return PreTrainedTokenizerFast(tokenizer_object=one, pad_token=PAD, unk_token=UNK, eos_token=EOS, clean_up_tokenization_spaces=False)


def make_model(n_tokens, args):
    torch.manual_seed(args.seed)
    config = Qwen3Config(
        vocab_size=n_tokens,
        hidden_size=args.width,
        intermediate_size=args.width * 5 // 2,
        num_hidden_layers=args.layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=args.width // 4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=2,
    )
    return Qwen3ForCausalLM(config)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised (Jordan et al. 2024): as torch.optim.Muon, but in float32, since bfloat16 products crawl on most CPUs."""

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
    """Embedding table as sums: (tokens, parts) 0/1 matrix times (parts, width) vectors."""

    def __init__(self, tokens, width, seed):
        parts = {part: i for i, part in enumerate(dict.fromkeys(p for ps in tokens.values() for p in ps))}
        where = [(t, parts[p]) for t, ps in enumerate(tokens.values()) for p in ps]
        self.matrix = torch.zeros(len(tokens), len(parts))
        self.matrix[tuple(zip(*where))] = 1.0
        generator = torch.Generator().manual_seed(seed)
        self.vectors = torch.nn.Parameter(torch.randn(len(parts), width, generator=generator) * 0.02)

    def table(self):
        return self.matrix @ self.vectors


# ---- examples from scripted players --------------------------------------------------------------------------------------------


def best_places(thing, stream, room=None):
    """Up to three receptacle classes for a class of object, likely ones first: what a well-informed skill would name."""
    weights = next((w for name, w in houses_tables.WHERE.items() if name.lower() == thing), {})
    names = sorted(((w, name.lower()) for name, w in weights.items() if room is None or name.lower() in room), reverse=True)
    return [name for _, name in names[:3]] or [stream.choice([name.lower() for name in houses_tables.RECEPTACLES])]


def random_skills(kind, thing, stream):
    """A prompt's skills while pretraining: mostly fitting and good, sometimes incomplete, wrong or about something else."""
    skills = []
    clauses = clauses_of(kind)
    if stream.random() < 0.8:
        some = clauses if stream.random() < 0.65 else [c for c in clauses if stream.random() < 0.6] or [stream.choice(clauses)]
        skills.append(general_skill(kind, some))
    if stream.random() < 0.55:
        places = best_places(thing, stream)[: stream.choice([1, 2, 3, 3])]
        if stream.random() < 0.3:
            places = [name.lower() for name in stream.sample(houses_tables.RECEPTACLES, stream.choice([1, 2, 3]))]
        skills.append(where_skill(thing, places))
    if stream.random() < 0.25 or not skills:  # one that does not fit must change nothing
        other = stream.choice([k for k in CONDITIONS if k != kind])
        thing2 = stream.choice([name for name in houses.vocabulary()[0] if name != thing])
        skills.append(stream.choice([general_skill(other), where_skill(thing2, best_places(thing2, stream))]))
    stream.shuffle(skills)
    return skills[:3]


def play(task_id, skills_of, stream):
    """One episode by a scripted player: (task, skills, [(Step, action)], last Step)."""
    game = houses.make_game(task_id)
    running = game.start()
    kind, thing, _ = read_task(game.task)
    skills = skills_of(kind, thing)
    player, history, action = Player(game.task, skills, stream), [], None
    while True:
        step = Step(running.observation, [a for a in running.admissible() if a != "help"], won=running.won)
        player.observe(step.observation, action)
        if running.won or len(history) == MAX_STEPS:
            return game.task, skills, history, step
        action = player.act(step.admissible)
        history.append((step, action))
        running.step(action)


def acting_example(tokenizer, task, skills, history, style):
    """(ids, targets): the whole episode as one prompt, with every token of every action to be learned."""
    ids, learn = [], []
    for t, (step, action) in enumerate(history):
        text = (
            alfworld_prompts.prompt(task, [], step, skills, style) if t == 0 else alfworld_prompts.continuation(history[:t], step, style)
        )
        for part, wanted in ((text, 0), (action + "\n", 1)):
            tokens = tokenizer(part, add_special_tokens=False)["input_ids"]
            ids += tokens
            learn += [wanted] * len(tokens)
        if len(ids) > MAX_TOKENS:
            break
    return ids, learn


def writing_example(tokenizer, task, history, last, stream):
    """(ids, targets): a winning transcript and the skill that it shows, general or where; only the skill is to be learned."""
    seen = [step for step, _ in history] + [last]
    steps = [(step.observation, action, after.observation) for (step, action), after in zip(history, seen[1:])]
    skill = describe(task, steps, stream.choice(["general", "where"])) or describe(task, steps, "general")
    record = {
        "task": task,
        "steps": [{"observation": before, "action": action} for before, action, _ in steps],
        "final_observation": last.observation,
    }
    prompt = tokenizer(alfworld_prompts.summary_prompt(record, "compact"), add_special_tokens=False)["input_ids"]
    answer = tokenizer(f" when {skill['condition']} : {skill['strategy']}\n", add_special_tokens=False)["input_ids"]
    return prompt + answer, [0] * len(prompt) + [1] * len(answer)


def make_batch(tokenizer, args, *key):
    """(ids, learn), each (batch, T); depends on the key only, so that training resumes exactly."""
    stream = random.Random("/".join(map(str, key)))
    examples = []
    while len(examples) < args.batch:
        task_id = f"pretrain/{stream.randrange(10_000_000):07d}"
        draw = stream.random()
        plain = draw < 0.25
        task, skills, history, last = play(task_id, (lambda kind, thing: []) if plain else partial(random_skills, stream=stream), stream)
        style = "compact" if stream.random() < 0.15 else "compact+note"
        if draw < 0.85:
            if stream.random() < 0.7:  # careless episodes are long and teach little at their end
                history = history[:24]
            examples.append(acting_example(tokenizer, task, skills, history, style))
        elif last.won:
            examples.append(writing_example(tokenizer, task, history, last, stream))
    examples.sort(key=lambda example: len(example[0]))
    length = min(MAX_TOKENS + 64, len(examples[-1][0]))
    ids = torch.tensor([(i + [0] * length)[:length] for i, _ in examples])
    return ids, torch.tensor([(t + [0] * length)[:length] for _, t in examples], dtype=torch.bool)


# ---- training ------------------------------------------------------------------------------------------------------------------


def train(rank, args):
    """One of args.processes identical processes, each with its own part of the batch: small matrices gain nothing from more threads."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{args.state}.rendezvous", rank=rank, world_size=args.processes)
    tokens = vocabulary()
    tokenizer = make_tokenizer(tokens)
    model = make_model(len(tokens), args)
    composed = Composed(tokens, args.width, args.seed)
    body = [p for name, p in model.model.named_parameters() if name != "embed_tokens.weight"]
    matrices = [p for p in body if p.dim() == 2]  # Muon learns to copy in half the steps that AdamW needs (LAB.md)
    others = [p for p in body if p.dim() != 2] + [composed.vectors]
    optimizers = [
        Muon(matrices, lr=args.muon_lr),
        torch.optim.AdamW(others, lr=args.lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    size = sum(p.numel() for p in body) + composed.matrix.shape[0] * args.width
    say = print if rank == 0 else lambda *args, **kwargs: None
    say(f"{size:,} parameters, {len(tokens)} tokens, {composed.vectors.shape[0]} embedding parts", flush=True)
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
        ids, learn = make_batch(tokenizer, args, args.seed, k, rank)
        schedule = min(1.0, (k + 1) / 100) * max(0.02, 1 - k / args.steps)  # warm-up, then linear to almost 0
        for optimizer, rate in zip(optimizers, (args.muon_lr, args.lr)):
            optimizer.param_groups[0]["lr"] = rate * schedule
            optimizer.zero_grad(set_to_none=True)
        loss = 0.0
        total = learn.sum()
        for part in torch.arange(len(ids)).split(args.micro):  # sorted by length: little padding
            width = int((ids[part] > 0).any(0).nonzero()[-1]) + 1
            x, y = ids[part, :width], learn[part, :width]
            table = composed.table()
            hidden = functional_call(model.model, {"embed_tokens.weight": table}, (), {"input_ids": x, "use_cache": False})
            logits = hidden.last_hidden_state[:, :-1] @ table.T
            each = F.cross_entropy(logits.flatten(0, 1), x[:, 1:].flatten(), reduction="none").view_as(y[:, 1:])
            piece = each[y[:, 1:]].sum() / total
            # what the world answers is not the policy's business, but reading closely enough to foresee it teaches to read
            rest = each[(x[:, 1:] > 0) & ~y[:, 1:]].sum() / (x > 0).sum() * len(part) / len(learn)
            (piece + args.world * rest).backward()
            loss += piece.item()
            seen += x.numel()
        flat = torch.cat([p.grad.flatten() for p in [*body, composed.vectors]]) / args.processes
        torch.distributed.all_reduce(flat)
        for p, grad in zip([*body, composed.vectors], flat.split([p.numel() for p in [*body, composed.vectors]])):
            p.grad.copy_(grad.view_as(p))
        torch.nn.utils.clip_grad_norm_([*body, composed.vectors], 1.0)
        for optimizer in optimizers:
            optimizer.step()
        recent = (recent + [loss])[-50:]
        if (k + 1) % 25 == 0:
            rate = args.processes * seen / (time.time() - began)
            say(f"step {k + 1}/{args.steps}  loss {sum(recent) / len(recent):.4f}  {rate:.0f} tokens/s", flush=True)
        if rank == 0 and ((k + 1) % 100 == 0 or k + 1 == args.steps):
            part = f"{state}.part"
            saved = {"model": model.state_dict(), "vectors": composed.vectors.data, "step": k + 1}
            saved["optimizers"] = [optimizer.state_dict() for optimizer in optimizers]
            torch.save(saved, part)
            os.replace(part, state)
            with torch.no_grad():
                model.model.embed_tokens.weight.copy_(composed.table())
                model.lm_head.weight = model.model.embed_tokens.weight
            model.save_pretrained(args.out)
            tokenizer.save_pretrained(args.out)


# ---- gates ---------------------------------------------------------------------------------------------------------------------


def check(args):
    """Plays the gates on houses never trained on; prints one JSON line and returns whether all hold."""
    from common import Play, Policy, generate, rollout
    from envs.alfworld import AlfWorld

    torch.set_num_threads(1)
    policy = Policy(args.out)
    env = AlfWorld(houses=True, max_steps=MAX_STEPS)
    tasks = [f"pretrain_check/{i:07d}" for i in range(args.games)]

    def skills_for(task_id):
        kind, thing, _ = read_task(houses.make_game(task_id).task)
        good = [general_skill(kind), where_skill(thing, best_places(thing, random.Random(0)))]
        return [{"skill_id": f"oracle{i}"} | skill for i, skill in enumerate(good)]

    arms = {
        "plain": lambda task_id: [],
        "skills": skills_for,
        "general": lambda task_id: skills_for(task_id)[:1],
        "where": lambda task_id: skills_for(task_id)[1:],
    }
    report, episodes = {}, {}
    for arm, skills in arms.items():
        plays = [Play(task, task, ("check", arm, task), skills(task)) for task in tasks]
        episodes[arm] = rollout(policy, env, plays, temperature=1.0, threads=args.processes)
        wins = {}
        for record in episodes[arm]:
            wins.setdefault(record["task_type"], []).append(record["success"])
        report[arm] = round(sum(r["success"] for r in episodes[arm]) / len(tasks), 3)
        report[arm + "_by_type"] = {kind: round(sum(w) / len(w), 3) for kind, w in sorted(wins.items())}
        report[arm + "_steps"] = round(sum(len(r["steps"]) for r in episodes[arm]) / len(tasks), 1)
    won = [r for arm in ("plain", "skills") for r in episodes[arm] if r["success"]]
    answers = generate(policy, [env.summary_prompt(r, policy.style) for r in won], [("write", r["traj_id"]) for r in won], 0.7, 64)
    parsed, true = 0, 0
    for record, answer in zip(won, answers):
        try:
            skill = env.parse_skill(answer, policy.style)
        except ValueError:
            continue
        parsed += 1
        seen = [s["observation"] for s in record["steps"][1:]] + [record["final_observation"]]
        steps = [(s["observation"], s["action"], after) for s, after in zip(record["steps"], seen)]
        shown = [describe(record["task"], steps, which) for which in ("general", "where")]
        true += any(s and s["condition"] == skill["condition"] and s["strategy"] == skill["strategy"] for s in shown)
    report |= {"games": len(tasks), "written": len(won), "parsed": round(parsed / len(won), 3), "true": round(true / len(won), 3)}
    gates = {
        "plain success 5-25 %": 0.05 <= report["plain"] <= 0.25,
        "every task type below 50 % plain": max(report["plain_by_type"].values()) < 0.5,
        "at least 85 % with good skills": report["skills"] >= 0.85,
        "at least 95 % of written skills parse": report["parsed"] >= 0.95,
        "at least 80 % say what the transcript shows": report["true"] >= 0.8,
    }
    print(json.dumps(report | {"gates": gates}), flush=True)
    return all(gates.values())


def main():
    parser = argparse.ArgumentParser(description="Pretrains the laptop stand-in for ALFWorld and checks its gates.")
    parser.add_argument("--out", default=str(HERE / "alfworld"), help="model folder (default: tiny/alfworld)")
    parser.add_argument("--state", default="runs/tiny/state.pt", help="training state, for resuming")
    parser.add_argument("--check", action="store_true", help="only play the gates")
    parser.add_argument("--games", type=int, default=300, help="houses per gate")
    parser.add_argument("--steps", type=int, default=2500, help="optimizer steps")
    parser.add_argument("--batch", type=int, default=24, help="examples per step and process")
    parser.add_argument("--micro", type=int, default=12, help="examples per forward pass")
    parser.add_argument("--lr", type=float, default=3e-3, help="peak learning rate of embeddings and norms (AdamW)")
    parser.add_argument("--muon-lr", type=float, default=0.02, help="peak learning rate of the matrices (Muon)")
    parser.add_argument("--world", type=float, default=0.3, help="weight of predicting what the world answers")
    parser.add_argument("--width", type=int, default=128, help="hidden size")
    parser.add_argument("--layers", type=int, default=3, help="layers")
    parser.add_argument("--processes", type=int, default=2, help="training processes, one core each")
    parser.add_argument("--seed", type=int, default=0, help="of weights and data")
    args = parser.parse_args()
    if not args.check:
        Path(args.state).resolve().parent.mkdir(parents=True, exist_ok=True)
        Path(f"{args.state}.rendezvous").unlink(missing_ok=True)
        args.state = str(Path(args.state).resolve())
        torch.multiprocessing.spawn(train, (args,), nprocs=args.processes)
    sys.exit(0 if check(args) else 1)


if __name__ == "__main__":
    main()
