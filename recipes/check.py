"""Reads a script's command line as the script will, and says what is wrong with it in one line;
plays, trains and writes nothing.  The recipes ask it before the first of their hours.

    python recipes/check.py mine.py --run NAME --groups 4
"""

import importlib
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(HERE))
from support.cli import run_script  # noqa: E402


def main():
    script = Path(sys.argv.pop(1)).resolve().relative_to(HERE)  # recipes/compare.py
    importlib.import_module(".".join(script.with_suffix("").parts)).arguments()


if __name__ == "__main__":
    run_script(main)
