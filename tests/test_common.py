"""The core: advantages and losses by hand, and the properties that the training loop rests on.
pytest tests/test_common.py"""

import doctest
import json
import math
from functools import partial

import numpy as np
import pytest
import torch

import common
import distill
import mine
import warmup
from common import Play, Row, assign_advantages, gigpo_advantages, rollout, rows_of
from envs import Step, UserError
from support import files
from support.files import rng
from support.models import check_model
from support.packing import merge_prefixes, micro_batches
from support.records import for_file
from support.sampler import Sampler
from support.softmax import token_logprobs


def episode(group, rewards, anchors, valid=None):
    return {
        "group": group,
        "rewards": rewards,
        "anchors": anchors,
        "valid": valid or [True] * len(rewards),
    }


@pytest.fixture(scope="module")
def records(model_folder):
    from envs.alfworld import AlfWorld

    env = AlfWorld(houses=True, max_steps=6)
    policy = common.Policy(model_folder)
    plays = [
        Play(task, task, ("test", task, i)) for task in env.tasks("train")[:3] for i in range(4)
    ]
    records = rollout(policy, env, plays)
    for i, record in enumerate(records):  # a random policy wins nothing: say that some did
        record["steps"][-1]["reward"] = 10.0 * (i % 3 == 0)
        record["success"] = i % 3 == 0
    assign_advantages(records, env, mode="mean_norm")
    return records


# ---- advantages ----


def test_returns_are_discounted_from_the_end():
    assert common.discounted_returns([0.0, 0.0, 10.0], 0.5) == [2.5, 5.0, 10.0]


def test_advantages_of_a_win_and_a_loss_that_share_their_first_state_by_hand():
    rows = gigpo_advantages([episode("g", [0.0, 10.0], ["s", "a"]), episode("g", [0.0], ["s"])])
    # row scores 10, 10, 0: mean 20/3, std sqrt(((10/3)^2 * 2 + (20/3)^2) / 2)
    std = math.sqrt((2 * (10 / 3) ** 2 + (20 / 3) ** 2) / 2)
    assert rows[0]["episode_advantage"] == pytest.approx(10 / 3 / std, abs=1e-5)
    assert rows[2]["episode_advantage"] == pytest.approx(-20 / 3 / std, abs=1e-5)
    # the shared state's returns are 9.5 and 0; the other state was seen once
    assert rows[0]["step_advantage"] == pytest.approx(4.75 / (9.5 / math.sqrt(2)), abs=1e-5)
    assert rows[1]["step_advantage"] == 0.0
    assert rows[0]["advantage"] == rows[0]["episode_advantage"] + rows[0]["step_advantage"]


def test_a_group_of_equal_outcomes_gives_no_signal():
    rows = gigpo_advantages(
        [episode("g", [0.0, 10.0], ["a", "b"]), episode("g", [0.0, 10.0], ["a", "c"])]
    )
    assert all(row["advantage"] == 0 for row in rows)


def test_the_same_state_in_another_group_is_not_an_anchor():
    rows = gigpo_advantages([episode("g", [10.0], ["s"]), episode("h", [0.0], ["s"])])
    assert [row["anchor_size"] for row in rows] == [1, 1]


def test_an_invalid_step_costs_only_itself():
    rows = gigpo_advantages([episode("g", [0.0, 0.0], ["a", "b"], [False, True])], mode="mean_norm")
    assert rows[0]["row_score"] == -0.1 and rows[1]["row_score"] == 0.0


def test_similar_states_join_one_anchor_group_when_asked():
    assert common.anchor_groups(["you see a mug 1", "you see a mug 2", "nothing"], 0.9) == [0, 0, 1]
    assert common.anchor_groups(["you see a mug 1", "you see a mug 2", "nothing"]) == [0, 1, 2]


def test_plain_and_skill_episodes_are_one_group(env):
    def record(condition, reward):
        step = {"reward": reward, "valid": True, "observation": "o"}
        return {"group_id": "g", "condition": condition, "success": reward > 0, "steps": [step]}

    both = [
        record("skill", 10.0),
        record("skill", 10.0),
        record("plain", 0.0),
        record("plain", 0.0),
    ]
    assign_advantages(both, env, mode="mean_norm")
    assert both[0]["steps"][0]["advantage"] > 1


