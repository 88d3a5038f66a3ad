"""What makes large models fit changes no result: chunked logits, recomputed activations, mixed
precision, LoRA.

pytest tests/test_memory.py"""

import re
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import common
import warmup
from common import Play, Policy, assign_advantages, rollout, rows_of
from envs import UserError
from envs.alfworld import AlfWorld
from support import cli, large, memory, sampler, softmax, training
from support.packing import Sequence, merge_prefixes
from tests.conftest import arguments, run_main
from tests.toy import Doors

needs_peft = pytest.mark.skipif(not find_spec("peft"), reason="needs peft: pip install -e '.[gpu]'")
SMALL = (
    "--groups 4 --group-size 3 --threads 1 --mini-batch-rows 20 --seed 1 --stop-at 0 --lr "
    "0.003 --model model --device cpu"
).split()


@pytest.fixture(scope="module")
def records(chat_folder):
    env = AlfWorld(houses=True, max_steps=2)
    records = rollout(
        Policy(chat_folder),
        env,
        [Play(t, t, ("m", t, i)) for t in env.tasks("train")[:2] for i in range(2)],
        max_response=9,
    )
    for i, record in enumerate(records):
        record["steps"][-1]["reward"] = 10.0 * (i % 2)
    assign_advantages(records, env, mode="mean_norm")
    return records


def sgd(policy):
    """An optimizer that moves nothing: the gradient stays to be looked at."""
    return torch.optim.SGD(large.trained(policy), lr=0.0)


def gradient(policy, records, **how):
    """Flat gradient of an update's only mini-batch, and the losses."""
    loss, how = (
        partial(common.gigpo_loss, entropy_coef=0.01),
        dict(grad_clip=1e9, mini_batch_rows=10**9, recompute_old=False) | how,
    )
    metrics = common.update(
        policy, sgd(policy), rows_of(records), np.random.default_rng(0), loss, **how
    )
    return torch.cat([p.grad.flatten() for p in large.trained(policy)]), metrics


# ---- logits, activations, precision ----


def test_logits_exist_for_response_tokens_only_and_in_chunks(chat_folder, records, monkeypatch):
    policy, seen = Policy(chat_folder), []
    sequences = merge_prefixes(rows_of(records))
    plain, _ = gradient(policy, records)
    head = policy.model.get_output_embeddings()
    head.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape)))
    policy.chunk = 7
    chunked, _ = gradient(policy, records)
    targets = sum(len(s.positions) for s in sequences)
    # forward, and again in the backward pass
    assert max(rows for rows, _ in seen) == 7 and sum(rows for rows, _ in seen) == 2 * targets
    assert targets < sum(len(s.ids) for s in sequences) / 10
    assert torch.allclose(plain, chunked, atol=1e-6) and plain.norm() > 1e-3
    with torch.no_grad():
        whole = policy.logprobs(sequences)
        policy.chunk = 10**6
        assert torch.allclose(
            torch.stack(whole), torch.stack(policy.logprobs(sequences)), atol=1e-6
        )


def saved_bytes(policy, sequences, on):
    """Bytes that the forward pass keeps for the backward pass."""
    kept = {}
    large.recompute(policy, on)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.setdefault(t.data_ptr(), t.nbytes) and t, lambda t: t
    ):
        policy.logprobs(sequences)
    large.recompute(policy, False)
    return sum(kept.values())


def test_recomputed_activations_give_the_same_gradient_in_less_memory_and_keep_the_samplers_cache(
    chat_folder, records
):
    plain, _ = gradient(Policy(chat_folder), records)
    policy = common.load_policy(
        str(chat_folder), arguments(gradient_checkpointing=True), trained=True
    )
    again, _ = gradient(policy, records, checkpointing=True)
    assert torch.equal(plain, again)
    sequences = merge_prefixes(rows_of(records))
    assert saved_bytes(policy, sequences, True) < 0.5 * saved_bytes(policy, sequences, False)
    env = AlfWorld(houses=True, max_steps=2)
    plays = [Play(env.tasks("train")[0], "g", ("cache", 0))]
    one, other = (
        rollout(p, env, plays, max_response=8)[0]["steps"] for p in (policy, Policy(chat_folder))
    )
    assert [s["response_ids"] for s in one] == [s["response_ids"] for s in other]
    assert not any(module.training for module in policy.model.modules())


