"""Annotated pages: docs/annotated/NAME.html from the comments of the code, prose left, code right.

    python -m course.annotate              writes them
    python -m course.annotate --check      exit code 1 where one is not what the code says now

Docstrings and whole-line comments become the prose beside the lines that follow them; a comment at
the end of a line stays there. Nothing is written twice: whoever mends a comment mends the page."""

import ast
import html
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

from envs import UserError
from envs.arguments import run_tool

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "annotated"
# page -> (file, first banner, last banner); the method's part of common.py is its sections 4 to 6
PAGES = {
    "warmup": ("warmup.py", None),
    "mine": ("mine.py", None),
    "distill": ("distill.py", None),
    "advantages-and-update": ("common.py", ("4. advantages", "5. update", "6. retrieval")),
}
TITLES = {
    "warmup": "Phase 0: warm-up",
    "mine": "Phase 1: writing skills, and testing them in pairs",
    "distill": "Phase 2: internalisation",
    "advantages-and-update": "What all phases share: advantages, update, retrieval",
}
KEYWORDS = (
    "def|class|return|for|in|if|else|elif|while|with|import|from|lambda|yield|raise|not|and|or"
)
BANNER = re.compile(r"^# -{2,} (.*?) -+$")


@dataclass
class Section:
    prose: list = field(default_factory=list)  # lines of text
    code: list = field(default_factory=list)  # (line number, text)
    banner: str = ""


def docstrings(text):
    """{first line: last line} of every docstring, counted from 1."""
    found = {}
    for node in ast.walk(ast.parse(text)):
        if (
            isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef))
            and ast.get_docstring(node, clean=False) is not None
        ):
            found[node.body[0].lineno] = node.body[0].end_lineno
    return found


def clean(lines):
    """A docstring's lines without quotes and indentation."""
    text = "\n".join(lines).strip()
    text = text.removeprefix('"""').removesuffix('"""')
    first, *rest = text.split("\n")
    margin = min((len(line) - len(line.lstrip()) for line in rest if line.strip()), default=0)
    return [first.strip(), *(line[margin:].rstrip() for line in rest)]


def sections(text):
    """The parts of a file: prose and the code beside it, in order."""
    lines, docs, parts = text.splitlines(), docstrings(text), [Section()]
    number = 1
    while number <= len(lines):
        line = lines[number - 1]
        banner = BANNER.match(line)
        if banner:
            parts.append(Section(banner=banner[1]))
        elif number in docs:
            last = docs[number]
            if number == 1 or not parts[-1].code:
                parts[-1].prose += clean(lines[number - 1 : last])
            else:  # what a function is stands beside its first line
                parts[-1].prose += ([""] if parts[-1].prose else []) + clean(
                    lines[number - 1 : last]
                )
            number = last
            if number == docs.get(1):
                parts.append(Section())
        elif re.match(r"\s*#( |$)", line):
            if (
                any(text.strip() for _, text in parts[-1].code)
                or parts[-1].banner
                and parts[-1].prose
            ):
                parts.append(Section())
            parts[-1].prose.append(line.strip().removeprefix("#").strip())
        elif re.match(r"(def|class|@)", line) and any(text.strip() for _, text in parts[-1].code):
            if parts[-1].code[-1][1].startswith("@"):
                parts[-1].code.append((number, line))
            else:
                parts.append(Section(code=[(number, line)]))
        else:
            parts[-1].code.append((number, line))
        number += 1
    return [
        part
        for part in parts
        if part.prose or part.banner or any(text.strip() for _, text in part.code)
    ]


def chosen(parts, banners):
    """The parts of a file below some banners; all of them where there are none."""
    if banners is None:
        return parts
    kept, inside = [], False
    for part in parts:
        if part.banner:
            inside = part.banner.startswith(banners)
        if inside:
            kept.append(part)
    missing = [name for name in banners if not any(part.banner.startswith(name) for part in kept)]
    if missing:
        raise UserError(f"no section '{missing[0]}' in the code: mend PAGES of course/annotate.py")
    return kept


def prose_html(lines):
    """Paragraphs; indented lines and doctests stay as they are; equation numbers and `names` are
    set off."""
    blocks, kind = [], None
    for line in lines:
        code = line.startswith(("    ", ">>>", "..."))
        if not line.strip():
            kind = None
        elif kind == "pre" and not code and blocks[-1][1][-1].startswith((">>>", "...")):
            blocks[-1][1].append(line)  # what a doctest prints
        elif kind == ("pre" if code else "p"):
            blocks[-1][1].append(line)
        else:
            kind = "pre" if code else "p"
            blocks.append((kind, [line]))
    out = []
    for kind, part in blocks:
        text = html.escape("\n".join(part) if kind == "pre" else " ".join(part))
        if kind == "p":
            text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
            text = re.sub(r"\((\d{1,2})\)", r'<b class="eq">(\1)</b>', text)
            text = re.sub(r"\*([^* ][^*]*)\*", r"<i>\1</i>", text)
        out.append(f"<{kind}>{text}</{kind}>")
    return "\n".join(out)