# ---- losses ----


def test_policy_loss_by_hand():
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0])
    ratio = torch.tensor([1.5, 0.5, 0.5, 5.0])
    loss, clipped, capped = common.policy_loss(ratio.log(), torch.zeros(4), advantages)
    assert loss.tolist() == pytest.approx([-1.2, -0.5, 0.8, 3.0])
    assert clipped.tolist() == [True, False, True, False]
    assert capped.tolist() == [False, False, False, True]


def test_k3_is_zero_at_the_reference_and_positive_elsewhere():
    logp = torch.tensor([-1.0, -2.0, -0.5])
    assert common.kl_k3(logp, logp).abs().max() == 0
    assert common.kl_k3(logp, torch.tensor([-2.0])).tolist()[0] == pytest.approx(
        math.exp(-1) + 1 - 1
    )


def make_rows(records, twins=False):
    rows = rows_of(records)
    if twins:
        for row in rows_of(records)[::2]:
            row.rl, row.weights, row.n_taught = (
                False,
                [0.7] * len(row.response_ids),
                len(row.response_ids),
            )
            rows.append(row)
    return rows


def loss_of(policy, part, n_tokens, n_taught, ref_policy=None, lam=0.0, **gigpo):
    """(20) of one micro-batch."""
    tokens = common.score(policy, part, ref_policy=ref_policy)
    tokens.n_tokens, tokens.n_taught = n_tokens, n_taught
    return distill.siri_loss(tokens, lam, **gigpo)[0]


def gradient(policy, rows, ref_policy=None, lam=0.0, merge=True, micro_batch_tokens=4096, **gigpo):
    """Flat gradient of one mini-batch's loss."""
    policy.model.zero_grad()
    groups = [[r for r in rows if r.rl], [r for r in rows if not r.rl]]
    sequences = [
        s
        for g in groups
        for s in (merge_prefixes(g) if merge else [q for r in g for q in merge_prefixes([r])])
    ]
    n_tokens, n_taught = (
        max(1, sum(len(r.response_ids) for r in rows if r.rl)),
        max(1, sum(r.n_taught for r in rows)),
    )
    for part in micro_batches([s for s in sequences if s.positions], micro_batch_tokens):
        loss_of(policy, part, n_tokens, n_taught, ref_policy, lam, **gigpo).backward()
    return torch.cat([p.grad.flatten() for p in policy.model.parameters()])


def test_gradients_of_all_losses_agree_with_finite_differences(policy, model_folder, records):
    ref = common.Policy(model_folder)
    for one in (policy, ref):
        one.model.double()
    with torch.no_grad():  # away from the start, where the ratio is 1 and the KL 0
        generator = torch.Generator().manual_seed(0)
        for p in policy.model.parameters():
            p += 0.02 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    rows, method = make_rows(records, twins=True), dict(beta=0.5, entropy_coef=0.1)
    found = gradient(policy, rows, ref, lam=0.3, **method)
    direction = (
        found / found.norm()
        + torch.randn(found.shape, generator=generator, dtype=torch.float64) / len(found) ** 0.5
    )

    def loss(distance):
        offset = 0
        with torch.no_grad():
            for p in policy.model.parameters():
                p += distance * direction[offset : offset + p.numel()].view_as(p)
                offset += p.numel()
            sequences = merge_prefixes([r for r in rows if r.rl]) + merge_prefixes(
                [r for r in rows if not r.rl]
            )
            tokens, gated = (
                sum(len(r.response_ids) for r in rows if r.rl),
                sum(r.n_taught for r in rows),
            )
            return loss_of(
                policy, [s for s in sequences if s.positions], tokens, gated, ref, 0.3, **method
            ).item()

    h = 1e-4  # the model's norms compute in float32, so not smaller
    above, below = loss(h), loss(-2 * h)
    assert found @ direction == pytest.approx((above - below) / (2 * h), rel=1e-2)