def test_bfloat16_computes_in_bfloat16_and_trains_float32_weights(chat_folder, records):
    args = arguments(dtype="bfloat16", lr=1e-6)
    policy = common.load_policy(str(chat_folder), args, trained=True)
    before = [p.detach().clone() for p in large.trained(policy)]
    assert all(p.dtype == torch.float32 for p in before)
    exact, _ = gradient(Policy(chat_folder), records)
    rough, _ = gradient(policy, records)
    assert (
        not torch.equal(exact, rough)
        and torch.nn.functional.cosine_similarity(exact, rough, 0) > 0.95
    )
    optimizer = torch.optim.AdamW(large.trained(policy), lr=1e-6)
    common.update(policy, optimizer, rows_of(records), np.random.default_rng(0))
    moved = torch.cat([(p - q).abs().flatten() for p, q in zip(large.trained(policy), before)])
    assert (moved > 1e-7).float().mean() > 0.9  # in bfloat16 a step of 1e-6 would round to nothing
    # what is only played is in bfloat16
    assert common.load_policy(str(chat_folder), args).model.dtype == torch.bfloat16


def test_rollouts_compute_in_bfloat16_too(chat_folder):
    policy = common.load_policy(str(chat_folder), arguments(dtype="bfloat16"), trained=True)
    env = AlfWorld(houses=True, max_steps=2)
    records = rollout(
        policy, env, [Play(t, t, ("bf16", t)) for t in env.tasks("train")[:3]], max_response=9
    )
    assign_advantages(records, env, mode="mean_norm")
    sequences = merge_prefixes(rows_of(records))
    sampler = torch.tensor([x for s in sequences for x in s.old_logprobs])
    with torch.no_grad():
        rough, exact = (p.logprobs(sequences)[0] for p in (policy, Policy(chat_folder)))
    assert (sampler - rough).abs().mean() < 0.05 and 1e-4 < (sampler - exact).abs().mean() < 0.05


def test_in_bfloat16_nothing_between_two_matrix_products_is_float32(chat_folder):
    policy = common.load_policy(str(chat_folder), arguments(dtype="bfloat16"), trained=True)
    seen = {}
    for name, module in policy.model.named_modules():
        if "Norm" in type(module).__name__ or isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(
                lambda module, args, name=name: seen.update({name: args[0].dtype})
            )
    with torch.no_grad():
        policy.logprobs([Sequence([1, 2, 3], [1, 2], [None] * 2)])
    assert len(seen) > 9 and set(seen.values()) == {torch.bfloat16}


def test_a_bfloat16_policy_samples_from_a_narrow_copy_that_follows_every_update(chat_folder):
    policy = common.load_policy(str(chat_folder), arguments(dtype="bfloat16"), trained=True)
    assert policy.sampling.dtype == torch.bfloat16 and policy.model.dtype == torch.float32
    large.ready_to_sample(policy)
    with torch.no_grad():
        for p in large.trained(policy):
            p.add_(torch.randn_like(p))
    policy.version += 1
    large.ready_to_sample(policy)
    copies = dict(policy.sampling.named_parameters())
    for name, p in policy.model.named_parameters():
        assert torch.equal(copies[name], p.to(torch.bfloat16))


