"""Shared stand-ins: a tiny random policy with the real vocabulary, and arguments as the phases have them."""

import argparse
import sys

import pytest
import torch

import common
from envs.alfworld import AlfWorld
from tiny import alfworld_lessons, build

torch.set_num_threads(1)


def arguments(**changes):
    """The laptop's arguments of a training phase, as parse_args would give them."""
    parser = common.make_parser("test")
    parser.set_defaults(**common.PRESETS["laptop"])
    args = parser.parse_args([])
    common.skill_arguments(parser)
    return argparse.Namespace(**vars(parser.parse_args([])) | vars(args) | changes)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A random 1-layer causal LM with the stand-in's tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = alfworld_lessons.make_tokenizer()
    model = build.make_model(tokenizer, argparse.Namespace(seed=0, width=32, layers=1))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


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
