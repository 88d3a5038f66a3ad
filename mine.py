"""Phase 1: the policy writes skills from its own successes; paired rollouts find out which help.

Every --mine-every iterations a frozen snapshot of the policy reads some of its winning plain
episodes and writes one short skill from each ("when ..., do ...").  From then on half of a group's
episodes are played with one skill in the prompt, the other half plain, from the same start: the
difference of their success is the skill's effect on this game.  GiGPO goes on with all of them.

    equations   (14) pair_effects, (15) and (16) credit, below; (1)-(12) as in warmup.py
    in          runs/NAME/warmup/: policy/ and the last iterations of trajectories.jsonl
    out         runs/NAME/mine/: skills.jsonl (all skills with their evidence), pairs.jsonl,
                rejected.jsonl, trajectories.jsonl, metrics.jsonl, policy/

    laptop      python mine.py
    one GPU     python mine.py --preset paper --model Qwen/Qwen2.5-1.5B-Instruct --engine vllm
    many        bash recipes/qwen7b.sh    (accelerate launch, FSDP)
    pure mining python mine.py --lr 0    (the policy stays as it is; ambiguity A2)
"""

import math
from collections import Counter, defaultdict
from functools import partial

import numpy as np
from scipy import stats

import support.cli  # noqa: F401 (first: from here on Ctrl-C while importing is one line)
from common import (
    Play,
    assign_advantages,
    gigpo_loss,
    load_training,
    make_env,
    retrieve,
    rollout,
    rows_of,
    task_text,
    train_tasks,
    update,
)
from envs import UserError
from support.cli import by_preset, make_parser, parse_args, run_script, whole
from support.files import rng, write_jsonl
from support.phases import finished_phase, policy_folder
from support.records import read_records
from support.runs import Run
from support.text import words
from support.traces import traced
from support.training import sampling_options, update_options
from support.writing import generate

PHASE = "mine"
POOL_ITERATIONS = 5  # iterations whose successes may be mined (not W of (13))
ONE_TYPE = 12  # living skills where all tasks are of one type

# ---- mining ------------------------------------------------------------------------------------


def choose_successes(pool, bank, asked, per_type=4):
    """Winning plain episodes to write skills from, one per task; of each task type as many as its
    living skills lack to per_type, so that a type has a skill soon after its first win.

    pool: records of the last iterations, won or not.  asked: traj_ids of earlier requests; one that
    was asked twice stands there twice.  A world of one task type, as WebShop, has 12."""
    if len({record["task_type"] for record in pool}) == 1:
        per_type = max(per_type, ONE_TYPE)
    outcomes = defaultdict(set)  # group_id -> {True}, {False} or both
    for record in pool:
        outcomes[record["group_id"]].add(record["success"])

    def worth(record):  # smallest first
        # contrast and brevity make the cause of success visible: groups with mixed outcomes first,
        # then the shortest.  What was refused may be asked again, after all others
        all_won = len(outcomes[record["group_id"]]) == 1
        again = asked.count(record["traj_id"])
        return again, all_won, len(record["steps"]), record["traj_id"]  # the id fixes the order

    # a skill episode's success says what the skill can do, not what the policy knows
    wins = [r for r in pool if r["success"] and r["condition"] == "plain"]
    # retired skills leave room for new ones
    living = [skill for skill in bank if skill["status"] != "retired"]
    count = Counter(skill["task_type"] for skill in living)
    chosen, tasks = [], {task_id for skill in living for task_id in skill["source_task_ids"]}
    for record in sorted(wins, key=worth):
        if record["task_id"] not in tasks and count[record["task_type"]] < per_type:
            tasks.add(record["task_id"])
            count[record["task_type"]] += 1
            chosen.append(record)
    return chosen


def alike(a, b, threshold=0.8):
    """Whether two skills for the same kind of task say nearly the same: the Jaccard similarity of
    their sets of words is at least the threshold."""
    # "when you heat a mug: open the fridge" -> {when, you, heat, a, mug, open, the, fridge}
    x, y = (set(words(f"{skill['condition']} {skill['strategy']}")) for skill in (a, b))
    return a["task_type"] == b["task_type"] and len(x & y) >= threshold * len(x | y)


