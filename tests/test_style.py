"""tests/style.py counts as it says.      pytest tests/test_style.py"""

from tests import style

SOURCE = '''"""A docstring, two lines
of no code."""

# a comment of its own line
x = 1  # one behind code
y = """a string
is code"""


def f():
    """Not code."""
    return x
'''


def test_comments_are_counted_per_line_of_code_without_docstrings():
    # code begins on 4 lines: x, y, def, return; comments: 2
    assert style.comment_share(SOURCE) == 100 * 2 / 4


def test_a_line_above_100_columns_is_found_with_its_number():
    assert style.problems({"a.md": "short\n" + "x" * 101}) == [
        "a.md: 1 lines above 100 columns (line 2)"
    ]
    assert style.problems({"a.md": "x" * 100}) == []


def test_a_readme_above_200_lines_is_found():
    assert style.problems({"README.md": "x\n" * 201}) == ["README.md: 201 lines, at most 200"]


def test_a_file_of_the_method_needs_comments_and_another_one_does_not():
    assert style.problems({"mine.py": "x = 1\n"}) == [
        "mine.py: 0.0 comments per 100 lines of code, at least 20"
    ]
    assert style.problems({"envs/alfworld.py": "x = 1\n"}) == []


def test_every_relative_link_of_the_docs_leads_to_a_file_and_heading():
    lost = []
    for name, text in style.texts():
        if name.endswith(".md"):
            lost += [f"{name}: {link}" for link in style.lost_links(name, text)]
    assert lost == []


def test_a_heading_is_linked_as_github_names_it():
    assert style.anchor_of("Does SIRI beat GiGPO here?") == "does-siri-beat-gigpo-here"
    assert style.anchor_of("One seed, with all its rows") == "one-seed-with-all-its-rows"
