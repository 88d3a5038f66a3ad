"""What at least two of the phases share, in reading order:

    1 worlds       the environment adapters: which world, which tasks
    2 policy       a causal language model with its prompts, and log-probs of sampled tokens
    3 rollout      episodes in lockstep, and their records
    4 advantages   GiGPO, equations (1)-(8)
    5 update       GiGPO's loss, equations (9)-(11), and the pass over an iteration's rows (12)
    6 retrieval    which skills of a bank fit a task

Data on its way:  task -> rollout -> records -> advantages -> rows -> update -> policy.
Equation numbers are those of docs/method.md.  What is not the method is in support/.  Nothing here
knows an environment by name outside `make_env`, nor which policy it trains: the laptop's million
parameters and a 7B model differ by arguments only.
"""

import math
import zlib
from collections import Counter, defaultdict
from contextlib import nullcontext
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from functools import partial
from importlib import import_module

import numpy as np
import torch
from transformers import AutoTokenizer

from envs import UserError, check_world
from support import chat, constrain, large, models, packing, parallel, training
from support.files import rng
from support.packing import Row
from support.records import new_record, progress
from support.sampler import Sampler
from support.softmax import token_logprobs
from support.text import tfidf

# ---- 1. worlds ---------------------------------------------------------------------------------


def make_env(name, simulator="fast", max_steps=None):
    """The environment of --env; the only place in the method's code that knows one by name.

    name: alfworld, webshop, or MODULE:CLASS of your own (envs/__init__.py says what it must have).
    simulator: of ALFWorld, fast (ours) or textworld (official).  UserError for an unknown name."""
    if name == "alfworld":
        from envs.alfworld import AlfWorld

        return AlfWorld(engine=simulator, max_steps=max_steps or 50)  # 50 and 15: the references'
    if name == "webshop":
        from envs.webshop import WebShop

        return WebShop(max_steps=max_steps or 15)
    module, _, kind = name.partition(":")
    try:
        return check_world(getattr(import_module(module), kind)())
    except (Exception, SystemExit) as error:  # whatever that module does
        expected = "expected alfworld or webshop, or MODULE:CLASS of your own"
        raise UserError(f"--env {name}: {expected} ({type(error).__name__}: {error})") from None


def is_held_out(task_id):
    """1 training task in 20, fixed by its name, is never trained on: recipes are tuned there."""
    return zlib.crc32(task_id.encode()) % 20 == 0


def train_tasks(env):
    """The tasks of the training split, without the held-out ones."""
    return [task for task in env.tasks(env.split_names[0]) if not is_held_out(task)]


def sample_tasks(tasks, n, stream):
    """n tasks of an iteration, without repetition while there are enough."""
    if not tasks:
        raise UserError("all games of the training split are held out: more games are needed")
    return [tasks[i] for i in stream.choice(len(tasks), n, replace=n > len(tasks))]


def task_text(env, task_id):
    """The goal sentence of a task, which a world tells only when it is begun."""
    world = env.fork()
    world.reset(task_id)
    return world.task


# ---- 2. policy ---------------------------------------------------------------------------------

ACTION_ROOM = 32  # tokens that a stand-in's response takes at most


