"""What at least two of the phases share, in reading order:

    1 records      JSON lines, errors, random streams
    2 policy       a causal language model with its prompts, and log-probs of sampled tokens
    3 rollout      episodes and their records; sampler.py or vllm_engine.py give the responses
    4 advantages   GiGPO, equations (1)-(8)
    5 loss         equations (9)-(11) and (17)-(20), rows and merged sequences, `update`
    6 skills       retrieval, and a skill's life (15)-(16)
    7 run folder   arguments, checkpoints, resume

Equation numbers are those of README.md ("The method in equations").  task -> rollout -> records -> advantages -> rows -> update;
records go to trajectories.jsonl on the way, once.  Nothing here knows an environment by name outside `make_env`, nor which policy
it trains: the laptop's million parameters and a 7B model differ by arguments only.  What only large models need is elsewhere: large.py
(LoRA, precision, saving), parallel.py (several processes), vllm_engine.py.
"""

import math
import sys
import zlib
from bisect import bisect_left
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from importlib import import_module

import numpy as np
import torch
from scipy import stats
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from envs import FreeText, Step, UserError, action_span
from support import large, parallel
from support.files import rng
from support.runs import Run
from support.sampler import Sampler, masked_log_softmax, next_of_words


def make_env(args):
    """The environment named by --env; the only place in the method's code that knows one by name.  A class of your own: MODULE:CLASS."""
    if args.env == "alfworld":
        from envs.alfworld import AlfWorld

        return AlfWorld(engine=args.simulator, max_steps=args.max_steps or 50)
    if args.env == "webshop":
        from envs.webshop import WebShop

        return WebShop(max_steps=args.max_steps or 15)
    module, _, name = args.env.partition(":")
    try:
        return getattr(import_module(module), name)()
    except (ImportError, AttributeError) as error:
        raise UserError(f"--env {args.env}: expected alfworld or webshop, or MODULE:CLASS of your own ({error})") from None


# ---- 2. policy -----------------------------------------------------------------------------------------------------------------


ACTION_ROOM = 32  # tokens that a stand-in's response takes at most


