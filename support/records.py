"""Records of episodes: what goes to trajectories.jsonl and is read there again, and the part of
metrics.jsonl that every phase has."""

import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

from envs import Step, UserError
from support import parallel
from support.files import numbered


def new_record(play, task_type, task):
    """The record of an episode that has not begun.  play: a common.Play; task: its goal
    sentence."""
    return {
        "traj_id": "/".join(map(str, play.key)),
        "group_id": play.group_id,
        "task_id": play.task_id,
        "task_type": task_type,
        "task": task,
        "condition": "skill" if play.skills else "plain",
        "skill_ids": [skill["skill_id"] for skill in play.skills],
        "skills": play.skills,
        "success": False,
        "score": 0.0,
        "reward": 0.0,
        "steps": [],
    }


def progress(n, title):
    """A progress bar over n episodes; none where nobody watches a terminal."""
    quiet = not sys.stderr.isatty() or parallel.rank() > 0
    return tqdm(total=n, desc=title, leave=False, disable=quiet)


def for_file(record):
    """A record as it goes to trajectories.jsonl: without what can be had again (prompts) or is long
    (lists become counts)."""
    steps = []
    for step in record["steps"]:
        drop = ("prompt_ids", "allowed", "admissible")
        line = {key: value for key, value in step.items() if key not in drop}
        line["n_admissible"] = len(step["admissible"])
        line["logprobs"] = [round(x, 5) for x in step["logprobs"]]
        steps.append(line)
    return {key: value for key, value in record.items() if key != "skills"} | {"steps": steps}


# what a line of trajectories.jsonl has to have for who reads it: its type per key
NUMBER = (int, float)
LINE = dict.fromkeys(("traj_id", "group_id", "task_id", "task_type", "task", "condition"), str)
LINE |= {"phase": str, "iteration": int, "success": bool, "score": NUMBER, "reward": NUMBER}
LINE |= {"skill_ids": list, "steps": list, "final_observation": str}
STEP = dict.fromkeys(("observation", "action", "response"), str)
STEP |= {"valid": bool, "reward": NUMBER, "advantage": NUMBER}
MAYBE = dict.fromkeys(("episode_advantage", "step_advantage", "gate", "weight"), NUMBER)


def lacking(row):
    """The first key that a line of trajectories.jsonl lacks, or has in another type; None."""
    for key, kind in LINE.items():
        if not isinstance(row.get(key), kind):
            return key
    for step in row["steps"]:
        if not isinstance(step, dict):
            return "step"
        there = {key: kind for key, kind in MAYBE.items() if key in step}
        for key, kind in (STEP | there).items():
            if not isinstance(step.get(key), kind):
                return f"{key} of a step"
    return None if row["steps"] else "steps"


def read_records(path):
    """The lines of a trajectories.jsonl.  UserError names the line and the field that is not what
    a phase has written."""
    rows = numbered(path)
    for number, row in rows:
        if lack := lacking(row):
            fix = f"put the file back, or make {Path(path).parent} anew with --overwrite"
            raise UserError(f"{path}, line {number}: expected an episode, found no {lack}; {fix}")
    return [row for _, row in rows]


def episode_metrics(records, max_response=512):
    """Success by condition, lengths, rates and what the advantages look like."""
    steps = [step for record in records for step in record["steps"]]
    metrics = {}
    for condition in ("plain", "skill"):
        part = [record["success"] for record in records if record["condition"] == condition]
        if part:
            metrics |= {
                f"success_{condition}": float(np.mean(part)),
                f"episodes_{condition}": len(part),
            }
    outcomes = defaultdict(set)
    for record in records:
        outcomes[record["group_id"]].add(record["success"])
    advantages = np.array([step["advantage"] for step in steps])
    return metrics | {
        "score": float(np.mean([record["score"] for record in records])),
        "mean_steps": len(steps) / len(records),
        "env_steps": len(steps),
        "valid_rate": float(np.mean([step["valid"] for step in steps])),
        "inadmissible_rate": float(np.mean([step["inadmissible"] for step in steps])),
        "truncated": sum(step["truncated"] for step in steps),
        "cut_rate": float(np.mean([len(step["response_ids"]) >= max_response for step in steps])),
        "response_tokens": sum(len(step["response_ids"]) for step in steps),
        # groups of wins only, or of losses only
        "no_signal": float(np.mean([len(seen) == 1 for seen in outcomes.values()])),
        "advantage_std": float(advantages.std()),
        "advantage_max": float(np.abs(advantages).max()),
        "anchor_size": float(np.mean([step["anchor_size"] for step in steps])),
        "anchor_shared": float(np.mean([step["anchor_size"] > 1 for step in steps])),
    }


def prompts_of(policy, env, record, skills=()):
    """The prompts (token ids) of an episode's steps as they are with other skills, or with none:
    same states, same history, same responses."""
    prompts, history, ids = [], [], None
    for s in record["steps"]:
        now = Step(s["observation"], s["admissible"])
        ids, _ = policy.prompt_ids(env, record["task"], history, now, skills, ids)
        prompts.append(ids)
        ids = ids + s["response_ids"]
        history.append((now, s["action"]))
    return prompts
