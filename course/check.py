"""Exercises that check themselves.

    python -m course.check                     what there is
    python -m course.check E1                  the question, and what to type
    python -m course.check E1 0.577 ...    each part right or wrong; exit code 1 where one is wrong
    python -m course.check E1 --solution       the answer, with where it comes from (try first)

Answers are computed by the project's own functions, or read from the runs in results/, when they
are asked for: nothing is typed off."""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from envs import UserError
from envs.arguments import Parser, run_tool

ROOT = Path(__file__).resolve().parents[1]
SOLUTIONS = ROOT / "course" / "solutions"


# ---- E1, E2: advantages by hand ----------------------------------------------------------------


def advantages(mode):
    """A^E, A^S, A of the three rows of a group: a win (rewards 0, 10 in states s, a), a loss (0 in
    s)."""
    from common import gigpo_advantages

    win = {"group": "g", "rewards": [0, 10], "valid": [True] * 2, "anchors": ["s", "a"]}
    loss = {"group": "g", "rewards": [0], "valid": [True], "anchors": ["s"]}
    rows = gigpo_advantages([win, loss], mode=mode)
    names = ("episode_advantage", "step_advantage", "advantage")
    return {
        f"{sign} of row {i + 1}": row[name]
        for name, sign in zip(names, ("A^E", "A^S", "A"))
        for i, row in enumerate(rows)
    }


# ---- E3, E4: noise of an effect ----------------------------------------------------------------


def noise():
    """Standard deviation of one D_g with 4 + 4 tries at p = .5, and of its running mean with a =
    .2."""
    one = np.sqrt(2 * 0.25 / 4)
    return {"of one D_g": one, "of the running mean": one * np.sqrt(0.2 / (2 - 0.2))}


def promotion(skills=4000, seed=0):
    """How often the project's rule promotes a useless skill (p = .5 with and without it, 4 + 4
    tries)."""
    from mine import credit

    stream, found = np.random.default_rng(seed), {}
    for n_eval in (2, 4, 8):
        first = ever = 0
        for _ in range(skills):
            skill = {
                "utility": 0.0,
                "n_eval": 0,
                "neg_streak": 0,
                "deltas": [],
                "plain": [],
                "status": "candidate",
            }
            for k in range(3 * n_eval):
                wins = stream.binomial(4, 0.5, 2)
                credit(
                    skill,
                    {"delta": float(wins[0] - wins[1]) / 4, "s_base": [0, 1]},
                    k,
                    n_eval=n_eval,
                )
                first += k + 1 == n_eval and skill["status"] == "active"
                if skill["status"] != "candidate":
                    break
            ever += skill["status"] == "active"
        found |= {
            f"at its first decision, n_eval {n_eval}": first / skills,
            f"over its life, n_eval {n_eval}": ever / skills,
        }
    return found


# ---- E5: ablations of recorded runs ------------------------------------------------------------


def ablations():
    """Difference to SIRI (seen and unseen games, mean over seeds) in results/ablations."""
    from support.files import read_jsonl

    last = {}
    for p in read_jsonl(ROOT / "results" / "ablations" / "points.jsonl"):
        if p["split"].startswith("valid"):
            last[p["arm"], p["seed"], p["split"]] = max(
                p, last.get((p["arm"], p["seed"], p["split"]), p), key=lambda q: q["iterations"]
            )

    def success(arm):
        wins = [list(map(int, p["wins"])) for (a, _, _), p in sorted(last.items()) if a == arm]
        return float(np.mean(sum(wins, [])))

    names = {
        "without L_int": "abl-lambda-0",
        "with useless skills": "abl-useless",
        "plain winners taught, in the same dose": "abl-self-imitation",
    }
    return {name: success(arm) - success("abl-siri") for name, arm in names.items()}


# ---- E7: few games -----------------------------------------------------------------------------


def few_games():
    """What the two recorded seeds with omega 0 say against the default of the same seeds
    (docs/results.md, With a hundred games)."""
    rows = [
        line
        for line in (ROOT / "docs" / "results.md").read_text().splitlines()
        if line.startswith(("| `--omega 0` |", "| default |"))
    ]
    numbers = {
        line.split("|")[1].strip(): [
            [float(x) for x in re.findall(r"[\d.]+", cell)] for cell in line.split("|")[2:5]
        ]
        for line in rows
    }
    (_, unseen, steps), (_, before, long) = numbers["`--omega 0`"], numbers["default"]
    return {
        "unseen games": "better" if min(unseen) > max(before) else "worse",
        "steps": "more" if min(steps) > max(long) else "fewer",
    }


