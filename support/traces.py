"""Traces: what a report needs of a few episodes and no training file keeps.

    with traced(run, policy, env, records, k), run.timed("update"):     a phase's only line
        losses = update(...)

writes runs/NAME/PHASE/traces.jsonl, a line per episode: traj_id, group_id, phase, iteration,
condition, and per step t, prompt (text as played), plain (the plain prompt, where another one was
played), admissible, anchor (label within the group), tokens (texts), mask M, weight w, sampled /
before / after / entropy per token: log-prob as sampled, then under the *plain* prompt before and
after the update, and the entropy before it.  A token without a choice has log-prob 0.

Two episodes each at iterations 0, 1, 2, 4, 8, ... of a phase, at most --traces of them: the
beginning, where most changes, is seen closely, a long run to its end, and what is traced depends on
neither the clock nor an interruption."""

from collections import defaultdict
from contextlib import contextmanager

import torch

from envs import action_span
from support.packing import Row, forced, merge_prefixes
from support.records import prompts_of


def due(k, most):
    """Whether iteration k is traced: 0 and the powers of two, two episodes each, `most` in all."""
    if k & (k - 1):
        return False
    return 2 * k.bit_length() + 2 <= most  # 0, 1, 2, 4, ... are events number 0, 1, 2, 3, ...


def choose(records):
    """Two episodes of one group, the better first: where the skill helped most, else of a group
    that was both won and lost, else any."""
    groups = defaultdict(list)
    for r in records:
        groups[r["group_id"]].append(r)

    def gain(group):
        won = {c: [r["success"] for r in group if r["condition"] == c] for c in ("skill", "plain")}
        mixed = len({r["success"] for r in group}) > 1
        if won["skill"] and won["plain"]:
            return sum(won["skill"]) / len(won["skill"]) - sum(won["plain"]) / len(
                won["plain"]
            ), mixed
        return 0.0, mixed

    group = max(groups.values(), key=gain)  # the first of the best ones
    best = max(group, key=lambda r: (r["success"], r["condition"] == "skill", -len(r["steps"])))
    others = [r for r in group if r is not best]
    return (
        [best] + [min(others, key=lambda r: (r["success"], r["condition"] == "skill"))]
        if others
        else [best]
    )


@contextmanager
def traced(run, policy, env, records, k):
    """Looks at two episodes before and after what happens inside; see above."""
    if not due(k, run.args.traces):
        yield
        return
    if policy.engine:
        policy.engine.sleep()  # its memory is needed; the update does the same
    chosen = choose(records)
    plain = [prompts_of(policy, env, r, []) for r in chosen]
    before = [plain_logprobs(policy, r, ids) for r, ids in zip(chosen, plain)]
    yield
    after = [plain_logprobs(policy, r, ids) for r, ids in zip(chosen, plain)]
    labels = {}  # anchor -> number, in the order in which the group has seen them
    for r in records:
        if r["group_id"] == chosen[0]["group_id"]:
            for s in r["steps"]:
                labels.setdefault(env.anchor(s["observation"]), len(labels))
    lines = []
    for r, ids, (logp, entropy), (later, _) in zip(chosen, plain, before, after):
        line = {key: r[key] for key in ("traj_id", "group_id", "task_id", "condition")} | {
            "phase": run.phase,
            "iteration": k,
        }
        steps = zip(r["steps"], ids, logp, entropy, later)
        line["steps"] = [
            step_line(policy, s, own, labels[env.anchor(s["observation"])], *more)
            for s, own, *more in steps
        ]
        lines.append(line)
    run.append("traces.jsonl", lines)


def step_line(policy, s, plain_ids, anchor, before, entropy, after):
    pieces = [policy.decode(s["response_ids"][: j + 1]) for j in range(len(s["response_ids"]))]
    tokens = [text[len(start) :] for start, text in zip(["", *pieces], pieces)]
    line = {
        "t": s["t"],
        "prompt": policy.decode(s["prompt_ids"]),
        "admissible": s["admissible"],
        "anchor": anchor,
        "tokens": tokens,
    }
    if plain_ids != s["prompt_ids"]:
        line["plain"] = policy.decode(plain_ids)
    first, last = action_span(s["response"], policy.style)
    spans = zip(s["response_ids"], [0, *map(len, pieces)], map(len, pieces))
    is_open = s.get("gate") and s["valid"]
    line["M"] = [
        int(bool(is_open and a < last and b > first and token not in policy.dropped))
        for token, a, b in spans
    ]
    line["w"] = round(s.get("weight", 0.0), 4)
    values = {"sampled": s["logprobs"], "before": before, "after": after, "entropy": entropy}
    return line | {name: [round(x, 4) for x in many] for name, many in values.items()}


@torch.no_grad()
def plain_logprobs(policy, record, prompt_ids):
    """(log-probs, entropies): a list per step with a number per response token, under the given
    prompts; 0 where there was no choice."""
    steps = list(zip(prompt_ids, record["steps"]))
    rows = [Row(ids, s["response_ids"], s["logprobs"], s["allowed"]) for ids, s in steps]
    scored = [
        policy.logprobs([sequence]) for sequence in merge_prefixes(rows) if sequence.positions
    ]
    found = []
    for which in (0, 1):
        values = iter([x for one in scored for x in one[which].tolist()])
        found.append(
            [[0.0 if forced(allowed) else next(values) for allowed in row.allowed] for row in rows]
        )
    return found
