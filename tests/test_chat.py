"""Chat models: templates, parsing, truncation, and the action's tokens under byte-level BPE.
pytest tests/test_chat.py"""

import json
import random
from functools import partial

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

import common
import distill
import mine
from common import Play, Policy, assign_advantages, rollout, rows_of
from distill import action_token_mask
from envs import Step, UserError, action_span
from envs.alfworld import AlfWorld
from support.models import check_model
from support.packing import merge_prefixes
from support.records import for_file
from tests.conftest import arguments, make_chat_model


def count_truncated(records):
    return sum(step["truncated"] for record in records for step in record["steps"])


RESPONSE = "<think>a mug</think>\n<action>go to cabinet 1</action>"


@pytest.fixture(scope="module")
def chat(chat_folder):
    return Policy(chat_folder)


@pytest.fixture
def env():
    return AlfWorld(houses=True, max_steps=3)


# ---- the four phases' way through a chat model ----


@pytest.mark.parametrize(
    ("kind", "size"),
    [("qwen2", s) for s in ("0.5B", "1.5B", "3B", "7B")] + [("qwen3", "0.5B"), ("qwen3", "7B")],
)
def test_qwen_configs_play_learn_and_teach(tmp_path, env, kind, size):
    policy = Policy(make_chat_model(tmp_path, kind, size))
    assert policy.style == "chat" and not policy.constrain
    skills = [{"skill_id": "s", "condition": "you search", "strategy": "open what is closed"}]
    plays = [
        Play(env.tasks("train")[0], "g", ("chat", i), skills if i < 2 else []) for i in range(4)
    ]
    records = rollout(policy, env, plays, max_response=6)
    for i, record in enumerate(records):  # say that the skill helped
        record["success"], record["steps"][-1]["reward"] = i < 2, 10.0 * (i < 2)
    for record in records[:2]:  # and that it answered well
        for step in record["steps"]:
            step["response_ids"], step["response"], step["valid"] = (
                policy.encode(RESPONSE),
                RESPONSE,
                True,
            )
            step["logprobs"], step["allowed"] = (
                [-5.0] * len(step["response_ids"]),
                [None] * len(step["response_ids"]),
            )
    assign_advantages(records, env, mode="mean_norm")
    twins = distill.plain_twins(policy, env, records, {"g": 1.0}, unit=10.0)[0]
    assert (
        all(policy.decode(row.prompt_ids).count("Hints") == 0 for row in twins) and len(twins) == 6
    )
    taught = [
        policy.decode([i for i, w in zip(row.response_ids, row.weights) if w]) for row in twins
    ]
    assert all("go to cabinet 1" in text for text in taught)

    def likelihood():
        logp = policy.logprobs(merge_prefixes(twins))[0]
        return (
            (logp * torch.tensor([float(w > 0) for row in twins for w in row.weights])).sum().item()
        )

    before = likelihood()
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=1e-3)
    loss = partial(distill.siri_loss, lam=1.0, entropy_coef=0.0)
    common.update(
        policy,
        optimizer,
        rows_of(records) + twins,
        np.random.default_rng(0),
        loss,
        mini_batch_rows=1200,
    )
    assert likelihood() > before


def test_sampled_ids_are_trained_on_as_sampled_and_their_log_probs_agree(chat, env):
    plays = [Play(task, task, ("ids", task)) for task in env.tasks("train")[:2]]
    records = rollout(chat, env, plays, temperature=0.7, max_response=12)
    assign_advantages(records, env, mode="mean_norm")
    rows = rows_of(records)
    assert [row.response_ids for row in rows] == [
        s["response_ids"] for r in records for s in r["steps"]
    ]
    with torch.no_grad():
        trainer, _ = chat.logprobs(merge_prefixes(rows), temperature=0.7)
    assert (trainer - torch.tensor([x for row in rows for x in row.logprobs])).abs().max() < 1e-4


# ---- templates ----


def test_a_prompt_is_one_user_turn_of_the_models_own_template(chat):
    assert (
        chat.tokenizer.decode(chat.encode_prompt("hello"))
        == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    )


def test_thinking_is_off_where_the_template_has_a_switch(tmp_path):
    policy = Policy(make_chat_model(tmp_path, "qwen3"))
    assert policy.tokenizer.decode(policy.encode_prompt("hello")).endswith(
        "assistant\n<think>\n\n</think>\n\n"
    )


# ---- the action's tokens ----


