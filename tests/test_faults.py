"""Faults, by kind: every input that cannot be meant is answered in one line, before anything is
deleted, written or loaded.
    pytest tests/test_faults.py

The phases run in this process on tests/toy.py; `refused` checks that nothing on disk has
changed."""

import hashlib
import json
import math
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import common
import distill
import evaluate
import mine
import warmup
from envs import UserError
from support import cli, files, intervals, parallel, phases, runs
from tests.conftest import run_main, toy_worlds
from tests.toy import Doors

ROOT = Path(__file__).resolve().parents[1]
SMALL = "--groups 6 --group-size 4 --threads 1 --mini-batch-rows 30 --seed 1 --device cpu".split()
PHASES = {
    warmup: [*SMALL, "--model", "model", "--lr", "0.003", "--iterations", "3", "--stop-at", "0"],
    mine: [*SMALL, "--lr", "0.003", "--iterations", "2", "--mine-every", "3", "--n-eval", "1"],
    distill: [*SMALL, "--lr", "0.003", "--iterations", "2", "--k-warm", "0"],
}
EVALUATE = ["--threads", "1", "--device", "cpu", "--games", "3", "--repetitions", "1"]
SCRIPTS = {script.__name__: script for script in (warmup, mine, distill, evaluate)}
SKILL = {
    "task_type": "doors",
    "condition": "find something",
    "strategy": "open it",
    "status": "active",
    "utility": 0.5,
}


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch, model_folder):
    """A folder of its own with a random policy; the phases play tests/toy.py."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ALFWORLD_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(model_folder, "model")
    toy_worlds(monkeypatch)


@pytest.fixture(scope="module")
def ready(tmp_path_factory, model_folder):
    """A run of all three phases and an evaluation; tests copy it."""
    folder = tmp_path_factory.mktemp("ready")
    shutil.copytree(model_folder, folder / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        toy_worlds(patch)
        for script in (warmup, mine):
            run_main(patch, script, *PHASES[script])
        helps = [files.dump(SKILL | {"skill_id": "a", "env": "alfworld"}) + "\n"]
        Path("skills.jsonl").write_text("".join(helps))
        run_main(patch, distill, *PHASES[distill], "--skills", "skills.jsonl")
        run_main(patch, evaluate, *EVALUATE)
    return folder


@pytest.fixture
def run(ready):
    """Those runs, copied into this test's folder."""
    shutil.copytree(ready / "runs", "runs")
    shutil.copy(ready / "skills.jsonl", "skills.jsonl")
    return Path("runs/default")