class Policy:
    """A causal LM from a Hugging Face folder or hub name, and how it reads and writes text.

    style       "chat" with a chat template, else "compact" (with "+note" where --note is on)
    constrain   responses are sampled among those that env.responses offers, by masking all other tokens at every position; where that
                is a FreeText, such as a search query, among the words that it may be made of.  The sampler keeps the tokens that were
                possible with every token, and trainer and policy gradient use that same masked distribution: the gradient is exactly that
                of the constrained policy, of a list and of free text alike."""

    def __init__(self, name, device="cpu", dtype="float32", note=True, constrain=None):
        check_model(name)
        self.name, self.device = str(name), device
        self.tokenizer = AutoTokenizer.from_pretrained(name)
        self.model = AutoModelForCausalLM.from_pretrained(name, dtype=getattr(torch, dtype)).to(device).eval()
        self.style = "chat" if self.tokenizer.chat_template else "compact+note" if note else "compact"
        self.constrain = self.style != "chat" if constrain is None else constrain
        self.eos_ids = {self.tokenizer.eos_token_id}
        configured = self.model.generation_config.eos_token_id
        self.eos_ids |= set(configured if isinstance(configured, list) else [configured]) - {None}
        self.context = getattr(self.model.config, "max_position_embeddings", None) or 10**9  # tokens of prompt and response
        self.max_prompt = None  # tokens of a chat prompt; None: the environment's, and 4096 where there are skills
        self.sampling = self.model  # the model that rollouts use; another copy where the trained one is sharded
        self.lora, self.adapter_off, self.autocast, self.logit_chunk = False, False, nullcontext, None
        self.engine = None  # vllm_engine.Engine, where that one samples
        self.version, self.synced = 0, None  # counts optimizer steps; the last one that the copy for sampling has seen
        self.action_ids = {}  # admissible action -> its token ids: the same strings come again and again

    def encode(self, text):
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def encode_prompt(self, text):
        """Token ids of a whole prompt; chat models get it as one user turn through their own template."""
        if self.style != "chat":
            return self.encode(text)
        turn = [{"role": "user", "content": text}]
        # templates with a thinking mode (Qwen3) have it off: the prompt asks for its own, short <think> block
        more = {"enable_thinking": False} if "enable_thinking" in str(self.tokenizer.chat_template) else {}
        return self.tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=True, return_dict=True, **more)["input_ids"]

    def decode(self, ids):
        return self.tokenizer.decode(ids, skip_special_tokens=self.style == "chat", clean_up_tokenization_spaces=False)

    def candidates(self, responses):
        """What may be written, as a function from the response ids so far to the sorted ids that may follow ([]: it is complete); None
        where responses are free.  responses: strings and FreeTexts, as env.responses gives them."""
        if not self.constrain:
            return None
        unknown, free = self.tokenizer.unk_token_id, [r for r in responses if isinstance(r, FreeText)]
        for text in responses:
            if text not in self.action_ids:
                parts = (text.start, *text.words) if isinstance(text, FreeText) else (text + "\n",)
                self.action_ids[text] = [tuple(self.encode(part)) for part in parts]
        whole = [self.action_ids[text][0] for text in responses if text not in free]
        whole = [ids for ids in whole if unknown not in ids] or whole
        end = self.encode("\n")[-1] if free else None

        def follow(prefix):
            n, prefix = len(prefix), tuple(prefix)
            allowed = {ids[n] for ids in whole if n < len(ids) and ids[:n] == prefix}
            for text in free:
                start, *words = self.action_ids[text]
                if n < len(start):
                    allowed |= {start[n]} if start[:n] == prefix else set()
                elif start == prefix[: len(start)]:
                    allowed |= next_of_words(prefix[len(start) :], words, end, text.most)
            return sorted(allowed)

        return follow

    def prompt_ids(self, env, task, history, step, skills, before=None):
        """(ids, truncated) of the prompt at a step.  before: ids of the previous prompt and response, which an append-only prompt
        extends, so that sampled ids are never decoded and encoded again.

        A chat prompt that is too long loses its history first, then the middle of the observation (the task may stand at its end), and
        never the task or the actions.  UserError where it does not fit even so."""

        def tokens(step, **less):
            return self.encode_prompt(env.prompt(task, history, step, skills, self.style, **less))

        more = env.continuation(history, step, self.style) if before is not None else None
        ids = tokens(step) if more is None else before + self.encode(more)
        if self.style != "chat":
            if len(ids) + ACTION_ROOM > self.context:
                raise UserError(f"a prompt has {len(ids)} tokens, which leaves no room for an action: {self.name} reads {self.context}")
            return ids, False
        limit = self.max_prompt or max(4096 if skills else 0, getattr(env, "max_prompt", 4096))
        if len(ids) <= limit:
            return ids, False
        for shown in (1, 0):
            if len(ids := tokens(step, shown=shown)) <= limit:
                return ids, True
        keep = len(step.observation) // 2
        while keep > len(task) + 20:
            keep = keep * 3 // 4
            short = f"{step.observation[:keep]} ... {step.observation[-keep:]}"
            if len(ids := tokens(Step(short, step.admissible), shown=0)) <= limit:
                return ids, True
        raise UserError(f"task and actions of a prompt take {len(ids)} tokens: raise --max-prompt (now {limit})")

    def logits(self, model, hidden):
        logits = model.get_output_embeddings()(hidden)
        return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits

    def save(self, folder, dtype=None):
        """Writes a Hugging Face folder, in another dtype where one is given."""
        large.save(self, folder, dtype)

    def score(self, *asked):
        """`score_tokens`, with the adapter off where this is a reference, as one forward pass of a sharded model."""
        if self.adapter_off:
            large.enable_adapter(self, False)
        found = self.model.run(self.score_tokens, *asked) if hasattr(self.model, "run") else self.score_tokens(*asked)
        if self.adapter_off:
            large.enable_adapter(self, True)
        return found

    def score_tokens(self, ids, b, p, allowed, temperature):
        """(N,) log-probs and entropies of the tokens ids[b, p] of a padded batch ids (B, T).  Logits exist for these N tokens only, and
        for at most logit_chunk of them at once: more are computed in parts, and again in the backward pass."""

        def part(hidden, targets, allowed):
            logp = masked_log_softmax(self.logits(self.model, hidden) / temperature, allowed)  # (n, V)
            return logp.gather(1, targets[:, None])[:, 0], -(logp.exp() * logp).sum(-1)

        with self.autocast():
            hidden = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state[b, p - 1]  # (N, d): p is predicted at p - 1
            chunk = self.logit_chunk or max(1, 2**28 // self.model.config.vocab_size)  # 1 GiB in float32
            if len(p) <= chunk:
                return part(hidden, ids[b, p], allowed)
            cuts = range(0, len(p), chunk)
            pieces = zip(hidden.split(chunk), ids[b, p].split(chunk), (allowed[i : i + chunk] for i in cuts))
            logp, entropy = zip(*(checkpoint(part, *piece, use_reentrant=False, preserve_rng_state=False) for piece in pieces))
            return torch.cat(logp), torch.cat(entropy)


ENGINES = [None]


def load_policy(name, args, trained=False, reference=False):
    """The policy of a folder or hub name as the arguments want it: to be trained, as the reference policy, or to be played only."""
    sharded = parallel.sharded() and (trained or reference)
    dtype = "float32" if trained and not args.lora_rank else args.dtype
    policy = Policy(name, "cpu" if sharded else args.device, dtype, args.note, args.constrain)
    policy.max_prompt, policy.logit_chunk = args.max_prompt, getattr(args, "logit_chunk", None)
    if trained:
        large.prepare_training(policy, args)
    if sharded:
        policy.device = args.device
        parallel.shard(policy.model, getattr(torch, args.dtype), args.device)
    if args.sampler == "vllm" and not reference:
        from support.vllm_engine import Engine  # the only place that needs vLLM

        ENGINES[0] = policy.engine = ENGINES[0] or Engine(policy, args)  # one in a process: evaluate.py has several policies
    elif sharded and trained:
        policy.sampling = AutoModelForCausalLM.from_pretrained(name, dtype=getattr(torch, args.dtype)).to(args.device).eval()
    return policy


def check_model(name, args=None):
    """UserError unless `name` is a local folder or hub model with a causal LM that the prompts are made for, and whose context holds
    --max-prompt and --max-response tokens.  Cheap: reads config and tokenizer only."""
    try:
        config, tokenizer = AutoConfig.from_pretrained(name), AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"--model {name}: expected a folder in Hugging Face format or a hub name ({reason})") from None
    if not any("CausalLM" in kind for kind in config.architectures or []):
        raise UserError(f"--model {name}: expected a causal language model, found {config.architectures}")
    # without a template it has to be a stand-in: these know a few thousand tokens, those of their world; base models know ten times more
    if not tokenizer.chat_template and len(tokenizer) > 10_000:
        raise UserError(f"--model {name}: its tokenizer has no chat template; choose an Instruct model, or a stand-in of tiny/")
    if args and args.sampler == "vllm" and not tokenizer.chat_template:
        raise UserError(f"--engine vllm samples freely, and {name} is a stand-in, which cannot: use --engine transformers")
    context = getattr(config, "max_position_embeddings", None)
    if args and tokenizer.chat_template and context and (longest := (args.max_prompt or 4096) + args.max_response) > context:
        room = context - args.max_response
        fix = f"--max-prompt to at most {room}" if room > 0 else "--max-response"
        raise UserError(f"--max-prompt and --max-response make {longest} tokens, {name} reads {context}: lower {fix}")