def test_a_bfloat16_run_keeps_float32_in_its_checkpoints_and_goes_on_to_the_same_weights(
    monkeypatch, tmp_path, model_folder
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(warmup, "make_env", lambda *given: Doors())
    Path("model").symlink_to(model_folder)
    command = [*SMALL, "--iterations", "3", "--dtype", "bfloat16"]
    run_main(monkeypatch, warmup, *command, "--run", "whole")
    monkeypatch.setattr(warmup, "assign_advantages", stops_at(3, common.assign_advantages))
    with pytest.raises(RuntimeError, match="interrupted"):
        run_main(monkeypatch, warmup, *command, "--run", "parts")
    kept = load_file("runs/parts/warmup/checkpoints/000002/model.safetensors")
    run_main(monkeypatch, warmup, *command, "--run", "parts")
    whole, parts = (
        load_file(f"runs/{run}/warmup/policy/model.safetensors") for run in ("whole", "parts")
    )
    assert {t.dtype for t in kept.values()} == {torch.float32} and {
        t.dtype for t in whole.values()
    } == {torch.bfloat16}
    assert kept.keys() == whole.keys() and all(
        torch.equal(whole[name], parts[name]) for name in whole
    )


def stops_at(n, function):
    """The function, which raises at its n-th call."""
    calls = []

    def stopping(*given, **more):
        calls.append(1)
        if len(calls) == n:
            raise RuntimeError("interrupted")
        return function(*given, **more)

    return stopping


def test_log_probs_entropies_and_their_gradients_are_those_of_autograd(monkeypatch):
    monkeypatch.setattr(softmax, "_slices", lambda logits: [slice(0, 3), slice(3, 99)])
    logits = torch.randn(6, 9, dtype=torch.float64, requires_grad=True)
    tokens, allowed = torch.tensor([1, 2, 3, 0, 8, 4]), [None, [2, 5], None, None, [0, 7, 8], [4]]
    logprobs, entropy = softmax.token_logprobs(logits, tokens, allowed)
    plain = softmax.masked(logits, allowed).log_softmax(-1)
    assert torch.allclose(logprobs, plain.gather(1, tokens[:, None])[:, 0])
    assert torch.allclose(entropy, -(plain.exp() * plain).sum(-1))
    one_of = [None] * 6
    assert torch.autograd.gradcheck(lambda z: softmax.token_logprobs(z, tokens, one_of), logits)
    weights = torch.randn(2, 6, dtype=torch.float64)
    ours = torch.autograd.grad((weights[0] * logprobs + weights[1] * entropy).sum(), logits)[0]
    by_hand = weights[0] * plain.gather(1, tokens[:, None])[:, 0]
    by_hand = by_hand - weights[1] * (plain.exp() * plain).sum(-1)
    assert torch.allclose(ours, torch.autograd.grad(by_hand.sum(), logits)[0], atol=1e-12)


def test_the_micro_batch_follows_from_free_memory_and_what_the_first_step_will_take(
    chat_folder, records, monkeypatch, capsys
):
    policy = Policy(chat_folder)
    sequences = merge_prefixes(rows_of(records))
    longest = max(len(s.ids) for s in sequences)
    weights = 16 * sum(p.numel() for p in policy.model.parameters())
    sizes = [
        memory.free_tokens(policy, sgd(policy), sequences, False, free)
        for free in (weights, weights + 10**8, weights + 10**9)
    ]
    assert longest == sizes[0] < sizes[1] < sizes[2]
    assert memory.free_tokens(policy, sgd(policy), sequences, True, weights + 10**8) > sizes[1]

    free = weights + 10**8
    policy.device = "cuda"
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free - 5, 80 * 10**9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 15)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 10)
    training.choose_room(policy, sgd(policy), [sequences], None, False)
    assert policy.room == sizes[1]
    assert f"micro-batches of {sizes[1]:,} tokens" in capsys.readouterr().out
    training.choose_room(policy, sgd(policy), [sequences], 700, False)
    assert policy.room == 700


def test_on_a_cpu_too_a_micro_batch_leaves_room_and_threads_share_it(
    chat_folder, records, monkeypatch, capsys
):
    sequences = merge_prefixes(rows_of(records))
    weights = 16 * sum(p.numel() for p in Policy(chat_folder).model.parameters())

    def chosen(free, threads=1):
        policy = Policy(chat_folder)
        monkeypatch.setattr(training, "free_bytes", lambda device: free)
        training.choose_room(policy, sgd(policy), [sequences], None, False, threads)
        return policy.room

    little = chosen(weights + 10**8)
    assert little < training.AT_MOST and "for 0.1 GB" in capsys.readouterr().out
    assert chosen(weights + 10**8, threads=2) < little
    capsys.readouterr()
    assert chosen(10**11) == chosen(float("inf")) == training.AT_MOST
    assert not capsys.readouterr().out  # nothing to tell


def test_a_model_whose_parts_are_not_counted_gets_micro_batches_of_a_fixed_size(
    chat_folder, records, monkeypatch
):
    def sizes(config):
        raise AttributeError("'MambaConfig' object has no attribute 'num_attention_heads'")

    monkeypatch.setattr(memory, "Sizes", sizes)
    monkeypatch.setattr(training, "free_bytes", lambda device: 10**9)
    policy = Policy(chat_folder)
    policy.device = "cuda"
    training.choose_room(policy, sgd(policy), [merge_prefixes(rows_of(records))], None, False)
    assert policy.room == training.AT_MOST


def test_free_memory_of_this_machine_is_a_number_of_bytes_that_makes_sense():
    free = training.free_bytes("cpu")
    assert free == float("inf") or 2**27 < free < 2**50