def tree(folder="."):
    """{path: what is in it} of every file; without locks and the page that is drawn from others."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        if path.name not in ("lock", "report.html"):
            found[str(path)] = (
                hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "a folder"
            )
    return found


def refused(monkeypatch, script, *arguments, says=""):
    """The script refuses in one line that has these words, and nothing on disk is another."""
    before = tree()
    with pytest.raises(UserError) as mistake:
        run_main(monkeypatch, script, *arguments)
    line = cli.one_line(mistake.value)
    assert says in line and "\n" not in str(mistake.value) and len(line) < 600, line
    after = tree()
    assert {path: after.get(path) for path in before} == before
    assert not [path for path in set(after) - set(before) if Path(path).is_file()]
    return line


def unfinished(phase="warmup", iterations=None):
    """The phase as it is just before its end."""
    folder = Path("runs/default") / phase
    (folder / "done").unlink()
    shutil.rmtree(folder / "policy")
    return folder


# ---- A. what another program or another run wrote is not deleted ---------------------------------


@pytest.mark.parametrize(
    "more", [[], ["--overwrite"], ["--games", "2"], ["--threads", "2", "--overwrite"]]
)
@pytest.mark.parametrize(
    "out",
    [
        "runs/default/warmup",
        "runs/default",
        "runs",
        "model",
        "notes",
        "new/../runs/default/warmup",
        "new/../notes",
    ],
)
def test_evaluation_never_writes_into_a_folder_that_is_not_its_own(monkeypatch, run, out, more):
    Path("notes").mkdir()
    Path("notes/thesis.txt").write_text("years of work")
    refused(
        monkeypatch,
        evaluate,
        "--policy",
        "runs/default/warmup",
        "--out",
        out,
        *EVALUATE,
        *more,
        says="no evaluation wrote",
    )


@pytest.mark.parametrize("out", ["warmup/eval", "warmup/checkpoints", "mine/policy/eval"])
def test_evaluation_never_writes_below_a_phases_folder(monkeypatch, run, out):
    arguments = ["--policy", "runs/default/warmup", "--out", f"runs/default/{out}", *EVALUATE]
    refused(monkeypatch, evaluate, *arguments, says="lies in a phase's folder")


def test_evaluation_takes_a_new_an_empty_or_its_own_folder_and_keeps_what_others_put_there(
    monkeypatch, run
):
    Path("empty").mkdir()
    for out in ("empty", "new/deep"):
        run_main(monkeypatch, evaluate, "--policy", "runs/default/warmup", "--out", out, *EVALUATE)
    Path("empty/notes.txt").write_text("mine")
    refused(
        monkeypatch,
        evaluate,
        "--policy",
        "runs/default/mine",
        "--out",
        "empty",
        *EVALUATE,
        says="another question (other arms)",
    )
    run_main(
        monkeypatch,
        evaluate,
        "--policy",
        "runs/default/mine",
        "--out",
        "empty",
        *EVALUATE,
        "--overwrite",
    )
    assert Path("empty/notes.txt").read_text() == "mine"
    assert {r["arm"] for r in files.read_jsonl("empty/results.jsonl")} == {"runs/default/mine"}


def test_evaluation_goes_on_with_other_threads_and_plays_nothing_twice(monkeypatch, run):
    stamp = os.stat("runs/default/evaluate/results.jsonl").st_mtime_ns
    run_main(monkeypatch, evaluate, *EVALUATE, "--rollout-batch", "7", "--threads", "2")
    assert os.stat("runs/default/evaluate/results.jsonl").st_mtime_ns == stamp


@pytest.mark.parametrize(
    "more", [["--games", "2"], ["--temperature", "1"], ["--seed", "5"], ["--max-response", "99"]]
)
def test_other_questions_in_the_same_folder_are_refused(monkeypatch, run, more):
    refused(monkeypatch, evaluate, *EVALUATE, *more, says="answers another question")


def test_an_out_that_is_a_file_is_refused(monkeypatch, run):
    refused(monkeypatch, evaluate, *EVALUATE, "--out", "skills.jsonl", says="is a file")


ANSWERS = {  # changes one line of results.jsonl
    "three": ({"success": 3}, "expected shares within 0 and 1"),
    "negative": ({"valid_rate": -0.5}, "expected shares within 0 and 1"),
    "a text": ({"score": "1"}, "lacks a field"),
    "no repetition": ({"repetition": None}, "lacks a field"),
    "twice": (None, "episode 2 is there twice"),
}


@pytest.mark.parametrize("change", ANSWERS)
def test_answers_that_no_evaluation_wrote_are_refused_with_their_episode(monkeypatch, run, change):
    new, says = ANSWERS[change]
    path = run / "evaluate" / "results.jsonl"
    lines = files.read_jsonl(path)
    lines[1] = lines[1] | new if new else lines[0]
    files.write_jsonl(path, lines)
    refused(monkeypatch, evaluate, *EVALUATE, says=says)


@pytest.mark.parametrize("question", [[1], "x", None])
def test_an_evaluations_mark_with_another_question_is_refused(monkeypatch, run, question):
    path = run / "evaluate" / "args.json"
    path.write_text(files.dump(json.loads(path.read_text()) | {"question": question}))
    refused(monkeypatch, evaluate, *EVALUATE, says="answers another question")
    path.write_text("{")
    refused(monkeypatch, evaluate, *EVALUATE, "--overwrite", says="choose another --out")


NAMES = [
    "../../x",
    "..",
    ".",
    "a/b",
    "/tmp/x",
    "",
    " ",
    "-x",
    "a\\b",
    "x\n",
    "a\0b",
    "~",
    "x" * 200,
    ".hidden",
    "a/../b",
    "trailing.",
    "漢" * 100,
    "a\u202eb",
    "a\u00a0b",
    "La\u0308ufe",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("script", [warmup, mine, evaluate], ids=lambda script: script.__name__)
def test_a_runs_name_never_leaves_runs(monkeypatch, script, name):
    Path("x/warmup").mkdir(parents=True)
    Path("x/warmup/args.json").write_text(json.dumps({"phase": "warmup", "args": {}}))
    arguments = [] if script is evaluate else PHASES[script]
    refused(
        monkeypatch,
        script,
        *arguments,
        f"--run={name}",
        "--overwrite",
        says="--run: expected one name",
    )


@pytest.mark.parametrize("name", ["a", "siri-few_2.b", "my run", "Läufe"])
def test_names_with_letters_digits_and_a_few_signs_are_fine(monkeypatch, name):
    run_main(monkeypatch, warmup, *PHASES[warmup], "--iterations", "1", "--run", name)
    assert Path(f"runs/{name}/warmup/done").exists()


@pytest.mark.parametrize(
    "mark",
    [None, "", "{}", '{"phase": "mine", "args": {}}', '{"phase": "warmup"}', "[]", '{"arms": []}'],
)
def test_a_folder_without_a_phases_mark_is_not_overwritten(monkeypatch, mark):
    Path("runs/default/warmup/policy").mkdir(parents=True)
    Path("runs/default/warmup/policy/precious.txt").write_text("mine")
    if mark is not None:
        Path("runs/default/warmup/args.json").write_text(mark)
    for more in ([], ["--overwrite"]):
        refused(monkeypatch, warmup, *PHASES[warmup], *more)


def test_overwrite_deletes_what_the_phase_wrote_and_nothing_else(monkeypatch, run):
    Path("runs/default/warmup/notes.txt").write_text("mine")
    Path("runs/default/warmup/checkpoints/.DS_Store").write_text("x")
    run_main(monkeypatch, warmup, *PHASES[warmup], "--iterations", "1", "--overwrite")
    assert Path("runs/default/warmup/notes.txt").read_text() == "mine"
    assert json.loads(Path("runs/default/warmup/done").read_text())["iterations"] == 1


def test_the_function_that_deletes_refuses_everything_outside_a_phases_own_names(run):
    for path in (
        "model",
        "runs/default/warmup",
        "runs/default/warmup/notes.txt",
        "runs/default/warmup/../mine/policy",
        "/tmp",
        ".",
    ):
        with pytest.raises(UserError, match="it is not deleted"):
            runs.remove(path, "runs/default/warmup")
    with pytest.raises(UserError, match="it is not deleted"):
        runs.remove("model/config.json", "model")
    runs.remove("runs/default/warmup/policy", "runs/default/warmup")
    assert not Path("runs/default/warmup/policy").exists()


def test_only_one_place_of_the_code_deletes_folders():
    places = [
        path
        for path in [*ROOT.glob("*.py"), *ROOT.glob("support/*.py"), *ROOT.glob("envs/*.py")]
        if "rmtree(" in path.read_text()
    ]
    assert [path.name for path in places] == ["runs.py"] and places[0].read_text().count(
        "rmtree("
    ) == 1


# ---- A. numbers that are none --------------------------------------------------------------------

NUMBERS = {
    "warmup": "lr lr-end omega beta minutes snapshots stop-at",
    "mine": "lr lr-end omega beta minutes snapshots",
    "distill": "lr lr-end omega beta minutes snapshots lambda-max",
    "evaluate": "temperature",
}


NO_NUMBERS = ["nan", "inf", "-inf", "1e999", "-1", "x", "", "0x1", "1,5", "½"]


@pytest.mark.parametrize("value", NO_NUMBERS)
@pytest.mark.parametrize(
    ("script", "option"), [(s, o) for s, options in NUMBERS.items() for o in options.split()]
)
def test_numbers_that_are_none_or_negative_are_refused(monkeypatch, script, option, value):
    refused(
        monkeypatch, SCRIPTS[script], f"--{option}={value}", says=f"--{option}: expected a number"
    )


COUNTS = {
    "warmup": "groups group-size iterations save-every threads max-steps max-prompt max-response "
    "rollout-batch mini-batch-rows micro-batch-tokens window",
    "mine": "mine-every n-eval groups group-size",
    "distill": "groups group-size",
    "evaluate": "show repetitions games threads",
}


@pytest.mark.parametrize(
    "value", ["0", "-3", "1.5", "nan", "many", "", "1e3", "9" * 40, "१", "1_0", " 3"]
)
@pytest.mark.parametrize(
    ("script", "option"), [(s, o) for s, options in COUNTS.items() for o in options.split()]
)
def test_counts_that_are_none_are_refused(monkeypatch, script, option, value):
    refused(
        monkeypatch,
        SCRIPTS[script],
        f"--{option}={value}",
        says=f"--{option}: expected a whole number",
    )


@pytest.mark.parametrize(
    ("script", "arguments", "says"),
    [
        (mine, ["--group-size", "1"], "--group-size: expected a whole number from 2"),
        (distill, ["--k-warm", "-1"], "--k-warm: expected a whole number of at least 0"),
        (warmup, ["--stop-at", "1.5"], "--stop-at: expected a number at least 0 and at most 1"),
        (warmup, ["--seed", "-1"], "--seed: expected a whole number"),
        (warmup, ["--lora-rank", "-4"], "--lora-rank: expected a whole number"),
        (warmup, ["--groups", "100000000"], "--groups: expected a whole number from 1 to 4096"),
        (warmup, ["--threads", "100000"], "--threads: expected a whole number from 1 to 256"),
        (warmup, ["--grops", "3"], "no argument --grops here: did you mean --groups?"),
        (warmup, ["--group", "3"], "no argument --group here: did you mean"),
        (warmup, ["--gamma", "0.9"], "no argument --gamma here"),
        (warmup, ["stray"], "no argument stray here"),
        (warmup, ["--preset", "phone"], "--preset: invalid choice: 'phone'"),
        (warmup, ["--groups"], "--groups: expected one argument"),
        (warmup, ["--engine", "fast"], "--engine: invalid choice"),
        (
            warmup,
            ["--simulator", "textworld", "--env", "webshop"],
            "--simulator textworld is ALFWorld's official engine",
        ),
        (
            warmup,
            ["--from", "model", "--model", "model"],
            "--from and --model both name the weights",
        ),
        (warmup, ["--model", ""], "--model: expected a name or path"),
        (evaluate, ["--out", ""], "--out: expected a name or path"),
        (evaluate, ["--policy"], "--policy: expected at least one argument"),
        (evaluate, ["--report", "--out", "x"], "--report only reads what is in runs/NAME"),
        (evaluate, ["--games=3", "--report", "--run", "a"], "leave --games out"),
        (evaluate, ["--policy", "model", "model"], "--policy: model is named twice"),
        (
            evaluate,
            ["--policy", "model", "--split", "valid", "valid"],
            "--split: valid is named twice",
        ),
        (
            evaluate,
            ["--policy", "model", "--split", "moon"],
            "--split moon: expected some of train, valid, held_out",
        ),
        (
            evaluate,
            ["--policy", "model", "--baseline", "mars"],
            "--baseline mars: expected one of model",
        ),
        (
            evaluate,
            ["--with-skills", "nothing.jsonl"],
            "--with-skills adds arms to those of --policy",
        ),
        (evaluate, ["--policy", "runs/nowhere"], "--policy runs/nowhere: no such folder"),
        (warmup, ["--device", "foo"], "--device: expected cpu, cuda or cuda:NUMBER, found 'foo'"),
        (warmup, ["--device", "meta"], "--device: expected cpu, cuda or cuda:NUMBER, found 'meta'"),
        (warmup, ["--device", "cuda:99"], "--device cuda:99"),
        (warmup, ["--device", "cpu:x"], "--device: expected cpu, cuda or cuda:NUMBER"),
        (warmup, ["--track", "wandbb"], "--track: invalid choice"),
    ],
)
def test_arguments_that_make_no_sense_together_or_at_all_are_refused(
    monkeypatch, script, arguments, says
):
    refused(monkeypatch, script, *arguments, says=says)


def test_wrong_arguments_are_found_before_overwrite_deletes(monkeypatch, run):
    for wrong in (["--lr", "inf"], ["--device", "foo"], ["--model", "nowhere"]):
        refused(monkeypatch, warmup, *PHASES[warmup], "--overwrite", *wrong)
    refused(
        monkeypatch,
        distill,
        *PHASES[distill],
        "--overwrite",
        "--skills",
        "nowhere.jsonl",
        says="no file nowhere.jsonl",
    )


def test_weights_that_are_no_numbers_are_not_saved_over_the_last_good_checkpoint(monkeypatch):
    update, calls = common.update, []

    def spoiled(policy, *about, **more):
        found = update(policy, *about, **more)
        calls.append(1)
        if len(calls) == 3:
            with torch.no_grad():
                next(policy.model.parameters())[0, 0] = math.nan
        return found

    monkeypatch.setattr(warmup, "update", spoiled)
    with pytest.raises(
        UserError,
        match="iteration 3: weights are no finite numbers any.*last good checkpoint is.*000002",
    ):
        run_main(monkeypatch, warmup, *PHASES[warmup])
    assert [one.name for one in phases.checkpoints("runs/default/warmup")] == ["000001", "000002"]
    assert not Path("runs/default/warmup/done").exists()
    monkeypatch.setattr(warmup, "update", update)
    run_main(monkeypatch, warmup, *PHASES[warmup])  # it goes on from there
    assert json.loads(Path("runs/default/warmup/done").read_text())["iterations"] == 3


# ---- A. two at once ------------------------------------------------------------------------------


HOLDER = """
import sys, time
from support import runs
runs.hold(sys.argv[1])
print("held", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("where", ["warmup", "mine", "evaluate"])
def test_a_second_process_in_a_folder_is_told_who_holds_it_and_a_dead_one_holds_nothing(
    monkeypatch, run, where
):
    if where != "evaluate":
        unfinished(where)
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run / where)],
        stdout=subprocess.PIPE,
        env=variables,
        text=True,
    )
    try:
        assert holder.stdout.readline() == "held\n"
        arguments = EVALUATE if where == "evaluate" else PHASES[SCRIPTS[where]]
        says = refused(
            monkeypatch,
            SCRIPTS[where],
            *arguments,
            says=f"runs/default/{where} is in use by process {holder.pid}",
        )
        assert "--overwrite" not in says
        refused(monkeypatch, SCRIPTS[where], *arguments, "--overwrite", says="is in use by process")
    finally:
        holder.kill()
        holder.wait()
    run_main(monkeypatch, SCRIPTS[where], *arguments)