# ---- E6: patches -------------------------------------------------------------------------------

LEAVE_ONE_OUT = """
import numpy as np
from common import normalise
lonely = normalise(np.array([3.0]), "mean_norm", 1e-6)
assert np.isfinite(lonely).all(), f"a state that was seen once has no others: {lonely}"
for values in ([10.0, 0, 0, 10], [1.0, 2, 6], [5.0, 5]):
    mine = normalise(np.array(values), "mean_norm", 1e-6)
    others = [x - (sum(values) - x) / (len(values) - 1) for x in values]
    assert np.allclose(mine, others), (
        f"normalise({values}) gives {mine.round(3)}, the others' means leave {np.round(others, 3)}")
"""
BY_UTILITY = """
import sys
sys.path.insert(0, "tests")
from distill import plain_twins
class Policy:
    style, dropped = "compact", ()
    def decode(self, ids): return "".join(map(chr, ids))
    def prompt_ids(self, *about): return [1], False
ids = [ord(c) for c in "go"]
step = {"observation": "", "admissible": [], "response_ids": ids, "response": "go"}
step |= {"logprobs": [0, 0], "allowed": [None, None]}
def record(name, condition, *utilities):
    skills = [{"utility": u, "skill_id": name} for u in utilities]
    new = step | {"action": "go", "valid": True, "advantage": 1.0}
    about = {"group_id": name, "condition": condition, "skills": skills, "task": ""}
    return about | {"success": True, "steps": [new]}
records = [record("a", "skill", 0.3), record("b", "skill", -0.1), record("a", "plain")]
records += [record("b", "skill", 0.3, -0.1)]
plain_twins(Policy(), None, records, {"a": -0.5, "b": 0.5})
gates = [int(r["steps"][0]["gate"]) for r in records]
assert gates == [1, 0, 0, 0], (
    f"gates {gates}: expected 1 for u = +.3 (D_g = -.5), 0 for u = -.1 (D_g = +.5), 0 for plain, "
    "0 for two skills with u = +.3 and -.1")
"""


def try_patch(path, test):
    """Applies a patch to a copy of the code and runs a few lines there; returns None, or in one
    line what was wrong."""
    if not Path(path).is_file():
        raise UserError(f"no file {path}: write your change with `git diff > {path}`")
    with tempfile.TemporaryDirectory() as folder:
        for name in ("common.py", "warmup.py", "mine.py", "distill.py", "envs", "support"):
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, Path(folder) / name)
        here = {"cwd": folder, "capture_output": True, "text": True}
        patch = str(Path(path).resolve())
        applied = subprocess.run(["git", "apply", patch], **here)
        # a change that still stands in the files is in the copy already
        is_there = not subprocess.run(["git", "apply", "-R", "--check", patch], **here).returncode
        if applied.returncode and not is_there:
            return f"the patch does not apply: {applied.stderr.strip().splitlines()[0]}"
        made = subprocess.run([sys.executable, "-c", test], **here)
        return made.stderr.strip().splitlines()[-1] if made.returncode else None


def check_patches(paths):
    """E6: one or two patches; each must pass one of the two tests."""
    fine = True
    for path in paths:
        wrong = [try_patch(path, test) for test in (LEAVE_ONE_OUT, BY_UTILITY)]
        if None in wrong:
            print(
                f"right: {path} is the "
                f"{('leave-one-out baseline', 'gate by utility')[wrong.index(None)]}"
            )
        else:
            fine = False
            print(f"not yet: {path}\n  as a baseline: {wrong[0]}\n  as a gate:     {wrong[1]}")
    return fine


# ---- E9: masks ---------------------------------------------------------------------------------

RESPONSES = {  # tokens of a made-up tokenizer, so that everybody counts the same; M of each
    "a": ["<THINK>", "ok", "</THINK>", "<ACTION>", "go to", " desk", " 1", "</ACTION>"],
    "b": ["<think>", "x", "</think>", "<action>", "a", "</action>"],
    "c": ["<think>x</think><act", "ion>op", "en", " box</", "action>"],
}


