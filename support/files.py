"""Files and random streams: JSON lines that are whole or not there, skills that were checked,
fingerprints, streams that have names."""

import hashlib
import json
import os
import re
import zlib
from pathlib import Path

import numpy as np

from envs import UserError, check_skill, clean_text
from support import parallel

# ---- reading -------------------------------------------------------------------------------------


def read_text(path):
    """The text of a UTF-8 file, with or without a byte-order mark.  UserError in one line for
    everything else."""
    path, raw = Path(path), None
    try:
        if path.is_file():  # a pipe or a device would be waited for
            raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): mend its rights") from None
    if raw is None:
        fix = "name one that is there, or run the phase that writes it first"
        raise UserError(f"no file {path}: {fix}")
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        found = "expected UTF-8, found UTF-16 (PowerShell's > writes it)"
        raise UserError(f"{path}: {found}; save it as UTF-8")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, byte = raw[: error.start].count(b"\n") + 1, raw[error.start]
        found = f"expected UTF-8, found byte {byte:#04x}"
        raise UserError(f"{path}, line {line}: {found}; save it as UTF-8") from None


def load_json(source):
    """A JSON object from text.  ValueError with the reason for all that is none, numbers that are
    none (NaN, Infinity) included."""

    def refuse(constant):
        raise ValueError(f"found {constant}, which is no number")

    try:
        found = json.loads(source, parse_constant=refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError("not an object")
    # half of a surrogate pair is no text: it could be neither shown nor saved
    if re.search(r"\\u[dD][89a-fA-F]", source):
        found = json.loads(dump(found))
    # 1e999 is read as infinity, and a whole number of 400 digits cannot be computed with
    if re.search(r"\d[eE]\+?\d{3}|\d{300}", source) and not finite(found):
        raise ValueError("found a number that is too large")
    return found


def finite(value):
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    if isinstance(value, list):
        return all(map(finite, value))
    return not isinstance(value, (int, float)) or abs(value) < 1e300


def read_json(path, fix="start anew with another --run, or delete that folder yourself"):
    """The object of a JSON file.  UserError where it is damaged."""
    try:
        return load_json(read_text(path))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): {fix}") from None


def read_jsonl(path):
    """All objects of a JSON-lines file.  UserError names the file and line that is not one."""
    return [row for _, row in numbered(path)]


def numbered(path):
    """(line number, object) of a JSON-lines file; blank lines are none."""
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        try:
            if line.strip():
                rows.append((number, load_json(line)))
        except ValueError as error:
            found = f"{path}, line {number} is not a JSON object ({error})"
            raise UserError(f"{found}: mend or delete that line") from None
    return rows


# ---- writing -------------------------------------------------------------------------------------


def dump(row, indent=None):
    """A JSON line without its end.  Numbers that are none become null, and halves of surrogate
    pairs question marks: what is written can be read again."""
    try:
        line = json.dumps(row, ensure_ascii=False, allow_nan=False, indent=indent)
    except ValueError:
        row = json.loads(json.dumps(row), parse_constant=lambda constant: None)
        line = json.dumps(row, ensure_ascii=False, indent=indent)
    return line.encode("utf-8", "replace").decode()


