"""Notebooks from plain Python: course/NAME.py, with cells between `# %%` lines, becomes
course/NAME.ipynb with its outputs.

    python -m course.build                 all of them
    python -m course.build siri_in_one_notebook
    python -m course.build --text          new text and code, outputs kept: nothing is run
    python -m course.build --check         exit code 1 where a notebook's cells are not its source's

The sources are what is reviewed and edited; a `# %% [markdown]` cell is text, its lines after `# `.
Outputs are those of one run."""

import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from envs import UserError
from envs.arguments import Parser, run_tool

HERE = Path(__file__).parent


def sources():
    """The course's notebooks: every .py that begins with a cell."""
    return sorted(
        path for path in HERE.glob("*.py") if path.read_text(encoding="utf-8").startswith("# %%")
    )


def notebook(source):
    """The cells of a source file as a notebook without outputs."""
    book = nbformat.v4.new_notebook()
    book.metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
    }
    for i, cell in enumerate(Path(source).read_text(encoding="utf-8").split("# %%")[1:]):
        kind, _, text = cell.partition("\n")
        text = text.strip("\n")
        if "[markdown]" in kind:
            text = "\n".join(line.removeprefix("#").removeprefix(" ") for line in text.splitlines())
            made = nbformat.v4.new_markdown_cell(text)
        else:
            made = nbformat.v4.new_code_cell(text)
        made["id"] = f"cell-{i}"  # stable: the same source gives the same file
        book.cells.append(made)
    return book


def execute(book, folder=HERE, replace=(), more=()):
    """Runs a notebook in place.  replace: (old, new) texts put into its code first; more: code
    cells put at its end."""
    for old, new in replace:
        if not any(old in cell.source for cell in book.cells):
            raise UserError(f"no cell holds {old!r}")
        for cell in book.cells:
            if cell.cell_type == "code":
                cell.source = cell.source.replace(old, new)
    book.cells += [nbformat.v4.new_code_cell(text) for text in more]
    NotebookClient(
        book, timeout=1200, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    return book


def same_cells(a, b):
    return [(c.cell_type, c.source) for c in a.cells] == [(c.cell_type, c.source) for c in b.cells]


def printed(outputs):
    """Without what went to stderr: warnings and bars, which name folders of the machine."""
    return [output for output in outputs if output.get("name") != "stderr"]


def keep_outputs(book, old):
    """The outputs of a stored notebook for new cells.  UserError where the cells are others."""
    if [c.cell_type for c in book.cells] != [c.cell_type for c in old.cells]:
        raise UserError("the cells are others than those stored: build it without --text")
    for new, stored in zip(book.cells, old.cells):
        if new.cell_type == "code":
            new.outputs, new.execution_count = printed(stored.outputs), stored.execution_count


def main():
    parser = Parser(description=__doc__.split("\n\n")[0])
    about = "notebooks, by the names of their sources (default: all)"
    parser.add_argument("names", nargs="*", metavar="NAME", help=about)
    parser.add_argument("--text", action="store_true", help="new text, old outputs: nothing is run")
    parser.add_argument("--check", action="store_true", help="only say which are stale")
    args = parser.parse_args()
    known = [path.stem for path in sources()]
    if unknown := [name for name in args.names if name not in known]:
        raise UserError(f"{unknown[0]}: expected one of {', '.join(known)}")
    stale = []
    for source in sources():
        target = source.with_suffix(".ipynb")
        if args.names and source.stem not in args.names:
            continue
        book = notebook(source)
        if args.check:
            if not target.exists() or not same_cells(book, nbformat.read(target, as_version=4)):
                stale.append(source.stem)
            continue
        if args.text:
            keep_outputs(book, nbformat.read(target, as_version=4))
            nbformat.write(book, target)
            continue
        began = time.time()
        execute(book)
        for cell in book.cells:
            cell.metadata.pop(
                "execution", None
            )  # times of the run: they would change the file every time
        nbformat.write(book, target)
        print(
            f"{target.name}: {len(book.cells)} cells, {target.stat().st_size / 1e3:.0f} kB, "
            f"{time.time() - began:.0f} s",
            flush=True,
        )
    if stale:
        raise UserError(
            f"not built from their sources: {', '.join(stale)}; run python -m course.build "
            f"{' '.join(stale)}"
        )


if __name__ == "__main__":
    run_tool(main)
