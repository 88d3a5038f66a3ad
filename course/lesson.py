"""What the chapters share: the world, the policy, and a small run of all phases that is made once
and kept in runs/course.

    from course.lesson import *        at the top of a chapter, after the path is set

Tests set COURSE_BUDGET=tiny (a hall with four doors and a random model instead of houses and the
stand-in), COURSE_FOLDER (where runs/ is) and COURSE_MODEL."""

import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import torch

warnings.filterwarnings("ignore", message="IProgress not found")  # a bar that is not needed
from transformers.utils.logging import disable_progress_bar  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
FOLDER = Path(os.environ.get("COURSE_FOLDER", ROOT))
IS_TINY = os.environ.get("COURSE_BUDGET") == "tiny"
ENV = "tests.toy:Doors" if IS_TINY else "alfworld"
MODEL = os.environ.get("COURSE_MODEL", str(ROOT / "tiny" / "alfworld"))
MAX_STEPS = 30
SOME = "--run course --groups 8 --group-size 8 --threads 1".split()
SOME += [] if IS_TINY else ["--max-steps", str(MAX_STEPS)]  # the hall says itself how many
PHASES = {
    "warmup": [*SOME, "--env", ENV, "--model", MODEL, "--iterations", "6"],
    "mine": [*SOME, "--iterations", "4", "--n-eval", "3"],
    "distill": [*SOME, "--iterations", "8"],
}

NAMES = "ENV FOLDER IS_TINY ROOT budget mined_skills policy_after small_run table world"
__all__ = NAMES.split()  # noqa: PLE0605

torch.set_num_threads(1)
disable_progress_bar()  # of loading weights
os.environ.setdefault("OMP_NUM_THREADS", "1")


def budget(full, tiny):
    """The size of an experiment: for a reader, or for a test."""
    return tiny if IS_TINY else full


def world():
    from common import make_env

    return make_env(ENV, "fast", MAX_STEPS)


def small_run(until="distill"):
    """The folder runs/course with all phases up to `until`; those that are not there are run now,
    at a small budget."""
    from support.files import write_jsonl

    for phase, arguments in PHASES.items():
        if not (FOLDER / "runs" / "course" / phase / "done").exists():
            began = time.time()
            # named before it runs: a minute of silence looks like a crash
            print(f"{phase}.py {' '.join(arguments[2:])}: ", end="", flush=True)
            if IS_TINY and phase == "distill":
                write_jsonl(FOLDER / "bank.jsonl", mined_skills())
                arguments = [*arguments, "--skills", "bank.jsonl"]
            command = [sys.executable, str(ROOT / f"{phase}.py"), *arguments]
            made = subprocess.run(
                command,
                cwd=FOLDER,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
            )
            if made.returncode:
                raise RuntimeError(
                    f"{phase}.py ended with code {made.returncode}: "
                    f"{made.stderr.strip().splitlines()[-1]}"
                )
            print(f"{time.time() - began:.0f} s", flush=True)
        if phase == until:
            break
    return FOLDER / "runs" / "course"


def mined_skills():
    """The skills of the small run.  In a test two are made active: a random policy has none that is
    worth it."""
    from support.files import skills_file

    skills = skills_file(small_run("mine") / "mine" / "skills.jsonl")
    if IS_TINY:
        for skill in skills[:2]:
            skill["status"] = "active"
    return skills


def policy_after(phase=None):
    """The base policy, or the policy as a phase of the small run has left it."""
    from common import Policy

    return Policy(MODEL if phase is None else str(small_run(phase) / phase / "policy"))


def table(rows, head=None, width=None):
    """Prints rows (lists) in columns."""
    rows = [
        [f"{x:.3f}" if isinstance(x, float) else str(x) for x in row]
        for row in ([head] if head else []) + list(rows)
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        line = "  ".join(text.ljust(w) for text, w in zip(row, widths))
        print(line[:width].rstrip() if width else line.rstrip())