# ---- A. the wrong world --------------------------------------------------------------------------


def in_another_world(run, env="webshop"):
    for phase in ("warmup", "mine", "distill"):
        path = run / phase / "args.json"
        path.write_text(path.read_text().replace('"env": "alfworld"', f'"env": "{env}"'))


@pytest.mark.parametrize(
    "policy", ["warmup", "warmup/policy", "distill", "warmup/checkpoints/000003"]
)
def test_a_policy_brings_its_world_and_a_contradiction_is_refused(monkeypatch, run, policy):
    in_another_world(run)
    played = []
    monkeypatch.setattr(
        evaluate,
        "make_env",
        lambda args, *more: played.append(getattr(args, "env", args)) or Doors(),
    )
    run_main(monkeypatch, evaluate, "--policy", f"runs/default/{policy}", "--out", "new", *EVALUATE)
    assert played == ["webshop"]
    arguments = [
        "--policy",
        f"runs/default/{policy}",
        "--out",
        "other",
        *EVALUATE,
        "--env",
        "alfworld",
    ]
    refused(
        monkeypatch,
        evaluate,
        *arguments,
        says="--env alfworld: the policy that is read was trained in webshop",
    )


def test_policies_of_two_worlds_are_not_compared(monkeypatch, run):
    shutil.copytree("runs/default", "runs/shop")
    in_another_world(Path("runs/shop"))
    both = ["--policy", "runs/default/warmup", "runs/shop/warmup", "--out", "new"]
    refused(
        monkeypatch,
        evaluate,
        *both,
        says="--policy runs/shop/warmup played webshop, another one alfworld",
    )


@pytest.mark.parametrize("script", [mine, distill, evaluate], ids=lambda script: script.__name__)
def test_another_world_than_the_runs_is_refused(monkeypatch, run, script):
    in_another_world(run)
    refused(
        monkeypatch, script, "--env", "alfworld", says="was trained in webshop; leave --env out"
    )


def test_a_control_from_another_runs_policy_plays_that_ones_world(monkeypatch, run):
    in_another_world(run)
    control = [
        "--run",
        "control",
        "--model",
        "runs/default/warmup/policy",
        "--iterations",
        "1",
        *SMALL,
    ]
    refused(monkeypatch, warmup, *control, "--env", "alfworld", says="was trained in webshop")
    run_main(monkeypatch, warmup, *control)
    assert phases.begun_with("runs/control/warmup")["env"] == "webshop"


def test_skills_of_another_world_are_refused(monkeypatch, run):
    Path("shop.jsonl").write_text(files.dump(SKILL | {"skill_id": "a", "env": "webshop"}) + "\n")
    arguments = [*PHASES[distill], "--overwrite", "--skills", "shop.jsonl"]
    refused(monkeypatch, distill, *arguments, says="written in webshop, but alfworld is played")
    arguments = ["--policy", "runs/default/mine", "--with-skills", "shop.jsonl", "--out", "new"]
    refused(monkeypatch, evaluate, *arguments, says="written in webshop, but alfworld is played")


def test_skills_that_fit_no_game_are_refused_by_distillation_and_counted_by_evaluation(
    monkeypatch, run, capsys
):
    odd = SKILL | {"skill_id": "a", "status": "active", "task_type": "none_such"}
    Path("odd.jsonl").write_text(files.dump(odd) + "\n")
    arguments = [*PHASES[distill], "--overwrite", "--skills", "odd.jsonl"]
    refused(monkeypatch, distill, *arguments, says="fits any of the")
    arguments = ["--policy", "runs/default/mine", "--with-skills", "odd.jsonl", "--out", "new"]
    run_main(monkeypatch, evaluate, *EVALUATE, *arguments, "--games", "2")
    assert "; a skill fitted 0 of 2 games" in capsys.readouterr().out


def test_later_phases_take_the_preset_and_the_model_of_the_run(monkeypatch, run):
    path = run / "warmup" / "args.json"
    path.write_text(path.read_text().replace('"preset": "laptop"', '"preset": "paper"'))
    monkeypatch.setattr(sys, "argv", ["mine.py"])
    args = cli.parse_args(cli.make_parser("test"))
    assert (args.preset, args.lr, args.model) == ("paper", 1e-6, "model")
    refused(
        monkeypatch,
        mine,
        "--model",
        "other",
        says="--model other: the run that is read began with model",
    )


# ---- A. stale inputs -----------------------------------------------------------------------------


def test_what_was_made_from_weights_that_are_no_more_is_refused_with_the_command_to_redo(
    monkeypatch, run
):
    run_main(monkeypatch, warmup, *PHASES[warmup], "--overwrite", "--seed", "2")
    line = refused(
        monkeypatch,
        distill,
        *PHASES[distill],
        "--overwrite",
        says="runs/default/mine was made from other weights than",
    )
    advice = shlex.split(re.search("`python mine.py (.*)`", line)[1])
    refused(
        monkeypatch, evaluate, *EVALUATE, "--overwrite", says="was made from other weights than"
    )
    refused(
        monkeypatch,
        evaluate,
        "--policy",
        "runs/default/distill",
        "--out",
        "new",
        says="was made from other weights than",
    )
    run_main(monkeypatch, evaluate, "--policy", "runs/default/warmup", "--out", "new", *EVALUATE)
    run_main(monkeypatch, mine, *advice)
    refused(
        monkeypatch,
        evaluate,
        *EVALUATE,
        "--overwrite",
        says="runs/default/distill was made from other weights than",
    )


def test_an_unfinished_phase_does_not_go_on_from_other_weights(monkeypatch, run):
    unfinished("mine")
    run_main(monkeypatch, warmup, *PHASES[warmup], "--overwrite", "--seed", "2")
    refused(monkeypatch, mine, *PHASES[mine], says="was begun with other weights than")


def test_an_unfinished_distillation_does_not_go_on_with_other_skills(monkeypatch, run):
    unfinished("distill")
    Path("skills.jsonl").write_text(files.dump(SKILL | {"skill_id": "b", "env": "alfworld"}) + "\n")
    refused(
        monkeypatch,
        distill,
        *PHASES[distill],
        "--skills",
        "skills.jsonl",
        says="was begun with other skills than",
    )


def test_weights_that_were_damaged_after_the_phase_are_not_read(monkeypatch, run):
    path = run / "warmup" / "policy" / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 1
    path.write_bytes(raw)
    refused(
        monkeypatch,
        mine,
        *PHASES[mine],
        "--overwrite",
        says="model.safetensors is damaged: make that phase anew with",
    )
    refused(monkeypatch, evaluate, *EVALUATE, "--overwrite", says="model.safetensors is damaged")


def test_a_run_that_was_renamed_or_whose_source_was_deleted_is_still_good(monkeypatch, run):
    os.rename("runs/default", "runs/other")
    run_main(monkeypatch, evaluate, "--run", "other", *EVALUATE, "--overwrite")
    shutil.rmtree("runs/other/warmup")
    run_main(monkeypatch, evaluate, "--policy", "runs/other/distill", "--out", "new", *EVALUATE)


def test_a_run_that_was_renamed_goes_on_by_its_new_name(monkeypatch, run):
    unfinished("warmup")
    os.rename("runs/default", "runs/other")
    run_main(monkeypatch, warmup, *PHASES[warmup], "--run", "other")
    assert Path("runs/other/warmup/done").exists() and not Path("runs/default").exists()


