"""How candidates get their pairs, and how a skill's life begins and ends.   pytest tests/test_mining.py"""

from collections import Counter
from types import SimpleNamespace

import pytest

import common
import mine

TYPES = ("clean", "cool", "heat", "put")
ARGS = SimpleNamespace(
    env="rooms", seed=0, groups=16, group_size=8, n_eval=4, per_type=2, ema=0.2, tau_act=0.05, promote_z=0.0, retire_after=3
)


class Rooms:
    """Four types of games, forty of each; a game's sentence is its name."""

    def tasks(self, split="train"):
        return [f"{kind}/{i:02d}" for kind in TYPES for i in range(40)]

    def task_type(self, task_id):
        return task_id.split("/")[0]

    def fork(self):
        return Rooms()

    def reset(self, task_id):
        self.task = task_id


def skill(name, task_type, status="candidate", pairs=0, utility=0.0, sources=()):
    return {
        "skill_id": name, "condition": f"you {task_type} something", "strategy": name, "task_type": task_type, "status": status,
        "utility": utility, "n_eval": pairs, "neg_streak": 0, "deltas": [utility] * pairs, "plain": [0.5] * pairs,
        "source_task_ids": list(sources), "retired_iter": None,
    }  # fmt: skip


def groups(bank, k=0):
    """[(task_id, shown skill's name or None)] of an iteration's groups, in order."""
    env = Rooms()
    plays, shown = mine.paired_groups(env, env.tasks(), bank, ARGS, k)
    games = {play.group_id: play.task_id for play in plays}
    assert all(Counter(play.group_id for play in plays)[g] == ARGS.group_size for g in games)
    return [(games[g], skills[0]["skill_id"] if skills else None) for g, skills in shown.items()]


def pair(delta, plain=0.0):
    return {"delta": delta, "s_base": [plain] * 4}


def lived(deltas, plain=0.0, args=ARGS, one=None):
    """A skill after these effects, beside plain episodes that won this often."""
    one = one or skill("one", "heat")
    for delta in deltas:
        common.credit(one, pair(delta, plain), 7, args)
    return one


# ---- which games are played, and with which skill ----


def test_without_skills_all_types_take_turns():
    assert set(Counter(task_id.split("/")[0] for task_id, _ in groups([])).values()) == {4}
    assert all(shown is None for _, shown in groups([]))


def test_a_type_that_won_late_catches_up():
    early = [skill(f"early {kind}", kind, "active", pairs=6, utility=0.3) for kind in TYPES[:3]]
    tried = Counter(shown for _, shown in groups([*early, skill("late", "put")]))
    assert tried["late"] == ARGS.n_eval, tried


def test_candidates_short_of_pairs_come_first_and_none_gets_more_than_it_lacks():
    bank = [skill("a", "heat", pairs=2, utility=0.5), skill("b", "heat", pairs=3), skill("c", "heat", "active", 4, 0.9)]
    tried = Counter(shown for task_id, shown in groups(bank) if task_id.startswith("heat"))
    assert tried["a"] == 2 and tried["b"] == 1 and tried["c"] >= 1, tried


def test_the_most_promising_candidate_is_tried_first():
    bank = [skill("dull", "heat", pairs=2, utility=-0.1), skill("good", "heat", pairs=2, utility=0.4)]
    order = [shown for _, shown in groups(bank) if shown]
    assert order[:4] == ["good", "good", "dull", "dull"]


def test_no_group_is_played_plain_where_a_skill_fits():
    bank = [skill("only", "heat", pairs=9), skill("gone", "put", "retired"), skill("held", "cool", "active", 4, 0.2)]
    shown = {task_id.split("/")[0]: name for task_id, name in groups(bank)}
    assert shown == {"clean": None, "cool": "held", "heat": "only", "put": None}


def test_a_skill_is_never_tried_on_a_game_that_it_was_written_from():
    sources = [task_id for task_id in Rooms().tasks() if task_id.startswith("heat")]
    assert all(shown is None for _, shown in groups([skill("memory", "heat", sources=sources)]))


def test_a_world_smaller_than_an_iteration_plays_its_games_again():
    env = Rooms()
    plays, _ = mine.paired_groups(env, env.tasks()[:2], [], ARGS, 0)
    assert len(plays) == ARGS.groups * ARGS.group_size and {play.task_id for play in plays} == set(env.tasks()[:2])


# ---- what is asked for skills ----


def win(name, task_type, steps=5, group=None, success=True):
    return {
        "traj_id": name, "task_id": f"{task_type}/{name}", "task_type": task_type, "group_id": group or name, "success": success,
        "condition": "plain", "steps": [{}] * steps,
    }  # fmt: skip


def test_a_type_is_asked_for_as_many_skills_as_it_lacks():
    pool = [win(f"{kind}{i}", kind) for kind in ("heat", "put") for i in range(5)]
    bank = [skill("x", "heat"), skill("y", "heat", "active"), skill("z", "put", "retired")]
    chosen = mine.choose_successes(pool, bank, [], 2)
    assert Counter(r["task_type"] for r in chosen) == {"put": 2}


def test_a_success_may_be_asked_again_after_all_others():
    pool = [win("short", "heat", steps=2), win("long", "heat", steps=9), win("lost", "put", success=False)]
    assert [r["traj_id"] for r in mine.choose_successes(pool, [], ["short"], 1)] == ["long"]
    assert [r["traj_id"] for r in mine.choose_successes(pool, [], ["short", "long"], 1)] == ["short"]


# ---- the life of a skill ----


def test_a_bad_first_pair_retires_no_skill_before_its_evidence_is_complete():
    one = lived([-0.5, 0.0, 0.0])
    assert one["status"] == "candidate" and one["neg_streak"] == 3
    assert lived([0.75, 0.75], one=one)["status"] == "active"


def test_the_first_pairs_weigh_alike():
    assert lived([1.0, 0.0, 0.0, 0.0])["utility"] == pytest.approx(0.25)
    assert lived([0.5] * 9 + [-0.5])["utility"] == pytest.approx(0.3)  # from the fifth pair on a fifth is the newest


def test_a_promoted_skill_says_how_sure_its_effect_is():
    mean, low, high = lived([0.75, 0.25, 0.5, 0.5])["effect"]
    assert mean == 0.5 and low < mean < high <= 1
    mean, low, high = lived([1.0] * 4)["effect"]
    assert (mean, high) == (1.0, 1.0) and low == pytest.approx(0.602, abs=1e-3)  # 16 wins of 16 against none leave .59


def test_an_end_has_its_reason():
    assert lived([-0.75, -0.5, -0.5, -0.75], plain=0.75)["reason"] == "hurts"
    assert lived([0.25, -0.25, 0.0, -0.25, 0.0] + [0.0] * 7)["reason"] == "no effect shown"
    helpful = lived([0.5] * 4, plain=0.25)
    assert helpful["status"] == "active" and "reason" not in helpful
    assert lived([-0.25] * 8 + [0.0] * 12, plain=1.0, one=helpful)["reason"] == "absorbed"
