"""One skill's way through a finished run, as the README tells it.

    python recipes/example.py [--run NAME]      # after warmup.py, mine.py and distill.py

It prints the active skill with the clearest pair, the won episode that the skill was written from,
all its pairs, and then plays the game of that pair again under the plain prompt, with the policy
that had mined and with the distilled one: four episodes each, with the random streams that the
pair's plain episodes had, at the temperature of training.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import Play, load_policy, make_env, rollout  # noqa: E402
from envs import UserError  # noqa: E402
from support.cli import base_parser, parse_args, run_script  # noqa: E402
from support.files import read_jsonl  # noqa: E402
from support.runs import finished_phase, policy_folder  # noqa: E402


def clearest_pair(bank, pairs):
    """(skill, pair) with the largest effect of a skill that was promoted; UserError without one."""
    promoted = {skill["skill_id"]: skill for skill in bank if skill["status"] == "active"}
    tested = [pair for pair in pairs if pair["skill_ids"][0] in promoted]
    if not tested:
        raise UserError("no promoted skill with a pair in this run: mine longer (--iterations)")
    best = max(tested, key=lambda pair: pair["delta"])  # the first one, where several are equal
    return promoted[best["skill_ids"][0]], best


def told(record):
    """An episode in one line: won or lost, its length, its actions."""
    outcome = "won" if record["success"] else "lost"
    actions = ", ".join(step["action"] for step in record["steps"])
    return f"  {outcome} in {len(record['steps'])} steps: {actions}"


def main():
    args = parse_args(base_parser(__doc__))
    run = Path("runs") / args.run
    warm, mined, distilled = (finished_phase(run / p) for p in ("warmup", "mine", "distill"))
    pairs = read_jsonl(mined / "pairs.jsonl")
    skill, pair = clearest_pair(read_jsonl(mined / "skills.jsonl"), pairs)
    played = read_jsonl(mined / "trajectories.jsonl")
    episodes = read_jsonl(warm / "trajectories.jsonl") + played
    origin = next(r for r in episodes if r["traj_id"] == skill["source_traj_ids"][0])
    print(f"won: {origin['task']}\n{told(origin)}")
    print(f"wrote: when {skill['condition']}: {skill['strategy']}")
    print("pairs:")
    for p in pairs:
        if p["skill_ids"] == [skill["skill_id"]]:
            print(f"  with {p['s_skill']}, plain {p['s_base']}, D {p['delta']:+.2f}: {p['task']}")
    print(f"the clearest: {pair['task']} ({pair['task_id']})")
    group = [record for record in played if record["group_id"] == pair["group_id"]]
    for record in group:
        print(record["condition"] + told(record))
    later = read_jsonl(distilled / "trajectories.jsonl")
    times = sum(record["task_id"] == pair["task_id"] for record in later)
    print(f"distillation played this game {times} times")
    env = make_env(args.env, args.simulator, args.max_steps)
    phase, k, g = pair["group_id"].split("-")
    # the keys of the pair's plain episodes: the last ones of their group
    numbers = range(len(group) - len(pair["s_base"]), len(group))
    seed = int(group[0]["traj_id"].split("/")[0])
    for folder in (mined, distilled):
        policy = load_policy(policy_folder(folder), args)
        plays = [Play(pair["task_id"], "again", (seed, phase, int(k), int(g), i)) for i in numbers]
        print(f"plain, {folder}:")
        print(*map(told, rollout(policy, env, plays, threads=args.threads)), sep="\n")


if __name__ == "__main__":
    run_script(main)
