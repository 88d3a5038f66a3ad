"""A run folder and the command line: true help, short console lines, kept checkpoints, advice that
the next command accepts.

    pytest tests/test_runs.py"""

import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import distill
import evaluate
import mine
import warmup
from envs import UserError
from support import cli, files, runs
from tests.conftest import run_main, toy_worlds

SCRIPTS = {"warmup": warmup, "mine": mine, "distill": distill, "evaluate": evaluate}
SMALL = "--groups 6 --group-size 4 --threads 1 --mini-batch-rows 30 --seed 1 --device cpu".split()
WARMUP = [*SMALL, "--model", "model", "--lr", "0.003", "--iterations", "3", "--stop-at", "0"]
MINE = [*SMALL, "--lr", "0.003", "--iterations", "2", "--mine-every", "3"]


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch, model_folder):
    """A folder of its own with a random policy; the phases play tests/toy.py."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ALFWORLD_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(model_folder, "model")
    toy_worlds(monkeypatch)


def helped(monkeypatch, capsys, script, *arguments):
    """What --help prints, in one line."""
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as end:
        run_main(monkeypatch, script, *arguments, "--help")
    assert end.value.code == 0
    return " ".join(capsys.readouterr().out.split())


# ---- help --------------------------------------------------------------------------------------


def test_help_shows_the_defaults_of_the_chosen_preset(monkeypatch, capsys):
    laptop = helped(monkeypatch, capsys, warmup)
    paper = helped(monkeypatch, capsys, warmup, "--preset", "paper")
    assert "AdamW learning rate (default: 0.0005)" in laptop
    assert "AdamW learning rate (default: 1e-06)" in paper
    assert "iterations over which successes are counted (default: 2)" in laptop
    assert "iterations over which successes are counted (default: 5)" in paper
    assert "(default: None)" not in laptop + paper and "by_preset" not in laptop + paper


def test_help_says_which_arguments_may_change_on_resuming(monkeypatch, capsys):
    text = helped(monkeypatch, capsys, warmup)
    for option in ("threads", "rollout-batch", "max-prompt", "micro-batch-tokens", "save-every"):
        assert re.search(rf"--{option} [A-Z_]+ (?:(?! --).)*?\[free\]", text), option
    assert re.search(r"--iterations [A-Z]+ .*?\[may grow\]", text)
    assert "all others are fixed" in text
    assert not re.search(r"--groups GROUPS [^\[]*?(\[free\]|\[may grow\]) --group-size", text)


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_argument_has_help(monkeypatch, name):
    caught = []

    def catch(parser, *about, **more):
        caught.append(parser)
        raise KeyError

    monkeypatch.setattr(SCRIPTS[name], "parse_args", catch)
    with pytest.raises(KeyError):
        run_main(monkeypatch, SCRIPTS[name])
    assert len(caught[0]._actions) > 15 and all(action.help for action in caught[0]._actions)


def test_a_number_of_iterations_that_is_asked_for_takes_the_place_of_the_clock(monkeypatch):
    def parsed(*typed):
        monkeypatch.setattr(sys, "argv", ["distill.py", *typed])
        return cli.parse_args(cli.make_parser("test", minutes=cli.by_preset(laptop=8, paper=None)))

    assert (parsed().minutes, parsed("--iterations", "6").minutes) == (8, None)
    assert parsed("--iterations=6").minutes is None
    assert parsed("--iterations", "6", "--minutes", "1").minutes == 1
    assert parsed("--minutes", "1").iterations == cli.ANY_NUMBER


# ---- console -----------------------------------------------------------------------------------


def test_console_lines_have_at_most_100_columns_and_say_what_comes_next(monkeypatch, capsys):
    run_main(monkeypatch, warmup, *WARMUP)
    run_main(monkeypatch, mine, *MINE)
    lines = capsys.readouterr().out.splitlines()
    each = [line for line in lines if re.match(r"(warmup|mine) +\d+ \| ", line)]
    assert len(each) == 5 and max(map(len, each)) <= 100
    assert all("no-signal" in line and "plain" in line and line.endswith(" s") for line in each)
    assert "next: python mine.py --run default" in lines
    assert "next: python distill.py --run default" in lines
    assert "1 of 1 task types have a skill that helps" in lines
    run_main(monkeypatch, distill, *MINE[:-2])
    lines += capsys.readouterr().out.splitlines()
    assert any(re.fullmatch(r"\d of \d+ skills absorbed: .*", line) for line in lines)
    assert max(map(len, lines)) <= 100


def test_a_console_line_after_a_day_has_at_most_100_columns():
    m = {"iteration": 999, "success_plain": 1.0, "success_skill": 1.0, "no_signal": 1.0}
    m |= {"kl": 9.9, "entropy": 9.99, "bank": {"active": 99, "retired": 99}, "elapsed": 99999.0}
    assert len(runs.console_line("distill", m)) <= 100


# ---- advice is accepted by the next command ----------------------------------------------------


def advised(line):
    """(script, arguments) of the command that a message names between backticks or behind a
    colon."""
    found = re.search(r"(?:`|: )python (\w+)\.py(.*?)(?:`|$)", line)
    return SCRIPTS[found[1]], shlex.split(found[2])


def told(monkeypatch, script, *arguments):
    with pytest.raises(UserError) as mistake:
        run_main(monkeypatch, script, *arguments)
    return str(mistake.value)


def test_run_the_phase_before_is_what_a_missing_source_advises(monkeypatch):
    script, arguments = advised(told(monkeypatch, mine, *MINE))
    assert script is warmup and arguments == ["--run", "default"]
    script, _ = advised(told(monkeypatch, distill))
    assert script is mine
    script, _ = advised(told(monkeypatch, evaluate))
    assert script is warmup


def test_a_finished_phase_is_extended_as_it_advises(monkeypatch):
    run_main(monkeypatch, warmup, *WARMUP)
    line = told(monkeypatch, warmup, *WARMUP)
    assert "more --iterations" in line and "--overwrite" in line
    run_main(monkeypatch, warmup, *WARMUP, "--iterations", "4")
    run_main(monkeypatch, warmup, *WARMUP, "--overwrite")


def test_changed_arguments_are_taken_back_or_overwritten_as_it_advises(monkeypatch):
    run_main(monkeypatch, warmup, *WARMUP)
    Path("runs/default/warmup/done").unlink()
    line = told(monkeypatch, warmup, *WARMUP, "--lr", "0.1")
    option, was = re.search(r"(--\S+) \(was (\S+), now", line).groups()
    run_main(monkeypatch, warmup, *WARMUP, option, was)
    run_main(monkeypatch, warmup, *WARMUP, "--lr", "0.1", "--overwrite")


def test_micro_batches_shrink_in_the_middle_of_a_phase_as_the_memory_message_advises(monkeypatch):
    calls, update = [], warmup.update

    def full(*given, **more):
        calls.append(1)
        if len(calls) == 2:
            raise UserError("out of memory with a micro-batch: lower --micro-batch-tokens to 600")
        return update(*given, **more)

    monkeypatch.setattr(warmup, "update", full)
    assert "--micro-batch-tokens to 600" in told(monkeypatch, warmup, *WARMUP)
    run_main(monkeypatch, warmup, *WARMUP, "--micro-batch-tokens", "600")
    assert len(files.read_jsonl("runs/default/warmup/metrics.jsonl")) == 3


@pytest.mark.parametrize(
    "more",
    ["--rollout-batch 2", "--max-prompt 3000", "--gradient-checkpointing", "--save-every 1",
     "--track none", "--snapshots 5", "--threads 2", "--traces 0", "--minutes 100"],
)  # fmt: skip
def test_every_free_argument_may_change_in_the_middle_of_a_phase(monkeypatch, more):
    run_main(monkeypatch, warmup, *WARMUP, "--minutes", "50")
    Path("runs/default/warmup/done").unlink()
    clock = [] if "--minutes" in more else ["--minutes", "50"]
    run_main(monkeypatch, warmup, *WARMUP, *clock, *more.split())


def test_mining_that_has_found_nothing_is_gone_on_with_as_it_advises(monkeypatch, capsys):
    run_main(monkeypatch, warmup, *WARMUP)
    with monkeypatch.context() as patch:
        patch.setattr(mine, "write_skills", lambda *given, **more: ([], []))
        run_main(patch, mine, *MINE)
    line = next(line for line in capsys.readouterr().out.splitlines() if "mine on" in line)
    assert "no active skill" in told(monkeypatch, distill, *SMALL)
    script, arguments = advised(line)
    run_main(monkeypatch, script, *arguments)
    assert json.loads(Path("runs/default/mine/done").read_text())["iterations"] == 4


def test_a_stale_phase_is_made_anew_as_it_advises(monkeypatch):
    run_main(monkeypatch, warmup, *WARMUP)
    run_main(monkeypatch, mine, *MINE)
    run_main(monkeypatch, warmup, *WARMUP, "--overwrite", "--seed", "3")
    script, arguments = advised(told(monkeypatch, distill, *SMALL))
    assert script is mine and arguments[-1] == "--overwrite"
    run_main(monkeypatch, script, *arguments)


def test_an_environment_variable_is_unset_as_it_advises(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    line = told(monkeypatch, warmup, *WARMUP)
    for name in re.search("`unset (.*?)`", line)[1].split():
        monkeypatch.delenv(name, raising=False)
    run_main(monkeypatch, warmup, *WARMUP)


# ---- what is kept ------------------------------------------------------------------------------


class Death(BaseException):
    """Not caught by anything, as a kill."""


@pytest.mark.parametrize("name", ["warmup", "evaluate"])
def test_whichever_file_operation_is_the_last_before_a_death_the_same_command_goes_on(
    monkeypatch, name
):
    command = {
        "warmup": [*WARMUP, "--iterations", "1", "--groups", "2"],
        "evaluate": ["--policy", "model", "--games", "2", "--repetitions", "1", "--out", "found"],
    }[name]
    n, done = 0, False
    while not done:
        left = iter(range(n))

        def dying(function, left=left):
            real = getattr(os, function)

            def operation(*args, **more):
                if next(left, None) is None:
                    raise Death
                return real(*args, **more)

            return operation

        with monkeypatch.context() as patch:
            for function in ("mkdir", "fsync", "replace", "truncate"):
                patch.setattr(os, function, dying(function))
            try:
                run_main(patch, SCRIPTS[name], *command)
                done = True  # it never came to an n-th operation
            except Death:
                runs.release("runs/default/warmup" if name == "warmup" else "found")
        if not done and not Path("runs/default/warmup/done").exists():  # else it died after the end
            run_main(monkeypatch, SCRIPTS[name], *command)
        for folder in ("runs", "found"):
            shutil.rmtree(folder, ignore_errors=True)
        n += 1
    assert n > 5


def test_the_last_two_checkpoints_are_kept_and_sealed(monkeypatch):
    run_main(monkeypatch, warmup, *WARMUP)
    found = runs.checkpoints("runs/default/warmup")
    assert [one.name for one in found] == ["000002", "000003"]
    for one in found:
        sealed = json.loads((one / files.SEAL).read_text())
        assert {"state.pt", "checkpoint.json", "model.safetensors", "config.json"} <= set(sealed)
        assert files.damage(one) is None
    assert files.damage("runs/default/warmup/policy") is None


@pytest.mark.parametrize(("spent", "share"), [(0.0, 0.25), (240.0, 0.5)])
def test_the_rate_depends_on_finished_iterations_not_on_the_clock_between_them(spent, share):
    def clock():
        raise AssertionError("the clock was asked")

    args = SimpleNamespace(lr=1.0, lr_end=0.1, minutes=8, iterations=32)
    run = SimpleNamespace(args=args, iteration=8, spent=spent, clock=clock)
    optimizer = SimpleNamespace(param_groups=[{}])
    runs.Run.set_lr(run, optimizer)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1 - share * 0.9)


def test_snapshots_are_kept_and_the_learning_rate_falls(monkeypatch):
    run_main(monkeypatch, warmup, *WARMUP, "--snapshots", "0.0001", "--lr-end", "0.1")
    assert list(Path("runs/default/warmup/snapshots").glob("*/model.safetensors"))
    path = runs.checkpoints("runs/default/warmup")[-1] / "state.pt"
    saved = torch.load(path, weights_only=True)
    rate = saved["optimizer"]["param_groups"][0]["lr"]
    assert rate == pytest.approx(0.003 * (1 - 2 / 3 * 0.9))  # third of three iterations


def test_args_json_says_what_was_typed_and_what_it_started_from(monkeypatch):
    run_main(monkeypatch, warmup, *WARMUP)
    about = json.loads(Path("runs/default/warmup/args.json").read_text())
    assert about["command"].startswith("warmup.py --groups 6")
    assert about["made_from"]["weights"] == files.fingerprint("model")
    assert about["args"]["groups"] == 6 and "overwrite" not in about["args"]