def test_merged_and_separate_rows_give_the_same_gradient(policy, records):
    rows = make_rows(records, twins=True)
    merged = gradient(policy, rows, lam=0.3)
    separate = gradient(policy, rows, lam=0.3, merge=False)
    assert len(merge_prefixes(rows_of(records))) == len(records) < len(rows_of(records))
    assert torch.allclose(merged, separate, atol=1e-6) and merged.norm() > 1e-3


def test_micro_batches_and_padding_change_nothing(policy, records):
    rows = make_rows(records, twins=True)
    whole = gradient(policy, rows, micro_batch_tokens=10**6, lam=0.3)
    pieces = gradient(policy, rows, micro_batch_tokens=1, lam=0.3)
    assert torch.allclose(whole, pieces, atol=1e-6)


def test_only_gated_action_tokens_of_a_twin_get_a_gradient(policy, records):
    rows = make_rows(records)[:5]
    for row in rows:
        row.rl, row.weights, row.n_taught = (
            False,
            [0.0] * len(row.response_ids),
            len(row.response_ids),
        )
    assert gradient(policy, rows, entropy_coef=0.1, lam=1.0).abs().max() == 0
    rows[2].weights = [1.0] * len(rows[2].response_ids)
    assert gradient(policy, rows, lam=1.0).abs().max() > 0


def test_tokens_that_are_not_allowed_get_exactly_no_gradient(policy, records):
    sequence = merge_prefixes(rows_of(records)[:1])[0]
    hidden = torch.randn(len(sequence.positions), len(policy.tokenizer), requires_grad=True)
    tokens = torch.tensor([ids[0] for ids in sequence.allowed])
    logp, entropy = token_logprobs(hidden, tokens, sequence.allowed)
    (logp + entropy).sum().backward()
    mask = torch.ones_like(hidden, dtype=torch.bool)
    for n, ids in enumerate(sequence.allowed):
        mask[n, ids] = False
    assert hidden.grad[mask].abs().max() == 0 and hidden.grad.abs().max() > 0


def test_advantage_zero_leaves_the_policy_alone(policy, records):
    rows = rows_of(records)
    for row in rows:
        row.advantage = 0.0
    assert gradient(policy, rows, entropy_coef=0.0).abs().max() == 0


def test_update_raises_the_probability_of_what_went_well(policy, records):
    rows = rows_of(records)
    good = [s for s in merge_prefixes(rows) if s.advantages and min(s.advantages) > 0]
    before = policy.logprobs(good)[0].sum().item()
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=1e-3)
    loss = partial(common.gigpo_loss, entropy_coef=0.0)
    metrics = common.update(
        policy, optimizer, rows, np.random.default_rng(0), loss, mini_batch_rows=10**9
    )
    assert policy.logprobs(good)[0].sum().item() > before
    assert metrics["optimizer_steps"] == 1 and metrics["grad_norm"] > 0


# ---- rollout ----


def test_sampler_and_trainer_agree_on_log_probs(policy, records):
    sequences = merge_prefixes(rows_of(records))
    with torch.no_grad():
        trainer, _ = policy.logprobs(sequences)
    sampler = torch.tensor([x for s in sequences for x in s.old_logprobs])
    assert (trainer - sampler).abs().max() < 1e-4


def test_free_sampling_agrees_with_the_trainer_too(model_folder, env):
    policy = common.Policy(model_folder, constrain=False)
    plays = [Play(task, task, ("free", task)) for task in env.tasks("train")[:4]]
    records = rollout(policy, env, plays, temperature=0.7, max_response=5)
    assign_advantages(records, env, mode="mean_norm")
    sequences = merge_prefixes(rows_of(records))
    with torch.no_grad():
        trainer, _ = policy.logprobs(sequences, temperature=0.7)
    assert (
        trainer - torch.tensor([x for s in sequences for x in s.old_logprobs])
    ).abs().max() < 1e-4
    assert all(len(step["response_ids"]) <= 5 for r in records for step in r["steps"])


def test_constrained_responses_are_admissible_actions(records):
    assert all(
        step["action"] in step["admissible"] and step["valid"]
        for r in records
        for step in r["steps"]
    )


