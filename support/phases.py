"""What others read of a phase's folder: its arguments, weights and skills, as long as they are what
the phase wrote, made of what its sources still are (fingerprints).

    begun_with                 its arguments: whoever reads its weights plays its world
    policy_folder, skills_of   its newest sound weights, its skills
    finished_phase             that it has ended, and that nothing it was made from has changed
"""

import os
import re
import shlex
from pathlib import Path

from envs import UserError
from support.files import damage, fingerprint, read_json

NEXT = {"warmup": "mine", "mine": "distill", "distill": "evaluate"}


def mark(folder):
    """What a phase's args.json says (phase, args, made_from, command); None where the folder is no
    phase's.  UserError where it is damaged."""
    path = Path(folder) / "args.json"
    about = read_json(path) if path.is_file() else {}
    # (a list: what is no text may be no key either)
    if about.get("phase") not in [*NEXT] or not isinstance(about.get("args"), dict):
        return None
    made, command = about.get("made_from") or {}, about.get("command", "")
    places = made.get("places", {}) if isinstance(made, dict) else None
    sound = isinstance(command, str) and isinstance(places, dict) and set(places) <= set(made)
    if not sound or not all(isinstance(value, str) for value in places.values()):
        found = f"{path} is damaged: expected texts as command and made_from"
        raise UserError(f"{found}; start that phase anew in another --run")
    return about


def phase_of(path):
    """The phase folder that a path is, or lies in (policy/, checkpoints/N, snapshots/N)."""
    here = Path(os.path.abspath(path))
    above = [here, here.parent, here.parent.parent] if here.is_dir() else []
    return next((folder for folder in above if mark(folder)), None)


def begun_with(path):
    """The arguments of the phase that a path is or lies in; {} where it lies in none."""
    folder = phase_of(path)
    args = mark(folder)["args"] if folder else {}
    if folder and not all(isinstance(args.get(key), str) for key in ("env", "model", "preset")):
        found = f"{folder / 'args.json'} is damaged: it has no env, model or preset"
        raise UserError(f"{found}; start that phase anew in another --run")
    return args


def checkpoints(folder):
    """A phase's checkpoints, oldest first; what else lies there is nobody's concern."""
    found = (Path(folder) / "checkpoints").glob("*")
    return sorted(one for one in found if re.fullmatch(r"\d{6,}", one.name) and one.is_dir())


def policy_folder(phase_folder):
    """The newest sound weights that a phase has written: its final policy, or a checkpoint."""
    folder = Path(phase_folder)
    policy = folder / "policy"
    candidates = [policy] if policy.is_dir() else checkpoints(folder)[::-1]
    for one in candidates:
        if not (wrong := damage(one)):
            return one
    if candidates:
        raise UserError(f"{candidates[0] / wrong} is damaged: {redo(folder)}")
    first = f"run {folder.name}.py first, or point --from at the folder of a finished phase"
    first = redo(folder) if (folder / "done").exists() else first
    raise UserError(f"no policy in {folder}: {first}")


def weights_of(name):
    """The weights that a name means: those of a finished phase where it is a phase's folder, else
    the folder or hub name itself."""
    return policy_folder(finished_phase(name)) if mark(name) else name


def skills_of(phase_folder):
    """The path of the skills that a finished phase has written.  UserError where these are not
    what it wrote."""
    folder = Path(phase_folder)
    path = folder / "skills.jsonl"
    known = read_json(folder / "done", redo(folder)).get("fingerprints") or {}
    known = known.get("skills") if isinstance(known, dict) else "damaged"  # equals no fingerprint
    if known and path.is_file() and fingerprint(path) != known:
        own = "copy your own skills elsewhere and name them with --skills"
        raise UserError(f"{path} is not what the phase wrote: {own}, or {redo(folder)}")
    return path


def unchanged(weights, known):
    """UserError where weights have another fingerprint than they had when it was written down."""
    if fingerprint(weights) != known:
        found = f"{weights} has changed while other policies were played"
        raise UserError(f"{found}: give the command again with --overwrite")


def redo(folder):
    """What to type to make a phase anew: the command that began it."""
    folder = Path(folder)
    command = f"{folder.name}.py --run {shlex.quote(folder.parent.name)}"
    command = (mark(folder) or {}).get("command", command)
    again = "" if "--overwrite" in command.split() else " --overwrite"
    return f"make that phase anew with `python {command}{again}`"


def finished_phase(folder):
    """The folder of a phase that has ended, made of what its sources still are.  UserError with
    what to type otherwise."""
    folder = Path(folder)
    if folder.is_dir() and not mark(folder):
        raise UserError(f"{folder} is no phase's folder: point --from at runs/NAME/PHASE")
    if not (folder / "done").is_file():
        state = "is not finished" if folder.is_dir() else "does not exist"
        command = f"python {folder.name}.py --run {shlex.quote(folder.parent.name)}"
        raise UserError(f"{folder} {state}: run `{command}` first, or point --from elsewhere")
    check_sources(folder)
    return folder


def check_sources(folder, after=()):
    """UserError where a phase, or one that it was made from, was made from weights or skills that
    are others now.  after: phases that were made from this one."""
    folder = Path(folder)
    if os.path.abspath(folder) in after:
        raise UserError(f"{folder} was made from itself, says its args.json: {redo(folder)}")
    made = (mark(folder) or {}).get("made_from") or {}
    for what, place in made.get("places", {}).items():
        source = Path(os.path.normpath(folder / place))
        above = source.parent if source.name == "policy" or what == "skills" else source
        if not above.is_dir():
            continue  # moved or deleted: there is nothing to compare with
        if not source.exists() or fingerprint(source) != made[what]:
            if source.is_dir() and (wrong := damage(source)):
                raise UserError(f"{source / wrong} is damaged: {redo(above)}")
            found = f"{folder} was made from other {what} than {source} has now"
            raise UserError(f"{found}: {redo(folder)}")
        before = phase_of(source) if what == "weights" else None
        if before and before != Path(os.path.abspath(folder)):
            check_sources(before, (*after, os.path.abspath(folder)))