def write_skills(policy, env, chosen, bank, k, seed, temperature=0.7, max_new=256):
    """Asks the policy for one skill per chosen success; returns (new candidates, refused answers).

    This runs before the iteration's update, so the policy *is* the frozen snapshot."""
    # the transcript of a win, and what to write: the world's own words
    prompts = [env.summary_prompt(record, policy.style) for record in chosen]
    keys = [(seed, PHASE, k, "write", i) for i in range(len(chosen))]
    answers = generate(policy, prompts, keys, temperature, max_new)
    new, refused = [], []
    for i, (record, answer) in enumerate(zip(chosen, answers)):
        skill = {"skill_id": f"{PHASE}-{k}-{i}", "task_type": record["task_type"]}
        try:
            # the world reads the answer: it refuses what is empty, too long, or cannot transfer
            # because it names "cabinet 3"
            skill |= env.parse_skill(answer, policy.style)
            if skill["task_type"] != record["task_type"]:
                # where one kind of thing lies: so few games are for it that it proves nothing
                raise ValueError("for one object only")
            if any(alike(skill, other) for other in bank + new):
                raise ValueError("near duplicate")
        except ValueError as reason:
            # nothing is lost: rejected.jsonl says what was written, and why it is no skill
            about = {"iteration": k, "traj_id": record["traj_id"]}
            refused.append(about | {"reason": str(reason), "answer": answer})
            continue
        skill |= {"status": "candidate", "utility": 0.0, "n_eval": 0, "neg_streak": 0}
        skill |= {"deltas": [], "plain": []}  # of its pairs: effect, and success without the skill
        skill |= {"source_traj_ids": [record["traj_id"]], "source_task_ids": [record["task_id"]]}
        new.append(skill | {"created_iter": k, "updated_iter": k, "retired_iter": None})
    return new, refused


def mine_skills(policy, env, pool, state, k, per_type, seed, temperature):
    """One mining event: successes of the pool become candidates in state["bank"].  Returns the
    refused answers; who was asked stands in state["asked"]."""
    chosen = choose_successes(pool, state["bank"], state["asked"], per_type)
    state["asked"] += [record["traj_id"] for record in chosen]
    new, refused = write_skills(policy, env, chosen, state["bank"], k, seed, temperature)
    state["bank"] += new
    return refused


# ---- paired rollouts ---------------------------------------------------------------------------


def pick(env, bank, task_id, lacks):
    """One skill to show for a task, so that its effect is its own: the most promising candidate
    that lacks pairs, else the best fitting active skill.  A list, empty where nothing fits.

    lacks: skill_id -> pairs that a candidate lacks to N_eval; those planned are counted as had."""
    # never on a game that the skill was written from: it would only be asked to remember
    fitting = [s for s in bank if s["status"] != "retired" and task_id not in s["source_task_ids"]]
    fitting = retrieve(fitting, task_text(env, task_id), env.task_type(task_id), len(bank))
    short = [skill for skill in fitting if lacks[skill["skill_id"]] > 0]
    if short:  # one that looks good is proved first, so that phase 2 has it
        return [max(short, key=lambda skill: skill["utility"])]
    active = [skill for skill in fitting if skill["status"] == "active"]
    return (active or fitting)[:1]  # a candidate that has had its pairs is better than none


