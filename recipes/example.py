"""One skill's way through a finished run, as the README tells it.

    python recipes/example.py [--run NAME] [--skill mine-1-4]     # after all three phases

It prints the active skill with the clearest pair (or --skill), the won episode that the skill was
written from, and the episodes of that pair.  Then it plays the games of all the skill's pairs again
under the plain prompt, with the policy that had mined and with the distilled one: as many episodes,
with the random streams that the pairs' plain episodes had, at the temperature of training.
"""

import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import Play, load_policy, make_env, rollout  # noqa: E402
from envs import UserError  # noqa: E402
from support.cli import base_parser, parse_args, run_script  # noqa: E402
from support.files import read_jsonl  # noqa: E402
from support.phases import finished_phase, policy_folder  # noqa: E402


def clearest_pair(bank, pairs, wanted=None):
    """(skill, pair) with the largest effect of an active skill, or of the one that is wanted."""
    possible = {s["skill_id"]: s for s in bank if wanted in (None, s["skill_id"])}
    if wanted is None:
        possible = {key: skill for key, skill in possible.items() if skill["status"] == "active"}
    tested = [pair for pair in pairs if pair["skill_ids"][0] in possible]
    if not tested:
        what = f"no pair of {wanted}" if wanted else "no active skill with a pair"
        raise UserError(f"{what} in this run: skills.jsonl of its mining has the skills' ids")
    best = max(tested, key=lambda pair: pair["delta"])  # the first one, where several are equal
    return possible[best["skill_ids"][0]], best


def told(record):
    """An episode in one line: won or lost, its length, its actions."""
    outcome = "won" if record["success"] else "lost"
    actions = ", ".join(step["action"] for step in record["steps"])
    return f"  {outcome} in {len(record['steps'])} steps: {actions}"


def plays_again(pair, played):
    """The plain episodes of a pair, once more: the same game, the same random streams."""
    group = [record for record in played if record["group_id"] == pair["group_id"]]
    phase, k, g = pair["group_id"].split("-")
    seed = int(group[0]["traj_id"].split("/")[0])
    numbers = range(len(pair["s_skill"]), len(group))  # the skill episodes come first
    key = (seed, phase, int(k), int(g))
    return [Play(pair["task_id"], pair["group_id"], (*key, i)) for i in numbers]


def main():
    parser = base_parser(__doc__)
    parser.add_argument("--skill", help="id of the skill (default: that of the clearest pair)")
    args = parse_args(parser)
    run = Path("runs") / args.run
    warm, mined, distilled = (finished_phase(run / p) for p in ("warmup", "mine", "distill"))
    pairs = read_jsonl(mined / "pairs.jsonl")
    skill, pair = clearest_pair(read_jsonl(mined / "skills.jsonl"), pairs, args.skill)
    played = read_jsonl(mined / "trajectories.jsonl")
    episodes = read_jsonl(warm / "trajectories.jsonl") + played
    origin = next(r for r in episodes if r["traj_id"] == skill["source_traj_ids"][0])
    print(f"won: {origin['task']}\n{told(origin)}")
    print(f"wrote: when {skill['condition']}: {skill['strategy']}")
    print(f"the clearest pair: {pair['task']} ({pair['task_id']})")
    for record in played:
        if record["group_id"] == pair["group_id"]:
            print(record["condition"] + told(record))

    env = make_env(args.env, args.simulator, args.max_steps)
    later = Counter(record["task_id"] for record in read_jsonl(distilled / "trajectories.jsonl"))
    own = [p for p in pairs if p["skill_ids"] == [skill["skill_id"]]]
    again = {}  # phase -> a list of records per pair
    for folder in (mined, distilled):
        policy = load_policy(policy_folder(folder), args)
        plays = [play for p in own for play in plays_again(p, played)]
        records = rollout(policy, env, plays, threads=args.threads)
        again[folder.name] = [[r for r in records if r["group_id"] == p["group_id"]] for p in own]
    print("wins of each pair: with the skill, plain; plain again: after mining, after distilling")
    for n, p in enumerate(own):
        wins = [sum(record["success"] for record in again[name][n]) for name in again]
        counts = [sum(p["s_skill"]), sum(p["s_base"]), *wins]
        seen = f"distillation played it {later[p['task_id']]} times"
        print(f"  {p['task']:50s} {counts}  D {p['delta']:+.2f}  {p['task_id']}, {seen}")
    print("plain, after distilling:")
    for p, records in zip(own, again["distill"]):
        print(p["task"])
        print(*map(told, records), sep="\n")


if __name__ == "__main__":
    run_script(main)
