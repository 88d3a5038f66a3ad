"""A run folder: what a phase writes, how it goes on after an interruption, and what the next phase reads."""

import json
import os
import shutil
import sys
import time
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from envs import UserError
from support import large, parallel
from support.files import write_atomically


def policy_folder(phase_folder):
    """The newest weights that a phase has written: its final policy, or its last checkpoint."""
    folder = Path(phase_folder)
    if (folder / "policy").is_dir():
        return folder / "policy"
    checkpoints = sorted((folder / "checkpoints").glob("[0-9]*[0-9]"))
    if not checkpoints:
        raise UserError(f"no policy in {folder}: run {folder.name}.py first, or point --from at the folder of a finished phase")
    return checkpoints[-1]


def finished_phase(folder):
    """The folder of a phase that has ended.  UserError with what to type otherwise."""
    folder = Path(folder)
    if not (folder / "done").is_file():
        state = "is not finished" if folder.is_dir() else "does not exist"
        raise UserError(f"{folder} {state}: run `python {folder.name}.py --run {folder.parent.name}` first, or point --from elsewhere")
    return folder


class Run:
    """runs/NAME/PHASE: args.json, metrics.jsonl, trajectories.jsonl, ..., checkpoints/ITERATION/, and at the end policy/ and done.

    A checkpoint appears whole or not at all and knows how long every JSON-lines file was; resuming cuts the files back to that length.
    So the process may die anywhere, and the same command goes on and ends with the weights of an uninterrupted run.  Weights and optimizer
    state are saved whole, whatever number of processes held them, and are read by any number."""

    def __init__(self, args, phase, state):
        self.args, self.phase, self.state = args, phase, state  # state: what the phase carries from iteration to iteration, JSON
        self.folder = Path("runs") / args.run / phase
        self.checkpoint = parallel.first(self.open)
        self.iteration, self.spent, self.lengths, self.saved = 0, 0.0, {}, None
        self.track = SimpleNamespace(log=lambda metrics: None, finish=lambda: None)
        if args.track != "none" and parallel.rank() == 0:
            self.track = import_module(args.track)  # wandb, or trackio with the same functions
            self.track.init(project="siri", name=f"{args.run}-{phase}", config=vars(args))

    def open(self):
        """Makes the folder, or checks that it fits the arguments; returns its last checkpoint, if there is one."""
        args, phase = self.args, self.phase
        if args.overwrite and self.folder.exists():
            shutil.rmtree(self.folder)
        if (self.folder / "done").exists():
            raise UserError(f"{self.folder} is finished: go on with the next phase, or start anew with --overwrite")
        now = {k: v for k, v in vars(args).items() if k != "overwrite"} | {"device": args.device.split(":")[0]}
        try:
            (self.folder / "checkpoints").mkdir(parents=True, exist_ok=True)
            if (self.folder / "args.json").exists():
                before = json.loads((self.folder / "args.json").read_text())["args"]
                changed = [f"--{k.replace('_', '-')} (was {before.get(k)}, now {v})" for k, v in now.items() if before.get(k) != v]
                if changed:
                    raise UserError(f"{self.folder} was begun with other arguments: {', '.join(changed)}; use those, or --overwrite")
            else:
                versions = {"torch": torch.__version__, "python": sys.version.split()[0]}
                write_atomically(self.folder / "args.json", json.dumps({"phase": phase, "args": now, "versions": versions}, indent=1))
        except OSError as error:
            raise UserError(f"cannot write to {self.folder} ({error.strerror}): work in another folder, or mend its rights") from None
        return next(iter(sorted((self.folder / "checkpoints").glob("[0-9]*[0-9]"), reverse=True)), None)

    def restore(self, policy, optimizer):
        """Loads the last checkpoint's optimizer and state (the policy was loaded from it already), and cuts the files back."""
        if self.checkpoint:
            saved = torch.load(self.checkpoint / "state.pt", map_location="cpu", weights_only=True, mmap=True)
            parameters = large.trained(policy)
            for i, state in saved["optimizer"]["state"].items():
                state.update({key: parallel.like(value, parameters[i]) for key, value in state.items()})
            optimizer.load_state_dict(saved["optimizer"])
            with torch.no_grad():
                for p, value in zip(parameters, saved.get("adapters", [])):
                    p.copy_(parallel.like(value, p))
            self.state.update(json.loads(saved["state"]))
            self.iteration, self.spent, self.lengths = saved["iteration"], saved["spent"], saved["lengths"]
            self.saved = self.iteration
            print(f"going on after iteration {self.iteration} ({self.checkpoint})", flush=True)
        for path in self.folder.glob("*.jsonl") if parallel.rank() == 0 else ():
            with open(path, "r+b") as file:
                file.truncate(self.lengths.get(path.name, 0))
        parallel.agree(None)  # the others read the files after this
        self.began = time.time() - self.spent

    def iterations(self):
        """Yields the iteration numbers that are left; ends by --iterations or --minutes, and records which."""
        while self.iteration < self.args.iterations:
            if self.args.minutes and self.clock() > 60 * self.args.minutes:
                self.ended_by = f"--minutes {self.args.minutes}"
                return
            yield self.iteration
        self.ended_by = f"--iterations {self.args.iterations}"

    def clock(self):
        """Seconds that this phase has taken, the same in every process."""
        return parallel.agree(time.time() - self.began)

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
        with open(path, "a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
            file.flush()
            os.fsync(file.fileno())
        self.lengths[name] = path.stat().st_size

    def end_iteration(self, policy, optimizer, metrics, last=False):
        """Writes the metrics line, and every --save-every iterations (and at the last one) a checkpoint."""
        self.iteration += 1
        before, self.spent = self.spent, self.clock()
        self.append("metrics.jsonl", [metrics | {"elapsed": round(self.spent, 2)}])
        self.track.log(metrics)
        print(console_line(self.phase, metrics | {"elapsed": self.spent}), flush=True)
        every = 60 * self.args.snapshots
        if every and self.spent // every > before // every:
            policy.save(self.folder / "snapshots" / f"{self.spent:06.0f}")
        if last or self.iteration % self.args.save_every == 0:
            self.save(policy, optimizer)

    def save(self, policy, optimizer):
        folder = self.folder / "checkpoints" / f"{self.iteration:06d}"
        part = folder.with_suffix(".part")
        if parallel.rank() == 0:  # a later process would delete what this one has begun to write
            shutil.rmtree(part, ignore_errors=True)
        policy.save(part)
        saved = {"optimizer": large.whole_state(optimizer), "iteration": self.iteration, "spent": self.spent, "lengths": self.lengths}
        if policy.lora:  # the folder has the merged weights, which other phases read; to go on exactly takes the adapters
            saved["adapters"] = [parallel.whole(p.detach()).cpu() for p in large.trained(policy)]
        self.saved = self.iteration
        if parallel.rank():
            return
        torch.save(saved | {"state": json.dumps(self.state)}, part / "state.pt")
        os.replace(part, folder)  # the checkpoint exists from here on
        for old in (self.folder / "checkpoints").iterdir():
            if old != folder:
                shutil.rmtree(old)

    def finish(self, policy, optimizer, summary):
        """Writes policy/ and done."""
        if self.saved != self.iteration:
            self.save(policy, optimizer)
        part = self.folder / "policy.part"
        if parallel.rank() == 0:
            shutil.rmtree(part, ignore_errors=True)
            shutil.rmtree(self.folder / "policy", ignore_errors=True)
        policy.save(part, getattr(torch, self.args.dtype))
        if parallel.rank() == 0:
            os.replace(part, self.folder / "policy")
        summary |= {"phase": self.phase, "iterations": self.iteration, "seconds": round(self.spent, 1), "ended_by": self.ended_by}
        write_atomically(self.folder / "done", json.dumps(summary) + "\n")
        self.track.finish()
        print(f"{self.phase} done: {json.dumps(summary)}", flush=True)


def episode_metrics(records, seconds):
    """Success by condition, mean length, rates: the part of metrics.jsonl that every phase has."""
    steps = [step for r in records for step in r["steps"]]
    metrics = {}
    for condition in ("plain", "skill"):
        part = [r for r in records if r["condition"] == condition]
        if part:
            metrics |= {f"success_{condition}": np.mean([r["success"] for r in part]), f"episodes_{condition}": len(part)}
    return metrics | {
        "score": float(np.mean([r["score"] for r in records])),
        "mean_steps": len(steps) / len(records),
        "env_steps": len(steps),
        "valid_rate": float(np.mean([s["valid"] for s in steps])),
        "inadmissible_rate": float(np.mean([s["fails"] for s in steps])),
        "truncated": sum(s["truncated"] for s in steps),
        "response_tokens": sum(len(s["response_ids"]) for s in steps),
        "rollout_seconds": round(seconds, 3),
        "steps_per_second": round(len(steps) / seconds, 1),
    }


def console_line(phase, m):
    """One line per iteration with what a newcomer needs."""
    success = " ".join(f"{c} {m[f'success_{c}']:.2f}({m[f'episodes_{c}']})" for c in ("plain", "skill") if f"success_{c}" in m)
    text = (
        f"{phase} {m['iteration']:3d} | {success} | steps {m['mean_steps']:.1f} bad {m['inadmissible_rate']:.2f} "
        f"no-signal {m['no_signal']:.2f} | kl {m['kl']:.4f} clip {m['clip_fraction']:.3f} H {m['entropy']:.3f} "
        f"|g| {m['grad_norm']:.2f} | {m['rollout_seconds']:.1f}+{m['update_seconds']:.1f} s, "
        f"{m['steps_per_second']:.0f} steps/s, {m['update_tokens'] / m['update_seconds']:.0f} tok/s"
    )
    if "bank" in m:
        text += " | skills " + " ".join(f"{k} {v}" for k, v in m["bank"].items())
    if m.get("lambda"):
        text += f" | lambda {m['lambda']:.2f} L_int {m['l_int']:.3f} gated {m['gated_tokens']}"
    return text + f" | {m['elapsed']:.0f} s"