def plan_pairs(env, tasks, bank, n_groups, n_eval, stream):
    """What an iteration plays: a pair (task_id, skills to show) per group.

    Which task types come is not left to chance, or a type may wait long for its pairs.  In the
    first half of the groups all types take turns, so that one without a skill gets its wins; in the
    second half only those whose candidates lack pairs, so that one that won late catches up.
    Within a type games are drawn at random, and all episodes of a game are one group: the draw
    moves the mix of types, and no advantage."""
    games = defaultdict(list)  # task_type -> task_ids, in random order
    for i in stream.permutation(len(tasks)):
        games[env.task_type(tasks[i])].append(tasks[i])
    pairs, lacks = Counter(), Counter()  # by type; by skill
    for skill in bank:
        pairs[skill["task_type"]] += skill["n_eval"]
        if skill["status"] == "candidate":
            lacks[skill["skill_id"]] = n_eval - skill["n_eval"]
    plan, turns = [], Counter()
    for g in range(n_groups):
        short = {skill["task_type"] for skill in bank if lacks[skill["skill_id"]] > 0}
        types = [t for t in games if t in short] if g >= n_groups // 2 else []
        # whose turn it is: who had the fewest in this iteration, then the fewest pairs so far
        task_type = min(types or games, key=lambda t: (turns[t], pairs[t]))
        # (a small world plays its games again)
        task_id = games[task_type][turns[task_type] % len(games[task_type])]
        turns[task_type] += 1
        skills = pick(env, bank, task_id, lacks)
        lacks.subtract(skill["skill_id"] for skill in skills)
        plan.append((task_id, skills))
    return plan


def paired_groups(plan, group_size, seed, k, phase=PHASE):
    """G/2 skill and G/2 plain episodes per group where there is a skill for it, else G plain ones.

    plan: (task_id, skills) per group.  Returns the plays, and group_id -> skills shown."""
    plays, shown = [], {}
    for g, (task_id, skills) in enumerate(plan):
        group_id = f"{phase}-{k}-{g}"  # one group: the halves are compared with each other, too
        shown[group_id] = skills
        n_skill = group_size // 2 if skills else 0
        for i in range(group_size):  # the world's start is the same for all of them
            in_prompt = skills if i < n_skill else []
            plays.append(Play(task_id, group_id, (seed, phase, k, g, i), in_prompt))
    return plays, shown


def pair_effects(records, shown):
    """(14) D_g = mean success of group g's skill episodes - mean success of its plain ones.

    Returns a line of pairs.jsonl per paired group."""
    pairs = []
    for group_id, skills in shown.items():
        group = [record for record in records if record["group_id"] == group_id]
        # S_i of both halves, such as [1, 1, 0, 1] and [0, 0, 1, 0]: D_g = .75 - .25
        s_skill = [int(r["success"]) for r in group if r["condition"] == "skill"]
        s_base = [int(r["success"]) for r in group if r["condition"] == "plain"]
        if s_skill and s_base:  # a group without a skill has no effect to measure
            pair = {key: group[0][key] for key in ("group_id", "task_id", "task_type", "task")}
            pair["skill_ids"] = [skill["skill_id"] for skill in skills]
            pair |= {"s_skill": s_skill, "s_base": s_base}
            pair["delta"] = sum(s_skill) / len(s_skill) - sum(s_base) / len(s_base)
            pairs.append(pair)
    return pairs


# ---- a skill's life ----------------------------------------------------------------------------


def effect_interval(deltas, least=0.25):
    """Mean effect of some pairs with its 95 % interval by Student's t: [mean, low, high].

    least: one episode's share of a half group.  Pairs differ by that much at least, or four pairs
    that happen to agree would be a proof without error.

    >>> effect_interval([0.75, 0.25, 0.5, 0.5])
    [0.5, 0.102, 0.898]
    >>> effect_interval([1.0, 1.0, 1.0, 1.0])    # four pairs that agree: std counts as .25
    [1.0, 0.602, 1.0]
    """
    n, mean = len(deltas), sum(deltas) / len(deltas)  # n pairs, their mean effect
    spread = max(least, np.std(deltas, ddof=1)) if n > 1 else math.inf  # one pair says nothing
    half = float(stats.t.ppf(0.975, max(1, n - 1)) * spread / math.sqrt(n))
    return [round(x, 3) for x in (mean, max(-1.0, mean - half), min(1.0, mean + half))]