def test_micro_batches_are_halved_where_memory_runs_out_and_the_gradient_is_the_same(
    chat_folder, records, monkeypatch, capsys
):
    policy, sizes = Policy(chat_folder), []
    expected, _ = gradient(Policy(chat_folder), records)
    longest = max(len(s.ids) for s in merge_prefixes(rows_of(records)))
    plain = Policy.score_tokens

    def score(self, ids, *asked):
        sizes.append(ids.numel())
        if ids.numel() > 2 * longest:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(self, ids, *asked)

    monkeypatch.setattr(Policy, "score_tokens", score)
    for asked in (8 * longest, None):  # the second update knows: it does not try again
        found, _ = gradient(policy, records, micro_batch_tokens=asked, recompute_old=True)
        assert torch.allclose(found, expected, atol=1e-6)
    printed = capsys.readouterr().out
    assert "out of memory with a micro-batch of 8 x" in printed
    assert printed.count("going on with --micro-batch-tokens") == sum(
        n > 2 * longest for n in sizes
    )
    assert policy.room <= 2 * longest


def test_out_of_memory_says_which_argument_to_lower_and_to_what(
    chat_folder, records, monkeypatch, capsys
):
    policy = Policy(chat_folder)
    longest = max(len(s.ids) for s in merge_prefixes(rows_of(records)))

    def score(*asked):
        raise torch.OutOfMemoryError("CUDA out of memory")

    policy.logprobs = score
    with pytest.raises(UserError, match="micro-batch of 1 .* add --gradient-checkpointing"):
        gradient(policy, records, micro_batch_tokens=2 * longest)
    found = capsys.readouterr().out
    assert re.search(
        r"micro-batch of [23] x \d+ tokens: going on with --micro-batch-tokens \d+", found
    )
    monkeypatch.setattr(sampler.Sampler, "feed", score)
    env = AlfWorld(houses=True, max_steps=2)
    with pytest.raises(
        UserError, match="out of memory with 4 episodes at a time: lower --rollout-batch to 2"
    ):
        rollout(
            policy, env, [Play(env.tasks("train")[0], "g", ("oom", i)) for i in range(6)], batch=4
        )


def test_no_reference_policy_is_loaded_when_beta_is_0(monkeypatch, tmp_path, model_folder):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(warmup, "make_env", lambda *given: Doors())
    loaded = []
    load = common.load_policy
    monkeypatch.setattr(
        common,
        "load_policy",
        lambda *given, **more: loaded.append(given[0]) or load(*given, **more),
    )
    Path("model").symlink_to(model_folder)
    run_main(monkeypatch, warmup, *SMALL, "--iterations", "1")
    assert len(loaded) == 1
    run_main(monkeypatch, warmup, *SMALL, "--iterations", "1", "--beta", "0.1", "--run", "kl")
    assert len(loaded) == 3


# ---- truncated importance weights ----


def test_truncated_importance_weights_scale_the_policy_gradient_by_the_gap_to_the_sampler(
    chat_folder, records, monkeypatch
):
    policy = Policy(chat_folder)
    rows = rows_of(records)
    with torch.no_grad():
        exact = policy.logprobs([s for row in rows for s in merge_prefixes([row])])[0].tolist()
    shift = [0.4, -0.3, 3.0]  # the sampler's log-probs are off by this
    given = iter(exact)
    for row in rows:
        row.logprobs = [next(given) - shift[j % 3] for j in range(len(row.response_ids))]

    def by_hand(cap):
        """Gradient of - sum w A log pi / N: at the first step the ratio of (9) is 1."""
        policy.model.zero_grad()
        logp = policy.logprobs([s for row in rows for s in merge_prefixes([row])])[0]
        w = [min(np.exp(shift[j % 3]), cap) for row in rows for j in range(len(row.response_ids))]
        a = [row.advantage for row in rows for _ in row.response_ids]
        (-(torch.tensor(w) * torch.tensor(a) * logp).sum() / len(w)).backward()
        return torch.cat([p.grad.flatten() for p in policy.model.parameters()])

    loss, how = (
        partial(common.gigpo_loss, entropy_coef=0.0),
        dict(grad_clip=1e9, mini_batch_rows=10**9),
    )
    for cap in (2.0, 1.2):
        monkeypatch.setattr(training, "TIS_CAP", cap)
        metrics = common.update(policy, sgd(policy), rows, np.random.default_rng(0), loss, **how)
        found = torch.cat([p.grad.flatten() for p in policy.model.parameters()])
        assert torch.allclose(found, by_hand(cap), atol=1e-6)
    turns = [shift[j % 3] for row in rows for j in range(len(row.response_ids))]
    assert metrics["sampler_gap"] == pytest.approx(np.abs(turns).mean(), rel=1e-3)
    assert metrics["sampler_gap_max"] == pytest.approx(3.0, rel=1e-3)
    assert metrics["sampler_ratio"] == pytest.approx(np.exp(turns).mean(), rel=1e-3)