def sync_folder(folder):
    """What was created or renamed in a folder is on disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path, text):
    """Replaces a file by a new one, which is there whole or not at all, whenever the process dies.
    Process 0 only."""
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
    """A random stream named by (seed, phase, iteration, purpose, ...): no state is carried along,
    so resuming equals not stopping."""
    return np.random.default_rng([zlib.crc32(str(part).encode()) for part in key])


# ---- fingerprints --------------------------------------------------------------------------------

SEAL = "sha256.json"  # in a folder that we wrote: file name -> sha256, written last


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def seal(folder):
    """Writes down what a finished folder holds, with everything in it on disk before."""
    files = sorted(one for one in Path(folder).iterdir() if one.is_file() and one.name != SEAL)
    for file in files:
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())
    prints = {file.name: sha256(file) for file in files}
    write_atomically(Path(folder) / SEAL, dump(prints, indent=0))


def damage(folder, needed=()):
    """What is wrong with a folder that was sealed: a file's name; None where it is sound, or was
    never sealed.  needed: names that a whole seal has."""
    folder = Path(folder)
    if not (folder / SEAL).exists():
        return None
    try:
        sealed = load_json((folder / SEAL).read_text(encoding="utf-8"))
    except (ValueError, OSError):
        return SEAL
    for name, known in {**dict.fromkeys(needed), **sealed}.items():
        try:
            if not (folder / name).is_file() or sha256(folder / name) != known:
                return name
        except OSError:  # cannot be read, or is no name
            return name
    return None


def fingerprint(path):
    """What identifies weights (a folder's weight files), skills (a file) or a model of the hub (its
    name): 64 hexadecimal digits."""
    path = Path(path)
    if path.is_file():
        return sha256(path)
    files = sorted(path.glob("*.safetensors")) or sorted(path.glob("*.bin"))
    if len(files) == 1:
        return sha256(files[0])
    known = "".join(f"{file.name} {sha256(file)}\n" for file in files) or str(path)
    return hashlib.sha256(known.encode()).hexdigest()


# ---- skills --------------------------------------------------------------------------------------

DEMANDED = ("skill_id", "task_type", "condition", "strategy", "status", "utility")
STATUS = ("candidate", "active", "retired")
DEFAULTS = {"n_eval": 0, "neg_streak": 0, "created_iter": 0, "updated_iter": 0}
DEFAULTS |= {"retired_iter": None}
# what a field has to be, in words, and the types that are
TEXT, COUNT, NUMBER = ("text", str), ("whole number of at least 0", int), ("number", int, float)
FIELDS = dict.fromkeys(("skill_id", "condition", "strategy", "title", "env"), TEXT)
FIELDS |= dict.fromkeys(("n_eval", "neg_streak", "created_iter", "updated_iter"), COUNT)
FIELDS |= {"utility": NUMBER, "promoted_n": COUNT, "reason": TEXT}
LISTS = {"deltas": NUMBER, "plain": NUMBER, "source_traj_ids": TEXT, "source_task_ids": TEXT}


def is_a(value, wanted):
    if not isinstance(value, wanted[1:]) or isinstance(value, bool):
        return False
    return wanted is not COUNT or value >= 0


def wrong_field(skill):
    """(field, what was expected) of the first field that is not what it has to be, or None."""
    for key, wanted in FIELDS.items():
        if key in skill and not is_a(skill[key], wanted):
            return key, f"a {wanted[0]}"
    for key, wanted in LISTS.items():
        found = skill[key]
        if not isinstance(found, list) or not all(is_a(value, wanted) for value in found):
            return key, f"a list of {wanted[0]}s"
    if skill["task_type"] is not None and not is_a(skill["task_type"], TEXT):
        return "task_type", "a text or null"
    if skill["status"] not in STATUS:
        return "status", "candidate, active or retired"
    return None


def skills_file(path, env=None):
    """The skills of a skills.jsonl, checked, with defaults for what a file from elsewhere may leave
    out.  env: the world that they are for.  UserError names the line and the field, what was
    expected and what was found."""
    skills, lines = [], {}
    for number, found in numbered(path):
        where = f"{path}, line {number}"
        if missing := [key for key in DEMANDED if key not in found]:
            names = ", ".join(missing)
            raise UserError(f"{where}: a skill without {names}; write the file with mine.py")
        skill = {"title": found["condition"], **DEFAULTS, **{key: [] for key in LISTS}, **found}
        if wrong := wrong_field(skill):
            key, expected = wrong
            found = f"expected {expected} as {key}, found {str(skill[key])[:60]!r}"
            raise UserError(f"{where}: {found}; mend that line")
        if env and skill.get("env", env) != env:
            found = f"written in {skill['env'][:60]}, but {env} is played"
            raise UserError(f"{where}: {found}; use skills of that world")
        for key in ("title", "condition", "strategy"):  # they reach terminals as well as prompts
            skill[key] = clean_text(skill[key])
        try:
            check_skill(skill)
        except ValueError as reason:
            raise UserError(f"{where}: {reason}; mend or delete that line") from None
        name = skill["skill_id"]
        if name in lines:
            found = f"skill_id {name[:60]!r} is that of line {lines[name]}, too"
            raise UserError(f"{where}: {found}; rename one")
        lines[name] = number
        skills.append(skill)
    return skills
