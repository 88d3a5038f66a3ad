"""A run folder: what a phase writes, and how it goes on after an interruption.

    hold            one process in a folder at a time
    remove          the only function that deletes folders
    Run             the phase's own side: open, resume, log, save, finish

    runs/NAME/PHASE/
        args.json       arguments, versions, command, and fingerprints of what the phase is made of
        *.jsonl         metrics, trajectories, pairs, ...: a line is appended once
        checkpoints/N/  weights, state.pt (optimizer), checkpoint.json (counters), sha256.json (the
                        seal, written last)
        policy/, done   at the end
        lock            held by the running process
"""

import fcntl
import os
import re
import shlex
import shutil
import socket
import sys
import time
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from pickle import UnpicklingError
from types import SimpleNamespace

import torch

from envs import UserError
from support import large, parallel
from support.cli import FREE, GROWING
from support.files import (
    SEAL,
    damage,
    dump,
    fingerprint,
    load_json,
    read_text,
    seal,
    sync_folder,
    write_atomically,
)
from support.models import check_model, reason_of
from support.phases import NEXT, checkpoints, mark
from support.records import episode_metrics, for_file

# What a phase writes into its folder, and therefore what --overwrite may delete there.
OWN = (
    "done", "metrics.jsonl", "trajectories.jsonl", "traces.jsonl", "pairs.jsonl", "rejected.jsonl",
    "skills.jsonl", "checkpoints", "snapshots", "policy", "policy.part",
)  # fmt: skip


# ---- one process at a time, and what may be deleted ----------------------------------------------

held = {}  # absolute path -> open lock file, of this process


