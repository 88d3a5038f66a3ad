"""The scripts: errors before any model loads, every phase killed at random moments, learning.
pytest tests/test_phases.py"""

import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import common
import distill
import evaluate
import mine
import warmup
from envs import UserError
from support import cli, files, intervals
from tests.conftest import ended, play, run_main, start, toy_worlds
from tests.toy import Doors

SMALL = (
    "--groups 6 --group-size 4 --threads 1 --mini-batch-rows 30 --seed 1 --lr 0.003 --model model"
).split()
PHASES = {
    warmup: [*SMALL, "--iterations", "6", "--stop-at", "0"],
    mine: [*SMALL, "--iterations", "6", "--mine-every", "3"],
    distill: [*SMALL, "--iterations", "6", "--k-warm", "0"],
}


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch, model_folder):
    """Works in a folder of its own, with a random policy, on generated houses whatever data this
    machine has."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ALFWORLD_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(model_folder, "model")


@pytest.fixture
def toy(monkeypatch):
    toy_worlds(monkeypatch)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, model_folder):
    """A run of all three phases on the toy, not interrupted; tests copy it."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(model_folder, folder / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        toy_worlds(patch)
        for script, arguments in PHASES.items():
            run_main(patch, script, *arguments)
    return folder / "runs"


def weights(phase):
    with open(f"runs/default/{phase}/policy/model.safetensors", "rb") as file:
        return file.read()


# ---- robustness ----


@pytest.mark.slow
@pytest.mark.parametrize("script", PHASES, ids=lambda script: script.__name__)
def test_a_phase_that_is_killed_ten_times_ends_with_the_same_weights(script, finished):
    names = [one.__name__ for one in PHASES]
    for before in names[: names.index(script.__name__)]:
        shutil.copytree(finished / "default" / before, f"runs/default/{before}")
    done = json.loads((finished / "default" / script.__name__ / "done").read_text())
    stream, kills = random.Random(script.__name__), 0
    while True:
        process = start(play, script.main, PHASES[script], out="said.txt")
        if kills < 10:
            process.join(stream.uniform(0.02, 0.7 * done["seconds"]))
        if kills < 10 and process.is_alive():
            process.kill()
            process.join()
            kills += 1
            if not os.path.exists(f"runs/default/{script.__name__}/done"):
                continue  # else the kill came after the last write
        else:
            assert ended(process) == 0, Path("said.txt").read_text()
        same_as_uninterrupted(script.__name__, finished)
        if kills == 10:
            break
        # it was through before the tenth kill: once more
        shutil.rmtree(f"runs/default/{script.__name__}")


def same_as_uninterrupted(phase, finished):
    """The phase's weights are those of the uninterrupted run, bit by bit, and its files tell the
    same story."""
    assert (
        weights(phase)
        == (finished / "default" / phase / "policy" / "model.safetensors").read_bytes()
    )
    for name in ("trajectories.jsonl", "metrics.jsonl"):
        ours, theirs = (
            files.read_jsonl(folder / phase / name)
            for folder in (Path("runs/default"), finished / "default")
        )
        assert [line.get("traj_id", line.get("pg_loss")) for line in ours] == [
            line.get("traj_id", line.get("pg_loss")) for line in theirs
        ]


def test_a_full_disk_loses_nothing_already_written(monkeypatch, finished, toy):
    shutil.copytree(finished, "runs")
    shutil.rmtree("runs/default/distill")
    save, saved = common.Policy.save, []

    def failing(self, folder):
        saved.append(folder)
        if len(saved) == 2:
            raise OSError(28, "No space left on device")
        save(self, folder)

    monkeypatch.setattr(common.Policy, "save", failing)
    with pytest.raises((OSError, UserError), match="No space left"):
        run_main(monkeypatch, distill, *PHASES[distill])
    # both iterations' lines are whole
    assert len(files.read_jsonl("runs/default/distill/metrics.jsonl")) == 2
    monkeypatch.setattr(common.Policy, "save", save)
    run_main(monkeypatch, distill, *PHASES[distill])
    assert (
        weights("distill")
        == (finished / "default" / "distill" / "policy" / "model.safetensors").read_bytes()
    )