# ---- 3. rollout ----------------------------------------------------------------------------------------------------------------


@dataclass
class Play:
    """One episode to be played."""

    task_id: str
    group_id: str
    key: tuple  # names the random stream of this episode
    skills: list = field(default_factory=list)  # shown in its prompts


class Episode:
    """A running episode: its world, its history, and its record so far."""

    def __init__(self, env, play):
        self.env, self.play, self.world = env, play, env.fork()
        self.now = self.world.reset(play.task_id)
        self.history, self.ids = [], None
        self.record = new_record(env, play, self.world)

    def prompt(self, policy):
        """Token ids of the next prompt."""
        self.ids, self.cut = policy.prompt_ids(self.env, self.world.task, self.history, self.now, self.play.skills, self.ids)
        return self.ids

    def answer(self, policy, response_ids, logprobs, allowed):
        """Plays a response to that prompt, and writes the step down; True when the episode is over."""
        response = policy.decode(response_ids)
        action, valid = self.env.parse(response, policy.style, self.now)
        before, self.now = self.now, self.world.step(action)
        self.record["steps"].append(
            {
                "t": len(self.history),
                "observation": before.observation,
                "admissible": before.admissible,
                "prompt_ids": self.ids,
                "response": response,
                "response_ids": response_ids,
                "logprobs": logprobs,
                "allowed": allowed,
                "action": action,
                "valid": valid,
                "fails": not self.env.is_admissible(action, before),
                "truncated": self.cut,
                "reward": self.now.reward,
            }
        )
        self.history.append((before, action))
        self.ids = self.ids + response_ids
        full = False  # an append-only prompt that would outgrow the model's context ends the episode, as the step limit does
        if policy.style != "chat" and len(self.ids) > policy.context // 2:
            more = self.env.continuation(self.history, self.now, policy.style)
            full = len(self.ids) + len(policy.encode(more)) + ACTION_ROOM > policy.context
        over = self.now.done or full
        self.record["steps"][-1]["truncated"] = self.cut or (full and not self.now.done)
        if over:
            self.record.update(success=bool(self.now.won), score=self.now.score, final_observation=self.now.observation)
            self.record["reward"] = sum(step["reward"] for step in self.record["steps"])
        return over


def rollout(policy, env, plays, temperature=1.0, batch=128, max_response=512, threads=1, title="rollout"):
    """Plays all episodes, at most `batch` at a time, shared by processes and `threads`; returns their records in the order of `plays`.

    A record is one line of trajectories.jsonl (README, "Files") and, in memory only, per step: prompt_ids, allowed, admissible."""
    large.ready_to_sample(policy)
    bar = tqdm(total=len(plays), desc=title, leave=False, disable=not sys.stderr.isatty() or parallel.rank() > 0)

    def play(plays):
        if policy.engine:
            return policy.engine.play(policy, [Episode(env, play) for play in plays], temperature, batch, max_response, bar)
        size = max(1, min(batch, math.ceil(len(plays) / threads)))
        parts = [plays[first : first + size] for first in range(0, len(plays), size)]
        with ThreadPoolExecutor(threads) as pool:
            try:
                return sum(pool.map(lambda part: play_together(policy, env, part, temperature, max_response, bar), parts), [])
            except torch.OutOfMemoryError:
                raise UserError(f"out of memory with {size} episodes at a time: lower --rollout-batch to {size // 2}") from None

    with bar:
        return parallel.share(play, plays, [play.group_id for play in plays])


def play_together(policy, env, plays, temperature, max_response, bar):
    """Plays episodes in lockstep, one batched response a step."""
    episodes = [Episode(env, play) for play in plays]
    streams = {e: rng(*e.play.key) for e in episodes}
    alive, sampler = episodes, Sampler(policy, len(episodes), temperature)
    while alive:
        prompts, choices = [e.prompt(policy) for e in alive], [policy.candidates(env.responses(e.now, policy.style)) for e in alive]
        answers = sampler.sample(prompts, choices, [streams[e] for e in alive], max_response)
        still = [k for k, (e, answer) in enumerate(zip(alive, answers)) if not e.answer(policy, *answer)]
        bar.update(len(alive) - len(still))
        alive = [alive[k] for k in sampler.keep(still)]
    return [e.record for e in episodes]


def new_record(env, play, world):
    return {
        "traj_id": "/".join(map(str, play.key)),
        "group_id": play.group_id,
        "task_id": play.task_id,
        "task_type": env.task_type(play.task_id),
        "task": world.task,
        "condition": "skill" if play.skills else "plain",
        "skill_ids": [skill["skill_id"] for skill in play.skills],
        "skills": play.skills,
        "success": False,
        "score": 0.0,
        "reward": 0.0,
        "steps": [],
    }


def for_file(record):
    """A record as it goes to trajectories.jsonl: without what can be had again (prompts) or is long (lists become counts)."""
    drop = ("prompt_ids", "allowed", "admissible")
    steps = [
        {k: v for k, v in step.items() if k not in drop}
        | {"n_admissible": len(step["admissible"]), "logprobs": [round(x, 5) for x in step["logprobs"]]}
        for step in record["steps"]
    ]
    return {k: v for k, v in record.items() if k != "skills"} | {"steps": steps}


