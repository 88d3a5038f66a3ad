"""What agents read and write in ALFWorld, and the stand-in's scripted teachers.   pytest
tests/test_prompts.py"""

import json
import random
from pathlib import Path

import pytest

from common import Policy
from distill import action_token_mask
from envs import Step, action_span, alfworld_prompts, houses, skill_section
from tiny import alfworld_lessons, build
from tiny.players import CONDITIONS, clauses_of, describe, general_skill, where_skill

INTRO = (
    "-= Welcome to TextWorld, ALFRED! =-\n\nYou are in the middle of a room. Looking quickly "
    "around you, you see a cabinet 2, a cabinet 1, "
    "a fridge 1, and a shelf 1.\n\nYour task is to: put a hot mug in shelf."
)
TASK = "put a hot mug in shelf."
SKILLS = [{"condition": "you heat\nsomething", "strategy": "take it"}]


def steps(*pairs):
    return [
        (Step(observation, ["go to cabinet 1", "look"]), action) for observation, action in pairs
    ]


def test_every_task_sentence_of_the_houses_is_understood():
    kinds = set()
    for split in ("train", "valid_seen", "valid_unseen"):
        for task_id in houses.tasks(split)[:60]:
            kind, thing, place = alfworld_prompts.read_task(houses.make_game(task_id).task)
            kinds.add(kind)
            assert thing in houses.vocabulary()[0] and (
                place in houses.vocabulary()[1] or place == "desklamp"
            )
    assert kinds == set(CONDITIONS)


@pytest.mark.parametrize(
    ("observation", "short"),
    [
        (
            "You arrive at shelf 1. On the shelf 1, you see a mug 2, and a plate 1.",
            "see mug 2 plate 1",
        ),
        ("You arrive at cabinet 1. The cabinet 1 is closed.", "closed"),
        ("The cabinet 1 is closed.", "closed"),
        ("You open the fridge 1. The fridge 1 is open. In it, you see nothing.", "see nothing"),
        ("On the shelf 1, you see a cup 1.", "see cup 1"),
        ("You are carrying: a mug 2.", "hold mug 2"),
        (
            "You are facing the shelf 1, and cabinet 1. Next to it, you see nothing.",
            "face shelf 1 cabinet 1",
        ),
        ("Nothing happens.", "fails"),
        ("You pick up the mug 2 from the shelf 1.", "ok"),
    ],
)
def test_compact_observations_keep_what_an_agent_needs(observation, short):
    assert alfworld_prompts.compact_observation(observation) == short


def test_the_note_names_places_that_the_agents_own_actions_did_not_visit():
    history = steps((INTRO, "go to cabinet 1"))
    assert alfworld_prompts.visit_note(history) == " next cabinet 2 cabinet 2"
    history += steps(("closed", "go to cabinet 2"))
    assert alfworld_prompts.visit_note(history) == " next none fridge 1"
    history += steps(("closed", "go to fridge 1"), ("closed", "go to shelf 1"))
    assert alfworld_prompts.visit_note(history) == " next none none"


def test_a_compact_step_ends_with_what_the_task_is_about_as_an_instance_where_one_is_in_sight():
    history = steps((INTRO, "go to shelf 1"))
    seen = "You arrive at shelf 1. On the shelf 1, you see a mug 2, a mug 1, and a plate 1."
    assert (
        alfworld_prompts.continuation(history, Step(seen), "compact")
        == "see mug 2 mug 1 plate 1 ; mug 1 shelf\n"
    )
    closed = Step("You arrive at cabinet 1. The cabinet 1 is closed.")
    assert (
        alfworld_prompts.continuation(steps((INTRO, "go to cabinet 1")), closed, "compact")
        == "closed ; mug shelf\n"
    )


def test_skills_are_one_marked_section_and_cannot_add_lines():
    plain = alfworld_prompts.prompt(TASK, [], Step(INTRO, ["look"]), [], "compact")
    skilled = alfworld_prompts.prompt(TASK, [], Step(INTRO, ["look"]), SKILLS, "compact")
    assert skilled.replace("hint : when you heat something : take it\n", "") == plain
    chat = alfworld_prompts.prompt(TASK, [], Step(INTRO, ["look"]), SKILLS, "chat")
    assert chat.replace(skill_section(SKILLS), "") == alfworld_prompts.prompt(
        TASK, [], Step(INTRO, ["look"]), [], "chat"
    )


def test_chat_prompts_show_the_last_two_steps_numbered_from_the_start():
    history = steps((INTRO, "look"), ("o2", "go to cabinet 1"), ("o3", "look"))
    text = alfworld_prompts.prompt(TASK, history, Step("o4", ["look"]), [], "chat")
    assert (
        "observation 2: 'o2', action 2: 'go to cabinet 1'" in text
        and "observation 3: 'o3'" in text
        and "observation 1" not in text
    )
    assert "taken 3 steps" in text and "at step 4" in text and "['look']" in text