def test_the_control_plays_other_games_than_warm_up_did(monkeypatch, toy):
    for run, share in ("plain", "0.9"), ("control", "0"):
        more = ["--iterations", "2", "--stop-at", share, "--run", run]
        run_main(monkeypatch, warmup, *SMALL, *more)
    one, other = (
        [r["task_id"] for r in files.read_jsonl(f"runs/{run}/warmup/trajectories.jsonl")]
        for run in ("plain", "control")
    )
    assert len(one) == len(other) == 48 and one != other


# ---- what the phases write ----


def test_the_candidates_of_one_iteration_are_tried_by_as_many_groups_each():
    env = Doors()
    skills = [
        {"skill_id": f"s{i}", "task_type": None, "status": "candidate", "utility": 0.0, "n_eval": n}
        | {"condition": "you open a door", "strategy": "open it", "source_task_ids": []}
        for i, n in enumerate([0, 0, 0, 4])
    ]
    for skill in skills:
        skill["task_type"] = env.task_type(env.tasks("train")[0])
    plan = mine.plan_pairs(
        env, env.tasks("train"), skills, n_groups=9, n_eval=3, stream=files.rng(0)
    )
    tried = [skill["skill_id"] for _, shown in plan for skill in shown]
    assert {name: tried.count(name) for name in sorted(set(tried))} == {"s0": 3, "s1": 3, "s2": 3}


def test_a_world_of_one_task_type_gives_twelve_successes_and_others_a_few_of_each():
    def record(i, kind):
        about = {
            "traj_id": f"t{i:02d}",
            "task_id": f"game {i}",
            "group_id": f"g{i}",
            "task_type": kind,
        }
        return about | {"condition": "plain", "success": True, "steps": [0] * (1 + i)}

    assert len(mine.choose_successes([record(i, "shopping") for i in range(30)], [], [], 2)) == 12
    mixed = mine.choose_successes([record(i, f"type {i % 3}") for i in range(30)], [], [], 2)
    assert [r["traj_id"] for r in mixed] == [f"t{i:02d}" for i in range(6)]


def test_the_three_phases_hand_on_their_files(finished):
    pairs = files.read_jsonl(finished / "default" / "mine" / "pairs.jsonl")
    skills = {
        skill["skill_id"]: skill
        for skill in files.skills_file(finished / "default" / "mine" / "skills.jsonl")
    }
    assert pairs and skills
    for pair in pairs:
        assert pair["delta"] == sum(pair["s_skill"]) / 2 - sum(pair["s_base"]) / 2
        assert all(
            pair["task_id"] not in skills[name]["source_task_ids"] for name in pair["skill_ids"]
        )
    records = files.read_jsonl(finished / "default" / "distill" / "trajectories.jsonl")
    assert {r["condition"] for r in records} == {"plain", "skill"}
    taught = [s for r in records if r["condition"] == "skill" for s in r["steps"] if s["weight"]]
    assert all(s["gate"] and 0 < s["weight"] <= 2 and s["advantage"] > 0 for s in taught)
    assert not any(s["gate"] for r in records if r["condition"] == "plain" for s in r["steps"])


