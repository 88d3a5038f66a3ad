"""Reads scripts' command lines as the scripts will, and says what is wrong with one in one line;
plays, trains and writes nothing.  The recipes ask it before the first of their hours.

    python recipes/check.py mine.py --run NAME --groups 4 --- evaluate.py --run NAME
"""

import importlib
import sys
from itertools import groupby
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(HERE))
from envs import UserError  # noqa: E402
from support.cli import run_script  # noqa: E402

SCRIPTS = ["warmup", "mine", "distill", "evaluate", "recipes/compare", "tiny/smollm2"]
OWN = ("--run", "--model", "--from", "--cold-start")  # what a recipe says itself


def check(line):
    """UserError where a script would refuse its line, or where a recipe's own words are said again:
    argparse would take the last one."""
    script, *words = line
    if (name := script.removesuffix(".py")) not in SCRIPTS:
        raise UserError(f"expected one of {', '.join(SCRIPTS)}, found {script}")
    options = [word.split("=")[0] for word in words]
    if {"-h", "--help"} & set(options):
        raise UserError(f"--help: python {script} --help shows it")
    for option in OWN:
        if options.count(option) > 1:
            raise UserError(f"{option} is said by the recipe: leave it out (its head says how)")
    sys.argv = line
    importlib.import_module(name.replace("/", ".")).arguments()


def main():
    for between, words in groupby(sys.argv[1:], "---".__eq__):
        if between:
            continue
        line = list(words)
        try:
            check(line)
        except UserError as mistake:
            raise UserError(f"{line[0]}: {mistake}") from None


if __name__ == "__main__":
    run_script(main)