def test_a_checkpoint_of_another_run_is_not_gone_on_from(monkeypatch, run):
    run_main(monkeypatch, warmup, *PHASES[warmup], "--seed", "2", "--run", "two")
    shutil.rmtree("runs/default/warmup/checkpoints/000003")
    shutil.copytree("runs/two/warmup/checkpoints/000003", "runs/default/warmup/checkpoints/000003")
    unfinished("warmup")
    says = "000003 is a checkpoint of another run or phase"
    refused(monkeypatch, warmup, *PHASES[warmup], says=says)


def test_weights_that_change_while_others_are_played_are_noticed(monkeypatch, run):
    load = evaluate.load_policy

    def meanwhile(folder, args):
        shutil.copy("runs/default/mine/policy/model.safetensors", "runs/default/warmup/policy")
        return load(folder, args)

    monkeypatch.setattr(evaluate, "load_policy", meanwhile)
    arguments = ["--policy", "model", "runs/default/warmup", "--out", "new", *EVALUATE]
    with pytest.raises(UserError, match="warmup/policy has changed while other policies"):
        run_main(monkeypatch, evaluate, *arguments)
    assert {r["arm"] for r in files.read_jsonl("new/results.jsonl")} == {"model"}


def test_a_phase_that_names_itself_as_its_source_is_told(monkeypatch, run):
    path = run / "warmup" / "args.json"
    made = {"weights": files.fingerprint(run / "mine" / "policy")}
    made["places"] = {"weights": "../mine/policy"}
    path.write_text(files.dump(json.loads(path.read_text()) | {"made_from": made}))
    refused(monkeypatch, evaluate, *EVALUATE, "--overwrite", says="was made from itself")


def test_a_finished_phase_without_weights_is_made_anew_as_it_advises(monkeypatch, run):
    for name in ("policy", "checkpoints"):
        shutil.rmtree(run / "warmup" / name)
    line = refused(monkeypatch, mine, *PHASES[mine], "--overwrite", says="no policy in")
    advice = shlex.split(re.search("`python warmup.py (.*)`", line)[1])
    run_main(monkeypatch, warmup, *advice)


def test_warm_up_takes_a_phases_folder_as_its_source(monkeypatch, run):
    arguments = [word for word in PHASES[warmup] if word not in ("--model", "model")]
    source = ["--from", "runs/default/warmup", "--run", "control", "--iterations", "1"]
    run_main(monkeypatch, warmup, *arguments, *source)
    made = json.loads(Path("runs/control/warmup/args.json").read_text())["made_from"]
    assert made["weights"] == files.fingerprint("runs/default/warmup/policy")
    unfinished("warmup")
    refused(monkeypatch, warmup, *arguments, *source[:2], "--run", "new", says="is not finished")


def test_every_done_has_the_fingerprints_of_what_went_in_and_what_came_out(run):
    done = {
        phase: json.loads((run / phase / "done").read_text())["fingerprints"]
        for phase in ("warmup", "mine", "distill")
    }
    assert (
        done["mine"]["made_from"]["weights"] == done["warmup"]["weights"] != done["mine"]["weights"]
    )
    assert done["distill"]["made_from"]["weights"] == done["mine"]["weights"]
    assert done["distill"]["made_from"]["skills"] == files.sha256("skills.jsonl")
    assert done["warmup"]["weights"] == files.sha256(
        run / "warmup" / "policy" / "model.safetensors"
    )


# ---- A. cut files --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["trajectories.jsonl", "metrics.jsonl"])
@pytest.mark.parametrize("cut", ["short", "empty", "gone"])
def test_lines_that_are_missing_are_noticed(monkeypatch, run, name, cut):
    folder = unfinished("warmup")
    if cut == "gone":
        (folder / name).unlink()
    else:
        os.truncate(folder / name, 0 if cut == "empty" else 100)
    arguments = [*PHASES[warmup], "--iterations", "4"]
    line = refused(monkeypatch, warmup, *arguments, says=f"{folder / name} has")
    assert "at the last checkpoint it had" in line and "--overwrite" in line
    run_main(monkeypatch, warmup, *arguments, "--overwrite")


def test_lines_behind_the_checkpoint_are_cut(monkeypatch, run):
    folder = unfinished("warmup")
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"torn": ')
    run_main(monkeypatch, warmup, *PHASES[warmup])
    assert len(files.read_jsonl(folder / "metrics.jsonl")) == 3


EPISODES = {  # what is done to the last line of warm-up's trajectories
    "no iteration": lambda row: row.pop("iteration"),
    "iteration": lambda row: row.update(iteration="2"),
    "no steps": lambda row: row.pop("steps"),
    "empty": lambda row: row.update(steps=[]),
    "a step": lambda row: row["steps"][0].pop("action"),
    "no text": lambda row: row["steps"][0].update(observation=None),
    "success": lambda row: row.update(success="no"),
    "the end": lambda row: row.pop("final_observation"),
    "no phase": lambda row: row.pop("phase"),
    "no skills": lambda row: row.pop("skill_ids"),
    "no reward": lambda row: row.pop("reward"),
    "well-formed": lambda row: row["steps"][0].pop("valid"),
    "half of the advantage": lambda row: row["steps"][0].update(step_advantage=None),
}


@pytest.mark.parametrize("what", EPISODES)
def test_an_episode_that_no_phase_wrote_is_refused_with_its_line(monkeypatch, run, what):
    path = run / "warmup" / "trajectories.jsonl"
    lines = files.read_jsonl(path)
    EPISODES[what](lines[-1])
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    says = f"line {len(lines)}: expected an episode, found no"
    refused(monkeypatch, mine, *PHASES[mine], "--overwrite", says=says)


@pytest.mark.parametrize("cut", ['{"iteration": 3, "suc', '{"iteration": 3}', "[" * 99_999])
def test_a_line_that_a_running_phase_is_writing_stops_no_evaluation(monkeypatch, run, cut):
    with open(run / "distill" / "metrics.jsonl", "a") as file:
        file.write(cut)
    run_main(monkeypatch, evaluate, *EVALUATE, "--overwrite")


# ---- A. repetitions are no new games -------------------------------------------------------------


def test_twelve_games_of_fifty_wins_each_tell_as_much_as_twelve_episodes():
    rate, low, high = intervals.interval([[1] * 50] * 12)
    assert rate == 1 and low == pytest.approx(12 / (12 + 1.96**2), abs=1e-4) and high == 1
    assert intervals.interval([[0] * 50] * 12)[2] == pytest.approx(1 - low)
    assert (
        intervals.interval([[1] * 50] * 11 + [[1] * 49 + [0]])[1] < 0.8
    )  # a single loss makes no 600 games of them


def test_the_design_effect_is_one_of_single_plays_and_the_repetitions_of_games_that_never_change():
    assert intervals.design_effect([[1], [0], [1]] * 9) == 1
    assert intervals.design_effect([[1] * 6, [0] * 6] * 50) == 6
    assert intervals.interval([[1] * 6, [0] * 6] * 50) == pytest.approx(
        intervals.interval([[1], [0]] * 50)
    )


def test_intervals_cover_the_truth_in_19_of_20_cases_whatever_games_have_in_common():
    stream = np.random.default_rng(0)
    for spread, tries in (
        (0.01, 300),
        (1.0, 300),
        (50.0, 300),
    ):  # of games: much alike, half, hardly at all
        hits = 0
        for _ in range(tries):
            chance = stream.beta(0.8 * spread, 0.2 * spread, 60)
            games = [list(stream.random(4) < p) for p in chance]
            _, low, high = intervals.interval([[int(won) for won in game] for game in games])
            hits += low <= 0.8 <= high
        assert 0.92 <= hits / tries <= 1.0, (spread, hits)


def test_a_mean_over_pairs_counts_games_not_pairs():
    d = np.array([1.0, 0.0, 0.0, -1.0])
    assert intervals.half_width(d) == pytest.approx(1.96 * d.std(ddof=1) / 2)
    twice, games = np.repeat(d, 2), [0, 0, 1, 1, 2, 2, 3, 3]
    assert intervals.half_width(twice, games) == pytest.approx(intervals.half_width(d))
    assert intervals.half_width(twice) < 0.8 * intervals.half_width(d)
    assert math.isnan(intervals.half_width(np.ones(3), ["same"] * 3))


# ---- B. resuming ---------------------------------------------------------------------------------

FREE = ["--threads 2", "--rollout-batch 3", "--micro-batch-tokens 500", "--max-prompt 900",
        "--save-every 2", "--snapshots 9",
        "--gradient-checkpointing", "--allow-malformed", "--iterations 4"]  # fmt: skip


