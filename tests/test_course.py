"""The course: every notebook runs, is built from its source, and says what the project's own
functions say.

pytest -q tests/test_course.py -m "not slow"
"""

import contextlib
import io
import shutil
import subprocess

import nbformat
import numpy as np
import pytest
import torch

import common
import distill
import mine
from course import annotate, build, check
from envs import UserError

HERE = build.HERE


def test_every_notebook_is_built_from_its_source_with_outputs_and_at_most_forty_cells():
    for source in build.sources():
        stored = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
        assert build.same_cells(build.notebook(source), stored), (
            f"run python -m course.build {source.stem}"
        )
        assert len(stored.cells) <= 40
        assert all(
            cell.outputs
            for cell in stored.cells
            if cell.cell_type == "code" and "print(" in cell.source.split("\ndef ")[0]
        )
        assert not any(
            output.output_type == "error"
            for cell in stored.cells
            for output in cell.get("outputs", [])
        )


# ---- SIRI in one notebook ----

AGREE = "from tests.test_course import agree\nagree(globals())"


def test_siri_in_one_notebook_computes_what_the_project_computes():
    book = build.notebook(HERE / "siri_in_one_notebook.py")
    build.execute(book, replace=[("SEED, BUDGET = 0, 1.0", "SEED, BUDGET = 0, 0.1")], more=[AGREE])


@pytest.mark.slow
def test_in_one_notebook_skills_help_and_are_internalised():
    checks = """
assert mined["with the best active skill"] > mined["plain prompt"] + 0.15, mined
assert end["plain prompt"] > max(0.6, success(pool) + 0.2), (end, success(pool))
raised = [line["after"] - line["before"] for line in log if line["before"] == line["before"]]
assert np.mean(raised) > 0.02, raised
"""
    build.execute(build.notebook(HERE / "siri_in_one_notebook.py"), more=[AGREE, checks])


def agree(cells):
    """Called at the end of the notebook, with its names: its numbers and those of the project's
    functions, on new episodes."""
    policy, env = cells["policy"], cells["env"]
    skill = {
        "condition": "find mug",
        "strategy": "go cabinet",
        "kind": "mug",
        "status": "active",
        "deltas": [],
        "utility": 0.0,
    }
    skill |= {"negative": 0, "skill_id": "s", "from": None}
    games = [task for task in env.tasks("train") if "mug" in task][:6]
    episodes = cells["play"](policy, cells["groups"](games, lambda task_id: skill))
    effects = cells["paired_effects"](episodes)
    cells["advantages"](episodes)
    cells["gate_and_weight"](episodes, effects)

    # (1)-(7)
    asked = [
        {"group": e["group"]} | {"anchors": [s["observation"] for s in e["steps"]]}
        | {"rewards": [s["reward"] for s in e["steps"]], "valid": [s["valid"] for s in e["steps"]]}
        for e in episodes
    ]  # fmt: skip
    rows = common.gigpo_advantages(asked)
    steps = [s for e in episodes for s in e["steps"]]
    for ours, theirs in (
        ("q", "step_return"),
        ("e", "row_score"),
        ("A_E", "episode_advantage"),
        ("A_S", "step_advantage"),
        ("A", "advantage"),
    ):
        assert np.allclose([s[ours] for s in steps], [row[theirs] for row in rows], atol=1e-9), ours
    assert np.std([s["A"] for s in steps]) > 0.1  # there was something to compare

    # (9)
    old, change = torch.randn(500, dtype=torch.float64), 0.5 * torch.randn(500, dtype=torch.float64)
    A = 2 * torch.randn(500, dtype=torch.float64)
    assert torch.allclose(
        cells["policy_loss"](old + change, old, A), common.policy_loss(old + change, old, A)[0]
    )

    # (14)
    records = [record_of(e, env) for e in episodes]
    theirs = {
        pair["group_id"]: pair["delta"]
        for pair in mine.pair_effects(records, {e["group"]: [skill] for e in episodes})
    }
    assert effects == pytest.approx(theirs) and len(effects) == 6

    # (15), (16)
    for seed in range(20):
        ours = skill | {"deltas": [], "status": "candidate", "negative": 0, "utility": 0.0}
        theirs = {
            "deltas": [],
            "plain": [],
            "status": "candidate",
            "neg_streak": 0,
            "utility": 0.0,
            "n_eval": 0,
        }
        for k, delta in enumerate(
            np.random.default_rng(seed).choice([-0.5, -0.25, 0, 0.25, 0.5], 12)
        ):
            cells["credit"](ours, delta)
            mine.credit(theirs, {"delta": delta, "s_base": [0, 1]}, k, n_eval=3)
            assert (
                ours["utility"] == pytest.approx(theirs["utility"])
                and ours["status"] == theirs["status"]
            )

    # (17), (18): gate and weight of every token
    for record, e in zip(records, episodes):
        for s, step in zip(record["steps"], e["steps"]):
            s["advantage"] = step["A"]
    twins, _ = distill.plain_twins(Words(cells), env, records, effects)
    taught = [s for e in episodes for s in e["steps"] if e["skill"] and effects[e["group"]] > 0]
    assert [row.prompt_ids for row in twins] == [s["plain"] for s in taught]
    assert [row.weights for row in twins] == [[m * s["w"] for m in s["M"]] for s in taught]
    assert [row.n_taught for row in twins] == [sum(s["M"]) for s in taught]

    # (19)
    taught = [s for s in steps if any(s["M"])]
    if taught:
        with torch.no_grad():
            ours = cells["internalisation_loss"](policy, taught).item()
            logp, _ = cells["logprobs"](
                policy, [s["plain"] for s in taught], [s["response"] for s in taught]
            )
        total = sum(
            m * s["w"] * logp[i, j].item()
            for i, s in enumerate(taught)
            for j, m in enumerate(s["M"])
        )
        n_taught = sum(sum(s["M"]) for s in taught)
        assert ours == pytest.approx(-total / n_taught, abs=1e-5)
        weights = torch.tensor([m * s["w"] for s in taught for m in s["M"]])
        flat = torch.stack([logp[i, j] for i, s in enumerate(taught) for j in range(len(s["M"]))])
        zero = torch.zeros_like(flat)
        others = ("entropy", "old_logprobs", "advantages", "rl", "tis_weights")
        known = {"logprobs": flat, "ref_logprobs": None, "weights": weights}
        tokens = common.Tokens(**known, **{name: zero for name in others})
        tokens.n_tokens, tokens.n_taught = 1, n_taught
        assert distill.siri_loss(tokens, lam=1.0, entropy_coef=0.0)[0].item() == pytest.approx(
            ours, abs=1e-5
        )


