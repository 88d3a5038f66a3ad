"""How candidates get their pairs, and how a skill's life begins and ends."""

from collections import Counter

import pytest

import mine
from support.files import rng

TYPES = ("clean", "cool", "heat", "put")
GROUPS, N_EVAL = 16, 4


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
        "skill_id": name, "condition": f"you {task_type} something", "strategy": name,
        "task_type": task_type, "status": status, "utility": utility, "n_eval": pairs,
        "neg_streak": 0, "deltas": [utility] * pairs, "plain": [0.5] * pairs,
        "source_task_ids": list(sources), "retired_iter": None,
    }  # fmt: skip


def groups(bank, env=None, n=GROUPS):
    """[(task_id, shown skill's name or None)] of an iteration's groups, in order."""
    env = env or Rooms()
    plan = mine.plan_pairs(env, env.tasks(), bank, n, N_EVAL, rng(0, "tasks"))
    return [(task_id, skills[0]["skill_id"] if skills else None) for task_id, skills in plan]


def pair(delta, plain=0.0):
    return {"delta": delta, "s_base": [plain] * 4}


def lived(deltas, plain=0.0, one=None):
    """A skill after these effects, beside plain episodes that won this often."""
    one = one or skill("one", "heat")
    for delta in deltas:
        mine.credit(one, pair(delta, plain), 7, N_EVAL)
    return one


# ---- which games are played, and with which skill ----


def test_without_skills_all_types_take_turns():
    assert set(Counter(task_id.split("/")[0] for task_id, _ in groups([])).values()) == {4}
    assert all(shown is None for _, shown in groups([]))


def test_a_type_that_won_late_catches_up():
    early = [skill(f"early {kind}", kind, "active", pairs=6, utility=0.3) for kind in TYPES[:3]]
    tried = Counter(shown for _, shown in groups([*early, skill("late", "put")]))
    assert tried["late"] == N_EVAL, tried


def test_candidates_short_of_pairs_come_first_and_none_gets_more_than_it_lacks():
    bank = [skill("a", "heat", pairs=2, utility=0.5), skill("b", "heat", pairs=3)]
    bank.append(skill("c", "heat", "active", 4, 0.9))
    tried = Counter(shown for task_id, shown in groups(bank) if task_id.startswith("heat"))
    assert tried["a"] == 2 and tried["b"] == 1 and tried["c"] >= 1, tried


def test_the_most_promising_candidate_is_tried_first():
    bank = [skill("dull", "heat", pairs=2, utility=-0.1)]
    bank.append(skill("good", "heat", pairs=2, utility=0.4))
    order = [shown for _, shown in groups(bank) if shown]
    assert order[:4] == ["good", "good", "dull", "dull"]


def test_no_group_is_played_plain_where_a_skill_fits():
    bank = [skill("only", "heat", pairs=9), skill("gone", "put", "retired")]
    bank.append(skill("held", "cool", "active", 4, 0.2))
    shown = {task_id.split("/")[0]: name for task_id, name in groups(bank)}
    assert shown == {"clean": None, "cool": "held", "heat": "only", "put": None}


def test_a_skill_is_never_tried_on_a_game_that_it_was_written_from():
    sources = [task_id for task_id in Rooms().tasks() if task_id.startswith("heat")]
    assert all(shown is None for _, shown in groups([skill("memory", "heat", sources=sources)]))


def test_a_world_smaller_than_an_iteration_plays_its_games_again():
    env = Rooms()
    env.tasks = lambda: ["heat/00", "put/00"]
    played = Counter(task_id for task_id, _ in groups([], env))
    assert played == {"heat/00": 8, "put/00": 8}


def test_the_plan_is_the_same_every_time():
    bank = [skill("a", "heat"), skill("b", "put", "active", 4, 0.3)]
    assert groups(bank) == groups(bank)


# ---- what is asked for skills ----


def win(name, task_type, steps=5, group=None, success=True):
    return {
        "traj_id": name, "task_id": f"{task_type}/{name}", "task_type": task_type,
        "group_id": group or name, "success": success, "condition": "plain", "steps": [{}] * steps,
    }  # fmt: skip


def test_a_type_is_asked_for_as_many_skills_as_it_lacks():
    pool = [win(f"{kind}{i}", kind) for kind in ("heat", "put") for i in range(5)]
    bank = [skill("x", "heat"), skill("y", "heat", "active"), skill("z", "put", "retired")]
    chosen = mine.choose_successes(pool, bank, [], 2)
    assert Counter(r["task_type"] for r in chosen) == {"put": 2}