@pytest.mark.parametrize("more", FREE)
def test_what_changes_no_result_and_what_extends_a_run_may_change(monkeypatch, run, more):
    unfinished("warmup")
    run_main(monkeypatch, warmup, *PHASES[warmup], *more.split())
    assert json.loads((run / "warmup" / "done").read_text())["iterations"] == (
        4 if "iterations" in more else 3
    )


@pytest.mark.parametrize(
    "more",
    [
        "--groups 5",
        "--group-size 6",
        "--seed 2",
        "--lr 0.1",
        "--beta 0.5",
        "--iterations 2",
        "--dtype bfloat16",
        "--window 3",
    ],
)
def test_what_changes_the_result_is_refused_with_what_it_was(monkeypatch, run, more):
    unfinished("warmup")
    refused(
        monkeypatch,
        warmup,
        *PHASES[warmup],
        *more.split(),
        says=f"was begun with other arguments: {more.split()[0]} (was",
    )


def test_a_finished_phase_is_extended_by_more_iterations_and_ends_as_an_uninterrupted_one(
    monkeypatch, run
):
    refused(
        monkeypatch,
        warmup,
        *PHASES[warmup],
        says="is finished: go on with the next phase, extend it with more --iterations",
    )
    run_main(monkeypatch, warmup, *PHASES[warmup], "--iterations", "5")
    run_main(monkeypatch, warmup, *PHASES[warmup], "--iterations", "5", "--run", "whole")
    extended, whole = (
        load_file(f"runs/{name}/warmup/policy/model.safetensors") for name in ("default", "whole")
    )
    assert all(torch.equal(extended[key], whole[key]) for key in whole)


def test_a_phase_that_had_reached_its_goal_ends_there_when_it_was_killed(monkeypatch):
    def killed(*about):
        raise KeyboardInterrupt

    arguments = [*PHASES[warmup], "--stop-at", "0.01", "--window", "1"]
    with monkeypatch.context() as patch:
        patch.setattr(runs.Run, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            run_main(patch, warmup, *arguments)
    folder = Path("runs/default/warmup")
    assert not (folder / "done").exists()
    n = len(files.read_jsonl(folder / "metrics.jsonl"))
    run_main(monkeypatch, warmup, *arguments)
    assert json.loads((folder / "done").read_text())["iterations"] == n < 3


# ---- B. damaged state, stray files ---------------------------------------------------------------

CHECKPOINT = [
    "state.pt",
    "model.safetensors",
    "config.json",
    "tokenizer.json",
    "checkpoint.json",
    "sha256.json",
]


def damaged(path, how):
    raw = Path(path).read_bytes()
    if how == "gone":
        return Path(path).unlink()
    new = {
        "cut": raw[: len(raw) // 2],
        "empty": b"",
        "flipped": raw[:9] + bytes([raw[9] ^ 255]) + raw[10:],
    }[how]
    Path(path).write_bytes(new)


@pytest.mark.parametrize("name", CHECKPOINT)
@pytest.mark.parametrize("how", ["cut", "empty", "flipped", "gone"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(
    monkeypatch, run, capsys, name, how
):
    unfinished("warmup")
    path = "runs/default/warmup/checkpoints/000003/model.safetensors"
    good = {key: tensor.clone() for key, tensor in load_file(path).items()}
    damaged(f"runs/default/warmup/checkpoints/000003/{name}", how)
    run_main(monkeypatch, warmup, *PHASES[warmup])
    assert "is damaged, the checkpoint before it is used" in capsys.readouterr().err
    again = load_file("runs/default/warmup/policy/model.safetensors")
    assert all(
        torch.equal(again[key], good[key]) for key in good
    )  # the third iteration is made again, to the last bit
    assert len(files.read_jsonl("runs/default/warmup/metrics.jsonl")) == 3


def test_without_a_sound_checkpoint_the_line_names_the_file_and_what_to_do(monkeypatch, run):
    unfinished("warmup")
    for one in phases.checkpoints("runs/default/warmup"):
        damaged(one / "state.pt", "cut")
    line = refused(
        monkeypatch, warmup, *PHASES[warmup], says="is damaged and no earlier checkpoint is left"
    )
    assert "start anew with --overwrite" in line
    run_main(monkeypatch, warmup, *PHASES[warmup], "--overwrite")


def resealed(name, text):
    """A checkpoint's file is another one, and the seal knows it."""
    folder = Path("runs/default/warmup/checkpoints/000003")
    (folder / name).write_text(text)
    files.seal(folder)


def test_a_checkpoint_whose_counters_are_none_falls_back_to_the_one_before(
    monkeypatch, run, capsys
):
    unfinished("warmup")
    for text in ('{"iteration": -1, "lengths": {"a": 1}, "state": {}}', "{}", "{"):
        resealed("checkpoint.json", text)
        assert runs.counters_of(run / "warmup/checkpoints/000003/checkpoint.json") == {}
    run_main(monkeypatch, warmup, *PHASES[warmup])
    assert "checkpoint.json is damaged, the checkpoint before it" in capsys.readouterr().err


def test_an_empty_seal_hides_no_missing_file(monkeypatch, run, capsys):
    unfinished("warmup")
    folder = run / "warmup" / "checkpoints" / "000003"
    (folder / "sha256.json").write_text("{}")
    (folder / "state.pt").unlink()
    run_main(monkeypatch, warmup, *PHASES[warmup])
    assert "state.pt is damaged, the checkpoint before it is used" in capsys.readouterr().err


def test_an_optimizer_of_another_model_is_told_before_anything_is_cut(monkeypatch, run):
    unfinished("warmup")
    folder = run / "warmup" / "checkpoints" / "000003"
    torch.save({"optimizer": {"state": {}, "param_groups": []}}, folder / "state.pt")
    files.seal(folder)
    refused(monkeypatch, warmup, *PHASES[warmup], says="state.pt is not this model's")
    (folder / "state.pt").write_text("no state")
    files.seal(folder)
    refused(monkeypatch, warmup, *PHASES[warmup], says="state.pt is not this model's")


MARKS = {
    "command": 7,
    "made_from": [1],
    "made_from ": {"weights": "x", "places": 7},
    "made_from  ": {"places": {"weights": "../warmup/policy"}},
    "made_from   ": {"weights": "x", "places": {"weights": 3}},
}


@pytest.mark.parametrize("key", MARKS)
def test_a_mark_of_wrong_types_is_told_in_one_line(monkeypatch, run, key):
    path = run / "mine" / "args.json"
    path.write_text(files.dump(json.loads(path.read_text()) | {key.strip(): MARKS[key]}))
    refused(monkeypatch, evaluate, *EVALUATE, "--overwrite", says="mine/args.json is damaged")


@pytest.mark.parametrize("prints", [[1], "x"])
def test_fingerprints_of_wrong_types_are_told_in_one_line(monkeypatch, run, prints):
    (run / "mine" / "done").write_text(files.dump({"fingerprints": prints}))
    says = "is not what the phase wrote"
    refused(monkeypatch, evaluate, *EVALUATE, "--overwrite", says=says)


@pytest.mark.parametrize(
    "text",
    ["", "{", '{"phase": "warmup"', "[]", "null", "\x00\x01", '{"phase": "warmup", "args": []}'],
)
@pytest.mark.parametrize("script", [warmup, mine, evaluate], ids=lambda script: script.__name__)
def test_a_damaged_args_json_is_told_in_one_line(monkeypatch, run, script, text):
    (run / "warmup" / "args.json").write_text(text)
    arguments = EVALUATE if script is evaluate else [*PHASES[script], "--overwrite"]
    try:
        refused(monkeypatch, script, *arguments)
    except AssertionError as error:  # evaluation may do without: then it says what it found
        assert script is not warmup and "UserError" in str(error), error


def test_an_older_checkpoint_goes_only_when_a_newer_one_is_on_disk(monkeypatch):
    seen, replace = [], os.replace

    def watched(old, new):
        if str(old).endswith(".part") and Path(old).is_dir():
            seen.append([one.name for one in phases.checkpoints("runs/default/warmup")])
        replace(old, new)

    monkeypatch.setattr(os, "replace", watched)
    run_main(monkeypatch, warmup, *PHASES[warmup])
    assert seen[:3] == [[], ["000001"], ["000002"]]
    assert [one.name for one in phases.checkpoints("runs/default/warmup")] == ["000002", "000003"]


@pytest.mark.parametrize(
    "stray",
    [".DS_Store", "Thumbs.db", "000002 (copy)", "000009.txt", "lost+found/", "123", "000007.part/"],
)
def test_stray_files_among_checkpoints_are_nobodys_concern(monkeypatch, run, stray):
    unfinished("warmup")
    path = run / "warmup" / "checkpoints" / stray
    path.mkdir() if stray.endswith("/") else path.write_text("x")
    run_main(monkeypatch, warmup, *PHASES[warmup], "--iterations", "4")
    assert path.exists() or stray == "000007.part/"  # an unfinished checkpoint is ours


# ---- B. files from elsewhere ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a": 1}\n{"a": 2}\n',
        b'\xef\xbb\xbf{"a": 1}\n{"a": 2}\n',
        b'{"a": 1}\r\n{"a": 2}\r\n',
        b'\n\n{"a": 1}\n   \n{"a": 2}\n\n',
        b'{"a": 1}\n{"a": 2}',
    ],
)
def test_json_lines_from_other_systems_are_read(raw):
    Path("x.jsonl").write_bytes(raw)
    assert files.read_jsonl("x.jsonl") == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ('{"a": 1}\n'.encode("utf-16"), "expected UTF-8, found UTF-16"),
        ('{"a": 1}\n'.encode("utf-16-be"), "line 1 is not a JSON object"),
        ('{"a": "é"}\n'.encode("latin-1"), "line 1: expected UTF-8, found byte 0xe9"),
        (b'{"a": 1}\n{"a": NaN}\n', "line 2 is not a JSON object (found NaN, which is no number)"),
        (b'{"a": -Infinity}\n', "found -Infinity"),
        (b'{"a": [1e999]}\n', "too large"),
        (b"[1, 2]\n", "line 1 is not a JSON object (not an object)"),
        (b'{"a": 1}{"b": 2}\n', "line 1 is not a JSON object"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a": ' * 200_000, "nested too deeply"),
        (b"\x00" * 50, "line 1 is not a JSON object"),
    ],
)
def test_what_is_no_json_is_told_with_file_and_line(raw, says):
    Path("x.jsonl").write_bytes(raw)
    with pytest.raises(UserError) as mistake:
        files.read_jsonl("x.jsonl")
    assert (
        says in str(mistake.value)
        and "x.jsonl" in str(mistake.value)
        and len(str(mistake.value)) < 300
    )


def test_a_folder_a_pipe_and_a_missing_file_are_no_json_lines():
    os.mkfifo("pipe")
    for path in ("model", "pipe", "nothing"):
        with pytest.raises(UserError, match=f"no file {path}"):
            files.read_jsonl(path)


def test_half_a_surrogate_pair_is_read_and_written_as_a_question_mark():
    Path("x.jsonl").write_text('{"a": "\\ud83d go"}\n')
    assert files.read_jsonl("x.jsonl") == [{"a": "? go"}]
    files.write_jsonl("y.jsonl", [{"a": "\ud83d", "b": math.nan, "c": [math.inf, 1.0]}])
    assert files.read_jsonl("y.jsonl") == [{"a": "?", "b": None, "c": [None, 1.0]}]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"utility": "high"}, "expected a number as utility, found 'high'"),
        ({"utility": True}, "expected a number as utility"),
        ({"n_eval": -1}, "expected a whole number of at least 0 as n_eval"),
        ({"n_eval": 1.5}, "as n_eval"),
        ({"status": "retried"}, "expected candidate, active or retired as status"),
        ({"status": None}, "as status"),
        ({"deltas": [1, "x"]}, "expected a list of numbers as deltas"),
        ({"deltas": 3}, "as deltas"),
        ({"source_task_ids": "all"}, "expected a list of texts as source_task_ids"),
        ({"condition": 5}, "expected a text as condition"),
        ({"condition": ""}, "empty field"),
        ({"strategy": "word " * 90}, "strategy too long"),
        ({"strategy": ["open", "it"]}, "expected a text as strategy"),
        ({"task_type": 7}, "expected a text or null as task_type"),
        ({"skill_id": None}, "expected a text as skill_id"),
        ({"env": 3}, "expected a text as env"),
        ({"env": "webshop"}, "written in webshop"),
        ({"promoted_n": "8"}, "expected a whole number of at least 0 as promoted_n"),
        ({"reason": [1]}, "expected a text as reason"),
        ({"utility": 10**400}, "found a number that is too large"),
        ({"n_eval": 10**400}, "found a number that is too large"),
        ({"strategy": "\x00\x1b"}, "empty field"),
    ],
)
def test_a_skill_of_the_wrong_kind_is_refused_with_line_and_field(monkeypatch, run, changes, says):
    good = SKILL | {"skill_id": "good"}
    Path("own.jsonl").write_text(
        f"{files.dump(good)}\n\n{files.dump(SKILL | {'skill_id': 'bad'} | changes)}\n"
    )
    line = refused(
        monkeypatch, distill, *PHASES[distill], "--overwrite", "--skills", "own.jsonl", says=says
    )
    assert "own.jsonl, line 3" in line


