"""Phase 2: what the skills can do moves into the weights, and the skills are thrown away.

Groups are played as in phase 1, half with the best active skills in the prompt, half plain.  Where
the skill half wins more often (D_g > 0), the *actions* of its good episodes are taught to the same
policy under the *plain* prompt, next to GiGPO.  Afterwards no skill, no bank and no longer prompt
is needed.

    equations   (17) gate: plain_twins; (17) M, (18) w: token_weights; (19), (20): siri_loss; below.
                (14)-(16) go on as in mine.py
    in          runs/NAME/mine/: policy/, skills.jsonl
    out         runs/NAME/distill/: policy/ (the result), trajectories.jsonl, pairs.jsonl,
                skills.jsonl, metrics.jsonl

    laptop      python distill.py
    one GPU     python distill.py --preset paper --model Qwen/Qwen2.5-1.5B-Instruct --engine vllm
    many        bash recipes/qwen7b.sh    (accelerate launch, FSDP)
"""

from bisect import bisect_left
from collections import Counter
from functools import partial

import support.cli  # noqa: F401 (first: from here on Ctrl-C while importing is one line)
from common import (
    Row,
    assign_advantages,
    gigpo_loss,
    load_training,
    make_env,
    retrieve,
    rollout,
    rows_of,
    sample_tasks,
    task_text,
    train_tasks,
    update,
)
from envs import UserError, action_span
from mine import credit_all, pair_effects, paired_groups
from support.cli import by_preset, make_parser, number, parse_args, run_script, text, whole
from support.files import rng, skills_file, write_jsonl
from support.phases import finished_phase, policy_folder, skills_of
from support.records import prompts_of
from support.runs import Run
from support.traces import traced
from support.training import sampling_options, update_options

PHASE = "distill"
SHOW = 3  # active skills in a skill prompt, at most


def best_skills(env, bank, task_id):
    """The active skills that fit a task best; none where there is none for it."""
    # never on a game that a skill was written from: it would only be asked to remember
    fitting = [s for s in bank if s["status"] == "active" and task_id not in s["source_task_ids"]]
    return retrieve(fitting, task_text(env, task_id), env.task_type(task_id), SHOW)


# ---- what is taught ----------------------------------------------------------------------------


def action_token_mask(policy, step):
    """1[token j is an action token] of (17), per response token of a step.

    A token counts that holds a part of the action's text, also of a single character: byte-level
    tokens may begin and end inside one.  So prefixes of the response are decoded; a broken
    character at a prefix's end shows as U+FFFD, one character like the whole one."""
    ids, text = step["response_ids"], step["response"]
    first, last = action_span(text, policy.style)  # characters, without the tags
    if first >= last or not step["valid"]:
        return [0] * len(ids)  # an ill-formed response has no action that could be taught
    tokens = range(len(ids))
    # both are the first token for which something holds of the text up to and including it
    begin = bisect_left(tokens, True, key=lambda j: len(policy.decode(ids[: j + 1])) > first)
    end = bisect_left(tokens, True, key=lambda j: policy.decode(ids[: j + 1])[:last] == text[:last])
    # a special token sampled inside is no text of the action
    return [int(begin <= j <= end and ids[j] not in policy.dropped) for j in tokens]


def token_weights(gate, advantage, mask, w_max=2.0, unit=1.0):
    """(17) M and (18) w: returns M per token, and the *internalisation weight* w of the row.

    unit: 10 where advantages are in rewards (mean_norm), of which a success has 10; else 1.  w has
    no gradient.  A token of the action in a good row, a bad row, and a very good one:

    >>> token_weights(gate=1, advantage=0.9, mask=[0, 1])
    ([0, 1], 0.9)
    >>> token_weights(gate=1, advantage=-0.4, mask=[0, 1])    # nothing to learn from a bad step
    ([0, 1], 0.0)
    >>> token_weights(gate=1, advantage=3.1, mask=[0, 1])
    ([0, 1], 2.0)
    """
    m = [gate * is_action for is_action in mask]  # gate is 1 here: closed groups have no twins
    return m, min(max(advantage / unit, 0.0), w_max)


def plain_twins(policy, env, records, deltas, w_max=2.0, unit=1.0):
    """The rows that L_int teaches: the skill episodes' own responses under the plain prompt.

    deltas: group_id -> D_g.  Writes gate and weight into the steps.  Returns (twins, metrics)."""
    twins, n_taught, total_weight = [], 0, 0.0
    for e, record in enumerate(records):
        # (17) the gate: the skill was used in this episode, and helped its group
        gate = int(record["condition"] == "skill" and deltas[record["group_id"]] > 0)
        for s in record["steps"]:
            s["gate"], s["weight"] = gate, 0.0
        if not gate:
            continue
        for s, prompt_ids in zip(record["steps"], prompts_of(policy, env, record)):
            mask = action_token_mask(policy, s)
            m, s["weight"] = token_weights(gate, s["advantage"], mask, w_max, unit)
            # the response is kept as sampled, thoughts included (ambiguity A10); rl=False: L_PG,
            # KL and entropy see the sampled row, not its twin
            # the log-probs are unused: they belong to the skill prompt
            sampled = (s["response_ids"], s["logprobs"], s["allowed"])
            twin = Row(prompt_ids, *sampled, rl=False, episode=e)
            twin.weights, twin.n_taught = [m_j * s["weight"] for m_j in m], sum(m)  # M w, sum M
            twins.append(twin)
            n_taught += sum(m)
            total_weight += sum(twin.weights)
    return twins, {"gated_tokens": n_taught, "mean_weight": total_weight / max(1, n_taught)}