class Policy:
    """A causal LM from a Hugging Face folder or hub name, and how it reads and writes text.

    style       "chat" with a chat template, else "compact" (with "+note": the agent-side note)
    constrain   responses are sampled among what env.responses offers, by masking all other tokens
                at every position (support/constrain.py).  Stand-ins do; chat models are free."""

    def __init__(self, name, device="cpu", dtype="float32", note=True, constrain=None):
        models.check_model(name)
        self.name, self.device = str(name), device
        self.tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        self.encode = models.encoder(self.tokenizer)  # text -> token ids
        # no dropout, in updates neither: ratios start at 1
        self.model = models.load_model(name, dtype, device)
        compact = "compact+note" if note else "compact"
        self.style = "chat" if self.tokenizer.chat_template else compact
        self.constrain = self.style != "chat" if constrain is None else constrain
        # a response ends at any of these: the tokenizer's and the model's own may differ
        configured = self.model.generation_config.eos_token_id
        ends = configured if isinstance(configured, list) else [configured]
        self.eos_ids = {self.tokenizer.eos_token_id, *ends} - {None}
        # tokens of prompt and response together
        self.context = models.context_of(self.model.config)
        self.max_prompt = None  # tokens of a chat prompt; None: as the environment says
        self.action_ids = {}  # response -> its tokens: the same strings come again and again
        # special tokens are no text, neither what a prompt says nor what a response is read as
        self.without_control = models.without_control(self.tokenizer)
        self.dropped = models.dropped_ids(self.tokenizer) if self.style == "chat" else set()
        self.opened = models.opened_by(self.tokenizer)  # "<think>" where a template writes it
        # what support/ hangs on a policy
        self.proved = set()  # dtypes in which saved weights were read again and compared
        self.sampling = self.model  # another copy where the trained weights are sharded
        self.engine = None  # vLLM, where it samples
        self.lora, self.adapter_off, self.autocast = False, False, nullcontext
        # targets whose logits exist at once: 2 GiB in float32
        self.chunk = max(1, 2**29 // self.model.config.vocab_size)
        self.room, self.room_limit = None, math.inf  # padded tokens of a micro-batch, and at most
        self.version, self.synced = 0, None  # optimizer steps, and the last one the sampler saw

    def encode_prompt(self, text):
        """Token ids of a whole prompt; chat models get it as one user turn in their template."""
        text = self.without_control(text)
        return self.encode(models.render(self.tokenizer, text) if self.style == "chat" else text)

    def decode(self, ids):
        """The text of a response, or of its first tokens; a chat model's end-of-turn is none."""
        ids = [token for token in ids if token not in self.dropped]
        return self.opened + self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)

    def prompt_ids(self, env, task, history, step, skills, before=None):
        """(ids, truncated) of the prompt at a step.  history: list of (Step, action).

        before: ids of the previous prompt and response.  Where prompts only grow they are
        extended, so that sampled ids are never decoded and encoded again: "go" + " to" may come
        back as one token, and the policy would be trained on what it did not sample."""
        if self.style == "chat":
            # a skill section needs room: never below 4096, GiGPO's limit in WebShop
            limit = self.max_prompt or max(4096 * bool(skills), getattr(env, "max_prompt", 4096))
            return chat.fit_prompt(self.encode_prompt, env, task, history, step, skills, limit)
        more = env.continuation(history, step, self.style) if before is not None else None
        if more is not None:
            ids = before + self.encode(more)
        else:
            ids = self.encode_prompt(env.prompt(task, history, step, skills, self.style))
        if len(ids) + ACTION_ROOM > self.context:
            found = f"a prompt has {len(ids)} tokens, which leaves no room for an action"
            raise UserError(f"{found}: {self.name} reads {self.context}; choose another model")
        return ids, False

    def candidates(self, responses):
        """What may be said, as a function from the response ids so far to the ids that may follow;
        None where responses are free."""
        how = (self.encode, self.action_ids, self.tokenizer.unk_token_id)
        return constrain.next_tokens(responses, *how) if self.constrain else None

    def logprobs(self, sequences, temperature=1.0):
        """(N,) log-probs and (N,) entropies of all targets of the sequences, in their order."""
        if self.adapter_off:  # a LoRA policy without its adapter is the reference policy, for free
            large.enable_adapter(self, False)
        ids, b, p = packing.padded(sequences, self.device)  # (B, T), (N,), (N,)
        allowed = [possible for s in sequences for possible in s.allowed]  # per target
        # a sharded model gathers its layers as they are used (parallel.py); else a plain call
        run = getattr(self.model, "run", lambda function, *args: function(*args))
        found = run(self.score_tokens, ids, b, p, allowed, temperature)
        if self.adapter_off:
            large.enable_adapter(self, True)
        return found

    def score_tokens(self, ids, b, p, allowed, temperature):
        """Log-probs and entropies of the tokens ids[b, p]: ids (B, T), b and p (N,).

        Only these N tokens get logits: (B, T, V) of a 7B model's vocabulary would not fit."""

        def of_targets(hidden, tokens, allowed):
            logits = models.logits_of(self.model, hidden) / temperature  # (n, V)
            return token_logprobs(logits, tokens, allowed)

        with self.autocast():
            hidden = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
            # (B, T, d) -> (N, d): token p is predicted at p - 1
            hidden, tokens = hidden[b, p - 1], ids[b, p]
            return training.in_chunks(of_targets, self.chunk, hidden, tokens, allowed)

    def save(self, folder, dtype=None):
        """Writes a Hugging Face folder, in another dtype where one is given."""
        large.save(self, folder, dtype)