def test_a_skills_file_with_just_the_demanded_keys_is_enough(monkeypatch, run):
    Path("own.jsonl").write_bytes(
        b"\xef\xbb\xbf" + files.dump(SKILL | {"skill_id": "own"}).encode() + b"\r\n\r\n"
    )
    run_main(monkeypatch, distill, *PHASES[distill], "--overwrite", "--skills", "own.jsonl")
    assert files.read_jsonl("runs/default/distill/skills.jsonl")[0]["n_eval"] > 0


def test_a_skills_text_reaches_no_terminal_with_control_characters():
    odd = {"skill_id": "a", "condition": "find \x1b[31mred\x07", "strategy": "a \u202eb\nc"}
    files.write_jsonl("own.jsonl", [SKILL | odd])
    (skill,) = files.skills_file("own.jsonl")
    assert (skill["condition"], skill["strategy"]) == ("find [31mred", "a b c")
    assert skill["title"] == "find [31mred"


def test_two_skills_of_one_name_are_refused():
    Path("own.jsonl").write_text((files.dump(SKILL | {"skill_id": "a"}) + "\n") * 2)
    with pytest.raises(UserError, match="line 2: skill_id 'a' is that of line 1, too"):
        files.skills_file("own.jsonl")


@pytest.mark.parametrize("damage", ["no success", "no iteration", "no steps"])
def test_results_without_a_field_are_named(monkeypatch, run, damage):
    path = run / "evaluate" / "results.jsonl"
    lines = files.read_jsonl(path)
    del lines[2][
        {"no success": "success", "no iteration": "task_id", "no steps": "n_steps"}[damage]
    ]
    files.write_jsonl(path, lines)
    refused(monkeypatch, evaluate, *EVALUATE, says="episode 3 lacks a field")


# ---- B. environment ------------------------------------------------------------------------------


def script(name, *arguments, timeout=120, **variables):
    """A script in a process of its own: (exit code, its stderr lines)."""
    env = {
        **{k: v for k, v in os.environ.items() if k not in ("WORLD_SIZE", "RANK")},
        "OMP_NUM_THREADS": "1",
        **variables,
    }
    done = subprocess.run(
        [sys.executable, str(ROOT / f"{name}.py"), *arguments],
        env=env,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    return done.returncode, done.stdout, done.stderr.strip().splitlines()


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"WORLD_SIZE": "2"}, "no launcher has started them"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two in the environment: expected a whole number"),
        ({"RANK": "x"}, "RANK=x in the environment"),
        ({"WORLD_SIZE": "0"}, "no launcher"),
        ({"RANK": "3"}, "no launcher"),
        ({"WORLD_SIZE": "2", "RANK": "5", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "no launcher"),
    ],
)
def test_half_of_a_launchers_environment_is_told_in_one_line(monkeypatch, variables, says):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as mistake:
        parallel.begin("cpu")
    assert says in str(mistake.value) and "unset" in str(mistake.value)


@pytest.mark.slow
def test_mistakes_are_one_line_and_exit_code_2_of_a_real_process():
    for arguments, says in (
        (["--groups", "0"], "--groups: expected a whole number"),
        (["--device", "foo"], "--device: expected"),
        (["--env", "broken:World", "--model", "model"], "--env broken:World"),
    ):
        Path("broken.py").write_text("print('importing')\nraise SystemError('no such luck')\n")
        code, _, lines = script("warmup", *arguments, PYTHONPATH=str(Path.cwd()))
        assert (
            code == 2 and len(lines) == 1 and lines[0].startswith("error: ") and says in lines[0]
        ), lines
    code, _, lines = script("warmup", "--model", "model", WORLD_SIZE="2")
    assert code == 2 and len(lines) == 1 and "WORLD_SIZE" in lines[0], lines