def test_an_episode_depends_neither_on_its_batch_nor_on_the_order(policy, env):
    plays = [Play(task, task, ("same", task)) for task in env.tasks("train")[:6]]
    together = rollout(policy, env, plays)
    alone = rollout(policy, env, plays[::-1], batch=2)[::-1]
    assert [[s["action"] for s in r["steps"]] for r in together] == [
        [s["action"] for s in r["steps"]] for r in alone
    ]


def sequences(*lengths):
    """Token ids that differ from row to row."""
    return [[3 + (7 * i + 5 * j) % 40 for j in range(n)] for i, n in enumerate(lengths)]


@torch.inference_mode()
def test_rows_go_on_with_their_own_cache_when_others_end(policy):
    """The last rows move into the gaps, whatever order they are dropped in; every row's logits are
    those of a sampler without a past."""
    rows = sequences(30, 5, 17, 40, 9, 23)
    sampler = Sampler(policy, len(rows))
    sampler.forward(rows, list(range(6)))
    for still, moved in (([0, 2, 3, 5], [0, 5, 2, 3]), ([1, 3], [3, 1])):
        order = sampler.keep(still)
        # row 5 fills the gap of row 1; then row 3 that of row 0
        assert order == moved and sorted(order) == still
        rows = [rows[i] + [11, 12, 13] for i in order]
        alone = [Sampler(policy, 1).forward([ids], [0])[0] for ids in rows]
        assert torch.allclose(
            sampler.forward(rows, list(range(len(rows)))), torch.stack(alone), atol=1e-5
        )


@pytest.mark.parametrize("kind", ["model_folder", "chat_folder"])
def test_texts_are_encoded_as_the_tokenizer_says(request, kind):
    policy = common.Policy(request.getfixturevalue(kind))
    for text in ("", "go to shelf 2\n", " two  spaces", "é日本 <|im_end|>", "x" * 5000):
        assert policy.encode(text) == policy.tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("packs", [True, False])
@torch.inference_mode()
def test_rows_that_wait_are_fed_later_and_long_rows_packed_or_by_themselves(
    policy, monkeypatch, packs
):
    fed, feed = [], Sampler.feed
    monkeypatch.setattr(
        Sampler,
        "feed",
        lambda self, rows, tokens: fed.append([len(t) for t in tokens]) or feed(self, rows, tokens),
    )
    rows = sequences(20, 20, 20)
    sampler = Sampler(policy, 3)
    assert sampler.packs  # on a CPU
    sampler.packs = packs
    sampler.forward(rows, [0, 1, 2])
    rows = [ids + list(range(5, 5 + n)) for ids, n in zip(rows, (2, 30, 15))]
    # only the first row's logits are wanted: nobody is padded beyond its two tokens
    sampler.forward(rows, [0])
    assert fed == [[20, 20, 20], [2, 2, 2]]
    alone = [Sampler(policy, 1).forward([ids], [0])[0] for ids in rows[1:]]
    logits = sampler.forward(rows, [1, 2])
    assert fed[4:] == ([[1, 28, 13]] if packs else [[1, 12, 12], [12, 1], [4]])
    assert torch.allclose(logits, torch.stack(alone), atol=1e-5)


def test_prompts_built_step_by_step_equal_prompts_built_at_once(policy, env, records):
    for record in records[:4]:
        assert distill.prompts_of(policy, env, record) == [
            step["prompt_ids"] for step in record["steps"]
        ]
        history = [(Step(s["observation"], s["admissible"]), s["action"]) for s in record["steps"]]
        for t, step in enumerate(record["steps"]):
            text = env.prompt(record["task"], history[:t], history[t][0], [], policy.style)
            assert policy.encode_prompt(text) == step["prompt_ids"]


def test_records_survive_the_way_to_the_file(records):
    line = json.loads(json.dumps(for_file(records[0])))
    assert line["steps"][0]["n_admissible"] == len(records[0]["steps"][0]["admissible"])
    assert (
        "prompt_ids" not in line["steps"][0]
        and line["steps"][0]["response_ids"] == records[0]["steps"][0]["response_ids"]
    )


# ---- skills ----


