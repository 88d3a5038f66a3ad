"""Every command line beside the four scripts: what cannot be meant is one line, before anything is
computed or written.
    pytest tests/test_tools.py"""

import errno
import os
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from envs import UserError, arguments
from envs.arguments import run_tool
from support import cli

ROOT = Path(__file__).parents[1]
REFUSED = {
    "envs.bench --games 0": "--games: expected a whole number of at least 1",
    "envs.bench --games -3": "--games: expected a whole number",
    "envs.bench --steps nan": "--steps: expected a whole number",
    "envs.bench --large 0": "--large: expected a whole number",
    "envs.bench --gams 3": "did you mean --games?",
    "envs.bench --env doom": "--env: invalid choice",
    "envs.houses --out h --games 1e3": "--games: expected a whole number",
    "envs.houses --out h --games 999999999": "--games",
    "envs.houses --games 1": "required: --out",
    "envs.shop --out ''": "--out: expected a name or path",
    "envs.shop --out a-file": "a-file",
    "tiny.build --check --games 0": "--games: expected a whole number",
    "tiny.build --lr nan": "--lr: expected a number above 0",
    "tiny.build --processes 0": "--processes: expected a whole number",
    "tiny.build --world -1": "--world: expected a number at least 0",
    "tiny.build --width 7": "--width: expected a multiple of 8",
    "tiny.build --start nowhere": "--start nowhere: expected a model's folder",
    "tiny.build --state a-file": "a-file is no training state",
    "tiny.players --foo": "no argument --foo here",
    "benchmarks.laptop --games 0": "--games: expected a whole number",
    "benchmarks.gpu --rows 0 --device cpu": "--rows: expected a whole number",
    "benchmarks.gpu --lora-rank -1": "--lora-rank: expected a whole number",
    "benchmarks.update_vs_trl --threads 0": "--threads: expected a whole number",
    "recipes.compare --seeds -1": "--seeds: expected a whole number",
    "recipes.compare --at nan": "--at: expected a number",
    "recipes.compare --budgets 0": "--budgets: expected a number above 0",
    "recipes.compare --out ''": "--out: expected a name or path",
    "recipes.effects --summary ../x": "--summary: expected one name",
    "recipes.curve --points nowhere": "no file nowhere",
    "recipes.curve --points points.jsonl": "no points of gigpo-houses in points.jsonl",
    "recipes.plan --memory nan": "--memory: expected a number above 0",
    "course.check --foo E1 E2 E3 --solution=3": "--solution: ignored explicit argument",
}


@pytest.mark.parametrize("line", REFUSED)
def test_a_tools_arguments_have_ranges_and_mistakes_are_one_line(monkeypatch, tmp_path, line):
    monkeypatch.chdir(tmp_path)
    Path("a-file").write_text("{}")
    Path("points.jsonl").write_text('{"success": 1}\n')
    name, *typed = shlex.split(line)
    module = import_module(name)
    monkeypatch.setattr(sys, "argv", [name, *typed])
    with pytest.raises(UserError) as mistake:
        module.main()
    assert REFUSED[line] in str(mistake.value) and "\n" not in str(mistake.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-file", "points.jsonl"]


def fails(error):
    def main():
        raise error

    return main


def full(text):
    return OSError(errno.ENOSPC, "No space left on device", text)


@pytest.mark.parametrize("run", [run_tool, cli.run_script])
@pytest.mark.parametrize(
    ("error", "says"),
    [
        (UserError("a\x1b[31m\nb \u202ec"), "error: a[31m b c"),
        (full("runs/x/metrics.jsonl"), "runs/x/metrics.jsonl cannot be written or read"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "o/x"), "o/x cannot be written"),
        (FileExistsError(errno.EEXIST, "File exists", "o"), "o cannot be written"),
    ],
)
def test_a_mistake_or_a_full_disk_is_one_line_without_control_characters(
    monkeypatch, capsys, run, error, says
):
    for name in ("stdout", "stderr"):  # run_script puts others in their place
        monkeypatch.setattr(sys, name, getattr(sys, name))
    with pytest.raises(SystemExit) as ended:
        run(fails(error))
    told = capsys.readouterr().err
    assert ended.value.code == 2 and says in told and told.count("\n") == 1, told
    assert "\x1b" not in told and "\u202e" not in told


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail] PytorchStreamWriter failed writing file data/3: file write"),
        Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_told_of_whatever_library_was_writing(monkeypatch, capsys, error):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))
    with pytest.raises(SystemExit) as ended:
        cli.run_script(fails(error))
    told = capsys.readouterr().err
    assert ended.value.code == 2 and "the same command goes on" in told and told.count("\n") == 1


def test_a_mistake_of_the_code_keeps_its_traceback():
    for error in (KeyError("x"), RuntimeError("x"), OSError("x")):
        with pytest.raises(type(error)):
            run_tool(fails(error))


def test_a_reader_that_has_gone_ends_no_tool():
    line = [sys.executable, "-m", "course.check"]
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": ROOT}
    process = subprocess.Popen(line, env={**os.environ, "PYTHONUNBUFFERED": "1"}, **how)
    process.stdout.close()  # as `| head -0` does
    assert process.stderr.read() == b"" and process.wait(timeout=60) == 0


def test_a_process_without_any_stream_prints_into_nothing():
    stream = cli.Steady(None)
    print("x", file=stream, flush=True)
    assert not stream.isatty()


@pytest.mark.parametrize("path", ["x" * 300, "a/" + "é" * 200, "x/" * 2500, "\t", "\udc80"])
def test_a_path_that_no_file_system_takes_is_refused(path):
    with pytest.raises(arguments.argparse.ArgumentTypeError, match="expected a name or path"):
        arguments.text(path)


def test_the_home_folder_is_meant_where_no_shell_says_so(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert arguments.text("~/x") == "/home/me/x"
    assert arguments.text("~x") == "~x" and arguments.text("a~/x") == "a~/x"