@pytest.mark.slow
def test_processes_that_never_come_are_told_of(monkeypatch):
    code = """
import sys
from datetime import timedelta
from support import parallel
parallel.JOIN = timedelta(seconds=2)
sys.argv = ["warmup.py", "--device", "cpu"]
import warmup
warmup.run_script(warmup.main)
"""
    variables = dict(
        WORLD_SIZE="2", RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="29641", PYTHONPATH=str(ROOT)
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (
        done.returncode == 2
        and "2 processes were to meet at 127.0.0.1:29641" in done.stderr.splitlines()[-1]
    )


def test_a_terminal_without_arrows_a_closed_pipe_and_a_full_disk_end_nothing(tmp_path):
    class Full:
        def write(self, *text):
            raise OSError(28, "No space left on device")

        flush = write

    print("x", file=cli.Steady(Full()), flush=True)
    with open(tmp_path / "out", "w", encoding="cp1252") as file:
        print("a → b \ud83d", file=cli.Steady(file), flush=True)
    assert (tmp_path / "out").read_bytes() == b"a ? b ?\n"
    closed = open(tmp_path / "closed", "w")
    closed.close()
    print("x", file=cli.Steady(closed), flush=True)


@pytest.mark.slow
def test_ctrl_c_while_packages_are_imported_is_one_line():
    listening = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
    command = [sys.executable, "-X", "importtime", str(ROOT / "warmup.py")]
    how = dict(stderr=subprocess.PIPE, text=True, preexec_fn=listening)
    process = subprocess.Popen(command, **how)
    for line in process.stderr:  # a line for every package, when it has been imported
        if "torch._C" in line or "torch.version" in line:
            break
    process.send_signal(signal.SIGINT)
    lines = [line for line in process.stderr if not line.startswith("import time:")]
    assert process.wait(timeout=60) and len([line for line in lines if line.strip()]) == 1, lines
    assert "stopped" in "".join(lines)


def test_a_class_of_ones_own_that_raises_is_told_in_one_line(monkeypatch, tmp_path):
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("luckless.py").write_text("raise SystemError('no such luck')\n")
    Path("wordless.py").write_text(
        "class World:\n    def __init__(self):\n        raise KeyError('x')\n"
    )
    for name in (
        "luckless:World",
        "wordless:World",
        "json:nothing",
        "nowhere:World",
        "chess",
        "a:b:c",
        ":",
        "json:",
    ):
        with pytest.raises(
            UserError, match="expected alfworld or webshop, or MODULE:CLASS"
        ) as mistake:
            run_main(monkeypatch, warmup, "--env", name, "--model", "model")
        assert "\n" not in str(mistake.value)


WORLDS = {
    "    pass\nclass World: pass": "it lacks split_names, max_steps, tasks",
    "    anchor = property()": "it lacks anchor",
    "    def tasks(self, split): raise OSError('no disk')": "OSError: no disk",
    "    def tasks(self, split): return []": "expected texts as tasks('train'), found []",
    "    def tasks(self, split): return [1, 2]": "expected texts as tasks",
    "    split_names = 'train'": "expected names, the training split first",
    "    max_steps = None": "expected a whole number as max_steps",
    "    def reset(self, *a): return ('x', {})": "has no attribute",
    "    def reset(self, *a): s = super().reset(*a); s.observation = b'x'; return s": "found b'x'",
    "    def anchor(self, o): return {}": "expected texts as what reset",
    "    def step(self, a): super().step(a)": "NoneType",
    "    def step(self, a): s = super().step(a); s.reward = float('nan'); return s": "finite",
    "    def step(self, a): s = super().step(a); s.reward = '10'; return s": "finite",
    "    def fork(self): pass": "NoneType",
    "    def __init__(self): self.__init__()": "RecursionError",
}


@pytest.mark.parametrize("body", WORLDS)
def test_a_world_of_ones_own_that_is_none_is_told_before_a_model_is_loaded(
    monkeypatch, tmp_path, body
):
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "odd_world", raising=False)
    Path("odd_world.py").write_text(f"from tests.toy import Doors\nclass World(Doors):\n{body}\n")
    sys.path_importer_cache.clear()
    with pytest.raises(UserError) as mistake:
        common.make_env("odd_world:World")
    assert WORLDS[body] in str(mistake.value) and "\n" not in str(mistake.value)


def test_a_complete_world_is_taken_and_says_itself_how_many_steps_it_has(monkeypatch):
    assert common.make_env("tests.toy:Doors").max_steps == 3
    says = "--max-steps: tests.toy:Doors says itself how many"
    own = ["--env", "tests.toy:Doors", "--max-steps", "7"]
    refused(monkeypatch, warmup, *PHASES[warmup], *own, says=says)


def test_a_world_whose_training_games_are_all_held_out_is_told(monkeypatch):
    held = next(task for task in Doors().tasks("train") if common.is_held_out(task))
    monkeypatch.setattr(Doors, "tasks", lambda self, split: [held] if split == "train" else [])
    with pytest.raises(UserError, match="held out: more games are needed"):
        common.sample_tasks(common.train_tasks(Doors()), 2, files.rng("any"))
    with pytest.raises(UserError, match="--split valid has no games here"):
        evaluate.panel_of(Doors(), ["valid"])
    with pytest.raises(UserError, match="add --split held_out"):
        evaluate.panel_of(Doors(), Doors.split_names[2:])


# ---- B. models -----------------------------------------------------------------------------------

CONFIGS = {
    "architectures": [3],
    "max_position_embeddings": "many",
    "max_position_embeddings ": 16,
    "max_position_embeddings  ": -5,
    "layer_types": [5],
    "rope_parameters": 7,
    "hidden_size": 0,
    "vocab_size": -1,
}