def load_policy(name, args, trained=False, reference=False):
    """The policy of a folder or hub name as the arguments (support/cli.py) want it: to be trained,
    as the reference policy, or to be played only."""
    sharded = parallel.sharded() and (trained or reference)
    # weights that are trained are float32: steps of 1e-6 vanish in bfloat16
    dtype = "float32" if trained and not args.lora_rank else args.dtype
    policy = Policy(name, "cpu" if sharded else args.device, dtype)
    policy.max_prompt = args.max_prompt
    if trained:
        large.prepare_training(policy, args)
    if sharded:
        policy.device = args.device
        parallel.shard(policy.model, getattr(torch, args.dtype), args.device)
    if args.engine == "vllm" and not reference:
        from support import vllm_engine  # the only place that needs vLLM

        policy.engine = vllm_engine.engine_for(policy, args)
    elif trained and (sharded or dtype != args.dtype):
        # shards cannot sample, and casts at every token cost more than a second, narrower copy
        policy.sampling = models.load_model(name, args.dtype, args.device)
    # sampler, trainer and the model's own forward agree, or it is refused here
    models.self_check(policy, None if policy.engine or reference else Sampler(policy, 2))
    return policy


def load_training(weights, source, args):
    """(policy, ref_policy, optimizer) of a phase.  weights: a checkpoint's, or the source's again;
    source: what the phase starts from, which stays the reference of (10)."""
    policy = load_policy(source if args.lora_rank else weights, args, trained=True)
    ref_policy = None  # without a KL term none is kept
    if args.beta > 0 and args.lora_rank:
        ref_policy = large.without_adapter(policy)
    elif args.beta > 0:
        ref_policy = load_policy(source, args, reference=True)
    # (12) AdamW; a fresh one in every phase, for the control as for SIRI
    how = dict(betas=(0.9, 0.999), weight_decay=0.01, fused=policy.device != "cpu" or None)
    optimizer = torch.optim.AdamW(large.trained(policy), lr=args.lr, **how)
    return policy, ref_policy, optimizer


# ---- 3. rollout --------------------------------------------------------------------------------


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
        self.now = self.world.reset(play.task_id)  # the Step that the agent sees
        self.history, self.ids = [], None  # (Step, action) pairs; the last prompt and its response
        self.record = new_record(play, env.task_type(play.task_id), self.world.task)

    def prompt(self, policy):
        """Token ids of the next prompt."""
        self.ids, self.truncated = policy.prompt_ids(
            self.env, self.world.task, self.history, self.now, self.play.skills, self.ids
        )
        return self.ids

    def choices(self, policy):
        """What may be said now; None where responses are free."""
        return policy.candidates(self.env.responses(self.now, policy.style))

    def step(self, policy, response_ids, logprobs, allowed):
        """Plays a response to the last prompt and writes the step down; True: it was the last."""
        response = policy.decode(response_ids)
        action, valid = self.env.parse(response, policy.style, self.now)
        seen, self.now = self.now, self.world.step(action)  # the world moves here
        self.history.append((seen, action))
        prompt_ids, self.ids = self.ids, self.ids + response_ids
        # a prompt that would outgrow the context ends the episode, as the step limit does
        full = not self.now.done and self.is_full(policy)
        self.record["steps"].append(
            {
                "t": len(self.history) - 1,
                "observation": seen.observation,
                "admissible": seen.admissible,
                "prompt_ids": prompt_ids,
                "response": response,
                "response_ids": response_ids,
                "logprobs": logprobs,
                "allowed": allowed,
                "action": action,
                "valid": valid,  # well-formed (v); whether the world knows the action is not in it
                "inadmissible": not self.env.is_admissible(action, seen),
                "truncated": self.truncated or full,
                "reward": self.now.reward,
            }
        )
        if self.now.done or full:
            self.record["success"], self.record["score"] = bool(self.now.won), self.now.score
            self.record["final_observation"] = self.now.observation
            self.record["reward"] = sum(step["reward"] for step in self.record["steps"])
        return self.now.done or full

    def is_full(self, policy):
        """Whether an append-only prompt has no room left for another action."""
        if policy.style == "chat" or len(self.ids) <= policy.context // 2:
            return False  # chat prompts are cut to fit; short ones need not be counted
        more = self.env.continuation(self.history, self.now, policy.style)
        return len(self.ids) + len(policy.encode(more)) + ACTION_ROOM > policy.context