def byte_mask(policy, ids, text):
    """The mask worked out from bytes: a token counts when one of its bytes lies between the
    action's first and last."""
    first, last = action_span(text)
    begin, end = len(text[:first].encode()), len(text[:last].encode())
    mask, position = [], 0
    byte_of = {c: b for b, c in bytes_to_unicode().items()}
    for piece in policy.tokenizer.convert_ids_to_tokens(ids):
        size = 0 if piece.startswith("<|") else len(bytes(byte_of[c] for c in piece))
        mask.append(int(size > 0 and position + size > begin and position < end))
        position += size
    return mask if first < last else [0] * len(ids)


def bytes_to_unicode():
    """Byte-level BPE's table: printable bytes stand for themselves, the others for the characters
    from 256 on."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in kept]
    return {b: chr(b) for b in kept} | {b: chr(256 + n) for n, b in enumerate(others)}


def fuzzed(stream):
    """A response around an action, with characters of one to four bytes next to and inside the
    tags."""
    letters = [
        "a",
        " ",
        "\n",
        "go to",
        "cabinet 1",
        "mug",
        "é",
        "ß",
        "€",
        "漢",
        "字",
        "😀",
        "🪑",
        "<",
        ">",
        "/",
        "action",
        "\u200d",
        "ﬁ",
    ]

    def some(most):
        return "".join(stream.choice(letters) for _ in range(stream.randrange(most)))

    tag = stream.choice(["action", "action", "action", "Action"])
    return f"<think>{some(8)}</think>{some(3)}<{tag}>{some(6)}</{tag}>{some(4)}"


@pytest.mark.parametrize("words", [True, False])
def test_the_action_mask_equals_the_one_from_byte_offsets_on_fuzzed_responses(tmp_path, words):
    chat = Policy(make_chat_model(tmp_path, words=words))
    stream, straddling = random.Random(0), 0
    for _ in range(1000):
        ids = chat.encode(fuzzed(stream)) + [2]
        text = chat.decode(ids)
        expected = byte_mask(chat, ids, text)
        assert (
            action_token_mask(chat, {"response": text, "response_ids": ids, "valid": True})
            == expected
        ), text
        inside = [i for i, m in zip(ids, expected) if m]
        straddling += bool(inside) and chat.decode(inside) != text[slice(*action_span(text))]
    assert straddling > (5 if words else 300)  # tokens such as "></" or ">go" were among them


def test_the_action_mask_equals_the_one_from_byte_offsets_when_bytes_are_single_tokens(tmp_path):
    policy = Policy(make_chat_model(tmp_path))
    byte_ids = policy.tokenizer.convert_tokens_to_ids(list(bytes_to_unicode().values()))
    one = dict(zip(bytes_to_unicode(), byte_ids))
    stream = random.Random(1)
    for _ in range(300):
        text = fuzzed(stream)
        ids = [one[b] for b in text.encode()]
        assert policy.decode(ids) == text
        assert action_token_mask(
            policy, {"response": text, "response_ids": ids, "valid": True}
        ) == byte_mask(policy, ids, text), text


def test_a_response_without_tags_or_with_an_empty_action_has_no_action_token(chat):
    for text in (
        "go to cabinet 1",
        "<action>  </action>",
        "</action>look<action>",
        "<action></action>",
        "",
    ):
        ids = chat.encode(text)
        assert action_token_mask(chat, {"response": text, "response_ids": ids, "valid": True}) == [
            0
        ] * len(ids)


# ---- truncation ----


def long_history(env):
    step = env.reset(env.tasks("train")[0])
    history = []
    for _ in range(3):
        history.append((Step("You see " + "a mug 1, " * 60, step.admissible), "look"))
    return history, Step("You see " + "a plate 1, " * 60 + "the end.", step.admissible)


def test_a_long_prompt_loses_its_history_before_its_observation_and_never_its_task(chat, env):
    history, now = long_history(env)
    whole, cut = chat.prompt_ids(env, env.task, history, now, [])
    assert not cut
    lengths, seen = [], []
    for limit in (len(whole) - 1, len(whole) * 2 // 3, len(whole) // 2, len(whole) // 3):
        chat.max_prompt = limit
        try:
            ids, cut = chat.prompt_ids(env, env.task, history, now, [])
        except UserError as mistake:
            seen.append(str(mistake))
            continue
        finally:
            chat.max_prompt = None
        text = chat.decode(ids)
        assert (
            cut
            and len(ids) <= limit
            and env.task in text
            and all(action in text for action in now.admissible)
        )
        # what was cut does not change the count
        assert "You have taken 3 steps" in text and "step 4" in text
        assert "a plate 1, " * 60 in text or "observation 3" not in text  # history went first
        lengths.append(len(ids))
    assert len(lengths) >= 2 and lengths == sorted(lengths, reverse=True)


def test_the_first_observation_keeps_the_task_at_its_end(chat, env):
    step = env.reset(env.tasks("train")[0])
    head, tail = step.observation.split("\n\n", 1)
    step = Step(head + "\n\n" + "a cabinet 1, " * 200 + tail, step.admissible)
    chat.max_prompt = len(chat.prompt_ids(env, env.task, [], step, [])[0]) // 2
    ids, cut = chat.prompt_ids(env, env.task, [], step, [])
    chat.max_prompt = None
    assert cut and env.task in chat.decode(ids)


def test_a_prompt_whose_task_and_actions_do_not_fit_is_refused(chat, env):
    history, now = long_history(env)
    chat.max_prompt = 20
    with pytest.raises(UserError, match="raise --max-prompt"):
        chat.prompt_ids(env, env.task, history, now, [])
    chat.max_prompt = None


def test_truncated_prompts_are_counted(chat, env):
    plays = [Play(env.tasks("train")[0], "g", ("cut", 0))]
    records = rollout(chat, env, plays, max_response=4)
    assert count_truncated(records) == 0
    chat.max_prompt = max(len(s["prompt_ids"]) for s in records[0]["steps"]) - 1
    records = rollout(chat, env, plays, max_response=4)
    chat.max_prompt = None
    assert count_truncated(records) >= 1
    assert any(step["truncated"] for step in for_file(records[0])["steps"])


def test_a_stand_in_never_reads_more_than_its_context(policy):
    env = AlfWorld(houses=True, max_steps=30)
    plays = [Play(task, task, ("long", task)) for task in env.tasks("train")[:4]]
    whole = rollout(policy, env, plays)
    policy.context = max(len(r["steps"][-1]["prompt_ids"]) for r in whole) - 40
    records = rollout(policy, env, plays)
    sizes = [len(s["prompt_ids"]) + len(s["response_ids"]) for r in records for s in r["steps"]]
    ended = [r for r in records if len(r["steps"]) < 30 and not r["success"]]
    assert max(sizes) <= policy.context and ended and count_truncated(records) == len(ended)
    for record, long in zip(records, whole):  # up to there nothing has changed
        n = len(record["steps"])
        assert [s["action"] for s in record["steps"]] == [s["action"] for s in long["steps"]][:n]
        assert record["final_observation"] == (
            long["steps"][n]["observation"] if n < len(long["steps"]) else long["final_observation"]
        )
    policy.context = 20
    with pytest.raises(UserError, match="no room for an action"):
        rollout(policy, env, plays)


# ---- mining ----


def test_answers_of_chat_models_are_parsed_strictly_and_refusals_counted_by_reason(
    chat, env, monkeypatch
):
    good = {"title": "t", "condition": "when hot", "strategy": "use the microwave"}
    answers = [
        "Sure! " + json.dumps(good), json.dumps(good), "I would rather not",
        '{"title": "t", "condition": "c"}', '{"title": ',
        json.dumps(good | {"strategy": "open cabinet 3"}),
        json.dumps(good | {"condition": "so " * 50}), json.dumps(good | {"title": 3}),
        json.dumps(good | {"condition": ""}),
    ]  # fmt: skip
    pool = [
        {"traj_id": f"t{i}", "group_id": f"g{i}", "task_id": f"train/{i}", "task_type": "heat",
         "task": "heat it", "condition": "plain",
         "success": True, "steps": [{"observation": "o", "action": "look"}]}
        for i in range(len(answers))
    ]  # fmt: skip
    asked = []
    monkeypatch.setattr(
        mine, "generate", lambda policy, prompts, *more: asked.extend(prompts) or answers
    )
    new, rejected = mine.write_skills(chat, env, pool, [], 0, seed=0)
    assert len(asked) == len(answers) and all("JSON" in prompt for prompt in asked)
    assert [skill["condition"] for skill in new] == ["when hot"]
    assert sorted(r["reason"] for r in rejected) == sorted([
        "near duplicate", "no JSON object", "missing field", "broken JSON",
        "names a numbered instance", "condition too long",
        "missing field", "empty field",
    ])  # fmt: skip


# ---- errors, before any model loads ----


def test_a_model_without_template_or_with_too_short_a_context_is_refused(tmp_path, model_folder):
    check_model(str(model_folder), arguments())  # a stand-in
    short = str(make_chat_model(tmp_path / "short", max_position_embeddings=1024))
    with pytest.raises(
        UserError, match="make 4608 tokens, .* reads 1024: lower --max-prompt to at most 512"
    ):
        check_model(short, arguments())
    check_model(short, arguments(max_prompt=512))
    base = make_chat_model(tmp_path / "base")
    (base / "chat_template.jinja").unlink()
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens([f"word{i}" for i in range(10_000)])
    tokenizer.save_pretrained(base)
    with pytest.raises(UserError, match="no chat template; choose an Instruct model"):
        check_model(str(base), arguments())