def credit(skill, pair, k, n_eval=8, ema=0.2, tau_act=0.05, retire_after=3):
    """(15) and (16): one more pair of a skill, played in iteration k; changes the skill.  Returns
    whether its status has changed.

    With 4 + 4 episodes at 50 % success one D has a standard deviation of 0.35; the running mean
    brings it to 0.12.  Plain 1 of 4 wins, with the skill 3 of 4: D = 0.5.

    >>> skill = {"utility": 0.0, "n_eval": 0, "neg_streak": 0, "deltas": [], "plain": []}
    >>> skill["status"] = "candidate"
    >>> credit(skill, {"delta": 0.5, "s_base": [1, 0, 0, 0]}, k=0, n_eval=2)
    False
    >>> credit(skill, {"delta": 0.0, "s_base": [1, 1, 0, 0]}, k=1, n_eval=2)
    True
    >>> skill["utility"], skill["status"]    # the mean of two pairs is above 0.05
    (0.25, 'active')
    """
    before = skill["status"]  # retired: by an earlier pair of this iteration
    skill["deltas"].append(round(pair["delta"], 4))
    skill["plain"].append(sum(pair["s_base"]) / len(pair["s_base"]))
    skill["n_eval"] += 1
    # (15) u <- (1 - a) u + a D.  With a constant a = .2, from u = 0 on, four pairs that agree on D
    # would come to .59 D; with 1 / n until that is smaller the first five pairs weigh alike
    a = max(ema, 1 / skill["n_eval"])
    # (rounded, or a mean of zero may come out as -1e-17 and count as negative)
    skill["utility"] = round((1 - a) * skill["utility"] + a * pair["delta"], 6)
    # updates in a row after which the skill looked harmful
    skill["neg_streak"] = skill["neg_streak"] + 1 if skill["utility"] < 0 else 0
    skill["updated_iter"] = k
    # (16) candidate -> active -> retired, none of it before N_eval pairs: three bad ones at the
    # start would end one in five of the skills with a true effect of +.1
    if skill["n_eval"] < n_eval or before == "retired":
        return False
    # three times the pairs, and still not above tau: it will not be
    hopeless = skill["status"] == "candidate" and skill["n_eval"] >= 3 * n_eval
    if skill["status"] == "candidate" and skill["utility"] > tau_act:
        skill["status"], skill["promoted_n"] = "active", skill["n_eval"]
        skill["effect"] = effect_interval(skill["deltas"])
    elif skill["neg_streak"] >= retire_after or hopeless:
        skill["status"], skill["retired_iter"] = "retired", k
        skill["reason"] = why_retired(skill, max(n_eval, retire_after))
    return skill["status"] != before


def why_retired(skill, n_last):
    """What the last pairs say about a skill's end: `hurts` where their effect is below zero with
    its interval; `absorbed` where the plain episodes have gained at least half of the effect that
    promoted it, which is what phase 2 is for; else `no effect shown`."""
    if effect_interval(skill["deltas"][-n_last:])[2] < 0:
        return "hurts"
    n = skill.get("promoted_n", 0)
    if n:
        gained = np.mean(skill["plain"][-n_last:]) - np.mean(skill["plain"][:n])
        if gained >= np.mean(skill["deltas"][:n]) / 2:
            return "absorbed"
    return "no effect shown"


def credit_all(pairs, shown, k, n_eval, retire_after=3):
    """Credits every pair to the skills that were shown in it, and tells whose status changes.

    shown: group_id -> skills."""
    for pair in pairs:
        for skill in shown[pair["group_id"]]:
            if credit(skill, pair, k, n_eval, retire_after=retire_after):
                news = f"- {skill.get('reason')}, {skill['n_eval']} pairs"
                if skill["status"] == "active":
                    mean, low, high = skill["effect"]
                    sure = f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"
                    news = f"+ promoted {sure}, {skill['n_eval']} pairs"
                print(f"  {news}: when {skill['condition']}: {skill['strategy']}"[:100], flush=True)


def warm_pool(source):
    """The records of the last warm-up iterations, which the first skills are written from.
    UserError where nothing was won in them."""
    warm = read_records(source / "trajectories.jsonl")
    last = max((record["iteration"] for record in warm), default=0)
    pool = [record for record in warm if record["iteration"] > last - POOL_ITERATIONS]
    if not any(record["success"] and record["condition"] == "plain" for record in pool):
        found = f"no successes to mine in the last {POOL_ITERATIONS} iterations of {source}"
        raise UserError(f"{found}: warm up longer")
    for record in pool:
        # one clock for both phases: the last warm-up iteration is -1, the first one here 0
        record["iteration"] -= last + 1
    return pool