def rollout(
    policy, env, plays, temperature=1.0, batch=128, max_response=512, threads=1, title="rollout",
):  # fmt: skip
    """Plays all episodes, at most `batch` at a time; returns their records in the order of plays.

    A record is one line of trajectories.jsonl (docs/files-and-metrics.md) and has, in memory only,
    skills and per step prompt_ids, allowed, admissible.  UserError where memory runs out."""
    large.ready_to_sample(policy)  # the newest weights, where the sampler has a copy of its own
    bar = progress(len(plays), title)

    def share_of(plays):  # the records of this process's plays
        if policy.engine:
            episodes = [Episode(env, play) for play in plays]
            return policy.engine.play(policy, episodes, temperature, batch, max_response, bar)
        size = max(1, min(batch, math.ceil(len(plays) / threads)))
        parts = [plays[i : i + size] for i in range(0, len(plays), size)]
        lockstep = partial(play_together, policy, env, temperature, max_response, bar)
        return training.in_threads(lockstep, parts, threads)

    with bar:  # groups are dealt to processes whole
        return parallel.share(share_of, plays, [play.group_id for play in plays])


def play_together(policy, env, temperature, max_response, bar, plays):
    """Plays episodes in lockstep, one batched response a step; returns their records."""
    episodes = [Episode(env, play) for play in plays]
    # a stream for each episode: what it does depends neither on the batch nor on its order
    streams = {episode: rng(*episode.play.key) for episode in episodes}
    sampler, running = Sampler(policy, len(episodes), temperature), episodes
    while running:
        prompts = [episode.prompt(policy) for episode in running]  # token ids, a list per episode
        choices = [episode.choices(policy) for episode in running]
        draws = [streams[episode] for episode in running]
        answers = sampler.sample(prompts, choices, draws, max_response)
        unfinished = []  # rows
        for row, (episode, answer) in enumerate(zip(running, answers)):
            over = episode.step(policy, *answer)  # (response_ids, logprobs, allowed)
            if not over:
                unfinished.append(row)
        bar.update(len(running) - len(unfinished))
        # rows of the KV cache fill the gaps, and the episodes follow in that order
        running = [running[row] for row in sampler.keep(unfinished)]
    return [episode.record for episode in episodes]


# ---- 4. advantages: GiGPO, equations (1)-(8) ---------------------------------------------------


def discounted_returns(rewards, gamma):
    """(1) Q_t = r_t + gamma Q_{t+1}, from the end.

    >>> discounted_returns([0, 0, 10], gamma=0.5)
    [2.5, 5.0, 10.0]
    """
    returns, q = [], 0.0
    for reward in reversed(rewards):
        q = reward + gamma * q
        returns.append(q)
    return returns[::-1]


def normalise(values, mode, eps, sample=None):
    """For (4) and (6): (value - mean) / (std + eps), std with n - 1; (8) mean_norm: no std.

    Statistics are those of `sample` (default: the values themselves), in float64: in float32 a
    group of equal scores gives small advantages out of nothing (ambiguity A8)."""
    values = np.asarray(values, dtype=np.float64)
    sample = values if sample is None else np.asarray(sample, dtype=np.float64)
    centred = values - sample.mean()
    if mode == "mean_norm" or len(sample) < 2:
        return centred
    std = sample.std(ddof=1)
    if std < 1e-8:  # rounding, not a difference
        return np.zeros_like(centred)
    return centred / (std + eps)


def anchor_groups(anchors, similarity=1.0):
    """(5) A label per row, the same for rows in the same anchor state.

    Equal strings by hash; with similarity < 1 a row joins the first group whose first member is at
    least that similar (difflib's ratio), as for free text."""
    labels, label_of, firsts = [], {}, []  # firsts: the first member of every group
    for anchor in anchors:
        if anchor not in label_of:
            label = len(firsts)  # a new group, unless one is similar enough
            if similarity < 1:
                alike = [SequenceMatcher(None, first, anchor).ratio() for first in firsts]
                label = next((n for n, x in enumerate(alike) if x >= similarity), label)
            if label == len(firsts):
                firsts.append(anchor)
            label_of[anchor] = label
        labels.append(label_of[anchor])
    return labels


