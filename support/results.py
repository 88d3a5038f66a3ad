"""An evaluation's folder: only an evaluation's own files are ever removed there, by name."""

import sys

from envs import UserError
from support.files import dump, read_json, read_jsonl, write_atomically
from support.phases import mark
from support.runs import hold

OWN = ("results.jsonl", "summary.json", "success.png", "types.png", "curves.png")
MARK = "args.json"  # says that the folder is an evaluation's, and what was asked


def open_folder(out, question, overwrite):
    """Makes the output folder this process's own; returns what an interrupted evaluation of the
    same question has answered already, a dict per episode.

    question: what the answers depend on, JSON.  UserError where the folder is another's, or holds
    the answers to another question."""
    try:
        if out.exists() and not out.is_dir():
            raise UserError(f"--out {out} is a file: choose another folder")
        if any(mark(above) for above in out.resolve().parents[:3]):
            found = f"--out {out} lies in a phase's folder, where it would not be safe"
            raise UserError(f"{found}: choose another one")
        there = {one.name for one in out.iterdir()} if out.is_dir() else set()
        names = there - {"lock", f"{MARK}.part"}  # all that one leaves that dies before its mark
        fix = "choose another --out, or delete that folder yourself"
        before = read_json(out / MARK, fix) if MARK in names else {}
        ours = "arms" in before and "phase" not in before
        if names and not ours:
            fix = "choose a new folder with --out"
            raise UserError(f"{out} holds files that no evaluation wrote: {fix}")
        out.mkdir(parents=True, exist_ok=True)
        hold(out)
        asked = before.get("question")
        asked = asked if isinstance(asked, dict) else {}
        if ours and asked != question and not overwrite:
            changed = [key for key, value in question.items() if asked.get(key) != value]
            found = f"{out} answers another question (other {', '.join(changed)})"
            raise UserError(f"{found}: choose another --out, or add --overwrite")
        for name in OWN if overwrite else ():
            (out / name).unlink(missing_ok=True)
        if overwrite or not ours:
            about = {"arms": question["arms"], "question": question, "command": sys.argv}
            write_atomically(out / MARK, dump(about, indent=1) + "\n")
    except OSError as error:
        found = f"cannot write to {out} ({error.strerror or error})"
        raise UserError(f"{found}: choose another --out") from None
    return read_results(out / OWN[0]) if (out / OWN[0]).exists() else []


def read_results(path):
    """results.jsonl.  UserError names the episode that lacks what the table needs."""
    shares = ("success", "score", "inadmissible_rate", "valid_rate")
    seen = set()
    results = read_jsonl(path)
    for n, row in enumerate(results, 1):
        texts = [row.get(key) for key in ("arm", "split", "task_id", "task_type")]
        values = [row.get(key) for key in (*shares, "n_steps", "prompt_tokens", "repetition")]
        sound = all(isinstance(value, str) for value in texts)
        if not sound or not all(isinstance(value, (int, float)) for value in values):
            raise UserError(f"{path}, episode {n} lacks a field: delete that line, or --overwrite")
        if not all(0 <= row[key] <= 1 for key in shares):
            found = f"expected shares within 0 and 1 as {', '.join(shares)}"
            raise UserError(f"{path}, episode {n}: {found}; delete that line, or --overwrite")
        episode = (*texts[:3], row["repetition"])
        if episode in seen:
            raise UserError(f"{path}, episode {n} is there twice: delete that line, or --overwrite")
        seen.add(episode)
    return results