def test_a_success_may_be_asked_again_after_all_others():
    pool = [win("short", "heat", steps=2), win("long", "heat", steps=9)]
    pool.append(win("lost", "put", success=False))
    for asked, expected in [([], "short"), (["short"], "long"), (["short", "long"], "short")]:
        assert [r["traj_id"] for r in mine.choose_successes(pool, [], asked, 1)] == [expected]


# ---- the life of a skill ----


def test_a_bad_first_pair_retires_no_skill_before_its_evidence_is_complete():
    one = lived([-0.5, 0.0, 0.0])
    assert one["status"] == "candidate" and one["neg_streak"] == 3
    assert lived([0.75, 0.75], one=one)["status"] == "active"


def test_the_first_pairs_weigh_alike():
    assert lived([1.0, 0.0, 0.0, 0.0])["utility"] == pytest.approx(0.25)
    # from the fifth pair on the newest has a fifth
    assert lived([0.5] * 9 + [-0.5])["utility"] == pytest.approx(0.3)


def test_pairs_that_add_up_to_nothing_are_not_negative():
    assert lived([-0.25, 0.0, 0.25, 0.0])["neg_streak"] == 0


def test_a_promoted_skill_says_how_sure_its_effect_is():
    mean, low, high = lived([0.75, 0.25, 0.5, 0.5])["effect"]
    assert mean == 0.5 and low < mean < high <= 1
    mean, low, high = lived([1.0] * 4)["effect"]
    # 16 wins of 16 against none of 16 leave, computed exactly, .59 at least
    assert (mean, high) == (1.0, 1.0) and low == pytest.approx(0.602, abs=1e-3)


def test_an_end_has_its_reason():
    assert lived([-0.75, -0.5, -0.5, -0.75], plain=0.75)["reason"] == "hurts"
    assert lived([0.25, -0.25, 0.0, -0.25, 0.0] + [0.0] * 7)["reason"] == "no effect shown"
    helpful = lived([0.5] * 4, plain=0.25)
    assert helpful["status"] == "active" and "reason" not in helpful
    assert lived([-0.25] * 8 + [0.0] * 12, plain=1.0, one=helpful)["reason"] == "absorbed"


def test_the_console_tells_how_sure_a_promotion_is_and_why_a_skill_ended(capsys):
    one = skill("one", "heat")
    for delta in [0.5] * 4 + [-1.0] * 12:
        line = pair(delta) | {"group_id": "g"}
        mine.credit_all([line], {"g": [one]}, 3, N_EVAL)
    out = capsys.readouterr().out
    assert "+ promoted +0.50 [+0.10, +0.90], 4 pairs: when you heat something" in out
    assert "- hurts, " in out and max(map(len, out.splitlines())) <= 100


# ---- what is refused ----


def test_a_place_for_one_object_is_refused(monkeypatch):
    world = Rooms()
    world.summary_prompt = lambda record, style: ""

    def parse(answer, style):
        found = {"title": answer, "condition": answer, "strategy": answer}
        return found | ({"task_type": None} if answer.startswith("you need") else {})

    world.parse_skill = parse
    policy = type("Policy", (), {"style": "compact"})
    monkeypatch.setattr(mine, "generate", lambda *given: ["you need a mug", "you heat something"])
    pool = [win("a", "heat"), win("b", "heat")]
    new, refused = mine.write_skills(policy, world, pool, [], 0, seed=0)
    assert [s["condition"] for s in new] == ["you heat something"]
    assert [r["reason"] for r in refused] == ["for one object only"]


def test_a_verdict_stands_whatever_the_same_iterations_other_groups_say(capsys):
    one = skill("one", "heat", "active", pairs=9)
    one |= {"neg_streak": 2, "utility": -0.01, "deltas": [0.5] * 4 + [0.0] * 5, "promoted_n": 4}
    one["plain"] = [0.0] * 4 + [0.5] * 5  # it was taken over: absorbed
    shown = {group_id: [one] for group_id in range(9)}
    later = [pair(-1.0, 0.0) | {"group_id": group_id} for group_id in range(1, 9)]
    mine.credit_all([pair(-0.25, 0.5) | {"group_id": 0}, *later], shown, 7, N_EVAL)
    assert (one["status"], one["reason"], one["retired_iter"]) == ("retired", "absorbed", 7)
    assert capsys.readouterr().out.count("\n") == 1
    assert one["n_eval"] == len(one["deltas"]) == 18  # what was played is written down