def gigpo_advantages(
    episodes, gamma=0.95, omega=1.0, invalid_cost=0.1, mode="mean_std_norm", episode_stats="rows",
    similarity=1.0, eps=1e-6,
):  # fmt: skip
    """Group-in-group advantages, equations (1)-(8) (GiGPO, arXiv 2505.10978).

    episodes: dicts with "group", and "rewards", "valid", "anchors" with one entry a step.
    episode_stats: "rows" as the reference code, "trajectories" as the paper (ambiguity A4).
    Returns a dict per row, steps of the first episode, then of the second, ...: step_return,
    row_score, anchor, anchor_size, episode_advantage, step_advantage, advantage.

    A win in two steps (states s, a) and a loss in one (s).  Row scores are 10, 10, 0: mean 6.67,
    std 5.77.  State s was seen twice, with returns 9.5 and 0: mean 4.75, std 6.72; a only once.

    >>> win = {"group": 1, "rewards": [0, 10], "valid": [1, 1], "anchors": ["s", "a"]}
    >>> loss = {"group": 1, "rewards": [0], "valid": [1], "anchors": ["s"]}
    >>> for row in gigpo_advantages([win, loss]):
    ...     parts = row["episode_advantage"], row["step_advantage"], row["advantage"]
    ...     print("{:+.3f} {:+.3f} = {:+.3f}".format(*parts))
    +0.577 +0.707 = +1.284
    +0.577 +0.000 = +0.577
    -1.155 -0.707 = -1.862
    """
    rows, groups = [], defaultdict(list)
    for e, episode in enumerate(episodes):
        returns = discounted_returns(episode["rewards"], gamma)  # (1), without the penalty
        for t, (q, valid, anchor) in enumerate(zip(returns, episode["valid"], episode["anchors"])):
            penalty = invalid_cost * (not valid)  # of this row only
            row = {"episode": e, "t": t, "anchor": anchor}
            row["step_return"] = q - penalty  # (2) q_{i,t}
            row["row_score"] = sum(episode["rewards"]) - penalty  # (3) e_{i,t}: R_i in every row
            rows.append(row)
            groups[episode["group"]].append(row)
    for name, group in groups.items():
        # (4) the *episode advantage*: how good the whole try was within its group
        scores = [row["row_score"] for row in group]
        sample = scores
        if episode_stats == "trajectories":  # one value an episode; else long ones weigh more
            sample = [row["row_score"] for row in group if row["t"] == 0]
        # a single score passes through raw: mean 0, std 1
        in_episode = normalise(scores, mode, eps, sample) if len(sample) > 1 else scores
        # (5) visits of the same state; never across groups, where the task differs
        labels = anchor_groups([row["anchor"] for row in group], similarity)
        visits = defaultdict(list)
        for row, label, advantage in zip(group, labels, in_episode):
            row["anchor"] = (name, label)
            row["episode_advantage"] = float(advantage)
            visits[label].append(row)
        # (6) the *step advantage*: how good this step was among all visits of its state
        for same in visits.values():
            in_step = normalise([row["step_return"] for row in same], mode, eps)
            for row, advantage in zip(same, in_step):
                row["anchor_size"] = len(same)
                row["step_advantage"] = float(advantage)  # 0 where nobody else came by
                # (7) A = A^E + omega A^S, for every response token of the row alike
                row["advantage"] = row["episode_advantage"] + omega * row["step_advantage"]
    return rows


def assign_advantages(records, env, **method):
    """Writes (4), (6), (7) and the size of its anchor group into every step of the records.

    method: keywords of gigpo_advantages."""
    episodes = []
    for record in records:
        steps = record["steps"]
        episodes.append(
            {
                # plain and skill episodes of a task are one group: where all skill episodes win
                # and all plain ones lose, only so the winners get an advantage
                "group": record["group_id"],
                "rewards": [step["reward"] for step in steps],
                "valid": [step["valid"] for step in steps],
                "anchors": [env.anchor(step["observation"]) for step in steps],
            }
        )
    for row in gigpo_advantages(episodes, **method):
        step = records[row["episode"]]["steps"][row["t"]]
        for key in ("episode_advantage", "step_advantage", "advantage", "anchor_size"):
            step[key] = row[key]


# ---- 5. update: GiGPO's loss, equations (9)-(12) -----------------------------------------------