def hold(folder):
    """Makes a folder this process's own until it ends, however it ends.  UserError says who has
    it."""
    path = Path(os.path.abspath(folder)) / "lock"
    ours = held.get(path)
    if ours and path.exists() and os.fstat(ours.fileno()).st_ino == path.stat().st_ino:
        return
    file = open(path, "a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = " ".join(file.read(2000).split()) or "another process"
        file.close()
        fix = "wait for it, stop it, or choose another folder"
        raise UserError(f"{folder} is in use by {holder}: {fix}") from None
    file.truncate(0)
    where, since = socket.gethostname(), time.strftime("%Y-%m-%d %H:%M")
    command = shlex.join(sys.argv)[:300]
    file.write(f"process {os.getpid()} on {where} since {since} ({command})\n")
    file.flush()
    held[path] = file


def release(folder):
    if file := held.pop(Path(os.path.abspath(folder)) / "lock", None):
        file.close()


def remove(path, owner):
    """Deletes a file or folder; no other function deletes folders.  `path` has to lie in `owner`, a
    phase's folder with its mark, under one of the names that a phase writes."""
    path, owner = Path(os.path.abspath(path)), Path(os.path.abspath(owner))
    inside = owner in path.parents and path.relative_to(owner).parts[0] in OWN
    if not inside or not mark(owner):
        found = f"{path} is not what a phase has written: it is not deleted"
        raise UserError(f"{found}; choose another --run")
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


# ---- the phase's own side ------------------------------------------------------------------------


class Run:
    """A phase at work in runs/NAME/PHASE.

    A checkpoint appears whole or not at all and knows how long every JSON-lines file was; resuming
    cuts the files back to that length.  So the process may die anywhere, and the same command goes
    on and ends with the weights of an uninterrupted run.  Weights and optimizer state are saved
    whole, whatever number of processes held them, and are read by any number.

    source   folder or hub name of the weights that the phase starts from
    state    what the phase carries from iteration to iteration, JSON
    skills   the file of skills that the phase starts from, if any
    weights  what the policy is loaded from now: the last checkpoint, or the source

    Nothing is deleted or written before `restore`, which follows the loading of the model."""

    def __init__(self, args, phase, source, state, skills=None):
        self.args, self.phase, self.state = args, phase, state
        self.source, self.skills = str(source), skills
        self.folder = Path("runs") / args.run / phase
        check_model(self.source, args)  # before anything is opened
        self.made = parallel.first(self.made_from)
        self.checkpoint, found = parallel.first(self.open)
        self.state.update(found.get("state", {}))
        self.iteration, self.spent = found.get("iteration", 0), found.get("spent", 0.0)
        self.lengths, self.ended_by = found.get("lengths", {}), found.get("ended_by")
        self.saved = self.iteration if self.checkpoint else None
        self.seconds, self.types = {}, set()
        # with LoRA the folder has merged weights, for others to read; to go on exactly takes the
        # source and the adapters of state.pt
        resumed = self.checkpoint and not getattr(args, "lora_rank", 0)
        self.weights = str(self.checkpoint) if resumed else self.source
        self.track = tracker(args, phase)
        print(f"{phase}: policy {self.checkpoint or self.source}", flush=True)

    # -- opening

    def open(self):
        """Makes the folder this process's own, and checks that what lies there fits.  Returns (the
        last sound checkpoint or None, what it says).  Nothing is deleted here."""
        folder, phase = self.folder, self.phase
        try:
            folder.mkdir(parents=True, exist_ok=True)
            hold(folder)
            before = mark(folder)
            # a phase that died before it had its mark leaves no more than these
            foreign = {one.name for one in folder.iterdir()} - {"lock", "args.json.part"}
        except OSError as error:
            found = f"cannot write to {folder} ({error.strerror or error})"
            fix = "work in another folder, or mend its rights"
            raise UserError(f"{found}: {fix}") from None
        if before["phase"] != phase if before else foreign:
            fix = "choose another --run, or move them away"
            raise UserError(f"{folder} holds files that no {phase} phase wrote: {fix}")
        if not before or self.args.overwrite:
            return None, {}
        grown = self.compare(before)
        checkpoint, found = self.last_checkpoint()
        self.check_lengths(found.get("lengths", {}))
        if grown:
            found.pop("ended_by", None)  # what ended it was the old budget
        return checkpoint, found

    def about(self):
        """What args.json says of this phase."""
        now = {key: value for key, value in vars(self.args).items() if key != "overwrite"}
        now["device"] = self.args.device.split(":")[0]
        about = {"phase": self.phase, "args": now, "made_from": self.made}
        about["versions"] = {"torch": torch.__version__, "python": sys.version.split()[0]}
        return about | {"command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])}

    def made_from(self):
        """Fingerprints of what the phase starts from, and where it lies, seen from the phase's
        folder: a run may be renamed."""
        made, places = {"weights": fingerprint(self.source)}, {}
        if Path(self.source).is_dir():
            places["weights"] = os.path.relpath(self.source, self.folder)
        if self.skills:
            made["skills"] = fingerprint(self.skills)
            places["skills"] = os.path.relpath(self.skills, self.folder)
        return made | {"places": places}

    def compare(self, before):
        """Whether the budget has grown.  UserError unless this is the phase that was begun, with
        nothing changed but what may change."""
        now = self.about()
        old, changed, grown = before["args"], [], []
        for key, value in now["args"].items():
            if key in FREE or key not in old or old[key] == value:
                continue
            if key in ("run", "model", "source", "skills"):
                continue  # where these lie may change; what they are is compared below
            why = ""
            if key in GROWING:
                if value is None or (isinstance(old[key], (int, float)) and value > old[key]):
                    grown.append(key)
                    continue
                why = ", may only grow"
            changed.append(f"--{key.replace('_', '-')} (was {old[key]}, now {value}{why})")
        if (self.folder / "done").exists() and (changed or not grown):
            more = "go on with the next phase, extend it with more --iterations or --minutes"
            raise UserError(f"{self.folder} is finished: {more}, or start anew with --overwrite")
        if changed:
            found = f"{self.folder} was begun with other arguments: {', '.join(changed)}"
            raise UserError(f"{found}; use those, or start anew with --overwrite")
        for what in ("weights", "skills"):
            known = (before.get("made_from") or {}).get(what)
            if known and known != now["made_from"].get(what):
                source = self.skills if what == "skills" else self.source
                found = f"{self.folder} was begun with other {what} than {source} has now"
                raise UserError(f"{found}: start it anew with --overwrite")
        return bool(grown)

    def last_checkpoint(self):
        """(folder, what its checkpoint.json says) of the newest sound checkpoint; a damaged one
        falls back to the one before."""
        wrong = None
        for one in checkpoints(self.folder)[::-1]:
            needed = ("state.pt", "checkpoint.json")
            broken = damage(one, needed) if (one / SEAL).exists() else SEAL
            found = {} if broken else counters_of(one / "checkpoint.json")
            broken = broken or (None if found else "checkpoint.json")
            if not broken:
                if found.get("of", self.identity()) != self.identity():
                    fix = "put the right one there, or start anew with --overwrite"
                    raise UserError(f"{one} is a checkpoint of another run or phase: {fix}")
                return one, found
            wrong = wrong or one / broken
            warning = f"warning: {one / broken} is damaged, the checkpoint before it is used"
            print(warning, file=sys.stderr)
        if wrong:
            found = f"{wrong} is damaged and no earlier checkpoint is left"
            raise UserError(f"{found}: start anew with --overwrite")
        return None, {}

    def identity(self):
        """What a checkpoint is of: with these a phase's weights are determined, up to its other
        arguments, which `compare` checks."""
        made = [self.made.get("weights"), self.made.get("skills")]
        return [self.phase, self.args.seed, *made]

    def check_lengths(self, lengths):
        """UserError where JSON lines that the checkpoint knows are missing."""
        for name, length in lengths.items():
            path = self.folder / name
            size = path.stat().st_size if path.is_file() else 0
            if size < length:
                found = f"{path} has {size} bytes, at the last checkpoint it had {length}"
                fix = "put the file back, or start anew with --overwrite"
                raise UserError(f"{found}: lines are missing; {fix}")

    def prepare(self):
        """The folder as it has to be when the first iteration begins: what an earlier run left is
        deleted where that was asked for, and files are cut back to the checkpoint."""
        if mark(self.folder):  # else it is new
            remove(self.folder / "done", self.folder)
            for name in OWN if self.args.overwrite else ():
                remove(self.folder / name, self.folder)
        # the mark first: a folder with anything else and no mark is nobody's, and is not touched
        write_atomically(self.folder / "args.json", dump(self.about(), indent=1))
        (self.folder / "checkpoints").mkdir(exist_ok=True)
        for path in self.folder.glob("*.jsonl"):
            if path.name in OWN:
                os.truncate(path, self.lengths.get(path.name, 0))

    def restore(self, policy, optimizer):
        """Loads the optimizer's state (and adapters) of the last checkpoint; the policy was loaded
        from `weights` already.  From here on the folder is written to."""
        if self.checkpoint:
            path = self.checkpoint / "state.pt"
            try:
                self.load_state(path, policy, optimizer)
            except (LookupError, TypeError, ValueError, RuntimeError, UnpicklingError) as error:
                found = f"{path} is not this model's ({reason_of(error)})"
                raise UserError(f"{found}: start anew with --overwrite") from None
        parallel.first(self.prepare)
        if self.checkpoint:
            print(f"going on after iteration {self.iteration} ({self.checkpoint})", flush=True)
        self.began = time.monotonic() - self.spent

    def load_state(self, path, policy, optimizer):
        """The optimizer's state and the adapters of a state.pt."""
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        parameters = large.trained(policy)
        for i, state in saved["optimizer"]["state"].items():
            for key, value in state.items():
                state[key] = parallel.like(value, parameters[i])
        optimizer.load_state_dict(saved["optimizer"])
        with torch.no_grad():
            for p, value in zip(parameters, saved.get("adapters", [])):
                p.copy_(parallel.like(value, p))

    # -- the loop

    def iterations(self):
        """Yields the iteration numbers that are left; ends by `stop`, --iterations or --minutes,
        and records which."""
        while not self.ended_by and self.iteration < self.args.iterations:
            if self.args.minutes and self.clock() > 60 * self.args.minutes:
                self.ended_by = f"--minutes {self.args.minutes}"
                return
            yield self.iteration
        self.ended_by = self.ended_by or f"--iterations {self.args.iterations}"

    def stop(self, reason):
        """The running iteration is the last one."""
        self.ended_by = reason

    def clock(self):
        """Seconds that this phase has taken, the same in every process."""
        return parallel.agree(time.monotonic() - self.began)

    @contextmanager
    def timed(self, name):
        """Adds NAME_seconds to this iteration's metrics."""
        began, key = time.monotonic(), f"{name}_seconds"
        yield
        self.seconds[key] = round(self.seconds.get(key, 0.0) + time.monotonic() - began, 3)

    def set_lr(self, optimizer):
        """This iteration's learning rate: linearly from --lr to --lr-end times that, reached at the
        end of --iterations or --minutes.

        Late in a phase few groups carry signal, but Adam's steps stay as long as ever: a constant
        rate then walks at random.  Time counts up to the last finished iteration, so that where
        iterations end a phase, rates and with them all numbers do not depend on the machine."""
        spent = self.spent / (60 * self.args.minutes) if self.args.minutes else 0.0
        share = min(1.0, max(spent, self.iteration / self.args.iterations))
        for group in optimizer.param_groups:
            group["lr"] = self.args.lr * (1 - share * (1 - self.args.lr_end))

    def append(self, name, rows):
        """Appends rows to a JSON-lines file of the phase."""
        if parallel.rank():
            return
        path = self.folder / name
        with open(path, "ab") as file:
            file.write("".join(dump(row) + "\n" for row in rows).encode())
            file.flush()
            os.fsync(file.fileno())
        self.lengths[name] = path.stat().st_size

    def log(self, k, policy, optimizer, records, metrics, pairs=None, bank=None, last=False):
        """Writes iteration k down: trajectories, pairs, metrics, the console line; every
        --save-every iterations, and at the last one, a checkpoint.

        pairs: lines of pairs.jsonl, where groups were paired; bank: all skills, where there are
        any."""
        about = {"phase": self.phase, "iteration": k, "env": self.args.env}
        self.append("trajectories.jsonl", [about | for_file(r) for r in records])
        line = {"iteration": k} | episode_metrics(records, self.args.max_response) | metrics
        if pairs is not None:
            self.append("pairs.jsonl", [{"iteration": k} | pair for pair in pairs])
            line["mean_effect"] = sum(p["delta"] for p in pairs) / max(1, len(pairs))
            line["gate_open"] = sum(p["delta"] > 0 for p in pairs) / max(1, len(pairs))
        if bank is not None:
            line["bank"] = counted(skill["status"] for skill in bank)
            line["ended"] = counted(skill["reason"] for skill in bank if "reason" in skill)
        self.types |= {r["task_type"] for r in records}
        before, self.spent = self.spent, self.clock()
        rolled = max(self.seconds.get("rollout_seconds", 0), 1e-3)
        line["steps_per_second"] = round(line["env_steps"] / rolled, 1)
        line |= self.seconds | {"elapsed": round(self.spent, 2)}
        self.seconds = {}
        self.append("metrics.jsonl", [line])
        self.track.log(line)
        print(console_line(self.phase, line), flush=True)
        if self.iteration == 0:
            not_silent(line, self.args, self.folder)
        self.iteration += 1
        every = 60 * self.args.snapshots
        if every and self.spent // every > before // every:
            policy.save(self.folder / "snapshots" / f"{self.spent:06.0f}")
        if last or self.ended_by or self.iteration % self.args.save_every == 0:
            self.save(policy, optimizer)

    # -- saving

    def save(self, policy, optimizer):
        """Writes a checkpoint.  The one before stays, so that there is a sound one whatever happens
        to this one."""
        where, name = self.folder / "checkpoints", f"{self.iteration:06d}"
        folder, part = where / name, where / f"{name}.part"
        self.check_finite(policy)
        if parallel.rank() == 0:  # a later process would delete what this one has begun to write
            kept = self.checkpoint and Path(self.checkpoint).name
            for old in where.iterdir():  # unfinished, damaged, or older than the last sound one
                if old.name != kept and re.fullmatch(r"\d{6,}(\.part)?", old.name):
                    remove(old, self.folder)
        policy.save(part)
        saved = {"optimizer": large.whole_state(optimizer)}
        if policy.lora:
            adapters = [parallel.whole(p.detach()) for p in large.trained(policy)]
            saved["adapters"] = [tensor.cpu() for tensor in adapters]
        self.saved = self.iteration
        if parallel.rank() == 0:
            torch.save(saved, part / "state.pt")
            counters = ("iteration", "spent", "lengths", "ended_by", "state")
            found = {key: getattr(self, key) for key in counters} | {"of": self.identity()}
            write_atomically(part / "checkpoint.json", dump(found))
            seal(part)
            os.replace(part, folder)  # the checkpoint exists from here on
            sync_folder(where)
        self.checkpoint = folder

    def check_finite(self, policy):
        """UserError where a weight is no number: nothing is saved over the last good checkpoint."""
        weights = (getattr(p, "_local_tensor", p) for p in policy.model.parameters())
        sound = all(torch.isfinite(tensor).all().item() for tensor in weights)
        if all(parallel.gather(sound)):
            return
        found = f"{self.phase}, iteration {self.iteration}: weights are no finite numbers any more"
        good = "there is no checkpoint before it"
        if self.checkpoint:
            good = f"the last good checkpoint is {self.checkpoint}"
        fix = "start anew with a lower --lr and --overwrite, or in another --run"
        raise UserError(f"{found} and are not saved; {good}; {fix}")

    def finish(self, policy, optimizer, summary):
        """Writes policy/ and done, with the fingerprints that the next phase checks."""
        if self.saved != self.iteration or not self.checkpoint:
            self.save(policy, optimizer)
        part, final = self.folder / "policy.part", self.folder / "policy"
        if parallel.rank() == 0:
            remove(part, self.folder)
        policy.save(part, getattr(torch, self.args.dtype))
        if parallel.rank():
            return
        seal(part)
        remove(final, self.folder)
        os.replace(part, final)
        sync_folder(self.folder)
        summary |= {"phase": self.phase, "iterations": self.iteration}
        summary |= {"seconds": round(self.spent, 1), "ended_by": self.ended_by}
        prints = {"weights": fingerprint(final), "made_from": self.made}
        if (self.folder / "skills.jsonl").exists():
            prints["skills"] = fingerprint(self.folder / "skills.jsonl")
        write_atomically(self.folder / "done", dump(summary | {"fingerprints": prints}) + "\n")
        self.track.finish()
        release(self.folder)
        how = f"{self.iteration} iterations, {self.spent:.0f} s, ended by {self.ended_by}"
        print(f"{self.phase} done: {how}", flush=True)
        print(self.what_next(), flush=True)

    def what_next(self):
        """Lines for whoever reads the console: how many task types the skills help, what became of
        the skills, and what to type now."""
        bank = self.state.get("bank")
        active = [skill for skill in bank or [] if skill["status"] == "active"]
        lines = []
        if self.phase == "distill":
            n = sum(skill.get("reason") == "absorbed" for skill in bank)
            lines.append(f"{n} of {len(bank)} skills absorbed: plain play wins as often now")
        elif bank is not None:
            types = self.types | {skill["task_type"] for skill in bank} - {None}
            helped = {skill["task_type"] for skill in active} & types
            lines.append(f"{len(helped)} of {len(types)} task types have a skill that helps")
        if self.phase == "mine" and not active:
            typed = re.sub(r" --(iterations|minutes)[= ]\S+", "", self.about()["command"])
            typed = typed.replace(" --overwrite", "")
            more = f"python {typed} --iterations {2 * max(1, self.iteration)}"
            lines.append(f"no skill helps yet; mine on: {more}")
        else:
            lines.append(f"next: python {NEXT[self.phase]}.py --run {shlex.quote(self.args.run)}")
        return "\n".join(lines)


def counters_of(path):
    """What a checkpoint.json says; {} where it is none."""
    try:
        found = load_json(read_text(path))
    except ValueError:
        return {}
    numbers = [found.get("iteration"), *(found.get("lengths") or {"": None}).values()]
    sound = all(isinstance(n, int) and n >= 0 for n in numbers)
    return found if sound and isinstance(found.get("state"), dict) else {}


def tracker(args, phase):
    """wandb, or trackio with the same functions; one that does nothing where none is asked for."""
    if args.track == "none" or parallel.rank():
        return SimpleNamespace(log=lambda metrics: None, finish=lambda: None)
    track = import_module(args.track)
    try:
        track.init(project="siri", name=f"{args.run}-{phase}", config=vars(args))
    except Exception as error:  # no account, no network, no terminal to ask on
        reason = f"{type(error).__name__}: {error}"[:200]
        raise UserError(f"--track {args.track} does not begin ({reason}): leave it out") from None
    return track


# ---- what the console says -----------------------------------------------------------------------


def counted(names):
    names = list(names)
    return {name: names.count(name) for name in dict.fromkeys(names)}


def not_silent(m, args, folder):
    """UserError where a policy cannot learn for nobody can read it: nearly all its responses are
    cut, or ill-formed."""
    cut, ill = m["cut_rate"], 1 - m["valid_rate"]
    if args.allow_malformed or (cut <= 0.9 and ill <= 0.95):
        return
    found = f"{ill:.0%} of the responses were ill-formed"
    if cut > 0.9:
        found = f"{cut:.0%} of the responses were cut at --max-response {args.max_response}"
    look = f"look at `response` in {folder / 'trajectories.jsonl'} and at the model's chat template"
    go_on = "or go on with --allow-malformed"
    raise UserError(f"after the first iteration {found}, which trains at 0 %: {look}, {go_on}")


SHOWN = [("no-signal", "no_signal", ".2f"), ("kl", "kl", ".3f"), ("entropy", "entropy", ".2f")]


def console_line(phase, m):
    """One line per iteration, of at most 100 columns; metrics.jsonl has the other numbers."""
    success = [f"{c} {m[f'success_{c}']:.2f}" for c in ("plain", "skill") if f"success_{c}" in m]
    parts = [f"{phase} {m['iteration']:3d}", " ".join(success)]
    parts.append(" ".join(f"{name} {m[key]:{form}}" for name, key, form in SHOWN if key in m))
    if "bank" in m:
        active, everything = m["bank"].get("active", 0), sum(m["bank"].values())
        parts.append(f"skills {active}/{everything}")  # active ones
    return " | ".join([*parts, f"{m['elapsed']:.0f} s"])