def generate(policy, prompts, keys, temperature, max_new, batch=64):
    """Free text after each prompt (a string): used to write skills.  Returns the decoded responses."""
    large.ready_to_sample(policy)
    asked = [(policy.encode_prompt(text), key) for text, key in zip(prompts, keys)]
    longest = max((len(ids) for ids, _ in asked), default=0)
    if longest + max_new > policy.context:
        raise UserError(f"a prompt of {longest} tokens asks for {max_new} more, {policy.name} reads {policy.context}: lower --max-steps")

    def write(asked):
        if policy.engine:
            return policy.engine.write(policy, asked, temperature, max_new)
        texts = []
        for first in range(0, len(asked), batch):
            part, names = zip(*asked[first : first + batch])
            sampler = Sampler(policy, len(part), temperature)
            texts += sampler.sample(list(part), [None] * len(part), [rng(*key) for key in names], max_new)
        return [ids for ids, _, _ in texts]

    return [policy.decode(ids) for ids in parallel.share(write, asked, keys)]


# ---- 4. advantages: GiGPO, equations (1)-(8) -----------------------------------------------------------------------------------


def discounted_returns(rewards, gamma):
    """(1) Q_t = r_t + gamma Q_{t+1}."""
    returns, q = [], 0.0
    for reward in reversed(rewards):
        q = reward + gamma * q
        returns.append(q)
    return returns[::-1]


def normalise(values, mode, eps, sample=None):
    """(value - mean) / (std + eps) with divisor n - 1, or without the division for mode mean_norm; statistics of `sample` (default: the
    values themselves), in float64, where a std below 1e-8 is noise and counts as 0 (A8)."""
    values = np.asarray(values, dtype=np.float64)
    sample = values if sample is None else np.asarray(sample, dtype=np.float64)
    centred = values - sample.mean()
    if mode == "mean_norm" or len(sample) < 2:
        return centred
    std = sample.std(ddof=1)
    return centred / (std + eps) if std > 1e-8 else np.zeros_like(centred)


def anchor_groups(anchors, similarity=1.0):
    """(5) An anchor-state label per row: equal strings by hash; with similarity < 1 a row joins the first cluster whose first member
    is at least that similar (difflib ratio)."""
    labels, firsts = [], {}
    for anchor in anchors:
        if anchor not in firsts:
            alike = (a for a in firsts if similarity < 1 and SequenceMatcher(None, a, anchor).ratio() >= similarity)
            twin = next(alike, None)
            firsts[anchor] = firsts[twin] if twin is not None else len(set(firsts.values()))
        labels.append(firsts[anchor])
    return labels


def gigpo_advantages(
    episodes, gamma=0.95, omega=1.0, invalid_cost=0.1, mode="mean_std_norm", episode_stats="rows", similarity=1.0, eps=1e-6
):
    """Group-in-group advantages, equations (1)-(8) (GiGPO, arXiv 2505.10978).

    episodes: list of {"group", "rewards", "valid", "anchors"}, the last three with one entry a step.  Returns a list per row (steps of
    the first episode, then of the second, ...) of dicts: step_return, row_score, anchor (group, label), anchor_size,
    episode_advantage, step_advantage, advantage.  episode_stats: "rows" as the reference code, "trajectories" as the paper (A4)."""
    rows, groups = [], defaultdict(list)
    for e, episode in enumerate(episodes):
        returns = discounted_returns(episode["rewards"], gamma)  # (1) on environment rewards only
        for t, (q, valid, anchor) in enumerate(zip(returns, episode["valid"], episode["anchors"])):
            penalty = invalid_cost * (not valid)
            score = sum(episode["rewards"]) - penalty  # (3) e_{i,t}: the whole episode's return, in every row
            rows.append({"episode": e, "t": t, "step_return": q - penalty, "row_score": score, "anchor": anchor})  # (2)
            groups[episode["group"]].append(rows[-1])
    for name, group in groups.items():
        # (4) the *episode advantage*: how good the whole try was within its group
        scores = [row["row_score"] for row in group]
        sample = scores if episode_stats == "rows" else [row["row_score"] for row in group if row["t"] == 0]
        # a single score passes through raw (mean 0, std 1)
        episode_advantages = normalise(scores, mode, eps, sample) if len(sample) > 1 else scores
        # (5), (6) the *step advantage*: how good a step was among all visits of the same state in the group
        labels = anchor_groups([row["anchor"] for row in group], similarity)
        members = defaultdict(list)
        for row, label, episode_advantage in zip(group, labels, episode_advantages):
            row["anchor"] = (name, label)
            row["episode_advantage"] = float(episode_advantage)
            members[label].append(row)
        for same in members.values():
            for row, step_advantage in zip(same, normalise([row["step_return"] for row in same], mode, eps)):
                row["anchor_size"] = len(same)
                row["step_advantage"] = float(step_advantage)
                row["advantage"] = row["episode_advantage"] + omega * row["step_advantage"]  # (7)
    return rows