def test_the_gate_and_the_weight_of_the_methods_worked_example(policy):
    skill = {"skill_id": "s", "condition": "find something", "strategy": "open it"}
    plays = [
        common.Play("train/00", group, (group, i), [skill] * (i < 3))
        for group in ("helped", "harmed")
        for i in range(4)
    ]
    records = common.rollout(policy, Doors(), plays)
    advantages = (0.9, -0.4, 3.1, 0.9)  # of three skill episodes and a plain one
    for r, advantage in zip(records, advantages * 2):
        for s in r["steps"]:
            s["advantage"] = advantage

    twins, taught = distill.plain_twins(policy, Doors(), records, {"helped": 0.5, "harmed": -0.5})
    assert all("hint" not in policy.decode(row.prompt_ids) and not row.rl for row in twins)
    weights = {r["traj_id"]: {s["weight"] for s in r["steps"]} for r in records}
    found = [weights[f"{group}/{i}"] for group in ("helped", "harmed") for i in range(4)]
    assert found == [{0.9}, {0}, {2}, {0}, {0}, {0}, {0}, {0}]
    assert taught["gated_tokens"] == sum(row.n_taught for row in twins) > 0
    assert taught["mean_weight"] == pytest.approx(
        sum(sum(row.weights) for row in twins) / taught["gated_tokens"]
    )


def test_snapshots_are_kept_and_the_learning_rate_falls(monkeypatch, toy):
    run_main(monkeypatch, warmup, *PHASES[warmup], "--snapshots", "0.0001", "--lr-end", "0.1")
    assert len(list(Path("runs/default/warmup/snapshots").glob("*/model.safetensors"))) >= 1
    saved = torch.load(
        next(Path("runs/default/warmup/checkpoints").glob("*/state.pt")), weights_only=True
    )
    # sixth of six iterations
    assert saved["optimizer"]["param_groups"][0]["lr"] == pytest.approx(0.003 * (1 - 5 / 6 * 0.9))


def test_a_number_of_iterations_that_is_asked_for_takes_the_place_of_the_presets_clock(monkeypatch):
    def arguments(*typed):
        monkeypatch.setattr(sys, "argv", ["distill.py", *typed])
        return cli.parse_args(cli.make_parser("test", minutes=cli.by_preset(laptop=8, paper=None)))

    assert (arguments().minutes, arguments("--iterations", "6").minutes) == (8, None)
    assert arguments("--iterations", "6", "--minutes", "1").minutes == 1
    assert arguments("--minutes", "1").iterations == 10_000


def test_evaluation_reads_every_task_once_and_writes_its_table_and_figures(
    monkeypatch, finished, toy, capsys
):
    shutil.copytree(finished, "runs")
    arguments = ["--games", "8", "--repetitions", "2", "--threads", "1"]
    run_main(monkeypatch, evaluate, *arguments)
    results = files.read_jsonl("runs/default/evaluate/results.jsonl")
    assert (
        len({(r["arm"], r["split"], r["task_id"], r["repetition"]) for r in results})
        == len(results)
        == 5 * 8 * 2
    )
    assert all(
        os.path.getsize(f"runs/default/evaluate/{name}.png") > 1000
        for name in ("success", "types", "curves")
    )
    assert "SIRI, plain prompt" in capsys.readouterr().out
    stamp = os.stat("runs/default/evaluate/results.jsonl").st_mtime_ns
    run_main(monkeypatch, evaluate, *arguments)
    # nothing is played twice
    assert os.stat("runs/default/evaluate/results.jsonl").st_mtime_ns == stamp


def test_intervals_have_known_values():
    assert intervals.interval([[1]] * 8 + [[0]] * 2) == pytest.approx(
        (0.8, 0.4902, 0.9433), abs=1e-4
    )
    a = [{"task_id": str(i), "success": i % 2} for i in range(100)]
    b = [{"task_id": str(i), "success": 0} for i in range(100)]
    mean, low, high = intervals.paired_difference(a, b)
    assert mean == 0.5 and 0.39 < low < 0.42 and 0.58 < high < 0.61


def test_metrics_go_to_a_tracker_where_one_is_asked_for(monkeypatch, toy, tmp_path):
    fake = (
        "said = []\ninit = lambda **about: said.append(about)\nlog = "
        "said.append\nfinish = lambda: said.append(0)\n"
    )
    (tmp_path / "trackio.py").write_text(fake)
    monkeypatch.syspath_prepend(tmp_path)
    run_main(monkeypatch, warmup, *PHASES[warmup], "--track", "trackio")
    import trackio

    about, *lines, end = trackio.said
    assert about["name"] == "default-warmup" and about["config"]["groups"] == 6 and end == 0
    assert [line["pg_loss"] for line in lines] == [
        line["pg_loss"] for line in files.read_jsonl("runs/default/warmup/metrics.jsonl")
    ]
    if not find_spec("wandb"):
        with pytest.raises(UserError, match="run pip install wandb"):
            run_main(monkeypatch, warmup, *PHASES[warmup], "--track", "wandb", "--run", "other")


