"""A run folder: what a phase writes, how it goes on after an interruption, and what the next phase reads.

    begun_with, finished_phase, policy_folder    what others read of a phase: its arguments, its weights, and whether they are still
                                                 made of what they were made of (fingerprints)
    hold                                         one process in a folder at a time
    remove                                       the only function that deletes folders
    Run                                          the phase's own side: open, resume, log, save, finish

    runs/NAME/PHASE/   args.json       arguments, versions, command, and the fingerprints of what the phase was made from
                       *.jsonl         metrics, trajectories, pairs, ...: a line is appended once
                       checkpoints/N/  weights, state.pt (optimizer), checkpoint.json (counters), sha256.json (the seal, written last)
                       policy/, done   at the end
                       lock            held by the running process
"""

import fcntl
import json
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
from types import SimpleNamespace

import torch

from envs import UserError
from support import large, parallel
from support.cli import FREE, GROWING
from support.files import SEAL, damage, dump, fingerprint, load_json, read_json, read_text, seal, sync_folder, write_atomically
from support.models import check_model
from support.records import episode_metrics, for_file

NEXT = {"warmup": "mine", "mine": "distill", "distill": "evaluate"}
# What a phase writes into its folder, and therefore what --overwrite may delete there.
OWN = (
    "done", "metrics.jsonl", "trajectories.jsonl", "pairs.jsonl", "rejected.jsonl", "skills.jsonl",
    "checkpoints", "snapshots", "policy", "policy.part", "args.json",
)  # fmt: skip


# ---- what others read of a phase -------------------------------------------------------------------------------


def mark(folder):
    """What a phase's args.json says (phase, args, made_from, command); None where the folder is no phase's."""
    path = Path(folder) / "args.json"
    if not path.is_file():
        return None
    about = read_json(path)
    return about if about.get("phase") in NEXT and isinstance(about.get("args"), dict) else None


def phase_of(path):
    """The phase folder that a path is, or lies in (policy/, checkpoints/N, snapshots/N); None where it lies in none."""
    path = Path(path)
    if not path.is_dir():
        return None
    here = Path(os.path.abspath(path))
    return next((folder for folder in (here, here.parent, here.parent.parent) if mark(folder)), None)


def begun_with(path):
    """The arguments of the phase that a path is or lies in; {} where it lies in none."""
    folder = phase_of(path)
    args = mark(folder)["args"] if folder else {}
    if folder and not all(isinstance(args.get(key), str) for key in ("env", "model", "preset")):
        raise UserError(f"{folder / 'args.json'} is damaged (no env, model or preset): start that run anew")
    return args


def checkpoints(folder):
    """A phase's checkpoints, oldest first; other files that may lie there are nobody's concern."""
    return sorted(one for one in (Path(folder) / "checkpoints").glob("*") if re.fullmatch(r"\d{6,}", one.name) and one.is_dir())


def policy_folder(phase_folder):
    """The newest sound weights that a phase has written: its final policy, or its last checkpoint."""
    folder = Path(phase_folder)
    candidates = [folder / "policy"] if (folder / "policy").is_dir() else checkpoints(folder)[::-1]
    for one in candidates:
        if not (wrong := damage(one)):
            return one
    if candidates:
        raise UserError(f"{candidates[0] / wrong} is damaged: {redo(folder)}")
    raise UserError(f"no policy in {folder}: run {folder.name}.py first, or point --from at the folder of a finished phase")


def redo(folder):
    """What to type to make a phase anew."""
    folder = Path(folder)
    return f"make the phase anew with `python {folder.name}.py --run {shlex.quote(folder.parent.name)} --overwrite`"


def finished_phase(folder):
    """The folder of a phase that has ended, and that is made of what its sources still are.  UserError with what to type otherwise."""
    folder = Path(folder)
    if not (folder / "done").is_file():
        if folder.is_dir() and not mark(folder):
            raise UserError(f"{folder} is no phase's folder: point --from at runs/NAME/PHASE")
        state = "is not finished" if folder.is_dir() else "does not exist"
        command = f"python {folder.name}.py --run {shlex.quote(folder.parent.name)}"
        raise UserError(f"{folder} {state}: run `{command}` first, or point --from elsewhere")
    check_sources(folder)
    return folder