def record_of(e, env):
    """A notebook's episode as the project writes it down."""
    steps = [
        {key: s[key] for key in ("observation", "action", "valid", "reward")}
        | {
            "admissible": [],
            "response_ids": s["response"],
            "allowed": [None] * len(s["response"]),
            "logprobs": [0.0] * len(s["response"]),
        }
        | {"response": s["text"]}
        for s in e["steps"]
    ]
    about = {
        "group_id": e["group"],
        "task_id": e["task_id"],
        "task_type": env.task_type(e["task_id"]),
        "task": e["task"],
    }
    return about | {
        "condition": "skill" if e["skill"] else "plain",
        "success": e["won"],
        "steps": steps,
    }


class Words:
    """The notebook's words in the form in which the project's functions ask for them."""

    style, dropped = "compact", ()

    def __init__(self, cells):
        self.encode, self.decode = cells["encode"], cells["decode"]

    def prompt_ids(self, env, task, history, step, skills, before=None):
        return self.encode(env.prompt(task, history, step, skills, "compact")), False


# ---- chapters ----


@pytest.fixture(scope="module")
def classroom(tmp_path_factory, model_folder):
    """The folder in which chapters run at a tiny budget: they share the small run that the first of
    them makes."""
    folder = tmp_path_factory.mktemp("classroom")
    variables = {
        "COURSE_BUDGET": "tiny",
        "COURSE_FOLDER": str(folder),
        "COURSE_MODEL": str(model_folder),
        "MPLBACKEND": "agg",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        patch.delenv("ALFWORLD_DATA", raising=False)
        yield folder


CHAPTERS = [path for path in build.sources() if path.stem[0].isdigit()]


@pytest.mark.slow
@pytest.mark.parametrize("source", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_runs_from_its_first_cell_to_its_last(source, classroom):
    build.execute(build.notebook(source))


# ---- exercises ----


def asked(*words):
    """python -m course.check in this process: what it printed, and whether all was right."""
    printed, patch = io.StringIO(), pytest.MonkeyPatch()
    with patch.context() as one, contextlib.redirect_stdout(printed):
        one.setattr("sys.argv", ["check.py", *words])
        try:
            check.main()
            fine = True
        except SystemExit as end:
            fine = not end.code
    return printed.getvalue(), fine


def test_exercises_accept_the_known_answers_and_refuse_others():
    e1 = "0.577 0.577 -1.155 0.707 0 -0.707 1.284 0.577 -1.862".split()
    e2 = "3.333 3.333 -6.667 4.75 0 -4.75 8.083 3.333 -11.417".split()
    known = {"E1": e1, "E2": e2, "E3": ["0.354", "0.118"], "E5": ["-0.220", "-0.262", "-0.200"]}
    known |= {"E7": ["better", "more"], "E9": ["5+6+7", "5", "2+3+4"]}
    known["E8"] = "assign_advantages plain_twins distill.plain_twins update()".split()
    for name, answer in known.items():
        assert asked(name, *answer)[1], name
        wrong, fine = asked(name, *answer[:-1], "7" if name != "E8" else "retrieve")
        assert not fine and "not yet" in wrong and wrong.count("right") == len(answer) - 1, name
        question, _ = asked(name)
        assert answer[0] not in question.split()


def test_an_answer_is_right_however_it_is_written():
    for words in (
        ["E3", "0,354", ".118"],
        ["E7", "Better", "MORE"],
        ["E9", "7,6,5", "5", "2+4+3"],
        ["E8", "Assign_Advantages", "plain_twins", "plain_twins()", "common.update"],
    ):
        assert asked(*words)[1], words
    assert not asked("E9", "5+6", "5", "2+3+4")[1] and not asked("E7", "better", "")[1]


def test_the_question_of_the_bugs_names_their_functions_and_others():
    question, _ = asked("E8")
    named = [word.strip(",.") for word in question.split() if "_" in word or "update" in word]
    assert set(check.BUGS.values()) < set(named)
    for name in named:
        assert any(hasattr(module, name) for module in (common, mine, distill)), name


def test_a_useless_skill_is_promoted_about_as_often_as_not():
    found = check.promotion(skills=600)
    assert all(0.3 < share < 0.62 for share in found.values()), found
    assert found["over its life, n_eval 4"] > found["at its first decision, n_eval 4"]


def test_every_exercise_has_a_solution_and_a_mistyped_one_is_named():
    for name in check.EXERCISES:
        if name != "E4":  # four seconds of simulation, tested above
            assert len(asked(name, "--solution")[0]) > 20, name
    for words, message in (
        (["E11"], "no exercise E11: expected one of E1"),
        (["E3", "0.3"], "2 answers are expected"),
        (["E3", "0.3", "x"], "expected a number, found 'x'"),
        (["E6", "no.patch"], "no file no.patch"),
        (["E10", "too short"], "two sentences are expected, 2 words were typed"),
    ):
        with pytest.raises(UserError, match=message):
            asked(*words)


@pytest.mark.slow
def test_patches_are_told_apart_by_what_they_do():
    solutions = sorted(map(str, check.SOLUTIONS.glob("E6-*.patch")))
    text, fine = asked("E6", *solutions)
    assert fine and "leave-one-out baseline" in text and "gate by utility" in text
    text, fine = asked("E6", str(HERE / "bugs" / "1.patch"))
    assert not fine and "not yet" in text


@pytest.mark.slow
def test_a_baseline_that_fails_where_a_state_was_seen_once_is_refused(tmp_path):
    right = (check.SOLUTIONS / "E6-leave-one-out.patch").read_text()
    wrong = tmp_path / "wrong.patch"
    wrong.write_text(right.replace("if len(sample) > 1:", "if True:"))
    text, fine = asked("E6", str(wrong))
    assert not fine and "a state that was seen once" in text


@pytest.mark.slow
def test_a_patch_whose_change_still_stands_in_the_files_is_checked_as_well(tmp_path, monkeypatch):
    patch = check.SOLUTIONS / "E6-leave-one-out.patch"
    for name in ("common.py", "warmup.py", "mine.py", "distill.py"):
        shutil.copy(check.ROOT / name, tmp_path)
    for name in ("envs", "support"):
        shutil.copytree(check.ROOT / name, tmp_path / name)
    subprocess.run(["git", "apply", str(patch)], cwd=tmp_path, check=True)
    monkeypatch.setattr(check, "ROOT", tmp_path)
    assert asked("E6", str(patch))[1]


def test_the_four_bugs_apply_to_the_code_as_it_is(tmp_path):
    for path in sorted((HERE / "bugs").glob("*.patch")):
        for name in ("common.py", "distill.py"):
            shutil.copy(HERE.parent / name, tmp_path / name)
        made = subprocess.run(
            ["git", "apply", str(path)], cwd=tmp_path, capture_output=True, text=True
        )
        assert made.returncode == 0, f"{path.name}: {made.stderr}"


# ---- annotated pages ----


def test_annotated_pages_are_what_the_code_says_now():
    for name in annotate.PAGES:
        stored = (annotate.OUT / f"{name}.html").read_text(encoding="utf-8")
        assert stored == annotate.page(name), "run python -m course.annotate"


def test_every_line_of_code_stands_on_its_page_once():
    for name, (file, banners) in annotate.PAGES.items():
        text = (annotate.ROOT / file).read_text()
        parts = annotate.chosen(annotate.sections(text), banners)
        numbers = [number for part in parts for number, _ in part.code]
        assert numbers == sorted(set(numbers)), name
        lines = text.splitlines()
        assert all(lines[number - 1] == line for part in parts for number, line in part.code)
        if banners is None:  # what is not code is prose
            prose = " ".join(word for part in parts for line in part.prose for word in line.split())
            for number, line in enumerate(lines, 1):
                if line.strip() and number not in numbers and not annotate.BANNER.match(line):
                    words = line.strip().strip('"').removeprefix("#").split()
                    assert not words or " ".join(words) in prose, (name, number, line)