# ---- errors: one line, exit code 2, before any model loads ----


@pytest.fixture
def no_model(monkeypatch):
    def load(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(common.Policy, "__init__", load)


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        (mine, [], "does not exist: run `python warmup.py"),
        (distill, [], "does not exist: run `python mine.py"),
        (evaluate, [], "no run runs/default: run `python warmup.py"),
        (warmup, ["--model", "no/such/model/here"], "--model no/such/model/here"),
        (warmup, ["--env", "chess"], "expected alfworld or webshop"),
        (
            warmup,
            ["--env", "tests.toy:Windows"],
            "MODULE:CLASS of your own (AttributeError: module "
            "'tests.toy' has no attribute 'Windows')",
        ),
        (evaluate, ["--temperature", "-1"], "--temperature: expected a number at least 0"),
        (warmup, ["--minutes", "-1"], "--minutes: expected a number above 0"),
        (evaluate, ["--policy", "nowhere"], "nowhere"),
    ],
)
def test_a_mistake_is_answered_before_any_model_loads(
    monkeypatch, no_model, script, arguments, message
):
    with pytest.raises(UserError) as mistake:
        run_main(monkeypatch, script, *arguments)
    assert message in str(mistake.value) and "\n" not in str(mistake.value)


def test_zero_and_negative_counts_are_refused(monkeypatch):
    for value in ("0", "-3", "many"):
        with pytest.raises(
            UserError, match=f"--groups: expected a whole number from 1 to 4096, found '{value}'"
        ):
            run_main(monkeypatch, warmup, "--groups", value)


def test_missing_and_empty_data_folders_are_named(monkeypatch, no_model, tmp_path):
    for folder in (tmp_path / "nothing", tmp_path):
        monkeypatch.setenv("ALFWORLD_DATA", str(folder))
        with pytest.raises(UserError, match="expected ALFWorld games in"):
            run_main(monkeypatch, warmup)


def test_changed_arguments_and_a_finished_phase_are_refused(monkeypatch, no_model, finished):
    shutil.copytree(finished, "runs")
    with pytest.raises(
        UserError,
        match="is finished: go on with the next phase, extend it with "
        "more --iterations or --minutes",
    ):
        run_main(monkeypatch, warmup, *PHASES[warmup])
    os.remove("runs/default/warmup/done")
    with pytest.raises(UserError, match=r"begun with other arguments: --groups \(was 6, now 5\)"):
        run_main(monkeypatch, warmup, *PHASES[warmup], "--groups", "5")


def test_no_successes_no_active_skill_and_broken_files_are_named(monkeypatch, no_model, finished):
    shutil.copytree(finished, "runs")
    trajectories, skills = (
        "runs/default/warmup/trajectories.jsonl",
        "runs/default/mine/skills.jsonl",
    )
    lines = files.read_jsonl(trajectories)
    files.write_jsonl(trajectories, [line | {"success": False} for line in lines])
    with pytest.raises(UserError, match="no successes to mine"):
        run_main(monkeypatch, mine, "--overwrite", *PHASES[mine])
    with open(trajectories, "a") as file:
        file.write('{"broken": \n')
    with pytest.raises(UserError, match=f"line {len(lines) + 1} is not a JSON object"):
        run_main(monkeypatch, mine, "--overwrite", *PHASES[mine])
    os.makedirs("runs/default/mine", exist_ok=True)
    Path("runs/default/mine/done").write_text("{}")
    files.write_jsonl(skills, [])
    with pytest.raises(UserError, match="no active skill"):
        run_main(monkeypatch, distill, "--overwrite", *PHASES[distill])