# ---- LoRA ----


def lora_policy(folder, **changes):
    return common.load_policy(str(folder), arguments(lora_rank=4, **changes), trained=True)


@needs_peft
def test_lora_trains_adapters_only_and_begins_as_the_plain_model(chat_folder, records):
    policy, plain = lora_policy(chat_folder), Policy(chat_folder)
    names = {name for name, p in policy.model.named_parameters() if p.requires_grad}
    assert names and all(".lora_" in name for name in names)
    assert sum(p.numel() for p in large.trained(policy)) < 0.4 * sum(
        p.numel() for p in plain.model.parameters()
    )
    sequences = merge_prefixes(rows_of(records))
    with torch.no_grad():
        assert torch.allclose(
            policy.logprobs(sequences)[0], plain.logprobs(sequences)[0], atol=1e-6
        )


@needs_peft
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_reference_of_lora_is_the_adapter_switched_off_and_the_merged_weights_play_alike(
    tmp_path, chat_folder, records, checkpointing
):
    policy = lora_policy(chat_folder, gradient_checkpointing=checkpointing)
    loss, how = (
        partial(common.gigpo_loss, beta=0.1),
        dict(checkpointing=checkpointing, mini_batch_rows=4),
    )
    reference, plain = large.without_adapter(policy), Policy(chat_folder)
    optimizer = torch.optim.AdamW(large.trained(policy), lr=1e-2)
    for k in range(2):
        common.update(
            policy, optimizer, rows_of(records), np.random.default_rng(k), loss, reference, **how
        )
    sequences = merge_prefixes(rows_of(records))
    policy.save(tmp_path / "merged")
    with torch.no_grad():
        trained, off, base = (p.logprobs(sequences)[0] for p in (policy, reference, plain))
        merged = Policy(tmp_path / "merged").logprobs(sequences)[0]
    assert torch.allclose(off, base, atol=1e-6) and (trained - base).abs().max() > 1e-2
    assert torch.allclose(trained, merged, atol=1e-4)
    assert (
        load_file(tmp_path / "merged" / "model.safetensors").keys()
        == load_file(chat_folder / "model.safetensors").keys()
    )
    assert all(p.requires_grad for name, p in policy.model.named_parameters() if ".lora_" in name)


@needs_peft
def test_a_lora_run_that_was_interrupted_ends_with_the_same_weights_and_hands_on_a_plain_model(
    monkeypatch, tmp_path, model_folder
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(warmup, "make_env", lambda *given: Doors())
    Path("model").symlink_to(model_folder)
    command = [*SMALL, "--iterations", "4", "--lora-rank", "2", "--beta", "0.01"]
    run_main(monkeypatch, warmup, *command, "--run", "whole")
    monkeypatch.setattr(warmup, "update", stops_at(3, common.update))
    with pytest.raises(RuntimeError, match="interrupted"):
        run_main(monkeypatch, warmup, *command, "--run", "parts")
    # merged: other phases can read it
    AutoModelForCausalLM.from_pretrained("runs/parts/warmup/checkpoints/000002")
    run_main(monkeypatch, warmup, *command, "--run", "parts")
    whole, parts = (
        load_file(f"runs/{run}/warmup/policy/model.safetensors") for run in ("whole", "parts")
    )
    assert whole.keys() == load_file("model/model.safetensors").keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert any(
        not torch.equal(whole[name], tensor)
        for name, tensor in load_file("model/model.safetensors").items()
    )


@needs_peft
def test_lora_in_bfloat16_keeps_the_model_in_bfloat16_and_the_adapters_in_float32(
    chat_folder, records
):
    policy = lora_policy(chat_folder, dtype="bfloat16")
    kinds = {p.dtype for name, p in policy.model.named_parameters() if ".lora_" not in name}
    assert kinds == {torch.bfloat16} and {p.dtype for p in large.trained(policy)} == {torch.float32}
    flat, _ = gradient(policy, records)
    assert flat.norm() > 0


def test_lora_without_peft_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs peft: run pip install -e '\.\[gpu\]'"):
        run_main(monkeypatch, warmup, "--lora-rank", "8")