def assign_advantages(records, env, args):
    """Writes episode_advantage, step_advantage, advantage and anchor_size into every step of the records; returns statistics."""
    episodes = [
        {
            # plain and skill episodes of one task are one group, so that beating the plain twins counts (adv_pool separate: not)
            "group": (r["group_id"], r["condition"] if args.adv_pool == "separate" else ""),
            "rewards": [step["reward"] for step in r["steps"]],
            "valid": [step["valid"] for step in r["steps"]],
            "anchors": [env.anchor(step["observation"]) for step in r["steps"]],
        }
        for r in records
    ]
    rows = gigpo_advantages(
        episodes, args.gamma, args.omega, args.invalid_cost, args.adv_mode, args.episode_stats, args.anchor_similarity
    )
    for row in rows:
        step = records[row["episode"]]["steps"][row["t"]]
        step.update({key: row[key] for key in ("episode_advantage", "step_advantage", "advantage", "anchor_size")})
    outcomes = defaultdict(set)
    for r in records:
        outcomes[r["group_id"]].add(r["success"])
    advantages = np.array([row["advantage"] for row in rows])
    return {
        "no_signal": float(np.mean([len(o) == 1 for o in outcomes.values()])),  # groups of wins only or losses only
        "advantage_std": float(advantages.std()),
        "advantage_max": float(np.abs(advantages).max()),
        "anchor_size": float(np.mean([row["anchor_size"] for row in rows])),
        "anchor_shared": float(np.mean([row["anchor_size"] > 1 for row in rows])),
    }


# ---- 5. loss -------------------------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """One (episode, step): one prompt and one response, the unit of training."""

    prompt_ids: list
    response_ids: list
    logprobs: list  # of the sampler
    allowed: list  # per response token: the token ids that were possible, None for all
    advantage: float = 0.0
    rl: bool = True  # enters L_PG, KL and entropy; a plain-prompt twin does not
    weights: list | None = None  # M w per response token for L_int (17)-(18); None: not taught
    gated: int = 0  # sum of M over the response's tokens
    episode: int = 0  # rows of one episode, and their twins, stay in one mini-batch


def rows_of(records):
    """The rows of all records, each under the prompt that it was sampled with."""
    return [
        Row(s["prompt_ids"], s["response_ids"], s["logprobs"], s["allowed"], s["advantage"], episode=e)
        for e, record in enumerate(records)
        for s in record["steps"]
    ]


def prompts_of(policy, env, record, skills):
    """The prompts (token ids) of an episode's steps as they are with other skills: same states, history and responses."""
    prompts, history, ids = [], [], None
    for s in record["steps"]:
        now = Step(s["observation"], s["admissible"])
        ids, _ = policy.prompt_ids(env, record["task"], history, now, skills, ids)
        prompts.append(ids)
        ids = ids + s["response_ids"]
        history.append((now, s["action"]))
    return prompts


def action_token_mask(policy, step):
    """Per response token 1 where it holds a part of the action's text (17), also of a single character: byte-level tokens may begin and
    end inside one.  Prefixes are decoded, and a broken character at a prefix's end shows as U+FFFD, one character like the whole one."""
    ids, text = step["response_ids"], step["response"]
    first, last = action_span(text, policy.style)
    if first >= last:
        return [0] * len(ids)
    tokens = range(len(ids))  # both searches are for the first token that a condition holds for
    begin = bisect_left(tokens, True, key=lambda j: len(policy.decode(ids[: j + 1])) > first)
    end = bisect_left(tokens, True, key=lambda j: policy.decode(ids[: j + 1])[:last] == text[:last])
    return [int(begin <= j <= end) for j in tokens]


@dataclass
class Sequence:
    """Token ids with several response spans, and one entry per *target*: a response token where there was a choice."""

    ids: list
    positions: list = field(default_factory=list)  # of the target in ids
    allowed: list = field(default_factory=list)
    advantages: list = field(default_factory=list)
    rl: list = field(default_factory=list)
    weights: list = field(default_factory=list)
    logprobs: list = field(default_factory=list)  # of the sampler; replaced by the trainer's own with --old-logprobs trainer
    trust: list = field(default_factory=list)  # truncated importance weights, see `trainer_logprobs`


def merge_prefixes(rows):
    """Joins rows whose prompt begins with the previous row's prompt and response into one sequence: an append-only episode costs one
    forward pass.  Other rows stay by themselves.  Gradients are the same either way."""
    sequences = []
    for row in rows:
        start = sequences[-1].ids if sequences else None
        if start is not None and len(row.prompt_ids) >= len(start) and row.prompt_ids[: len(start)] == start:
            one = sequences[-1]
        else:
            one = Sequence([])
            sequences.append(one)
        first = len(row.prompt_ids)
        one.ids = row.prompt_ids + row.response_ids
        weights = row.weights or [0.0] * len(row.response_ids)
        for j, (allowed, logprob, weight) in enumerate(zip(row.allowed, row.logprobs, weights)):
            if allowed is not None and len(allowed) == 1:
                continue  # probability 1 whatever the policy does: no gradient, KL and entropy 0; still counted in the token means
            one.positions.append(first + j)
            one.allowed.append(allowed)
            one.advantages.append(row.advantage)
            one.rl.append(row.rl)
            one.weights.append(weight)
            one.logprobs.append(logprob)
            one.trust.append(1.0)
    return sequences


def token_logprobs(policy, sequences, temperature=1.0):
    """Log-probs and entropies (N,) of all targets of the sequences, in order, under the policy as it samples."""
    length = max(len(s.ids) for s in sequences)
    ids = torch.tensor([s.ids + [0] * (length - len(s.ids)) for s in sequences], device=policy.device)  # right padding: causal
    where = [(b, p) for b, s in enumerate(sequences) for p in s.positions]
    b, p = (torch.tensor(part, device=policy.device) for part in zip(*where))
    return policy.score(ids, b, p, [a for s in sequences for a in s.allowed], temperature)