def rows_of(records):
    """The rows of all records, each under the prompt that it was sampled with.  Row, the unit of
    training, is one step: one prompt and one response (support/packing.py has its fields)."""
    rows = []
    for e, record in enumerate(records):
        for s in record["steps"]:
            sampled = (s["prompt_ids"], s["response_ids"], s["logprobs"], s["allowed"])
            rows.append(Row(*sampled, advantage=s["advantage"], episode=e))
    return rows


@dataclass
class Tokens:
    """The N targets of a micro-batch, what a loss is made of.  Every tensor is (N,)."""

    logprobs: torch.Tensor  # log pi_theta(y); the only one with a gradient, beside the entropy
    entropy: torch.Tensor  # of the distribution at that token
    old_logprobs: torch.Tensor  # log pi_old(y)
    ref_logprobs: torch.Tensor | None  # log pi_ref(y); None without a reference policy
    advantages: torch.Tensor  # A of the token's row, (7)
    rl: torch.Tensor  # 1 for sampled rows; 0 for plain-prompt twins, which only L_int sees
    weights: torch.Tensor  # M w of (17), (18); 0 where nothing is taught
    tis_weights: torch.Tensor  # min(pi_old / pi_sampler, 2): see training.old_logprobs
    n_tokens: int = 1  # response tokens under RL of the whole mini-batch
    n_taught: int = 1  # sum M of the whole mini-batch


def score(policy, sequences, temperature=1.0, ref_policy=None):
    """The Tokens of some sequences under the policy, and under the reference where there is one."""
    # moved first: behind the forward pass the transfer would wait for it
    names = ("old_logprobs", "advantages", "rl", "weights", "tis_weights")
    kept = packing.per_target(sequences, names, policy.device, policy.model.dtype)
    logprobs, entropy = policy.logprobs(sequences, temperature)
    ref_logprobs = None
    if ref_policy is not None:
        with torch.no_grad():
            ref_logprobs, _ = ref_policy.logprobs(sequences, temperature)
    return Tokens(logprobs, entropy, ref_logprobs=ref_logprobs, **kept)


def policy_loss(logprobs, old_logprobs, advantages, clip_low=0.2, clip_high=0.2, dual_clip=3.0):
    """(9) per token: l = max(-A rho, -A clip(rho, 1 - lo, 1 + hi)); where A < 0, l = min(l, -A C).

    All tensors are (N,).  Returns l and two masks: where the clip took the gradient away, and
    where the dual clip did: a token that went wrong and became much more likely would otherwise
    have a loss without bound."""
    ratio = (logprobs - old_logprobs).clamp(-20, 20).exp()  # rho
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_low, 1 + clip_high)
    loss = torch.maximum(unclipped, clipped)
    capped = torch.minimum(loss, -advantages * dual_clip)
    is_capped = (advantages < 0) & (capped < loss)
    return torch.where(advantages < 0, capped, loss), clipped > unclipped, is_capped


def kl_k3(logprobs, ref_logprobs):
    """(10) per token: d = logp_ref - logp, kl = exp(d) - d - 1, at most 10.

    Never negative and, on average over the policy's own tokens, its KL to the reference."""
    d = (ref_logprobs - logprobs).clamp(-20, 20)
    return (d.exp() - d - 1).clamp(max=10)


def gigpo_loss(tokens, beta=0.0, entropy_coef=0.001, **clips):
    """(11) L = L_PG - 0.001 H + beta L_KL; returns it and the sums behind the metrics.

    beta: needs a reference policy.  clips: clip_low, clip_high, dual_clip of (9).  Every term is a
    mean over the response tokens of the whole mini-batch, so that micro-batches add up (A6)."""
    n = tokens.n_tokens
    l, was_clipped, was_capped = policy_loss(  # noqa: E741 (l is the equation's)
        tokens.logprobs, tokens.old_logprobs, tokens.advantages, **clips
    )
    l_pg = (l * tokens.tis_weights * tokens.rl).sum() / n  # (9)
    entropy = (tokens.entropy * tokens.rl).sum() / n
    l_kl = torch.zeros_like(l_pg)
    if beta > 0:
        l_kl = (kl_k3(tokens.logprobs, tokens.ref_logprobs) * tokens.rl).sum() / n  # (10)
    change = (tokens.logprobs - tokens.old_logprobs).detach().abs()
    sums = {
        "pg_loss": l_pg.item() * n,
        "entropy": entropy.item() * n,
        "kl": l_kl.item() * n,
        "clip_fraction": (was_clipped * tokens.rl).sum().item(),
        "dual_clip_fraction": (was_capped * tokens.rl).sum().item(),
        "logprob_change": (change * tokens.rl).sum().item(),
    }
    return l_pg - entropy_coef * entropy + beta * l_kl, sums