def test_later_scripts_play_the_environment_that_the_run_began_with(monkeypatch, finished):
    shutil.copytree(finished, "runs")
    written = Path("runs/default/warmup/args.json")
    written.write_text(written.read_text().replace('"env": "alfworld"', '"env": "tests.toy:Doors"'))
    for arguments, first, env in (
        (["x"], False, "tests.toy:Doors"),
        (["x"], True, "alfworld"),
    ):
        monkeypatch.setattr(sys, "argv", arguments)
        assert cli.parse_args(cli.make_parser("test"), first=first).env == env
    monkeypatch.setattr(sys, "argv", ["x", "--env", "webshop"])
    with pytest.raises(UserError, match="was trained in tests.toy:Doors; leave --env out"):
        cli.parse_args(cli.make_parser("test"))


def test_an_unwritable_folder_is_named(monkeypatch, no_model, tmp_path):
    (tmp_path / "runs").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="cannot write to"):
        run_main(monkeypatch, warmup)


@pytest.mark.parametrize(
    "script", [warmup, mine, distill, evaluate], ids=lambda script: script.__name__
)
def test_every_script_answers_help(monkeypatch, capsys, script):
    with pytest.raises(SystemExit) as end:
        run_main(monkeypatch, script, "--help")
    assert end.value.code == 0 and "--seed" in capsys.readouterr().out


# ---- learning ----


def test_the_environment_of_one_file_is_shown_whole_in_the_docs():
    root = Path(__file__).resolve().parent.parent
    assert (root / "tests" / "toy.py").read_text() in (
        root / "docs" / "environments.md"
    ).read_text()


def test_gigpo_learns_to_open_the_door_that_the_task_names(monkeypatch):
    more = (
        "--env tests.toy:Doors --groups 16 --group-size 8 --iterations 25 --stop-at "
        "0 --lr 0.005 --save-every 25"
    ).split()
    run_main(monkeypatch, warmup, *SMALL, *more)
    success = [
        line["success_plain"] for line in files.read_jsonl("runs/default/warmup/metrics.jsonl")
    ]
    steps = [line["mean_steps"] for line in files.read_jsonl("runs/default/warmup/metrics.jsonl")]
    assert (
        sum(success[-5:]) / 5 > 0.9 > sum(success[:2]) / 2
        and sum(steps[-5:]) / 5 < sum(steps[:5]) / 5 - 0.3
    ), (success, steps)


# ---- ablations that are patches ----


def test_self_imitation_teaches_as_much_as_siri_did(monkeypatch, finished, toy):
    here = Path(common.__file__).parent
    shutil.copy(here / "distill.py", "distill.py")
    patch = here / "recipes" / "ablations" / "self-imitation.patch"
    subprocess.run(["git", "apply", patch], check=True)
    spec = importlib.util.spec_from_file_location("distill", "distill.py")
    patched = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(patched)
    monkeypatch.setattr(patched, "make_env", lambda *given: Doors())
    shutil.copytree(finished / "default" / "mine", "runs/default/mine")
    dose = finished / "default" / "distill"
    arguments = [*SMALL, "--iterations", "2", "--k-warm", "0", "--dose-of", dose]
    run_main(monkeypatch, patched, *arguments)
    theirs = files.read_jsonl(dose / "metrics.jsonl")
    for ours, siri in zip(files.read_jsonl("runs/default/distill/metrics.jsonl"), theirs):
        assert "success_skill" not in ours  # no skill anywhere
        # whole episodes are taught, so up to one more than SIRI's tokens; the weight is SIRI's
        assert siri["gated_tokens"] <= ours["gated_tokens"] or ours["success_plain"] < 0.5
        weight = [line["gated_tokens"] * line["mean_weight"] for line in (ours, siri)]
        assert weight[0] == pytest.approx(weight[1]) or ours["gated_tokens"] == 0
