"""Files and random streams: JSON lines that are whole or not there, skills that were checked, fingerprints, streams that have names."""

import hashlib
import json
import math
import os
import re
import zlib
from pathlib import Path

import numpy as np

from envs import UserError, check_skill
from support import parallel

# ---- reading ---------------------------------------------------------------------------------------------------


def read_text(path):
    """The text of a UTF-8 file, with or without a byte-order mark.  UserError in one line for everything else."""
    path = Path(path)
    try:
        raw = path.read_bytes() if path.is_file() else None  # a pipe or a device would be waited for
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): mend its rights") from None
    if raw is None:
        raise UserError(f"no file {path}: run the phase that writes it first, or point --from at a finished run")
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UserError(f"{path}: expected UTF-8, found UTF-16 (PowerShell's > writes it); save it as UTF-8")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: expected UTF-8, found byte {raw[error.start]:#04x}; save it as UTF-8") from None


def load_json(source):
    """A JSON object from text.  ValueError with the reason for all that is none, numbers that are none (NaN, Infinity) included."""

    def refuse(constant):
        raise ValueError(f"found {constant}, which is no number")

    try:
        found = json.loads(source, parse_constant=refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError("not an object")
    if re.search(r"\\u[dD][89a-fA-F]", source):  # half of a surrogate pair is no text: it could be neither shown nor saved
        found = json.loads(dump(found))
    if re.search(r"\d[eE]\+?\d{3}", source) and not finite(found):  # 1e999 is read as infinity
        raise ValueError("found a number that is too large")
    return found


def finite(value):
    if isinstance(value, dict):
        value = list(value.values())
    return all(map(finite, value)) if isinstance(value, list) else not isinstance(value, float) or math.isfinite(value)


def read_json(path):
    """The object of a JSON file.  UserError where it is damaged."""
    try:
        return load_json(read_text(path))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): start anew with another --run, or delete that folder yourself") from None


def read_jsonl(path):
    """All objects of a JSON-lines file; blank lines are none.  UserError names the file and line that is not one."""
    return [row for _, row in numbered(path)]


def numbered(path):
    """(line number, object) of a JSON-lines file."""
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        try:
            if line.strip():
                rows.append((number, load_json(line)))
        except ValueError as error:
            raise UserError(f"{path}, line {number} is not a JSON object ({error}): mend or delete that line") from None
    return rows


# ---- writing ---------------------------------------------------------------------------------------------------


def dump(row):
    """A JSON line without its end.  Numbers that are none become null, and halves of surrogate pairs question marks."""
    try:
        line = json.dumps(row, ensure_ascii=False, allow_nan=False)
    except ValueError:
        line = json.dumps(json.loads(json.dumps(row), parse_constant=lambda constant: None), ensure_ascii=False)
    return line.encode("utf-8", "replace").decode()


def sync_folder(folder):
    """What was created or renamed in a folder is on disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path, text):
    """Replaces a file by a new one, which is there whole or not at all, whenever the process dies.  Process 0 only."""
    if parallel.rank():
        return
    path = Path(path)
    part = Path(f"{path}.part")
    with open(part, "wb") as file:
        file.write(text.encode("utf-8", "replace"))
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    sync_folder(path.parent)


def write_jsonl(path, rows):
    write_atomically(path, "".join(dump(row) + "\n" for row in rows))


def rng(*key):
    """A random stream named by (seed, phase, iteration, purpose, ...): no state is carried along, so resuming equals not stopping."""
    return np.random.default_rng([zlib.crc32(str(part).encode()) for part in key])


# ---- fingerprints ----------------------------------------------------------------------------------------------

SEAL = "sha256.json"  # in a folder that we wrote: file name -> sha256, written last


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else slow_digest(file)


def slow_digest(file):  # Python 3.10 has no file_digest
    digest = hashlib.sha256()
    while part := file.read(2**20):
        digest.update(part)
    return digest.hexdigest()


def seal(folder):
    """Writes down what a finished folder holds, with everything in it on disk before."""
    files = sorted(file for file in Path(folder).iterdir() if file.is_file())
    for file in files:
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())
    write_atomically(Path(folder) / SEAL, json.dumps({file.name: sha256(file) for file in files}, indent=0))


def damage(folder):
    """What is wrong with a folder that was sealed: a file's name; None where it is sound, or was never sealed."""
    folder = Path(folder)
    if not (folder / SEAL).exists():
        return None
    try:
        sealed = load_json((folder / SEAL).read_text(encoding="utf-8"))
    except (ValueError, OSError):
        return SEAL
    return next((name for name, known in sealed.items() if not (folder / name).is_file() or sha256(folder / name) != known), None)


def fingerprint(path):
    """What identifies weights (a folder's weight files), skills (a file) or a model of the hub (its name), 64 hexadecimal digits."""
    path = Path(path)
    files = [path] if path.is_file() else [file for kind in ("safetensors", "bin") for file in sorted(path.glob(f"*.{kind}"))]
    if len(files) == 1:
        return sha256(files[0])
    known = "".join(f"{file.name} {sha256(file)}\n" for file in files) or str(path)
    return hashlib.sha256(known.encode()).hexdigest()


# ---- skills ----------------------------------------------------------------------------------------------------

# Every field of a skill: what it has to be, and its default where it may be missing.
TEXT, COUNT, NUMBER = (str, "a text"), (int, "a whole number of at least 0"), ((int, float), "a number")
FIELDS = {"skill_id": TEXT, "condition": TEXT, "strategy": TEXT, "title": TEXT, "env": TEXT, "utility": NUMBER, "n_eval": COUNT}
FIELDS |= {"neg_streak": COUNT, "created_iter": COUNT, "updated_iter": COUNT}
LISTS = {"deltas": NUMBER, "plain": NUMBER, "source_traj_ids": TEXT, "source_task_ids": TEXT}
DEFAULTS = {"n_eval": 0, "neg_streak": 0, "created_iter": 0, "updated_iter": 0, "retired_iter": None}


def is_a(value, wanted):
    kind = wanted[0]
    return isinstance(value, kind) and not isinstance(value, bool) and (kind is not int or value >= 0)


def skills_file(path, env=None):
    """The skills of a skills.jsonl, checked, with defaults for what a file from elsewhere may leave out.  env: the world they are for.
    UserError names the line and the field, what was expected and what was found."""
    skills, lines = [], {}
    for number, found in numbered(path):
        where = f"{path}, line {number}"
        missing = [k for k in ("skill_id", "task_type", "condition", "strategy", "status", "utility") if k not in found]
        if missing:
            raise UserError(f"{where}: a skill without {', '.join(missing)}; write the file with mine.py")
        skill = {"title": found["condition"], **DEFAULTS, **{key: [] for key in LISTS}, **found}
        for key, wanted in FIELDS.items():
            if key in skill and not is_a(skill[key], wanted):
                raise UserError(f"{where}: expected {wanted[1]} as {key}, found {str(skill[key])[:60]!r}; mend that line")
        for key, wanted in LISTS.items():
            if not isinstance(skill[key], list) or not all(is_a(value, wanted) for value in skill[key]):
                raise UserError(f"{where}: expected a list of {wanted[1][2:]}s as {key}, found {str(skill[key])[:60]!r}; mend that line")
        if not is_a(skill["task_type"], TEXT) and skill["task_type"] is not None:
            raise UserError(f"{where}: expected a text or null as task_type, found {skill['task_type']!r}; mend that line")
        if skill["status"] not in ("candidate", "active", "retired"):
            found = str(skill["status"])[:60]
            raise UserError(f"{where}: expected candidate, active or retired as status, found {found!r}; mend that line")
        if env and skill.get("env", env) != env:
            raise UserError(f"{where}: written in {skill['env'][:60]}, but {env} is played; use skills of that world")
        try:
            check_skill(skill)
        except ValueError as reason:
            raise UserError(f"{where}: {reason}; mend or delete that line") from None
        if skill["skill_id"] in lines:
            raise UserError(f"{where}: skill_id {skill['skill_id'][:60]!r} is that of line {lines[skill['skill_id']]}, too; rename one")
        lines[skill["skill_id"]] = number
        skills.append(skill)
    return skills