def check_sources(folder):
    """UserError where a phase, or one that it was made from, was made from weights or skills that have changed since."""
    folder = Path(folder)
    made = (mark(folder) or {}).get("made_from") or {}
    for what, place in made.get("places", {}).items():
        source = Path(os.path.normpath(folder / place))
        above = source.parent if source.name == "policy" or what == "skills" else source
        if not above.is_dir():
            continue  # moved or deleted: there is nothing to compare with
        if not source.exists() or fingerprint(source) != made[what]:
            raise UserError(f"{folder} was made from other {what} than {source} has now: {redo(folder)}")
        if what == "weights" and (before := phase_of(source)) and before != folder:
            check_sources(before)


# ---- one process at a time, and what may be deleted ------------------------------------------------------------

held = {}  # absolute path -> open lock file, of this process


def hold(folder):
    """Makes a folder this process's own until it ends, however it ends.  UserError says who has it."""
    path = Path(os.path.abspath(folder)) / "lock"
    if path in held and path.exists() and os.fstat(held[path].fileno()).st_ino == path.stat().st_ino:
        return
    file = open(path, "a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = " ".join(file.read(2000).split()) or "another process"
        file.close()
        raise UserError(f"{folder} is in use by {holder}: wait for it, stop it, or choose another folder") from None
    file.truncate(0)
    since = time.strftime("%Y-%m-%d %H:%M")
    file.write(f"process {os.getpid()} on {socket.gethostname()} since {since} ({shlex.join(sys.argv)[:300]})\n")
    file.flush()
    held[path] = file


def release(folder):
    if file := held.pop(Path(os.path.abspath(folder)) / "lock", None):
        file.close()


def remove(path, owner):
    """Deletes a file or folder, the only place that does: `path` has to lie in `owner`, a phase's folder with its mark, under one of the
    names that a phase writes."""
    path, owner = Path(os.path.abspath(path)), Path(os.path.abspath(owner))
    if not mark(owner) or owner not in path.parents or path.relative_to(owner).parts[0] not in OWN:
        raise UserError(f"{path} is not what a phase has written: it is not deleted; choose another --run")
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


# ---- the phase's own side --------------------------------------------------------------------------------------


class Run:
    """A phase at work in runs/NAME/PHASE.

    A checkpoint appears whole or not at all and knows how long every JSON-lines file was; resuming cuts the files back to that length.
    So the process may die anywhere, and the same command goes on and ends with the weights of an uninterrupted run.  Weights and optimizer
    state are saved whole, whatever number of processes held them, and are read by any number.

    source: folder or hub name of the weights that the phase starts from; skills: the file of skills that it starts from, if any;
    state: what the phase carries from iteration to iteration, JSON.  weights: what the policy is loaded from, now."""

    def __init__(self, args, phase, source, state, skills=None):
        self.args, self.phase, self.state, self.source, self.skills = args, phase, state, str(source), skills
        self.folder = Path("runs") / args.run / phase
        check_model(self.source, args)  # before anything is opened
        self.iteration, self.spent, self.lengths, self.ended_by = 0, 0.0, {}, None
        self.seconds, self.types, self.bank = {}, set(), None
        self.checkpoint, found = parallel.first(self.open)
        self.state.update(found.get("state", {}))
        self.iteration, self.spent, self.lengths = (found.get(k, d) for k, d in (("iteration", 0), ("spent", 0.0), ("lengths", {})))
        self.ended_by, self.saved = found.get("ended_by"), self.iteration if self.checkpoint else None
        # with LoRA the folder has merged weights, for others to read; to go on exactly takes the source and the adapters (state.pt)
        self.weights = str(self.checkpoint) if self.checkpoint and not getattr(args, "lora_rank", 0) else self.source
        self.track = SimpleNamespace(log=lambda metrics: None, finish=lambda: None)
        if args.track != "none" and parallel.rank() == 0:
            self.track = import_module(args.track)  # wandb, or trackio with the same functions
            self.track.init(project="siri", name=f"{args.run}-{phase}", config=vars(args))
        print(f"{phase}: policy {self.checkpoint or self.source}", flush=True)

    # -- opening

    def open(self):
        """Makes the folder this process's own, or checks that what lies there fits; returns (last sound checkpoint or None, what it
        says).  Everything that can be wrong is found before anything is deleted."""
        folder, args = self.folder, self.args
        now = {k: v for k, v in vars(args).items() if k != "overwrite"} | {"device": args.device.split(":")[0]}
        versions = {"torch": torch.__version__, "python": sys.version.split()[0]}
        about = {"phase": self.phase, "args": now, "made_from": self.made_from(), "versions": versions, "command": shlex.join(sys.argv)}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            hold(folder)
            before = mark(folder)
            if before is None and any(one.name != "lock" for one in folder.iterdir()) or before and before["phase"] != self.phase:
                raise UserError(f"{folder} holds files that no {self.phase} phase wrote: choose another --run, or move them away")
            if before and args.overwrite:
                for name in OWN:  # args.json, the mark, goes last
                    remove(folder / name, folder)
                before = None
            found = None, {}
            if before:
                extended = self.compare(before, about)
                found = self.last_checkpoint()
                if (folder / "done").exists():
                    remove(folder / "done", folder)
                    found[1].pop("ended_by", None)
                elif extended:
                    found[1].pop("ended_by", None)
            (folder / "checkpoints").mkdir(exist_ok=True)
            write_atomically(folder / "args.json", json.dumps(about, indent=1))
            self.cut_back(found[1].get("lengths", {}))
        except OSError as error:
            raise UserError(f"cannot write to {folder} ({error.strerror}): work in another folder, or mend its rights") from None
        return found

    def made_from(self):
        """Fingerprints of what the phase starts from, and where it lies, seen from the phase's folder: a run may be renamed."""
        made, places = {"weights": fingerprint(self.source)}, {}
        if Path(self.source).is_dir():
            places["weights"] = os.path.relpath(self.source, self.folder)
        if self.skills:
            made["skills"], places["skills"] = fingerprint(self.skills), os.path.relpath(self.skills, self.folder)
        return made | {"places": places}

    def compare(self, before, now):
        """Whether the budget has grown.  UserError unless this is the phase that was begun, with nothing changed but what may change."""
        old, new, changed, grown = before["args"], now["args"], [], []
        for key, value in new.items():
            # where weights and skills lie may change; what they are is compared below
            if key in FREE or key in ("model", "source", "skills") or key not in old or old[key] == value:
                continue
            more = value is None or (isinstance(old[key], (int, float)) and value > old[key])
            if key in GROWING and more:
                grown.append(key)
            else:
                why = ", which may only grow" if key in GROWING else ""
                changed.append(f"--{key.replace('_', '-')} (was {old[key]}, now {value}{why})")
        done = (self.folder / "done").exists()
        if done and (changed or not grown):
            more = "go on with the next phase, extend it with more --iterations or --minutes, or start anew with --overwrite"
            raise UserError(f"{self.folder} is finished: {more}")
        if changed:
            raise UserError(f"{self.folder} was begun with other arguments: {', '.join(changed)}; use those, or --overwrite")
        for what in ("weights", "skills"):
            if before.get("made_from") and before["made_from"].get(what) != now["made_from"].get(what):
                raise UserError(f"{self.folder} was begun with other {what} than {self.source} has now: start it anew with --overwrite")
        return bool(grown)

    def last_checkpoint(self):
        """(folder, what its checkpoint.json says) of the newest sound checkpoint; a damaged one falls back to the one before."""
        everything = checkpoints(self.folder)[::-1]
        for one in everything:
            wrong = damage(one) if (one / SEAL).exists() else SEAL
            if not wrong:
                return one, load_json(read_text(one / "checkpoint.json"))
            print(f"warning: {one / wrong} is damaged, the checkpoint before it is used", file=sys.stderr)
        if everything:
            raise UserError(f"{everything[0] / wrong} is damaged and no earlier checkpoint is left: start anew with --overwrite")
        return None, {}

    def cut_back(self, lengths):
        """Cuts the JSON-lines files back to what the checkpoint knows.  UserError where lines are missing."""
        for name, length in lengths.items():
            path = self.folder / name
            size = path.stat().st_size if path.is_file() else 0
            if size < length:
                found = f"{path} has {size} bytes, at the last checkpoint it had {length}"
                raise UserError(f"{found}: lines are missing; put the file back, or start anew with --overwrite")
        for path in self.folder.glob("*.jsonl"):
            if path.name in OWN:
                os.truncate(path, lengths.get(path.name, 0))

    def restore(self, policy, optimizer):
        """Loads the optimizer's state (and adapters) of the last checkpoint; the policy was loaded from `weights` already."""
        if self.checkpoint:
            saved = torch.load(self.checkpoint / "state.pt", map_location="cpu", weights_only=True, mmap=True)
            parameters = large.trained(policy)
            for i, state in saved["optimizer"]["state"].items():
                state.update({key: parallel.like(value, parameters[i]) for key, value in state.items()})
            optimizer.load_state_dict(saved["optimizer"])
            with torch.no_grad():
                for p, value in zip(parameters, saved.get("adapters", [])):
                    p.copy_(parallel.like(value, p))
            print(f"going on after iteration {self.iteration} ({self.checkpoint})", flush=True)
        self.began = time.time() - self.spent

    # -- the loop

    def iterations(self):
        """Yields the iteration numbers that are left; ends by `stop`, --iterations or --minutes, and records which."""
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
        return parallel.agree(time.time() - self.began)

    @contextmanager
    def timed(self, name):
        """Adds NAME_seconds to this iteration's metrics."""
        began = time.time()
        yield
        self.seconds[f"{name}_seconds"] = round(self.seconds.get(f"{name}_seconds", 0.0) + time.time() - began, 3)

    def set_lr(self, optimizer):
        """This iteration's learning rate: linearly from --lr to --lr-end times that at the end of --iterations or --minutes.

        Late in a phase few groups carry signal, but Adam's steps stay as long as ever: a constant rate then walks at random (LAB.md)."""
        spent = self.clock() / (60 * self.args.minutes) if self.args.minutes else 0.0
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
        """Writes iteration k down: trajectories, pairs, metrics, the console line; every --save-every iterations, and at the last one, a
        checkpoint.  pairs: lines of pairs.jsonl, where groups were paired; bank: all skills, where there are any."""
        about = {"phase": self.phase, "iteration": k, "env": self.args.env}
        self.append("trajectories.jsonl", [about | for_file(r) for r in records])
        line = {"iteration": k} | episode_metrics(records, self.args.max_response) | metrics
        if pairs is not None:
            self.append("pairs.jsonl", [{"iteration": k} | pair for pair in pairs])
            line["mean_effect"] = sum(p["delta"] for p in pairs) / max(1, len(pairs))
            line["gate_open"] = sum(p["delta"] > 0 for p in pairs) / max(1, len(pairs))
        if bank is not None:
            self.bank = bank
            counts = [skill["status"] for skill in bank]
            line["bank"] = {status: counts.count(status) for status in dict.fromkeys(counts)}
            ends = [skill["reason"] for skill in bank if "reason" in skill]
            line["ended"] = {reason: ends.count(reason) for reason in dict.fromkeys(ends)}
        self.types |= {r["task_type"] for r in records}
        before, self.spent = self.spent, self.clock()
        line["steps_per_second"] = round(line["env_steps"] / max(self.seconds.get("rollout_seconds", 0), 1e-3), 1)
        line |= self.seconds | {"elapsed": round(self.spent, 2)}
        self.seconds = {}
        self.append("metrics.jsonl", [line])
        self.track.log(line)
        print(console_line(self.phase, line), flush=True)
        if self.iteration == 0:
            not_silent(line, self.args)
        self.iteration += 1
        every = 60 * self.args.snapshots
        if every and self.spent // every > before // every:
            policy.save(self.folder / "snapshots" / f"{self.spent:06.0f}")
        if last or self.ended_by or self.iteration % self.args.save_every == 0:
            self.save(policy, optimizer)

    # -- saving

    def save(self, policy, optimizer):
        """Writes a checkpoint.  The one before stays, so that there is a sound one whatever happens to this one."""
        where = self.folder / "checkpoints"
        folder, part = where / f"{self.iteration:06d}", where / f"{self.iteration:06d}.part"
        self.check_finite(policy)
        if parallel.rank() == 0:  # a later process would delete what this one has begun to write
            kept = self.checkpoint and Path(self.checkpoint).name
            for old in where.iterdir():  # unfinished, damaged, or older than the last sound one
                if old.name != kept and re.fullmatch(r"\d{6,}(\.part)?", old.name):
                    remove(old, self.folder)
        policy.save(part)
        saved = {"optimizer": large.whole_state(optimizer)}
        if policy.lora:
            saved["adapters"] = [parallel.whole(p.detach()).cpu() for p in large.trained(policy)]
        self.saved = self.iteration
        if parallel.rank() == 0:
            torch.save(saved, part / "state.pt")
            about = {"iteration": self.iteration, "spent": self.spent, "lengths": self.lengths, "ended_by": self.ended_by}
            write_atomically(part / "checkpoint.json", dump(about | {"state": self.state}))
            seal(part)
            os.replace(part, folder)  # the checkpoint exists from here on
            sync_folder(where)
        self.checkpoint = folder

    def check_finite(self, policy):
        """UserError where a weight is no number: nothing is saved over the last good checkpoint."""
        sound = all(torch.isfinite(getattr(p, "_local_tensor", p)).all().item() for p in policy.model.parameters())
        if not all(parallel.gather(sound)):
            good = f"the last good checkpoint is {self.checkpoint}" if self.checkpoint else "there is no checkpoint before it"
            raise UserError(
                f"{self.phase}, iteration {self.iteration}: weights are no finite numbers any more and are not saved; {good}; "
                "start anew with a lower --lr and --overwrite, or in another --run"
            )

    def finish(self, policy, optimizer, summary):
        """Writes policy/ and done, with the fingerprints that the next phase checks."""
        if self.saved != self.iteration or not self.checkpoint:
            self.save(policy, optimizer)
        part = self.folder / "policy.part"
        if parallel.rank() == 0:
            remove(part, self.folder)
        policy.save(part, getattr(torch, self.args.dtype))
        if parallel.rank():
            return
        seal(part)
        remove(self.folder / "policy", self.folder)
        os.replace(part, self.folder / "policy")
        sync_folder(self.folder)
        summary |= {"phase": self.phase, "iterations": self.iteration, "seconds": round(self.spent, 1), "ended_by": self.ended_by}
        prints = {"weights": fingerprint(self.folder / "policy"), "made_from": mark(self.folder)["made_from"]}
        if (self.folder / "skills.jsonl").exists():
            prints["skills"] = fingerprint(self.folder / "skills.jsonl")
        write_atomically(self.folder / "done", dump(summary | {"fingerprints": prints}) + "\n")
        self.track.finish()
        release(self.folder)
        print(f"{self.phase} done: {dump(summary)}", flush=True)
        print(self.what_next(), flush=True)

    def what_next(self):
        """Lines for whoever reads the console: how many task types the skills help, and what to type now."""
        run = f"--run {shlex.quote(self.args.run)}"
        active = [skill for skill in self.bank or [] if skill["status"] == "active"]
        lines = []
        if self.bank is not None:
            types = self.types | {skill["task_type"] for skill in self.bank} - {None}
            helped = {skill["task_type"] for skill in active} & types
            lines.append(f"{len(helped)} of {len(types)} task types have a skill that helps")
        if self.phase == "mine" and not active:
            more = self.iteration + max(1, self.iteration)
            lines.append(f"no skill helps yet; mine on: python mine.py {run} --iterations {more}")
        else:
            lines.append(f"next: python {NEXT[self.phase]}.py {run}")
        return "\n".join(lines)


# ---- what the console says ------------------------------------------------------------------------


def not_silent(m, args):
    """UserError where a policy cannot learn for nobody can read it: nearly all its responses are cut, or ill-formed."""
    if args.allow_malformed or (m["cut_rate"] <= 0.9 and m["valid_rate"] >= 0.05):
        return
    cut = f"{m['cut_rate']:.0%} of the responses were cut at --max-response {args.max_response}"
    found = cut if m["cut_rate"] > 0.9 else f"{1 - m['valid_rate']:.0%} of the responses were ill-formed"
    raise UserError(
        f"after the first iteration {found}, which trains for hours at 0 %: look at `response` in "
        f"runs/{args.run}/*/trajectories.jsonl and at the model's chat template, or go on with --allow-malformed"
    )


def console_line(phase, m):
    """One line per iteration, of at most 100 columns; metrics.jsonl has the other numbers."""
    parts = [f"{phase} {m['iteration']:3d}"]
    parts.append(" ".join(f"{c} {m[f'success_{c}']:.2f}" for c in ("plain", "skill") if f"success_{c}" in m))
    parts.append(" ".join(f"{name} {m[key]:{form}}" for name, key, form in SHOWN if key in m))
    if "bank" in m:
        parts.append(f"skills {m['bank'].get('active', 0)} of {sum(m['bank'].values())}")
    return " | ".join(parts + [f"{m['elapsed']:.0f} s"])


SHOWN = [("no-signal", "no_signal", ".2f"), ("kl", "kl", ".4f"), ("entropy", "entropy", ".2f")]