def siri_loss(tokens, lam, **gigpo):
    """(19) L_int = - sum M w log pi(y | plain prompt) / sum M,  (20) L = L_GiGPO + lambda L_int.

    tokens.weights is M w, (N,); sum M is the whole mini-batch's.  gigpo: keywords of gigpo_loss."""
    l_gigpo, sums = gigpo_loss(tokens, **gigpo)
    l_int = -(tokens.weights * tokens.logprobs).sum() / tokens.n_taught  # (19)
    sums["l_int"] = l_int.item() * tokens.n_taught
    return l_gigpo + lam * l_int, sums  # (20)


def lambda_at(k, lambda_max, k_warm):
    """lambda(k) = lambda_max min(1, k / K_warm) of (20); K_warm 0: lambda_max from the start.

    >>> [lambda_at(k, lambda_max=0.1, k_warm=20) for k in (0, 10, 40)]
    [0.0, 0.05, 0.1]
    """
    return lambda_max * min(1.0, k / k_warm) if k_warm else lambda_max


def arguments():
    """The command line."""
    parser = make_parser(
        __doc__,
        minutes=by_preset(laptop=8, paper=None),  # wall-clock of this phase
        iterations=by_preset(laptop=32, paper=50),
        # late in a phase few groups have a signal, but Adam's steps stay as long as ever
        lr_end=by_preset(laptop=0.1, paper=1.0),
        # no options: constants of (16) that differ by preset
        n_eval=by_preset(laptop=4, paper=8),  # pairs before a skill may be retired
        retire_after=by_preset(laptop=8, paper=3),  # negative utilities in a row
    )
    group = parser.add_argument_group("phase 2")
    about = "skills.jsonl to use (default: the mining phase's)"
    group.add_argument("--skills", type=text, help=about)
    # L_int averages over few tokens: 0.1 weighs a taught token more than a policy-gradient token.
    # Where L_GiGPO is in rewards (mean_norm), proportions need ten times that; a stand-in learns
    # best with five times as much again, a fifth does about as well (docs/results.md)
    about = "(20) largest weight of L_int; 0: GiGPO on paired rollouts only"
    largest = by_preset(laptop=5.0, paper=0.1)
    group.add_argument("--lambda-max", type=number(least=0, most=1000), default=largest, help=about)
    about = "(20) K_warm: iterations until lambda is at its largest; 0: at once"
    warm = by_preset(laptop=0, paper=20)
    group.add_argument("--k-warm", type=whole(0), default=warm, help=about)
    return parse_args(parser)


def main():
    args = arguments()
    env = make_env(args.env, args.simulator, args.max_steps)
    tasks = train_tasks(env)
    print(f"{env.describe(env.split_names[0])}; {len(tasks):,} to train on", flush=True)
    source = finished_phase(args.source or f"runs/{args.run}/mine")
    path = args.skills or skills_of(source)  # the bank: mining's, or any file of such lines
    state = {"bank": skills_file(path, args.env)}  # a checkpoint keeps it
    if not any(skill["status"] == "active" for skill in state["bank"]):
        own = "give one of them the status active, or leave --skills out"
        fix = own if args.skills else "mine longer (--iterations of mine.py)"
        raise UserError(f"no active skill in {path}: {fix}")
    if args.skills and not any(best_skills(env, state["bank"], task_id) for task_id in tasks):
        fix = "their task_type or condition must fit; or leave --skills out"
        raise UserError(f"no active skill in {path} fits any of the {len(tasks):,} games: {fix}")
    run = Run(args, PHASE, policy_folder(source), state, skills=path)
    policy, ref_policy, optimizer = load_training(run.weights, policy_folder(source), args)
    run.restore(policy, optimizer)
    unit = 10.0 if args.adv_mode == "mean_norm" else 1.0  # of advantages, see token_weights
    how = update_options(args, env)

    for k in run.iterations():
        bank = state["bank"]
        chosen = sample_tasks(tasks, args.groups, rng(args.seed, PHASE, k, "tasks"))
        # half of a group with the best skills in the prompt, the other half without
        plan = [(task_id, best_skills(env, bank, task_id)) for task_id in chosen]
        plays, shown = paired_groups(plan, args.group_size, args.seed, k, PHASE)
        with run.timed("rollout"):
            records = rollout(policy, env, plays, **sampling_options(args))
        pairs = pair_effects(records, shown)  # (14): a skill goes on proving itself
        credit_all(pairs, shown, k, args.n_eval, args.retire_after)  # (15), (16)
        assign_advantages(records, env, omega=args.omega, mode=args.adv_mode)
        with traced(run, policy, env, records, k), run.timed("update"):
            run.set_lr(optimizer)
            deltas = {pair["group_id"]: pair["delta"] for pair in pairs}
            twins, taught = plain_twins(policy, env, records, deltas, unit=unit)  # (17), (18)
            # twins are further rows of the same mini-batches, next to their originals
            lam = lambda_at(k, args.lambda_max, args.k_warm)
            loss = partial(siri_loss, lam=lam, beta=args.beta)  # (19), (20)
            rows, stream = rows_of(records) + twins, rng(args.seed, PHASE, k, "mini-batches")
            losses = update(policy, optimizer, rows, stream, loss, ref_policy, **how)
        metrics = losses | taught | {"lambda": lam}
        run.log(k, policy, optimizer, records, metrics, pairs, bank)

    # evidence only: the result is the policy, which never has to see it again
    write_jsonl(run.folder / "skills.jsonl", state["bank"])
    run.finish(policy, optimizer, {"bank": dict(Counter(s["status"] for s in state["bank"]))})


if __name__ == "__main__":
    run_script(main)