def masks():
    """The taught tokens of three responses, counted from 1."""
    from distill import action_token_mask

    found = {}
    for name, tokens in RESPONSES.items():

        class Policy:
            style, dropped = "chat", ()

            def decode(self, ids, tokens=tokens):
                return "".join(tokens[i] for i in ids)

        step = {
            "response_ids": list(range(len(tokens))),
            "response": "".join(tokens),
            "valid": True,
        }
        found[name] = "+".join(
            str(i + 1) for i, m in enumerate(action_token_mask(Policy(), step)) if m
        )
    return found


# ---- the exercises -----------------------------------------------------------------------------

GROUP = """  One game was tried twice: a group of two tries.  The win has two steps, in the
  states s and a, with rewards 0 and 10.  The loss has one, in the state s, with reward 0.
  Row 1: the win in s.  Row 2: the win in a.  Row 3: the loss in s.
  gamma is 0.95, omega is 1, all responses are well-formed.  Mean and std of (4) are those of the
  rows, so a try of two steps counts twice."""
NINE = """Nine numbers: A^E of (4) of the rows 1, 2, 3; A^S of (6) of the rows 1, 2, 3; A of (7) of
the rows 1, 2, 3."""
BUGS = {"1": "assign_advantages", "2": "plain_twins", "3": "plain_twins", "4": "update"}
EXERCISES = {  # name: question, what computes the answer, tolerance
    "E1": (
        f"Advantages by hand, with the std (of n - 1).\n{GROUP}\n{NINE}",
        lambda: advantages("mean_std_norm"),
        0.01,
    ),
    "E2": (
        f"Advantages by hand, without the std (8).\n{GROUP}\n{NINE}",
        lambda: advantages("mean_norm"),
        0.01,
    ),
    "E3": (
        """How noisy is the effect of a skill?
  A try wins with p = .5, with the skill or without it.  A pair is 4 tries with it and 4 without it.
  D_g is the share of wins with it minus the share without it.  Its running mean u is, after each
  pair, 0.8 u + 0.2 D_g.
Two numbers: the standard deviation of one D_g, and that of u after many pairs.""",
        noise,
        0.01,
    ),
    "E4": (
        """How often is a useless skill promoted by `mine.credit`?
  Useless: a try wins with p = .5, with the skill or without it; 4 + 4 tries a pair.  Promoted: its
  status becomes `active`.  The first decision falls at pair n_eval; at 3 n_eval pairs at the latest
  a candidate is retired, and its life is over.
Six numbers, within .03: at its first decision and ever in its life, for n_eval 2; then both for 4;
then both for 8.  Simulate it: ten lines and a few thousand skills are enough.""",
        promotion,
        0.03,
    ),
    "E5": (
        """Three ablations, predicted: success minus that of SIRI.
  ALFWorld's validation games under the plain prompt, mean of three seeds, after 6 iterations of
  distillation.  Useless skills: sentences that sound like skills and say nothing that helps.
Three numbers, within .1: without L_int; with useless skills in place of the mined ones; with L_int
on plain winners instead of skill episodes, as many tokens with as much weight.""",
        ablations,
        0.1,
    ),
    "E6": (
        """Two changes of the method as patches: a baseline, and a gate.
  The baseline: in `common.normalise` with mean_norm, a value minus the mean of the *others* (a
  value without others must stay finite).  The gate: in `distill.plain_twins`, open where all skills
  shown have u > 0, instead of where D_g > 0; closed for plain episodes.
  Change the file, `git diff > my.patch`, and take the change back with `git apply -R my.patch`.
Type: the patch files.""",
        None,
        None,
    ),
    "E7": (
        """What does --omega 0 do where there are only a hundred training games?
  SIRI, ten minutes after mining, against the default omega 1.  Remember what the step advantage
  (6) still rewards in a group where every try wins.
Two words: are unseen games won `better` or `worse`; has an episode `more` or `fewer` steps?""",
        few_games,
        None,
    ),
    "E8": (
        """Four silent bugs were each put into a distillation.
  course/bugs/README.md shows what the metrics said.  In which function is the bug of run 1, 2, 3,
  and 4?  One of these (a function may have two): rollout, assign_advantages, gigpo_advantages,
  pair_effects, action_token_mask, token_weights, plain_twins, siri_loss, policy_loss, update.
Four function names.""",
        lambda: BUGS,
        None,
    ),
    "E9": (
        """Which tokens have M = 1?
  A token has M = 1 if it holds a part of the action's text, be it one letter.  The text between
  the tags is the action, without blanks at its ends; tags may have capitals.
"""
        + "\n".join(f"  {name}: " + " | ".join(tokens) for name, tokens in RESPONSES.items())
        + "\nThree answers, for a, b and c: count tokens from 1 and join with +, as 2+3.",
        masks,
        None,
    ),
    "E10": (
        """Write the two sentences that the hour on WebShop allows.
  Read "WebShop, the real 1,000 products" in docs/results.md.  What may one say about SIRI and GiGPO
  after it, and what not?  No program can judge that: you are shown four points to look for.
Type your sentences in quotation marks.""",
        None,
        None,
    ),
}
ALLOWED = """What it allows, in two sentences:
  "With one seed and an hour of one core each, GiGPO alone won more of the 500 test goals (0.874)
   than SIRI under the plain prompt (0.832; paired by goal -0.036 [-0.062, -0.012]), and that
   interval is over goals, not over seeds."
  "The two were given equal time, not equal episodes (GiGPO made 231 iterations, SIRI 133, on cores
   that were shared for a part of it), so nothing follows for a 7B model, for another catalogue, or
   for the 8.5 points of the paper."
Yours pass if they name (1) the number of seeds, (2) what the interval is over, (3) what was held
equal and what was not, and (4) claim nothing beyond this stand-in and this catalogue."""