def skill(name, condition, task_type="heat", **more):
    return {
        "skill_id": name, "condition": condition, "strategy": "s", "task_type": task_type,
        "status": "candidate",
        "utility": 0.0, "n_eval": 0, "neg_streak": 0, "deltas": [], "plain": [],
    } | more  # fmt: skip


def test_retrieval_prefers_matching_words_then_utility_and_keeps_to_the_type():
    bank = [
        skill("general", "you heat something", utility=0.2),
        skill("worse", "you heat something else", utility=0.1),
        skill("other type", "you need a mug", task_type="cool"),
        skill("mug", "you need a mug", task_type=None),
        skill("cup", "you need a cup", task_type=None),
    ]
    found = [s["skill_id"] for s in common.retrieve(bank, "put a hot mug in shelf", "heat", 3)]
    assert found == ["mug", "general", "worse"]


def test_a_skill_lives_by_its_utility():
    good, bad = skill("good", "x"), skill("bad", "x")
    for k in range(3):
        mine.credit(good, {"delta": 0.5, "s_base": [0]}, k, n_eval=3)
        mine.credit(bad, {"delta": -0.25, "s_base": [1]}, k, n_eval=3)
    assert good["status"] == "active" and good["utility"] == 0.5
    assert bad["status"] == "retired" and bad["retired_iter"] == 2
    mine.credit(good, {"delta": -1.0, "s_base": [1]}, 3, n_eval=3)
    assert good["utility"] == pytest.approx(0.75 * 0.5 - 0.25)


def test_a_candidate_that_never_shows_an_effect_is_retired():
    one = skill("empty", "x")
    for k in range(9):
        mine.credit(one, {"delta": 0.0, "s_base": [0]}, k, n_eval=3)
    assert one["status"] == "retired"


@pytest.mark.parametrize(
    "module", [common, warmup, mine, distill], ids=lambda module: module.__name__
)
def test_the_worked_numbers_in_the_docstrings_are_right(module):
    found = doctest.testmod(module)
    assert found.attempted and not found.failed


# ---- files and errors ----


def test_a_broken_line_is_named(tmp_path):
    path = tmp_path / "trajectories.jsonl"
    path.write_text('{"a": 1}\nnot json\n')
    with pytest.raises(UserError, match="line 2"):
        files.read_jsonl(path)


def test_a_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match="run the phase"):
        files.read_jsonl(tmp_path / "none.jsonl")


def test_a_skill_without_a_key_is_refused(tmp_path):
    path = tmp_path / "skills.jsonl"
    path.write_text(json.dumps({"skill_id": "x", "condition": "c"}) + "\n")
    with pytest.raises(UserError, match="line 1: a skill without task_type, strategy"):
        files.skills_file(path)


def test_random_streams_have_names_and_no_memory():
    assert (
        rng(0, "mine", 3, "tasks").random()
        == rng(0, "mine", 3, "tasks").random()
        != rng(0, "mine", 4, "tasks").random()
    )


def test_an_unknown_model_is_refused_before_loading(tmp_path):
    with pytest.raises(UserError, match="--model"):
        check_model(str(tmp_path / "nothing"))


def test_rows_of_other_prompts_do_not_merge():
    rows = [
        Row([1, 2], [3], [0.0], [None]),
        Row([1, 2, 3, 4], [5], [0.0], [None]),
        Row([9], [3], [0.0], [None]),
    ]
    merged = merge_prefixes(rows)
    assert [s.ids for s in merged] == [[1, 2, 3, 4, 5], [9, 3]] and merged[0].positions == [2, 4]


def test_a_chain_of_similar_states_is_held_together_by_its_first_member_only():
    a, b, c = "x" * 20, "x" * 19 + "y", "x" * 18 + "yz"  # ratios a~b .95, a~c .9, b~c .9 or more
    assert common.anchor_groups([a, b, c], similarity=0.95) == [0, 0, 1]
    b_like_c = ["x" * 20, "x" * 19 + "y", "x" * 18 + "yy"]  # b~c .95, a~c .9
    assert common.anchor_groups(b_like_c, similarity=0.95) == [0, 0, 1]