def code_html(code):
    """Numbered lines, comments set off, without blank lines at both ends."""
    while code and not code[0][1].strip():
        code = code[1:]
    while code and not code[-1][1].strip():
        code = code[:-1]
    rows = []
    for number, text in code:
        before, mark, comment = text.partition("  # ")
        text = re.sub(rf"\b({KEYWORDS})\b", r"<b>\1</b>", html.escape(before, quote=False))
        text += f"  <i>{html.escape('# ' + comment)}</i>" if mark else ""
        rows.append(f'<span id="L{number}" data-n="{number}">{text}</span>')
    return "<pre>" + "\n".join(rows) + "</pre>" if rows else ""


STYLE = """
:root { color-scheme: light dark;
  --bg: #fff;
  --fg: #1b1b1d;
  --soft: #f5f5f2;
  --line: #d4d4cf;
  --muted: #6a6a66;
  --blue: #0068a3; }
@media (prefers-color-scheme: dark) { :root { --bg: #151517;
  --fg: #e8e8e8;
  --soft: #1e1e22;
  --line: #3d3d44;
  --muted: #a5a5ab;
  --blue: #6fc1ee; } }
body { margin: 0; background: var(--bg); color: var(--fg); font: 16px/1.5 system-ui, sans-serif; }
header { padding: 1rem 1.5rem; border-bottom: 1px solid var(--line); }
h1 { font-size: 1.4rem; margin: .3rem 0; }
h2 { font-size: 1.1rem; margin: .6rem 0; }
a { color: var(--blue); }
.part { display: grid; grid-template-columns: minmax(0, 5fr) minmax(0, 8fr);
  border-bottom: 1px solid var(--line); }
.prose { padding: .5rem 1.5rem; }
.prose p { margin: .4rem 0; }
.code { background: var(--soft); padding: .3rem .8rem; overflow-x: auto; }
pre { margin: .2rem 0; font: 13px/1.5 ui-monospace, "DejaVu Sans Mono", monospace; }
.prose pre { overflow-x: auto; background: var(--soft); padding: .4rem; }
.code span::before { content: attr(data-n); display: inline-block; width: 3em;
  color: var(--muted); user-select: none; }
.code i { color: var(--muted); font-style: normal; }
.code b { font-weight: 600; color: var(--blue); }
.eq { color: var(--blue); }
code { font: .88em ui-monospace, "DejaVu Sans Mono", monospace; background: var(--soft); }
@media (max-width: 56rem) { .part { grid-template-columns: minmax(0, 1fr); }
.prose { padding: .5rem 1rem; } }
"""


def page(name):
    """One page as HTML."""
    file, banners = PAGES[name]
    parts = chosen(sections((ROOT / file).read_text(encoding="utf-8")), banners)
    links = " · ".join(
        f"<b>{TITLES[n]}</b>" if n == name else f'<a href="{n}.html">{TITLES[n]}</a>' for n in PAGES
    )
    body = []
    for part in parts:
        heading = f"<h2>{html.escape(part.banner)}</h2>" if part.banner else ""
        body.append(
            f'<div class="part"><div class="prose">{heading}{prose_html(part.prose)}</div>'
            f'<div class="code">{code_html(part.code)}</div></div>'
        )
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{TITLES[name]}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<header><h1>{TITLES[name]}</h1><p>{links}</p><p>Made from <code>{file}</code> by "
        "<code>python -m course.annotate</code>; numbers in "
        f'brackets are the equations of <a href="../method.md">docs/method.md</a>.</p></header>\n'
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def main():
    OUT.mkdir(exist_ok=True, parents=True)
    stale = []
    for name in PAGES:
        path, text = OUT / f"{name}.html", page(name)
        if "--check" not in sys.argv:
            path.write_text(text, encoding="utf-8")
            print(f"{path.relative_to(ROOT)}: {len(text) / 1e3:.0f} kB")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(path.name)
    if stale:
        raise UserError(
            f"docs/annotated/ is not what the code says now ({', '.join(stale)}): run python -m "
            "course.annotate"
        )


if __name__ == "__main__":
    run_tool(main)