def update(
    policy, optimizer, rows, stream, loss=gigpo_loss, ref_policy=None, temperature=1.0,
    mini_batch_rows=256, micro_batch_tokens=None, grad_clip=1.0, threads=1, checkpointing=False,
    recompute_old=None,
):  # fmt: skip
    """(12) One pass over the iteration's rows, one optimizer step per mini-batch.

    loss: Tokens -> (loss, sums for the metrics): gigpo_loss, or a phase's own.  stream: shuffles
    the mini-batches.  micro_batch_tokens: of one forward pass, padded; None: what memory holds.
    Returns the metrics, means over tokens.  UserError where memory runs out, FloatingPointError
    where the gradient is not finite; that mini-batch is not stepped then.

    All processes know all rows, and each takes its share of every mini-batch's micro-batches."""
    batches = packing.mini_batches(rows, mini_batch_rows, stream)
    merged = [packing.sequences_of(batch) for batch in batches]  # sequences, per mini-batch
    total, steps = Counter(), Counter()  # sums of this process; sums that all have alike
    parameters = large.trained(policy)
    with training.updating(policy, checkpointing):
        training.choose_room(policy, optimizer, merged, micro_batch_tokens, checkpointing, threads)
        # (9) pi_old is the trainer's, before the first step, where the sampler computes otherwise.
        # A stand-in's sampler has the trainer's own arithmetic: its log-probs are pi_old already
        if recompute_old or (recompute_old is None and policy.style == "chat"):
            total = training.old_logprobs(policy, merged, temperature)
        for batch, sequences in zip(batches, merged):
            sampled = [row for row in batch if row.rl]
            n_tokens = max(1, sum(len(row.response_ids) for row in sampled))  # sum m
            n_taught = max(1, sum(row.n_taught for row in batch))  # sum M

            def micro_loss(part, n_tokens=n_tokens, n_taught=n_taught):
                tokens = score(policy, part, temperature, ref_policy)
                tokens.n_tokens, tokens.n_taught = n_tokens, n_taught
                value, sums = loss(tokens)
                sums["choices"] = tokens.rl.sum().item()
                sums["update_tokens"] = sum(len(s.ids) for s in part)
                return value, sums

            optimizer.zero_grad(set_to_none=True)
            total.update(training.backward(policy, micro_loss, sequences, threads))
            norm = parallel.whole(torch.nn.utils.clip_grad_norm_(parameters, grad_clip))
            if not torch.isfinite(norm):
                raise FloatingPointError(f"the gradient's norm is {norm.item()}: lower --lr")
            optimizer.step()
            policy.version += 1  # the sampler's copy of the weights is old now
            steps.update(tokens=n_tokens, taught=n_taught, grad_norm=norm.item(), steps=1)
            # forced tokens are no targets, but have a loss: ratio 1, so -A each
            steps["pg_loss"] -= sum(row.advantage * packing.n_forced(row) for row in sampled)
    return training.token_means(total, steps)


# ---- 6. retrieval ------------------------------------------------------------------------------


def retrieve(bank, task, task_type, n):
    """The n skills of a bank that fit a task best: of its type, by cosine of the TF-IDF vectors of
    task and condition, then by utility.

    A skill whose task_type is None fits tasks of every type, provided that its condition shares a
    telling word with the task."""
    fitting = [skill for skill in bank if skill["task_type"] in (None, task_type)]
    of_task, *of_skills = tfidf([task] + [skill["condition"] for skill in fitting])
    scored = []
    for skill, vector in zip(fitting, of_skills):
        cosine = sum(x * vector.get(word, 0.0) for word, x in of_task.items())
        if cosine > 0 or skill["task_type"] is not None:
            scored.append((-cosine, -skill["utility"], skill["skill_id"], skill))
    scored.sort(key=lambda one: one[:3])  # the id last, so that the order is always the same
    return [skill for *_, skill in scored[:n]]
