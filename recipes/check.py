"""Reads scripts' command lines as the scripts will, and says what is wrong with one in one line;
plays, trains and writes nothing.  The recipes ask it before the first of their hours.

    python recipes/check.py mine.py --run NAME --groups 4 --- evaluate.py --run NAME
"""

import importlib
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(HERE))
from envs import UserError  # noqa: E402
from support.cli import run_script  # noqa: E402


def main():
    lines = [[]]
    for word in sys.argv[1:]:
        if word == "---":
            lines.append([])
        else:
            lines[-1].append(word)
    for line in filter(None, lines):
        script = Path(line[0]).resolve().relative_to(HERE).with_suffix("")  # recipes/compare
        sys.argv = line
        try:
            importlib.import_module(".".join(script.parts)).arguments()
        except UserError as mistake:
            raise UserError(f"{line[0]}: {mistake}") from None


if __name__ == "__main__":
    run_script(main)