def policy_loss(logprobs, old_logprobs, advantages, clip_low=0.2, clip_high=0.2, dual_clip=3.0):
    """(9) per token, with the clipped and dual-clipped masks: l = max(-A rho, -A clip(rho)); where A < 0 at most -A C."""
    ratio = (logprobs - old_logprobs).clamp(-20, 20).exp()
    plain, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - clip_low, 1 + clip_high)
    loss = torch.maximum(plain, clipped)
    capped = torch.minimum(loss, -advantages * dual_clip)
    return torch.where(advantages < 0, capped, loss), clipped > plain, (advantages < 0) & (capped < loss)


def kl_k3(logprobs, ref_logprobs):
    """(10) per token: d = logp_ref - logp, exp(d) - d - 1, clamped to [-10, 10]."""
    d = (ref_logprobs - logprobs).clamp(-20, 20)
    return (d.exp() - d - 1).clamp(-10, 10)


def micro_batches(sequences, tokens):
    """Splits sequences, longest first, so that each part holds at most `tokens` padded tokens (and at least one sequence)."""
    part = []
    for s in sorted(sequences, key=lambda s: -len(s.ids)):
        if part and (len(part) + 1) * len(part[0].ids) > tokens:
            yield part
            part = []
        part.append(s)
    if part:
        yield part


def loss_of(policy, part, n_tokens, n_gated, args, ref_policy=None, lam=0.0):
    """(11), (20): L = L_PG - c_H H + beta L_KL + lambda L_int of some sequences, and the sums behind it.

    n_tokens: response tokens under RL, n_gated: tokens with M = 1, both of the whole mini-batch, so that the losses of its parts add up."""
    logp, entropy = token_logprobs(policy, part, args.temperature)
    rl, advantages, old, weights, trust = (
        torch.tensor([x for s in part for x in getattr(s, name)], dtype=logp.dtype, device=policy.device)
        for name in ("rl", "advantages", "logprobs", "weights", "trust")
    )
    pg, clipped, capped = policy_loss(logp, old, advantages, args.clip_low, args.clip_high, args.dual_clip)
    l_pg, l_entropy = (pg * trust * rl).sum() / n_tokens, (entropy * rl).sum() / n_tokens
    l_kl = torch.zeros((), dtype=logp.dtype, device=policy.device)
    if args.beta > 0:
        with torch.no_grad():
            ref_logp, _ = token_logprobs(ref_policy, part, args.temperature)
        l_kl = (kl_k3(logp, ref_logp) * rl).sum() / n_tokens
    # (19) L_int = - sum M w log pi(y | plain prompt) / sum M: the *internalisation weight* w is clip(A, 0, w_max), M the gate
    l_int = -(weights * logp).sum() / n_gated
    sums = {
        "pg_loss": l_pg.item() * n_tokens,
        "kl": l_kl.item() * n_tokens,
        "entropy": l_entropy.item() * n_tokens,
        "l_int": l_int.item() * n_gated,
        "weight": weights.sum().item(),
        "clipped": (clipped * rl).sum().item(),
        "dual_clipped": (capped * rl).sum().item(),
        "change": ((logp - old).detach().abs() * rl).sum().item(),
        "choices": rl.sum().item(),
        "update_tokens": sum(len(s.ids) for s in part),
    }
    return l_pg - args.entropy_coef * l_entropy + args.beta * l_kl + lam * l_int, sums


@contextmanager
def memory_for(part):
    """UserError with what to lower where the memory does not hold a micro-batch."""
    try:
        yield
    except torch.OutOfMemoryError:
        b, t = len(part), len(part[0].ids)
        less = f"--micro-batch-tokens to {b * t // 2}" if b > 1 else "--max-prompt, or add --gradient-checkpointing"
        raise UserError(f"out of memory with a micro-batch of {b} x {t} tokens: lower {less}") from None


def trainer_logprobs(policy, parts, args):
    """(9) pi_old by the training model, before the first step; returns what the gap to the sampler's log-probs is.

    Sampler and trainer compute the same policy by other kernels, so tokens come from slightly another one than pi_old.  Truncated
    importance sampling (Ionides 2008) corrects it: the policy gradient's token losses are multiplied by min(pi_old / pi_sampler, cap)."""
    gap = Counter()
    with torch.no_grad():
        for part, own in (one for batches in parts for one in batches):
            with memory_for(part):
                old = iter(token_logprobs(policy, part, args.temperature)[0].tolist())
            for s in part if own else ():
                sampled, s.logprobs = s.logprobs, [next(old) for _ in s.positions]
                ratios = [math.exp(min(20.0, a - b)) for a, b in zip(s.logprobs, sampled)]
                s.trust = [min(ratio, args.tis_cap) if args.tis_cap else 1.0 for ratio in ratios]
                differences = [abs(a - b) for a, b, rl in zip(s.logprobs, sampled, s.rl) if rl]
                gap.update(gap=sum(differences), gap_ratio=sum(r for r, rl in zip(ratios, s.rl) if rl), gap_tokens=len(differences))
                gap["gap_max"] = max([gap["gap_max"], *differences])
                if args.old_logprobs == "sampler":  # then the ratio of (9) has the correction in it already
                    s.logprobs, s.trust = sampled, [1.0] * len(sampled)
    return gap


