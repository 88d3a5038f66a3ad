"""How the repository reads, in numbers; prints a table and exits with 1 where one is missed.

    python tests/style.py          # a second, no packages needed; CI runs it, too

    width       every .py and .md file: no line above 100 columns, which is what a projector shows
                (not the tables below results/, which programs write)
    comments    the five files of the method: at least 20 comments per 100 lines of code
    length      README.md at most 200 lines, common.py at most 650
    links       every relative link of a .md file leads to a file, and to a heading of it

A line of code is one on which a token begins, other than comments, line ends and docstrings.
A comment counts wherever it stands, also behind code.
"""

import ast
import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 100  # columns
COMMENTS = 20  # per 100 lines of code
METHOD = ("warmup.py", "mine.py", "distill.py", "evaluate.py", "common.py")
LENGTHS = {"README.md": 200, "common.py": 650}  # lines
EMPTY = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
EMPTY |= {tokenize.ENCODING, tokenize.ENDMARKER}


def docstring_lines(source):
    """The numbers of all lines that belong to a docstring."""
    lines = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            if ast.get_docstring(node, clean=False) is not None:
                lines |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return lines


def comment_share(source):
    """Comments per 100 lines of code."""
    docstrings, code, comments = docstring_lines(source), set(), 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        comments += token.type == tokenize.COMMENT
        if token.type not in EMPTY:
            code.add(token.start[0])
    return 100 * comments / max(1, len(code - docstrings))


def texts():
    """Every .py and .md file that git knows or would add: (path below the root, its text)."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py", "*.md"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in sorted(set(names.split("\n")) - {""}):
        # tables below results/ are written by programs
        written = name.startswith("results/") and name.endswith(".md") and "README" not in name
        if (ROOT / name).is_file() and not written:  # the index may hold deleted ones
            yield name, (ROOT / name).read_text(encoding="utf-8")


def anchor_of(heading):
    """The name by which GitHub links a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def lost_links(name, text):
    """The relative links of a Markdown file that lead to no file, or to no heading of it."""
    lost = []
    prose = re.sub(r"```.*?```", "", text, flags=re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        if link.startswith("http"):
            continue
        if not target.exists():
            lost.append(link)
        elif anchor:
            found = re.findall(r"(?m)^#+ (.*)$", target.read_text(encoding="utf-8"))
            if anchor not in map(anchor_of, found):
                lost.append(link)
    return lost


def problems(files):
    """One line for each number that is missed; files: {name: text}."""
    found = []
    for name, text in files.items():
        if name.endswith(".md"):
            found += [f"{name}: the link {link} leads nowhere" for link in lost_links(name, text)]
        wide = [n for n, line in enumerate(text.splitlines(), 1) if len(line) > WIDTH]
        if wide:
            first = ", ".join(map(str, wide[:5])) + (", ..." if len(wide) > 5 else "")
            found.append(f"{name}: {len(wide)} lines above {WIDTH} columns (line {first})")
        if name in LENGTHS and len(text.splitlines()) > LENGTHS[name]:
            found.append(f"{name}: {len(text.splitlines())} lines, at most {LENGTHS[name]}")
        if name in METHOD and comment_share(text) < COMMENTS:
            share = comment_share(text)
            found.append(f"{name}: {share:.1f} comments per 100 lines of code, at least {COMMENTS}")
    return found


def main():
    files = dict(texts())
    print(f"{'file':14s} {'lines':>6s} {'widest':>7s} {'comments / 100':>15s}")
    for name in (*METHOD, "README.md"):
        text = files[name]
        share = f"{comment_share(text):.1f}" if name.endswith(".py") else ""
        widest = max(map(len, text.splitlines()))
        print(f"{name:14s} {len(text.splitlines()):6d} {widest:7d} {share:>15s}")
    found = problems(files)
    print(*(f"missed: {line}" for line in found), sep="\n", end="\n" if found else "")
    print(f"{len(files)} files, {len(found)} numbers missed")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
