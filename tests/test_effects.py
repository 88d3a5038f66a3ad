"""recipes/effects.py: what several runs' skills did, by hand.      pytest tests/test_effects.py"""

import argparse
import json

import numpy as np
import pytest

from recipes import effects


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def skill(name, status, n_eval, retired=None):
    return {
        "skill_id": name,
        "task_type": "t",
        "condition": "c",
        "strategy": "s",
        "status": status,
        "utility": 0.1,
    } | {
        "n_eval": n_eval,
        "retired_iter": retired,
    }


def write_run(runs, name, effect):
    """Two promoted skills, a candidate that was never tried, a duplicate; the first skill goes at
    once, the second at two minutes."""
    write(
        runs / name / "mine/skills.jsonl",
        [skill("a", "active", 4), skill("b", "active", 3), skill("c", "candidate", 0)],
    )
    write(runs / name / "mine/rejected.jsonl", [{"reason": "near duplicate"}])
    write(
        runs / name / "distill/skills.jsonl",
        [skill("a", "retired", 9, 0), skill("b", "retired", 9, 1), skill("c", "candidate", 0)],
    )
    banks = [(60, {"active": 1, "retired": 1}), (120, {"retired": 2})]
    write(
        runs / name / "distill/metrics.jsonl",
        [{"iteration": k, "elapsed": at, "bank": bank} for k, (at, bank) in enumerate(banks)],
    )
    about = {"status": "active", "mean_delta": 0.5, "half": 0.1}
    rows = [
        {"skill_id": "a", "fresh": effect, "pairs": 30} | about,
        {"skill_id": "b", "fresh": 0.0, "pairs": 10} | about,
    ]
    write(runs / name / "mine/effects.jsonl", rows)
    types = [
        {
            "task_type": kind,
            "plain": 0.2,
            "skill": 0.2 + effect,
            "effect": effect,
            "half": 0.1,
            "pairs": 100,
        }
        for kind in ("t", "u")
    ]
    write(runs / name / "mine/effects_by_type.jsonl", types)


def test_pooling_runs_is_pooling_their_pairs():
    """Means and intervals of two halves of one sample are those of the whole, up to the halves'
    different means."""
    d = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], size=2000, p=[0.1, 0.4, 0.5])
    rows = [
        {
            "task_type": "t",
            "plain": 0.1,
            "skill": 0.1 + part.mean(),
            "effect": part.mean(),
            "half": effects.half_width(part),
            "pairs": len(part),
        }
        for part in (d[:500], d[500:])
    ]
    row = effects.pooled(rows)
    assert row["effect"] == pytest.approx(d.mean()) and row["pairs"] == 2000
    assert row["half"] == pytest.approx(effects.half_width(d), rel=0.01)


def test_every_type_with_a_skill_is_played_for_as_many_pairs_and_a_pair_plays_one_game(
    env, monkeypatch
):
    tasks = env.tasks("train")[:40]
    kinds = sorted({env.task_type(task) for task in tasks})
    # none for the first type
    bank = [skill("a", "active", 4) | {"task_type": kind} for kind in kinds[1:]]

    def won_with_a_skill(policy, env, plays, *_):
        for plain, shown in zip(plays[::2], plays[1::2]):
            assert (
                plain.task_id == shown.task_id
                and not plain.skills
                and shown.skills[0]["task_type"] == env.task_type(shown.task_id)
            )
        # a random stream of its own for every episode
        assert len({play.key for play in plays}) == len(plays)
        return [
            {"task_type": env.task_type(play.task_id), "success": bool(play.skills)}
            for play in plays
        ]

    monkeypatch.setattr(effects, "rollout", won_with_a_skill)
    args = argparse.Namespace(type_pairs=25, rollout_batch=8, max_response=8, threads=1)
    rows = effects.effects_by_type(None, env, bank, tasks, args)
    assert [row["task_type"] for row in rows] == kinds[1:]
    assert all(
        (row["plain"], row["skill"], row["effect"], row["pairs"]) == (0, 1, 1, 25) for row in rows
    )


def test_the_life_of_skills_is_counted_from_the_files_of_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs", "siri-0", 0.4)
    found = effects.life("siri-0")
    assert found == {
        "run": "siri-0",
        "written": 4,
        "rejected": "1 near duplicate",
        "tried": 2,
        "promoted": 2,
        "retired": 2,
        "last": "2.0",
    }


def test_the_summary_weighs_skills_by_their_pairs_and_writes_table_and_figure(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs", "siri-0", 0.4)
    write_run(tmp_path / "runs", "siri-1", 0.2)
    effects.summary(argparse.Namespace(summary=["siri-0", "siri-1"], out="out"))
    table = (tmp_path / "out/table.md").read_text()
    assert "| u | 0.200 | 0.500 | +0.300 +- 0.071 | 200 |" in table
    # (30 x 0.4 + 10 x 0) / 40
    assert "| siri-0 | 4 | 1 near duplicate | 2 | 2 | 2 | 2.0 | +0.500 | +0.300 |" in table
    assert (tmp_path / "out/effects.png").stat().st_size > 1000