def update(policy, optimizer, rows, args, stream, ref_policy=None, lam=0.0):
    """One pass over the iteration's rows, with an optimizer step per mini-batch; returns token means over all of them.

    Every loss is a mean over tokens of the whole mini-batch, so padding, merging, micro-batches and processes change nothing (A6): all
    processes know all rows, and each takes its share of every mini-batch's micro-batches.
    ref_policy: needed where args.beta > 0.  UserError where memory runs out, FloatingPointError where the gradient is not finite; nothing
    is stepped then."""
    episodes = defaultdict(list)
    for row in rows:
        episodes[row.episode].append(row)
    order = list(episodes.values())
    stream.shuffle(order)
    parts = np.array_split(np.arange(len(order)), max(1, min(len(order), round(len(rows) / args.mini_batch_rows))))
    batches = [[row for e in part for row in order[e]] for part in parts]
    merged = [merge_prefixes([r for r in batch if r.rl]) + merge_prefixes([r for r in batch if not r.rl]) for batch in batches]
    merged = [[s for s in sequences if any(s.rl) or any(s.weights)] for sequences in merged]  # the rest has no gradient
    parts = [parallel.own_part(list(micro_batches(sequences, args.micro_batch_tokens))) for sequences in merged]
    total, steps = Counter(), Counter()  # of this process; of all of them alike
    parameters = large.trained(policy)
    simple = policy.device == "cpu" and not parallel.sharded() and not policy.lora  # then threads share the micro-batches
    large.recompute(policy, args.gradient_checkpointing)
    if policy.engine:
        policy.engine.sleep()
    with parallel.apart():
        if args.old_logprobs == "trainer" or args.sampler == "vllm":
            total = trainer_logprobs(policy, parts, args)
    for batch, own in zip(batches, parts):
        n_tokens = max(1, sum(len(r.response_ids) for r in batch if r.rl))  # of all processes: every one knows all rows
        gated = sum(r.gated for r in batch)  # sum M
        optimizer.zero_grad(set_to_none=True)

        def gradients(one):
            part, counts = one
            with memory_for(part):
                loss, sums = loss_of(policy, part, n_tokens, max(1, gated), args, ref_policy, lam)  # noqa: B023 (used within the iteration)
                if simple:
                    return torch.autograd.grad(loss * counts, parameters), sums if counts else {}
                (loss * counts * (parallel.world() if parallel.sharded() else 1)).backward()  # FSDP2 takes the mean over processes
            return (), sums if counts else {}

        with ThreadPoolExecutor(args.threads) as pool, parallel.apart():
            # summed in order, so the result does not depend on who is first
            for grads, sums in (pool.map if simple else map)(gradients, own):
                for p, grad in zip(parameters, grads):
                    p.grad = grad if p.grad is None else p.grad.add_(grad)
                total.update(sums)
        if own:
            parallel.sum_gradients(parameters)
        norm = parallel.whole(torch.nn.utils.clip_grad_norm_(parameters, args.grad_clip))
        if not torch.isfinite(norm):
            raise FloatingPointError(f"gradient norm is {norm}: lower --lr, or resume from the last iteration with another --seed")
        optimizer.step()
        policy.version += 1
        steps.update(grad_norm=norm.item(), steps=1, tokens=n_tokens, gated=gated)
    large.recompute(policy, False)
    everyone, total = parallel.gather(total), steps
    for one in everyone:
        total.update(one)
    gap = {
        "sampler_gap": total["gap"] / max(1, total["gap_tokens"]),
        "sampler_gap_max": max(one["gap_max"] for one in everyone),
        "sampler_ratio": total["gap_ratio"] / max(1, total["gap_tokens"]),
    }
    choices, gated = max(1, total["choices"]), max(1, total["gated"])
    return {key: total[key] / total["tokens"] for key in ("pg_loss", "kl", "entropy")} | (gap if total["gap_tokens"] else {}) | {
        "clip_fraction": total["clipped"] / choices,
        "dual_clip_fraction": total["dual_clipped"] / choices,
        "logprob_change": total["change"] / choices,
        "l_int": total["l_int"] / gated,
        "mean_weight": total["weight"] / gated,
        "gated_tokens": total["gated"],
        "grad_norm": total["grad_norm"] / total["steps"],
        "optimizer_steps": total["steps"],
        "update_tokens": total["update_tokens"],
    }


# ---- 6. skills -----------------------------------------------------------------------------------------------------------------


def words(text):
    return "".join(c if c.isalnum() else " " for c in text.lower()).split()


def tfidf(texts):
    """A unit-length TF-IDF vector (dict) per text; words of one or two letters tell nothing."""
    counts = [Counter(word for word in words(text) if len(word) > 2) for text in texts]
    df = Counter(word for count in counts for word in count)
    vectors = [{w: n * math.log((1 + len(texts)) / df[w]) for w, n in count.items()} for count in counts]
    norms = [math.sqrt(sum(x * x for x in v.values())) or 1.0 for v in vectors]
    return [{w: x / norm for w, x in v.items()} for v, norm in zip(vectors, norms)]


def retrieve(bank, task, task_type, n):
    """The n skills of a bank that fit a task best: of its type, by cosine of TF-IDF vectors of task text and condition, then by utility.

    A skill whose task_type is None fits tasks of every type, provided that its condition shares a telling word with the task."""
    fitting = [s for s in bank if s["task_type"] in (None, task_type)]
    vectors = tfidf([task] + [s["condition"] for s in fitting])
    scored = [(sum(x * v.get(w, 0.0) for w, x in vectors[0].items()), s) for s, v in zip(fitting, vectors[1:])]
    scored = [(cosine, s) for cosine, s in scored if cosine > 0 or s["task_type"] is not None]
    return [s for _, s in sorted(scored, key=lambda cs: (-cs[0], -cs[1]["utility"], cs[1]["skill_id"]))[:n]]


