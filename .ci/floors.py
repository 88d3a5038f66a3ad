"""Prints a pip constraints file: every dependency at the oldest version that pyproject.toml admits.

    python .ci/floors.py > floors.txt && pip install -c floors.txt -e '.[test,gpu]'

A requirement without a floor is an error: its oldest release would be anybody's guess.  Left out
are torch, whose releases below the newest come from the index as CUDA builds of several GB, even
for machines without a GPU (its floor is what a GPU machine had, see pyproject.toml), and the extras
of no test.
"""

import re
import sys
import tomllib
from pathlib import Path

EXTRAS = ("test", "gpu", "alfworld")  # what the tests can use
project = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text())["project"]
wanted = project["dependencies"] + sum((project["optional-dependencies"][e] for e in EXTRAS), [])
for requirement in wanted:
    found = re.match(r"([\w-]+)>=([\w.]+)", requirement)
    if not found:
        sys.exit(f"pyproject.toml: expected name>=floor, found {requirement}")
    name, floor = found.groups()
    if name != "torch":
        print(f"{name}=={floor}")
