"""recipes/compare.py: clocks, budgets and intervals by hand.      pytest tests/test_compare.py"""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from envs import UserError
from recipes import compare, example


def point(arm, seed, split, minutes, wins, **more):
    return {
        "arm": arm,
        "seed": seed,
        "policy": f"{arm}-{seed}-{minutes}",
        "split": split,
        "minutes": minutes,
        "wins": wins,
    } | more


def arguments(**changes):
    return argparse.Namespace(
        arms=["gigpo", "siri"], seeds=[0, 1], at=None, budgets=[], final=False, **changes
    )


def two_seeds():
    """The control climbs to 8 of 10 games in 4 (seed 0) and 2 minutes (seed 1), SIRI to 10 of 10
    in 2 and 1."""
    wins = {n: "1" * n + "0" * (10 - n) for n in range(11)}
    points = []
    for seed, slow in enumerate((4, 2)):
        points += [
            point("gigpo", seed, "held_out", 0, wins[0]),
            point("gigpo", seed, "held_out", slow, wins[8]),
        ]
        points += [
            point("siri", seed, "held_out", 0, wins[0]),
            point("siri", seed, "held_out", slow / 2, wins[10]),
        ]
        points += [point(arm, seed, "held_out", 8, wins[9]) for arm in ("gigpo", "siri")]
    return points


def write_run(folder, elapsed, episodes=8):
    """A finished phase with a metrics line per iteration."""
    (folder / "snapshots").mkdir(parents=True)
    (folder / "done").write_text("{}\n")
    lines = [{"elapsed": at, "env_steps": 100, "episodes_plain": episodes} for at in elapsed]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_band_is_students_interval_over_seeds():
    mean, low, high = compare.band([0.5, 0.6, 0.7])
    half = stats.t.ppf(0.975, 2) * 0.1 / 3**0.5
    assert (mean, low, high) == pytest.approx((0.6, 0.6 - half, 0.6 + half))
    assert np.isnan(compare.band([0.5])[1])  # one seed has no interval


def test_a_difference_is_paired_by_seed():
    """Two arms that differ by the same in every seed have an interval of no width, however much
    seeds differ."""
    assert compare.cell([0.9, 0.5], [0.8, 0.4]).endswith("(+0.100 [+0.100, +0.100])")


def test_a_level_is_reached_on_the_line_between_two_points():
    assert compare.first_time([0, 2, 4], [0.2, 0.6, 0.8], 0.7) == pytest.approx(3.0)
    assert compare.first_time([1, 2], [0.9, 0.5], 0.7) == 1  # there from the start
    assert compare.first_time([0, 2], [0.2, 0.6], 0.7) == float("inf")


def test_the_time_to_a_level_is_a_ratio_paired_by_seed():
    points = two_seeds()
    times = [
        compare.first_times(points, arguments(), arm, "held_out", "minutes")
        for arm in ("siri", "gigpo")
    ]
    assert times[1] == pytest.approx([3.5, 1.75]) and times[0] == pytest.approx([1.4, 0.7])
    assert compare.time_cell(*times) == "1.05 (x 0.40 [0.40, 0.40])"
    assert (
        compare.time_cell(np.array([1.0, np.inf]), times[1]) == "inf"
    )  # the median over seeds; no ratio where one never gets there


def test_budgets_come_from_the_first_split_and_the_first_arm_alone():
    points = two_seeds() + [
        point(arm, seed, "valid", at, "0" * 10)
        for arm in ("gigpo", "siri")
        for seed in (0, 1)
        for at in (0, 8)
    ]
    found = compare.budgets(points, arguments(), ["held_out", "valid"], "minutes")
    assert found == {"mid-climb": pytest.approx((3.5 + 1.75) / 2), "end": 8}
    text = compare.table(points, arguments(), ["held_out", "valid"])
    assert (
        text.count("mid-climb: 2.625") == 2
    )  # the same budget for the split that is only looked at


def test_the_table_of_last_policies_ends_with_all_games_together():
    """The control wins 3 of 4 and then 0 of 1 games, SIRI all: .6 and 1 of the five, not the
    mean of the splits."""
    points = [
        point("gigpo", 0, "seen", 9, "1110"),
        point("gigpo", 0, "seen", 1, "0000"),
        point("gigpo", 0, "unseen", 9, "0"),
    ]
    points += [point("siri", 0, "seen", 9, "1111"), point("siri", 0, "unseen", 9, "1")]
    lines = compare.final_table(
        points, argparse.Namespace(arms=["gigpo", "siri"], seeds=[0]), ["seen", "unseen"]
    ).splitlines()
    assert lines[0] == "| arm | seen | unseen | seen + unseen |"
    assert lines[2].split("|")[4].startswith(" 0.600") and "(+0.400" in lines[3].split("|")[4]


def test_success_can_be_taken_over_some_games_only():
    points = [point("siri", 0, "held_out", 0, "1100"), point("siri", 0, "held_out", 1, "1110")]
    assert compare.curve(points, "siri", 0, "held_out", "minutes") == ([0, 1], [0.5, 0.75])
    assert compare.curve(points, "siri", 0, "held_out", "minutes", [2, 3]) == ([0, 1], [0.0, 0.5])