@pytest.mark.parametrize("key", CONFIGS)
def test_a_config_of_wrong_types_is_told_before_anything_is_written(monkeypatch, key):
    path = Path("model/config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {key.strip(): CONFIGS[key]}))
    refused(monkeypatch, warmup, *PHASES[warmup], says="model")


def test_a_checkpoint_that_is_gone_is_told_apart_from_a_wrong_model(monkeypatch, run):
    for what in ("model.safetensors", "config.json"):  # its phase is deleting it
        (run / "warmup/checkpoints/000002" / what).unlink()
        with pytest.raises(UserError, match="is gone, its phase goes on"):
            common.Policy("runs/default/warmup/checkpoints/000002")


def test_weights_that_a_config_does_not_know_are_named(capsys):
    weights = load_file("model/model.safetensors")
    save_file(weights | {"model.layers.9.x": torch.zeros(2)}, "model/model.safetensors")
    common.Policy("model")
    assert "weights that its config does not know: model.layers.9.x" in capsys.readouterr().err


# ---- B. silent zero ------------------------------------------------------------------------------


def steps_of(n, length, valid):
    return [
        {"valid": valid, "inadmissible": False, "truncated": False, "response_ids": [1] * length}
        for _ in range(n)
    ]


@pytest.mark.parametrize(
    ("length", "valid", "says"),
    [
        (8, True, "100% of the responses were cut"),
        (3, False, "100% of the responses were ill-formed"),
    ],
)
def test_a_phase_whose_responses_nobody_can_read_stops_after_the_first_iteration(
    monkeypatch, length, valid, says
):
    assign = common.assign_advantages

    def mute(records, *about, **more):
        found = assign(records, *about, **more)
        for r in records:
            for s in r["steps"]:
                s["valid"], s["response_ids"], s["logprobs"] = (
                    valid,
                    (s["response_ids"] * 9)[:length],
                    (s["logprobs"] * 9)[:length],
                )
                s["allowed"] = (s["allowed"] * 9)[:length] if s["allowed"] else s["allowed"]
        return found

    monkeypatch.setattr(warmup, "assign_advantages", mute)
    monkeypatch.setattr(warmup, "update", lambda *about, **more: {"kl": 0.0})
    arguments = [*PHASES[warmup], "--max-response", "8"]
    with pytest.raises(UserError) as mistake:
        run_main(monkeypatch, warmup, *arguments)
    assert says in str(mistake.value) and "--allow-malformed" in str(mistake.value)
    assert (
        len(files.read_jsonl("runs/default/warmup/trajectories.jsonl")) == 24
    )  # there they are, to be looked at
    run_main(monkeypatch, warmup, *arguments, "--allow-malformed")


# ---- B. which tasks ------------------------------------------------------------------------------


def test_a_panels_hash_tells_other_ids_and_other_games_of_the_same_name():
    class Other(Doors):
        def reset(self, task_id, seed=0):
            step = super().reset(task_id, seed)
            step.observation += " it is dark." * (task_id == "valid/07")
            return step

    tasks = Doors().tasks("valid")
    same = evaluate.panel_hash(Doors(), {"valid": tasks})
    assert same == evaluate.panel_hash(Doors(), {"valid": tasks}) and len(same) == 8
    assert (
        len(
            {
                same,
                evaluate.panel_hash(Doors(), {"valid": tasks[:-1]}),
                evaluate.panel_hash(Other(), {"valid": tasks}),
            }
        )
        == 3
    )


def test_evaluation_prints_and_stores_its_panel(monkeypatch, run, capsys):
    run_main(monkeypatch, evaluate, *EVALUATE)
    panel = json.loads((run / "evaluate" / "summary.json").read_text())["panel"]
    assert f"panel {panel}" in capsys.readouterr().out


# ---- B. shell ----------------------------------------------------------------------------------


STUB = """#!/usr/bin/env bash
if [ "$1" = -c ]; then exec "$REAL" "$@"; fi
echo "$*" >>called
case "$*" in
*check.py*) ;; # reads all command lines
*distill.py*) while [ ! -s control ]; do sleep 0.05; done; exit 3 ;;
*"--stop-at 0"*) echo $$ >control; sleep 60; echo ended >control_ended ;;
*warmup.py*) mkdir -p runs/siri-x-0/warmup && echo '{}' >runs/siri-x-0/warmup/done ;;
*mine.py*) mkdir -p runs/siri-x-0/mine && echo '{"seconds": 60}' >runs/siri-x-0/mine/done ;;
esac
"""


def recipe(name, *arguments, **variables):
    """Runs a recipe in this folder with a `python` that only notes what it was called with."""
    for folder in ("recipes", "bin"):
        Path(folder).mkdir(exist_ok=True)
    shutil.copy(ROOT / "recipes" / f"{name}.sh", "recipes")
    Path("bin/python").write_text(STUB)
    Path("bin/python").chmod(0o755)
    path = f"{Path.cwd()}/bin:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "REAL": sys.executable, **variables}
    command = ["bash", f"recipes/{name}.sh", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)


EVIL = "$(touch owned)", "__import__('os').system('touch owned')", "1; touch owned", "*", "../x"


@pytest.mark.parametrize("evil", EVIL)
@pytest.mark.parametrize("name", ["compare", "ablations"])
def test_what_a_recipe_is_told_is_never_run_as_code(name, evil):
    for arguments, variables in (
        (["0", evil], {"MINUTES": "1"}),
        ([evil, "x"], {}),
        (["0", "x" if name == "compare" else "3"], {"MINUTES": evil, "SOURCE": evil}),
    ):
        done = recipe(name, *arguments, **variables)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
        assert not Path("owned").exists() and not Path("called").exists()


def test_a_recipes_children_end_with_it():
    done = recipe("compare", "0", "x", MINUTES="1.5")
    assert done.returncode == 2 and "a run of seed 0 failed" in done.stderr
    pid = int(Path("control").read_text())
    time.sleep(0.5)
    status = Path(f"/proc/{pid}/stat")  # gone, or dead and not yet taken note of
    assert not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"
    assert "--minutes 2.5" in Path("called").read_text()  # distillation's and mining's


# ---- C. small ------------------------------------------------------------------------------------


def test_temperature_0_is_greedy(monkeypatch, run):
    for seed in "12":
        arguments = [
            "--policy",
            "runs/default/warmup",
            "--temperature",
            "0",
            "--seed",
            seed,
            "--out",
            f"out{seed}",
            *EVALUATE,
        ]
        run_main(monkeypatch, evaluate, *arguments)
    one, two = (files.read_jsonl(f"out{seed}/results.jsonl") for seed in "12")
    assert one == two


def test_from_a_folder_that_is_no_phase_says_what_to_name(monkeypatch, run):
    Path("runs/src").mkdir()
    line = refused(
        monkeypatch, mine, *PHASES[mine], "--from", "runs/src", says="runs/src is no phase's folder"
    )
    assert "src.py" not in line
    refused(
        monkeypatch,
        mine,
        *PHASES[mine],
        "--run",
        "new",
        "--from",
        "runs/default",
        says="is no phase's folder: point --from at runs/NAME/PHASE",
    )


# ---- fuzz ----------------------------------------------------------------------------------------

VALUES = ["0", "1", "2", "-1", "3.5", "nan", "inf", "1e9", "1e-9", "", "x", "a b", "../x", "★",
          "0" * 50, "9" * 20, "model", "runs/default/warmup", "/dev/null", "cpu", "laptop", "paper",
          "none"]  # fmt: skip


class Accepted(Exception):
    """The arguments were taken: a model would be loaded now."""


@pytest.mark.slow
def test_random_arguments_are_taken_or_refused_in_one_line_and_nothing_is_gone(monkeypatch, run):
    def load(*about, **more):
        raise Accepted

    for module in (common, evaluate):
        monkeypatch.setattr(module, "load_policy", load)
    stream, ends, before = random.Random(0), time.time() + 60, tree()
    seen = set(before)
    texts = {"model": "model", "policy": "model", "device": "cpu", "env": "alfworld"}
    texts |= {"split": "valid_seen", "skills": "runs/default/mine/skills.jsonl"}
    fresh = {  # a folder of its own, in which nothing was begun with other arguments
        "warmup": ["--run", "new"],
        "mine": ["--run", "new", "--from", "runs/default/warmup"],
        "distill": ["--run", "new", "--from", "runs/default/mine"],
        "evaluate": ["--out", "new"],
    }
    tried = {"taken": 0, "refused": 0}
    while time.time() < ends and sum(tried.values()) < 2000:
        name = stream.choice(list(SCRIPTS))
        actions = [a for a in parser_of(name)._actions if a.dest not in ("help", "overwrite")]
        typed = []
        for action in stream.sample(actions, stream.randint(1, 3)):
            typed.append(action.option_strings[0])
            if action.nargs != 0:  # three of four values are plausible
                plausible = action.choices or [texts.get(action.dest, action.default or 3)]
                typed.append(str(stream.choice(stream.choice([VALUES, *3 * [list(plausible)]]))))
        if stream.random() < 0.7:
            typed += fresh[name]
            for folder in ("new", "runs/new"):  # of an earlier try
                shutil.rmtree(folder, ignore_errors=True)
                seen = {path for path in seen if not path.startswith(f"{folder}/")}
        try:
            run_main(monkeypatch, SCRIPTS[name], *typed)
            tried["taken"] += 1
        except Accepted:
            tried["taken"] += 1
        except UserError as mistake:
            tried["refused"] += 1
            assert "\n" not in cli.one_line(mistake)
        after = tree()
        assert {path: after.get(path) for path in before} == before, typed
        new = [path for path in after if path not in seen]
        inside = all(path.startswith("runs/") for path in new)  # evaluation writes to its --out
        assert inside or name == "evaluate", (typed, new)
        seen |= set(new)
    print(tried)
    assert min(tried.values()) > sum(tried.values()) / 5, tried


def parser_of(name):
    """The parser of a script, as its main() makes it."""
    caught = []

    def catch(parser, *about, **more):
        caught.append(parser)
        raise Accepted

    module = SCRIPTS[name]
    whole, module.parse_args = module.parse_args, catch
    try:
        module.main()
    except Accepted:
        return caught[0]
    finally:
        module.parse_args = whole


@pytest.mark.slow
def test_random_damage_to_any_file_that_a_phase_reads_is_survived_or_told_in_one_line(
    monkeypatch, ready
):
    stream, ends, tried = random.Random(1), time.time() + 150, 0
    while time.time() < ends and tried < 150:
        for folder in ("runs", "model"):
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(ready / folder, folder)
        runs.held.clear()
        phase = stream.choice(list(SCRIPTS))
        if phase != "evaluate":
            unfinished(phase)
        victims = [
            path
            for path in Path("runs").rglob("*")
            if path.is_file() and path.suffix != ".png" and path.name != "lock"
        ]
        victim = stream.choice([*victims, *Path("model").iterdir()])
        raw = bytearray(victim.read_bytes())
        how = stream.choice(["cut", "flip", "zeros", "empty", "gone", "junk"])
        at = stream.randrange(len(raw)) if raw else 0
        if how == "gone":
            victim.unlink()
        else:
            new = {
                "cut": raw[:at],
                "empty": b"",
                "zeros": raw[:at] + bytes(len(raw[at : at + 20])) + raw[at + 20 :],
            }
            new |= {
                "flip": raw[:at] + bytes([raw[at] ^ 1 << stream.randrange(8)]) + raw[at + 1 :]
                if raw
                else b"",
                "junk": bytes(raw[:at]) + b"\xff{" + raw[at:],
            }
            victim.write_bytes(new[how])
        arguments = EVALUATE if phase == "evaluate" else PHASES[SCRIPTS[phase]]
        arguments = [
            *arguments,
            *(["--skills", str(ready / "skills.jsonl")] if phase == "distill" else []),
        ]
        before = tree()
        try:
            run_main(monkeypatch, SCRIPTS[phase], *arguments)
        except UserError as mistake:
            assert len(cli.one_line(mistake)) < 800
            after = tree()
            assert not [path for path in before if path not in after], (phase, victim, how)
        except Exception as error:
            raise AssertionError(
                f"{phase} with {how} at {at} of {victim}: {type(error).__name__}: {error}"
            ) from error
        tried += 1
    assert tried > 20
