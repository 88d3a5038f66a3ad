"""Files and random streams: JSON lines that are whole or not there, skills that were checked, streams that have names."""

import json
import os
import zlib
from pathlib import Path

import numpy as np

from envs import UserError
from support import parallel


def read_jsonl(path):
    """All objects of a JSON-lines file.  UserError names the file and line that is not one."""
    if not Path(path).is_file():
        raise UserError(f"no file {path}: run the phase that writes it first, or point --from at a finished run")
    rows = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                rows.append(json.loads(line))
                if not isinstance(rows[-1], dict):
                    raise ValueError("not an object")
            except ValueError as error:
                raise UserError(f"{path}, line {number} is not a JSON object ({error}): mend or delete that line") from None
    return rows


def write_atomically(path, text):
    """Replaces a file by a new one, which is there whole or not at all, whenever the process dies.  Process 0 only."""
    if parallel.rank():
        return
    part = Path(f"{path}.part")
    with open(part, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def write_jsonl(path, rows):
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def rng(*key):
    """A random stream named by (seed, phase, iteration, purpose, ...): no state is carried along, so resuming equals not stopping."""
    return np.random.default_rng([zlib.crc32(str(part).encode()) for part in key])


def skills_file(path):
    """The skills of a skills.jsonl.  UserError where a line lacks a key."""
    skills = read_jsonl(path)
    for number, skill in enumerate(skills, 1):
        missing = [key for key in ("skill_id", "task_type", "condition", "strategy", "status", "utility") if key not in skill]
        if missing:
            raise UserError(f"{path}, line {number}: a skill without {', '.join(missing)}; write the file with mine.py")
    return skills