def test_clocks_start_at_the_warm_up_checkpoint_and_add_up_over_phases(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs/siri-0/warmup", [30])
    write_run(tmp_path / "runs/siri-0/mine", [60, 120])
    write_run(tmp_path / "runs/siri-0/distill", [60, 180])
    (tmp_path / "runs/siri-0/distill/snapshots/000060").mkdir()
    args = arguments()
    found, skills = compare.policies(args, "siri", 0)
    assert [(f.name, f.parent.name, c["minutes"], c["episodes"]) for f, c in found] == [
        ("policy", "warmup", 0, 0), ("policy", "mine", 2.0, 16),
        ("000060", "snapshots", 3.0, 24), ("policy", "distill", 5.0, 32),
    ]  # fmt: skip
    assert skills == []
    args.at = [2.9]
    assert [c["minutes"] for _, c in compare.policies(args, "siri", 0)[0]] == [
        0,
        2.0,
        3.0,
        5.0,
    ]  # the nearest, the miner, both ends


def test_a_control_begins_with_the_checkpoint_that_it_was_trained_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs/gigpo-0/warmup", [60])
    (tmp_path / "runs/gigpo-0/warmup/args.json").write_text(
        json.dumps({"args": {"model": "runs/siri-0/warmup/policy"}})
    )
    write_run(tmp_path / "runs/abl-siri-0/distill", [60])  # an ablation has no warm-up of its own
    assert [c["minutes"] for _, c in compare.policies(arguments(), "abl-siri", 0)[0]] == [1.0]
    write_run(
        tmp_path / "runs/abl-siri-0/mine", [60, 120]
    )  # nor has one that mined anew from another run's policy
    assert [c["minutes"] for _, c in compare.policies(arguments(), "abl-siri", 0)[0]] == [2.0, 3.0]
    found, _ = compare.policies(arguments(), "gigpo", 0)
    assert [(str(f), c["minutes"]) for f, c in found] == [
        ("runs/siri-0/warmup/policy", 0),
        ("runs/gigpo-0/warmup/policy", 1.0),
    ]


def test_a_policy_that_two_arms_share_is_played_once(tmp_path, monkeypatch):
    """The warm-up checkpoint's games count for both arms; with skills in the prompt they are
    other games."""
    monkeypatch.chdir(tmp_path)
    played = []
    monkeypatch.setattr(
        compare,
        "policies",
        lambda args, arm, seed: ([("same", {"minutes": 0})], ["s"] if "+skills" in arm else []),
    )
    monkeypatch.setattr(compare, "load_policy", lambda folder, args: folder)
    monkeypatch.setattr(compare, "split_tasks", lambda env, split: [])
    monkeypatch.setattr(
        compare,
        "play_panel",
        lambda *about: played.append(about[-1]) or [{"success": True}, {"success": False}],
    )
    monkeypatch.setattr(compare, "panel_hash", lambda env, panel: "games")
    args = argparse.Namespace(arms=["gigpo", "siri", "siri+skills"], seeds=[0], temperature=0.4)
    points = compare.evaluate_all(args, None, ["valid"], tmp_path / "points.jsonl")
    assert played == ["gigpo", "siri+skills"] and [p["wins"] for p in points] == ["10"] * 3
    assert compare.evaluate_all(args, None, ["valid"], tmp_path / "points.jsonl") == points
    assert len(played) == 2  # going on plays nothing twice


def test_points_of_other_games_of_another_temperature_or_policy_are_not_gone_on_with(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("same").mkdir()
    Path("same/model.safetensors").write_text("weights")
    monkeypatch.setattr(compare, "policies", lambda *about: ([("same", {"minutes": 0})], []))
    monkeypatch.setattr(compare, "load_policy", lambda folder, args: folder)
    monkeypatch.setattr(compare, "split_tasks", lambda env, split: [])
    monkeypatch.setattr(compare, "play_panel", lambda *about: [{"success": True}])
    monkeypatch.setattr(compare, "panel_hash", lambda env, panel: "games")
    args = argparse.Namespace(arms=["siri"], seeds=[0], temperature=0.4)
    compare.evaluate_all(args, None, ["valid"], tmp_path / "points.jsonl")

    def refused(why):
        with pytest.raises(UserError, match=why):
            compare.evaluate_all(args, None, ["valid"], tmp_path / "points.jsonl")

    args.temperature = 1.0
    refused("points of temperature 0.4, now it is 1.0: choose another --out")
    args.temperature = 0.4
    monkeypatch.setattr(compare, "panel_hash", lambda env, panel: "others")
    refused("points of panel games, now it is others")
    monkeypatch.setattr(compare, "panel_hash", lambda env, panel: "games")
    Path("same/model.safetensors").write_text("other weights")
    refused("same is another policy than .*points.jsonl has played")


def test_an_arm_with_skills_begins_after_mining_and_shows_the_active_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for phase in ("warmup", "mine", "distill"):
        write_run(tmp_path / "runs/siri-0" / phase, [60])
    one = {
        "skill_id": "a",
        "task_type": "t",
        "condition": "c",
        "strategy": "s",
        "status": "active",
        "utility": 0.1,
    }
    lines = [one, one | {"skill_id": "b", "status": "retired"}]
    (tmp_path / "runs/siri-0/mine/skills.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines)
    )
    found, skills = compare.policies(arguments(), "siri+skills", 0)
    assert [f.parent.name for f, _ in found] == ["mine", "distill"] and [
        s["skill_id"] for s in skills
    ] == ["a"]


def test_what_skills_add_is_paired_by_game_and_seed(monkeypatch):
    """Two games and two seeds of the policy that mined: plain wins 1 of 4, with skills 3 of 4."""
    monkeypatch.setattr(compare, "split_tasks", lambda env, split: ["a", "b"])
    world = argparse.Namespace(task_type=lambda task: f"type {task}")
    points = []
    for arm, by_seed in (("siri", ("01", "00")), ("siri+skills", ("11", "10"))):
        for seed, wins in enumerate(by_seed):
            mined = {"policy": f"runs/siri-{seed}/mine/policy", "iterations": 2}
            points.append(point(arm, seed, "valid", 1, wins) | mined)
    text = compare.skills_table(points, world, ["valid"])
    half = (
        1.96 * np.std([1, 0], ddof=1) / 2**0.5
    )  # two games, whose two seeds agree: as good as two pairs
    assert f"| mine | all | 0.250 | 0.750 | +0.500 +- {half:.3f} | +0.50 to +0.50 | 4 |" in text
    assert "| mine | type a | 0.000 | 1.000 | +1.000 +- nan | +1.00 to +1.00 | 2 |" in text


def test_a_missing_run_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no run runs/siri-0: train it first"):
        compare.policies(arguments(), "siri", 0)


def test_recorded_points_are_shown_without_their_runs(monkeypatch, capsys, tmp_path):
    """results/ holds points of runs that nobody has; their tables and curves come out again."""
    points = [p | {"iterations": 1, "env_steps": 1, "episodes": p["minutes"]} for p in two_seeds()]
    compare.write_jsonl(tmp_path / "points.jsonl", points)
    command = ["compare.py", "--recorded", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", command)
    compare.main()
    assert "| siri | 0.983 [0.902, 1.064] (+0.315" in capsys.readouterr().out
    assert (tmp_path / "curves.png").stat().st_size > 0
    monkeypatch.setattr("sys.argv", [*command, "--seeds", "0", "7"])
    with pytest.raises(UserError, match="no points of .*7"):
        compare.main()
    monkeypatch.setattr("sys.argv", [*command, "--split", "none-such"])
    with pytest.raises(UserError, match="--split none-such"):
        compare.main()
    compare.write_jsonl(tmp_path / "points.jsonl", [*points, points[0] | {"arm": 3}])
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(UserError, match=f"point {len(points) + 1}: expected a point, found no arm"):
        compare.main()


def test_recorded_points_of_the_project_give_the_numbers_of_the_docs():
    """docs/results.md, the default run: the numbers that everything else hangs on."""
    root = compare.Path(__file__).resolve().parents[1]
    points = compare.read_jsonl(root / "results" / "default" / "points.jsonl")
    args = arguments()
    args.arms, args.seeds = ["gigpo-fast", "siri-fast"], [0, 1, 2, 3, 4]
    table = compare.table(points, args, ["held_out", "valid_seen", "valid_unseen"])
    told = (root / "docs" / "results.md").read_text()
    for level, difference in (
        ("0.913 [0.892, 0.934]", "+0.116 [+0.063, +0.170]"),  # mid-climb
        ("0.941 [0.913, 0.969]", "+0.187 [+0.140, +0.234]"),
        ("0.976 [0.964, 0.987]", "-0.004 [-0.023, +0.014]"),  # end
        ("0.971 [0.955, 0.987]", "+0.043 [+0.006, +0.080]"),
    ):
        assert f"{level} ({difference})" in table
        for number in (level, difference):
            assert number in told.replace("**", "")


def test_the_readmes_example_is_the_clearest_pair_of_an_active_skill():
    """Or of the skill that is named, active or not; a run without one says so."""
    bank = [{"skill_id": i, "status": s} for i, s in (("a", "active"), ("b", "retired"))]
    pairs = [
        {"skill_ids": ["a"], "delta": 0.25},
        {"skill_ids": ["b"], "delta": 1.0},
        {"skill_ids": ["a"], "delta": 0.5},
    ]
    assert example.clearest_pair(bank, pairs) == (bank[0], pairs[2])
    assert example.clearest_pair(bank, pairs, "b") == (bank[1], pairs[1])
    with pytest.raises(UserError, match="no pair of c"):
        example.clearest_pair(bank, pairs, "c")
    with pytest.raises(UserError, match="no active skill"):
        example.clearest_pair(bank[1:], pairs)