def pair_effects(records, shown):
    """(14) D_g = mean success of the skill episodes of group g - mean success of its plain ones; a line of pairs.jsonl per paired group."""
    pairs = []
    for group_id, skills in shown.items():
        group = [r for r in records if r["group_id"] == group_id]
        s_skill, s_base = ([int(r["success"]) for r in group if r["condition"] == c] for c in ("skill", "plain"))
        if s_skill and s_base:
            delta = sum(s_skill) / len(s_skill) - sum(s_base) / len(s_base)
            about = {key: group[0][key] for key in ("group_id", "task_id", "task_type", "task")}
            pairs.append(about | {"skill_ids": [s["skill_id"] for s in skills], "s_skill": s_skill, "s_base": s_base, "delta": delta})
    return pairs


def effect_interval(deltas, group_size):
    """Mean effect over pairs and its 95 % interval, by Student's t: [mean, low, high]; the whole range for a single pair.

    The spread of pairs counts as one episode's share at least: four pairs that happen to agree are no proof without error."""
    n, mean = len(deltas), float(np.mean(deltas))
    spread = max(np.std(deltas, ddof=1), 2 / group_size) if n > 1 else math.inf
    half = stats.t.ppf(0.975, max(1, n - 1)) * spread / math.sqrt(n)
    return [round(x, 3) for x in (mean, max(-1.0, mean - half), min(1.0, mean + half))]


def credit(skill, pair, iteration, args):
    """(15) utility u <- u + a (D - u); (16) candidate -> active -> retired, from the N_eval-th pair on.

    a is 1 / n until that is below a: the first pairs weigh alike, where a fixed a would leave .51 of four pairs' weight to the first.
    Judging before N_eval would retire a third of the skills with an effect of +.1 after three pairs (LAB.md: a skill's life)."""
    skill["deltas"].append(round(pair["delta"], 4))
    skill["plain"].append(sum(pair["s_base"]) / len(pair["s_base"]))
    skill["n_eval"] += 1
    skill["utility"] += max(args.ema, 1 / skill["n_eval"]) * (pair["delta"] - skill["utility"])
    skill["neg_streak"] = skill["neg_streak"] + 1 if skill["utility"] < 0 else 0
    skill["updated_iter"] = iteration
    if skill["n_eval"] < args.n_eval:
        return
    if skill["status"] == "candidate" and promotable(skill, args):
        skill |= {"status": "active", "promoted_at": skill["n_eval"], "effect": effect_interval(skill["deltas"], args.group_size)}
    elif skill["neg_streak"] >= args.retire_after or (skill["status"] == "candidate" and skill["n_eval"] >= 3 * args.n_eval):
        skill |= {"status": "retired", "retired_iter": iteration, "reason": why_retired(skill, args)}


def why_retired(skill, args):
    """What the last pairs say about a skill's end.
    hurts: their effect is below zero with its interval.  absorbed: at least half of the effect that promoted it is in the plain episodes now.
    no effect shown: neither."""
    last = max(args.n_eval, args.retire_after)
    if effect_interval(skill["deltas"][-last:], args.group_size)[2] < 0:
        return "hurts"
    if n := skill.get("promoted_at"):
        gained = np.mean(skill["plain"][-last:]) - np.mean(skill["plain"][:n])
        return "absorbed" if gained >= np.mean(skill["deltas"][:n]) / 2 else "no effect shown"
    return "no effect shown"


def promotable(skill, args):
    """u > tau_act; with --promote-z above 0 a lower confidence bound of the mean effect must be above it, too (beyond the paper)."""
    deltas = np.array(skill["deltas"])
    bound = deltas.mean() - args.promote_z * deltas.std(ddof=1) / math.sqrt(len(deltas)) if len(deltas) > 1 else deltas.mean()
    return skill["utility"] > args.tau_act and (args.promote_z == 0 or bound > args.tau_act)


def train_tasks(env, args):
    """Training games without the held-out ones (fixed, 1 in 20), on which recipes are tuned; at most --train-games of them."""
    tasks = [t for t in env.tasks(env.split_names[0]) if not held_out(t)]
    if args.train_games:
        tasks = [tasks[i] for i in sorted(rng(args.seed, "train games").permutation(len(tasks))[: args.train_games])]
    return tasks


def held_out(task_id):
    return zlib.crc32(task_id.encode()) % 20 == 0


def sample_tasks(tasks, args, phase, k):
    """B tasks of iteration k, without repetition while there are enough."""
    return [tasks[i] for i in rng(args.seed, phase, k, "tasks").choice(len(tasks), args.groups, replace=args.groups > len(tasks))]


def start(args, phase, source, state):
    """What every training phase begins with: run folder, environment, policy, reference, optimizer.  source: folder or hub name of the
    weights that the phase starts from."""
    env = make_env(args)
    args.mini_batch_rows = args.mini_batch_rows or 24 * env.max_steps  # as many optimizer steps where episodes are short
    tasks = train_tasks(env, args)
    check_model(str(source), args)
    run = Run(args, phase, state)
    print(f"{phase}: {env.describe(env.split_names[0])}, {len(tasks)} to train on; policy {run.checkpoint or source}", flush=True)
    policy = load_policy(source if args.lora_rank else run.checkpoint or source, args, trained=True)
    ref_policy = None
    if args.beta > 0:
        ref_policy = large.without_adapter(policy) if args.lora_rank else load_policy(source, args, reference=True)
    optimizer = torch.optim.AdamW(large.trained(policy), lr=args.lr, betas=(0.9, 0.999), weight_decay=args.weight_decay)
    run.restore(policy, optimizer)
    return run, env, tasks, policy, ref_policy, optimizer


