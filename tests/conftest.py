"""Shared stand-ins: a tiny random policy with the real vocabulary, arguments as the phases have
them, processes that start clean."""

import argparse
import multiprocessing
import os
import socket
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen3Config
from transformers.utils.logging import disable_progress_bar

import common
import distill
import evaluate
import mine
import warmup
from envs.alfworld import AlfWorld
from support import cli
from tests.toy import Doors
from tiny import alfworld_lessons, build

torch.set_num_threads(1)
disable_progress_bar()  # of loading and saving: pages of them above what a failed test has to say
os.environ["HF_HUB_OFFLINE"] = "1"  # for the processes that tests start
constants.HF_HUB_OFFLINE = True  # a name that is no folder is not looked for in the Hub


def arguments(**changes):
    """The laptop's arguments of a training phase, as parse_args gives them in ALFWorld."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["test"])
        args = cli.parse_args(cli.make_parser("test"), first=True)
    return argparse.Namespace(**vars(args) | changes)


def toy_worlds(patch):
    """All scripts play tests/toy.py, of which a random policy wins many episodes, and every skill
    is active from the start."""
    for script in (warmup, mine, distill, evaluate):
        patch.setattr(script, "make_env", lambda *given: Doors())
    write = mine.write_skills

    def promoted(*given, **more):
        new, refused = write(*given, **more)
        return [skill | {"status": "active"} for skill in new], refused

    patch.setattr(mine, "write_skills", promoted)


# Forked from a server that has imported the packages and computed nothing.  A fork of the tests'
# own process would believe in OpenMP
# threads that did not come along: it stops with an error, or waits for them for ever.
CLEAN = multiprocessing.get_context("forkserver")
CLEAN.set_forkserver_preload(
    ["tests.conftest", "warmup", "mine", "distill", "evaluate", "support.large"]
)


def start(function, *arguments, out=os.devnull, **variables):
    """function(*arguments) in a process of its own, in this folder, with these environment
    variables; it writes to the file `out`."""
    here = os.getcwd()
    process = CLEAN.Process(
        target=at_work, args=(here, {**os.environ, **variables}, out, function, arguments)
    )
    os.chdir(Path(__file__).parent.parent)  # the server finds its modules here
    process.start()
    os.chdir(here)
    return process


def at_work(folder, variables, out, function, arguments):
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    sys.stdout = sys.stderr = open(out, "w", buffering=1)
    function(*arguments)


def play(main, arguments, toy=True):
    """What a started process runs: a script's main() under run_script, on tests/toy.py instead of
    ALFWorld."""
    if toy:
        toy_worlds(pytest.MonkeyPatch())
    sys.argv = [f"{main.__module__}.py", *arguments]
    cli.run_script(main)


def ended(process, seconds=300):
    """The exit code; negative, the signal that killed it.  A process that goes on for longer fails
    the test."""
    process.join(seconds)
    if process.is_alive():
        process.kill()
        pytest.fail(f"a process was still running after {seconds} s")
    return process.exitcode


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A random 1-layer causal LM with the stand-in's tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = alfworld_lessons.make_tokenizer()
    model = build.make_model(tokenizer, argparse.Namespace(seed=0, width=32, layers=1))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# Turns between markers, as chat models have them; "thinks" adds the switch that Qwen3's template
# has.
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKS = (
    TEMPLATE
    + "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif "
    "%}"
)


def make_chat_model(
    folder, kind="qwen2", size="0.5B", template=None, seed=0, words=True, **changes
):
    """Writes a random instruct model: the shape of Qwen2.5 or Qwen3 in 2 narrow layers, with a
    byte-level BPE trained on prompts.

    words=False: tokens may run over the edges of words and tags."""
    # heads, key-value heads, tied
    shapes = {"0.5B": (7, 1, True), "1.5B": (6, 1, True), "3B": (8, 1, True), "7B": (7, 1, False)}
    heads, kv_heads, tied = shapes[size]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words)
    bpe.decoder = decoders.ByteLevel()
    env = AlfWorld(houses=True)
    texts = []
    for task in env.tasks("train")[:20]:
        step = env.reset(task)
        texts.append(env.prompt(env.task, [], step, [], "chat"))
        texts += [
            f"<think>maybe</think>\n<action>{action}</action>\n" for action in step.admissible
        ]
    if not words:
        texts = [
            f">{word[:n]}" for word in ("go to", "cabinet", "mug", "a", "é") for n in (1, 2, 5)
        ] * 9
        texts += [f"{end}</" for end in ("1", "mug", "to", "a", "€", "n")] * 9
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = template or (THINKS if kind == "qwen3" else TEMPLATE)
    shape = dict(
        vocab_size=len(tokenizer), hidden_size=32 * heads, intermediate_size=64,
        num_hidden_layers=2, num_attention_heads=heads,
        num_key_value_heads=kv_heads, tie_word_embeddings=tied, max_position_embeddings=32768,
        eos_token_id=2, pad_token_id=0,
        bos_token_id=None,
    )  # fmt: skip
    config = (
        Qwen3Config(**{**shape, "head_dim": 32, **changes})
        if kind == "qwen3"
        else Qwen2Config(**{**shape, **changes})
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def chat_folder(tmp_path_factory):
    """A random instruct model of Qwen2.5's kind."""
    return make_chat_model(tmp_path_factory.mktemp("chat"))


@pytest.fixture
def policy(model_folder):
    return common.Policy(model_folder)


@pytest.fixture
def env(monkeypatch):
    return AlfWorld(houses=True, max_steps=8)


def run_main(monkeypatch, script, *arguments):
    """Runs a script's main() in this process; returns normally or raises common.UserError."""
    monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, arguments)])
    script.main()