@pytest.mark.parametrize(
    ("response", "action", "valid"),
    [
        ("<think>so</think><action> Go to Shelf 1 </action>", "go to shelf 1", True),
        ("<action>look</action>", "look", False),
        ("<think>a</think> <action>one</action> <action>two</action>", "one", True),
        (
            "<think>a</think> look around for the mug in the fridge",
            " for the mug in the fridge",
            False,
        ),
        ("<think>\u4f60</think><action>look</action>", "look", False),
    ],
)
def test_chat_responses_are_parsed_as_the_reference_does(response, action, valid):
    found = alfworld_prompts.parse(response, "chat")
    assert found[1] == valid and found[0].endswith(action)


def test_compact_responses_are_one_line():
    assert alfworld_prompts.parse("go to shelf 1 \n", "compact") == ("go to shelf 1", True)
    assert alfworld_prompts.parse("go to", "compact") == ("go to", False)


def test_the_action_span_is_the_stripped_text_between_the_tags():
    response = "<think>x</think>\n<action>  open safe 1 </action>"
    first, last = action_span(response)
    assert response[first:last] == "open safe 1"
    assert action_span("no tags") == (0, 0)


def test_the_action_mask_covers_the_action_and_not_the_end(policy):
    ids = policy.encode("take mug 1 from shelf 1\n")
    assert action_token_mask(
        policy, {"response": policy.decode(ids), "response_ids": ids, "valid": True}
    ) == [1, 1, 1, 1, 0]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("I can not do that", "no JSON object"),
        ('{"title": "a", "condition": ', "broken JSON"),
        ('{"title": "a", "condition": "b"}', "missing field"),
        ('{"title": "a", "condition": "b", "strategy": "open cabinet 3"}', "numbered instance"),
        (
            json.dumps({"title": "a", "condition": "b", "strategy": "very " * 90}),
            "strategy too long",
        ),
    ],
)
def test_answers_that_are_no_skill_are_refused_with_a_reason(answer, reason):
    with pytest.raises(ValueError, match=reason):
        alfworld_prompts.parse_skill(answer, "chat")


def test_a_good_answer_is_a_skill():
    answer = (
        'Sure: {"title": "t", "condition": "when hot", "strategy": "use the\\n microwave"} done'
    )
    assert alfworld_prompts.parse_skill(answer, "chat")["strategy"] == "use the microwave"
    found = alfworld_prompts.parse_skill(
        " when you need a mug : look in shelf , cabinet \n", "compact"
    )
    assert found["condition"] == "you need a mug" and found["task_type"] is None


# ---- the stand-in's teachers ----


def wins(skills_of, games=120):
    return (
        sum(
            alfworld_lessons.play(f"pretrain_check/{i:07d}", skills_of, random.Random(i))[3].won
            for i in range(games)
        )
        / games
    )


def test_what_a_skill_says_decides_how_well_the_scripted_player_plays():
    plain = wins(lambda kind, thing: [])
    half = wins(
        lambda kind, thing: [
            general_skill(kind, [c for c in clauses_of(kind) if c not in ("once", "open")])
        ]
    )
    full = wins(
        lambda kind, thing: [
            general_skill(kind),
            where_skill(thing, alfworld_lessons.best_places(thing, random.Random(0))),
        ]
    )
    other = wins(lambda kind, thing: [general_skill(next(k for k in CONDITIONS if k != kind))])
    assert plain < 0.4 and plain + 0.2 < half < full - 0.1 and full > 0.9 and other < plain + 0.1


def test_a_transcript_shows_the_skill_that_was_followed():
    def skills(kind, thing):
        return [general_skill(kind)]

    for i in range(12):
        task, shown, history, last = alfworld_lessons.play(
            f"pretrain_check/{i:07d}", skills, random.Random(i)
        )
        if last.won:
            after = [step.observation for step, _ in history[1:]] + [last.observation]
            transcript = [
                (step.observation, action, seen) for (step, action), seen in zip(history, after)
            ]
            found = describe(task, transcript, "general")
            assert found["condition"] == shown[0]["condition"]
            assert set(found["strategy"].split(" , ")) <= set(shown[0]["strategy"].split(" , "))


def test_the_shipped_weights_belong_to_the_vocabulary_of_the_code():
    policy = Policy(Path(build.HERE) / "alfworld")
    assert list(alfworld_lessons.vocabulary()) == [
        policy.tokenizer.decode([i]) for i in range(len(policy.tokenizer))
    ]
    assert sum(file.stat().st_size for file in (build.HERE / "alfworld").iterdir()) < 5_000_000