def same_words(text, value):
    """Whether an answer in words is right.  Capitals, brackets, a module before a function's name,
    the order of 5+6+7, and commas in place of its + do not matter."""
    asked = re.split("[+,]", text.lower().replace(" ", "").strip("()").rpartition(".")[2])
    return sorted(asked) == sorted(str(value).split("+"))


def compare(expected, given, tolerance):
    """Prints each part right or wrong; returns whether all are right."""
    if len(given) != len(expected):
        raise UserError(
            f"{len(expected)} answers are expected ({', '.join(expected)}), {len(given)} were typed"
        )
    fine = True
    for (name, value), text in zip(expected.items(), given):
        if tolerance is None:
            right = same_words(text, value)
        else:
            try:
                right = abs(float(text.replace(",", ".")) - value) <= tolerance + 1e-9
            except ValueError:
                raise UserError(f"{name}: expected a number, found {text!r}") from None
        fine &= right
        print(f"{'right' if right else 'not yet':8s} {name}: {text}")
    return fine


def shown(expected):
    return "\n".join(
        f"  {name}: {value:+.3f}" if isinstance(value, float) else f"  {name}: {value}"
        for name, value in expected.items()
    )


def main():
    about = "Exercises that check themselves."
    parser = Parser(prog="python -m course.check", description=about)
    parser.add_argument("exercise", nargs="?", help="E1 ... E10")
    parser.add_argument("--solution", action="store_true", help="show the answer")
    args, answer = parser.parse_known_args()  # answers may begin with a minus
    if args.exercise is None:
        print(
            "\n".join(
                f"{name:4s} {text.splitlines()[0][:95]}" for name, (text, _, _) in EXERCISES.items()
            )
        )
        return
    name = args.exercise.upper()
    if name not in EXERCISES:
        raise UserError(f"no exercise {args.exercise}: expected one of {', '.join(EXERCISES)}")
    text, compute, tolerance = EXERCISES[name]
    if args.solution:
        if name == "E6":
            print(
                "\n".join(
                    f"{path.name}\n{path.read_text()}"
                    for path in sorted(SOLUTIONS.glob("E6-*.patch"))
                )
            )
        elif name == "E10":
            print(ALLOWED)
        else:
            print(shown(compute()))
            if (SOLUTIONS / f"{name}.md").exists():
                print("\n" + (SOLUTIONS / f"{name}.md").read_text().strip())
        return
    if not answer:
        print(text)
        return
    if name == "E6":
        fine = check_patches(answer)
    elif name == "E10":
        words = " ".join(answer).split()
        if len(words) < 12:
            raise UserError(f"two sentences are expected, {len(words)} words were typed")
        print(ALLOWED)  # judged by who wrote them
        return
    else:
        fine = compare(compute(), answer, tolerance)
    if not fine:
        sys.exit(1)
    print("all right")


if __name__ == "__main__":
    run_tool(main)