def arguments():
    """The command line."""
    parser = make_parser(
        __doc__,
        minutes=None,
        iterations=by_preset(laptop=4, paper=40),
        lr_end=1.0,
        # no options: constants that differ by preset
        per_type=by_preset(laptop=2, paper=4),  # living skills of a task type, at most
        mine_temperature=by_preset(laptop=0.2, paper=0.7),  # of writing skills
    )
    group = parser.add_argument_group("phase 1")
    about = "I_mine: iterations between mining events"
    often = by_preset(laptop=1, paper=10)
    group.add_argument("--mine-every", type=whole(1), default=often, help=about)
    about = "(16) paired groups before a candidate may become active"
    tries = by_preset(laptop=4, paper=8)
    group.add_argument("--n-eval", type=whole(1), default=tries, help=about)
    return parse_args(parser)


def main():
    args = arguments()
    env = make_env(args.env, args.simulator, args.max_steps)
    tasks = train_tasks(env)
    print(f"{env.describe(env.split_names[0])}; {len(tasks):,} to train on", flush=True)
    source = finished_phase(args.source or f"runs/{args.run}/warmup")
    pool = warm_pool(source)  # records that skills may be written from
    # every skill ever written, and which successes were asked for one; a checkpoint keeps both
    state = {"bank": [], "asked": []}
    run = Run(args, PHASE, policy_folder(source), state)
    policy, ref_policy, optimizer = load_training(run.weights, policy_folder(source), args)
    run.restore(policy, optimizer)
    if run.iteration:  # going on after an interruption
        here = read_records(run.folder / "trajectories.jsonl")
        pool += [record for record in here if record["condition"] == "plain"]
    loss, how = partial(gigpo_loss, beta=args.beta), update_options(args, env)

    for k in run.iterations():
        pool = [record for record in pool if record["iteration"] >= k - POOL_ITERATIONS]
        if k % args.mine_every == 0:  # before the update: the policy is the frozen snapshot
            how_to_write = (args.per_type, args.seed, args.mine_temperature)
            refused = mine_skills(policy, env, pool, state, k, *how_to_write)
            run.append("rejected.jsonl", refused)
        bank = state["bank"]  # all skills ever written
        # half of a group with one skill in the prompt, the other half without
        stream = rng(args.seed, PHASE, k, "tasks")
        plan = plan_pairs(env, tasks, bank, args.groups, args.n_eval, stream)
        plays, shown = paired_groups(plan, args.group_size, args.seed, k)
        with run.timed("rollout"):
            records = rollout(policy, env, plays, **sampling_options(args))
        pairs = pair_effects(records, shown)  # (14)
        credit_all(pairs, shown, k, args.n_eval)  # (15), (16)
        # GiGPO goes on, each row under the prompt that it was sampled with
        assign_advantages(records, env, omega=args.omega, mode=args.adv_mode)
        with traced(run, policy, env, records, k), run.timed("update"):
            run.set_lr(optimizer)
            stream = rng(args.seed, PHASE, k, "mini-batches")
            rows = rows_of(records)
            losses = update(policy, optimizer, rows, stream, loss, ref_policy, **how)
        pool += [record | {"iteration": k} for record in records if record["condition"] == "plain"]
        run.log(k, policy, optimizer, records, losses, pairs, bank)

    bank = [skill | {"env": args.env} for skill in state["bank"]]
    write_jsonl(run.folder / "skills.jsonl", bank)
    for skill in sorted(bank, key=lambda s: -s["utility"])[:8]:
        evidence = f"{skill['status']:9s} u {skill['utility']:+.2f} n {skill['n_eval']:2d}"
        print(f"{evidence}  when {skill['condition']}: {skill['strategy']}"[:100])
    run.finish(policy, optimizer, {"bank": dict(Counter(s["status"] for s in bank))})


if __name__ == "__main__":
    run_script(main)
