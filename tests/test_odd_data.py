"""Games and products that no prompt could hold or no program should trip over.

pytest tests/test_odd_data.py
"""

import os
import sys

import pytest

from envs import UserError, webshop_prompts
from envs.alfworld import AlfWorld
from envs.webshop import WebShop
from envs.webshop_data import Catalogue, Nouns, stream_json
from tests.test_webshop import item, write_data

# ---- ALFWorld: what lies in the folders ----------------------------------------------------------

PLACE = "train/pick_and_place_simple-Pen-None-Desk-301"
GOOD = '{"solvable": true, "walkthrough": []}'


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A data folder with one listed game, and a fresh place for the index."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    add(tmp_path / "data", f"{PLACE}/trial_0", GOOD)
    return tmp_path / "data"


def add(root, task, text):
    path = root / "json_2.1.1" / task / "game.tw-pddl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


DEEP = '{"solvable": true, "deep": ' + "[" * 200_000 + "]" * 200_000 + "}"
DAMAGED = {
    "empty": "",
    "cut": '{"solvable": true, "walkthrough": [',
    "silent": '{"walkthrough": []}',
    "no JSON": "<html>not found</html>",
    "deep": DEEP,
    "deep and cut": '{"solvable": true, "deep": ' + "[" * 200_000,
    "bytes": b"\xff\xfe\x00" * 1000,
    "long and cut": '{"solvable": true, "long": "' + "x" * 300_000 + "}",
}


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_game_is_left_out_counted_and_named_at_every_start(root, capsys, text):
    add(root, f"{PLACE}/trial_1", text)
    for _ in range(2):  # read, and from the index
        env = AlfWorld(root)
        assert env.tasks("train") == [f"{PLACE}/trial_0"]
        assert env.describe("train").endswith("(1 more are unsolvable or damaged)")
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1 and f"left out 1 damaged games: {PLACE}/trial_1 (" in said[0]


@pytest.mark.parametrize(
    "text",
    ['{"solvable":true}', '{"solvable" : true,"a":{}}\n', DAMAGED["long and cut"][:-1] + '"}'],
)
def test_json_may_be_written_without_spaces(root, capsys, text):
    add(root, f"{PLACE}/trial_1", text)
    assert len(AlfWorld(root).tasks("train")) == 2 and not capsys.readouterr().err


@pytest.mark.parametrize("text", ['{"solvable":false}', '{"a": 1, "solvable": false}'])
def test_an_unsolvable_game_is_counted_but_not_named(root, capsys, text):
    add(root, f"{PLACE}/trial_1", text)
    env = AlfWorld(root)
    assert len(env.tasks("train")) == 1 and "(1 more" in env.describe("train")
    assert not capsys.readouterr().err


def test_many_damaged_games_are_named_in_one_line(root, capsys):
    for n in range(1, 9):
        add(root, f"{PLACE}/trial_{n}", "")
    AlfWorld(root)
    [line] = capsys.readouterr().err.splitlines()
    assert (
        "left out 8 damaged games" in line and line.count("trial_") == 3 and line.endswith(", ...")
    )


def test_strays_among_folders_are_ignored_and_nothing_waits_for_a_fifo(root, capsys):
    for folder in (
        root,
        root / "json_2.1.1",
        root / "json_2.1.1" / "train",
        root / "json_2.1.1" / PLACE,
    ):
        (folder / ".DS_Store").write_bytes(b"\0")
        os.mkfifo(folder / "pick_and_place_simple-fifo")
        (folder / "pick_and_place_simple-link").symlink_to("nowhere")
    (root / "json_2.1.1" / "train" / "pick_and_place_simple-file").write_text("no folder")
    os.mkfifo(add(root, f"{PLACE}/trial_1", "").with_name("other"))
    fifo = add(root, f"{PLACE}/trial_2", "")
    fifo.unlink()
    os.mkfifo(fifo)
    assert AlfWorld(root).tasks("train") == [f"{PLACE}/trial_0"]
    said = capsys.readouterr().err
    assert "trial_1 (" in said and "trial_2 (no regular file)" in said and "2 damaged" in said
    with pytest.raises(UserError, match="no regular file"):
        AlfWorld(root).reset(f"{PLACE}/trial_2")


@pytest.mark.parametrize(
    "text", ['{"solvable": true, "pddl_problem": 3}', DEEP[:100_000] + '"solvable": true}']
)
def test_damage_that_shows_when_a_game_is_played_is_told_in_one_line_and_left_out_next_time(
    root, capsys, text
):
    add(root, f"{PLACE}/trial_1", text)
    env = AlfWorld(root)
    bad = f"{PLACE}/trial_1"
    assert bad in env.tasks("train") and not capsys.readouterr().err
    with pytest.raises(
        UserError, match="trial_1.*or give the same command again, which leaves this game out"
    ) as told:
        env.reset(bad)
    assert "\n" not in str(told.value)
    assert (
        bad not in AlfWorld(root).tasks("train")
        and "trial_1 (found when it was played)" in capsys.readouterr().err
    )
    add(root, bad, GOOD + " ")  # mended
    assert bad in AlfWorld(root).tasks("train")


# ---- ALFWorld: the official engine on newer Pythons ----------------------------------------------


def test_the_official_engines_expressions_do_not_depend_on_what_locals_can_do():
    textgen = pytest.importorskip("textworld.envs.pddl.textgen")
    env = AlfWorld(houses=True, engine="textworld")
    env.reset("houses/train/00000")
    symbol = textgen.EvalSymbol("len(r) + len(str(TerminalSymbol))", {"variables": {"r": "abc"}})
    [found] = symbol.derive()
    assert int(found.symbol) == 3 + len(str(textgen.TerminalSymbol))
    assert (
        "locals" not in textgen.EvalSymbol.derive.__code__.co_names
    )  # its own one fails from Python 3.13 on
    with pytest.raises(KeyError):
        textgen.EvalSymbol("r", {"constants": {}}).derive()
    assert sys.version_info >= (3, 10)


# ---- WebShop: products ---------------------------------------------------------------------------


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A function from a product's fields to the shop of two lamps and this product."""
    monkeypatch.setenv("WEBSHOP_CACHE", str(tmp_path / "cache"))

    def open_shop(*odd, instruction="Find me a lamp"):
        items = [item("B000000001", "Red Lamp"), item("B000000002", "Blue Lamp"), *odd]
        asked = dict(attributes=["easy clean"], instruction_attributes=["easy clean"])
        instructions = {i["asin"]: asked | dict(instruction="Find me a lamp") for i in items[:2]}
        instructions |= {i["asin"]: asked | dict(instruction=instruction) for i in odd}
        write_data(tmp_path / "data", items, instructions)
        return WebShop(tmp_path / "data", nouns=Nouns({i["asin"]: ["lamp"] for i in items}))

    return open_shop


MANY = {"color": [f"value {i}" for i in range(600)]}
ODD = {
    "600 option values": (dict(options=MANY), "option values of more than 4,000 bytes"),
    "one very long value": (dict(options={"color": ["x" * 5_000]}), "option values of more than"),
    "values of few characters and many bytes": (
        dict(options={"color": ["🪑" * 40 + str(i) for i in range(25)]}),
        "option values of more",
    ),
    "3e10 goals": (
        dict(options={f"group {g}": list("abcdefghijklmnop") for g in range(9)}),
        "combine to more than 100,000 goals",
    ),
    "a price of 1e16": (dict(price="$10000000000000000"), "a price of more than 16 digits"),
    "a price range up to 1e22": (dict(price=f"$5 to ${10**22}"), "a price of more than 16 digits"),
    "a price of 1e-5": (dict(price="$0.00001"), "a price of more than 16 digits"),
    "an endless price": (dict(price="$" + "9" * 400), "pricing holds no price"),
}


@pytest.mark.parametrize("more", ODD)
def test_a_product_that_no_prompt_could_hold_is_left_out_counted_and_named(shop, capsys, more):
    fields, reason = ODD[more]
    for _ in range(2):  # built, and from the cache
        env = shop(item("B00000ODD1", "Odd Lamp", **fields))
        assert len(env.catalogue) == 2 and len(env.goals) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert "left out 1 malformed items" in line and reason in line and "(B00000ODD1)" in line


def test_an_instruction_that_no_prompt_could_hold_leaves_its_product_out(shop, capsys):
    assert len(shop(item("B00000ODD1", "Odd Lamp"), instruction="a lamp " * 1_000).catalogue) == 2
    assert "an instruction of more than 2,000 bytes (B00000ODD1)" in capsys.readouterr().err


def test_products_left_out_for_one_reason_are_counted_and_three_of_them_named(shop, capsys):
    shop(*(item(f"B00000ODD{n}", "Odd Lamp", price="cheap") for n in range(5)))
    line = capsys.readouterr().err
    assert "5 with pricing holds no price (B00000ODD0, B00000ODD1, B00000ODD2, ...)" in line


def test_a_product_at_the_limit_fits_a_chat_prompt(shop, chat_folder):
    from common import Policy

    env = shop(
        item("B00000BIG1", "Big Lamp", options={"color": [f"value {i}" for i in range(190)]})
    )
    policy, goal = (
        Policy(chat_folder),
        next(t for t in env.tasks("test") if env.goals[int(t[5:])]["asin"] == "B00000BIG1"),
    )
    history, now = [], env.reset(goal)
    for action in ("search[big lamp]", "click[b00000big1]"):
        history.append((now, action))
        now = env.step(action)
    assert len(now.admissible) > 190
    ids, _ = policy.prompt_ids(env, env.task, history, now, [])
    assert len(ids) <= 4096


def test_options_made_of_signs_can_be_chosen_in_both_styles(shop, capsys):
    env = shop(
        item("B00000STAR", "Star Lamp", options={"★★": ["★★★", "☆", "  ", "red"], "size": ["№ 1"]})
    )
    goal = next(
        t for t in env.tasks("test") if env.goals[int(t[5:])]["goal_options"].get("★★") == "★★★"
    )
    history, now = [], env.reset(goal)
    for action in ("search[star lamp]", "click[b00000star]"):
        history.append((now, action))
        now = env.step(action)
    text = webshop_prompts.prompt(env.task, history, now, [], "compact+note")
    assert "black star black star black star , white star" in text and "  " not in text
    said = [r for r in webshop_prompts.responses(now, "compact+note") if r.startswith("choose")]
    assert "choose black star black star black star" in said and all(r != "choose " for r in said)
    assert webshop_prompts.parse(said[0] + "\n", "compact+note", now) == ("click[★★★]", True)
    assert env.step("click[★★★]").observation and env.options == {"★★": "★★★"}
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('[{"a": ' + "[" * 200_000, "entry 1 is nested too deep"),
        ('[{"a": 1}, {"a": ' + "[" * 200_000 + "]" * 200_000 + "}]", "entry 2 is nested too deep"),
        ('[{"a": ' + "9" * 5_000 + "}]", "damaged after 0 entries"),
        ('[{"a": 1}, {"a"', "damaged or cut off after 1 entries"),
        ("", "expected a JSON file that begins with"),
    ],
    ids=range(5),
)
def test_a_file_that_is_no_list_of_products_is_told_in_one_line(tmp_path, text, reason):
    (tmp_path / "items.json").write_text(text)
    with pytest.raises(UserError, match=reason) as told:
        list(stream_json(tmp_path / "items.json"))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("text", ["[1, 2]", "{", "[" * 200_000, "\xff"])
def test_a_damaged_file_of_nouns_is_told_in_one_line(tmp_path, text):
    (tmp_path / "title_nouns.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match="cannot read the title nouns") as told:
        Nouns.read(tmp_path / "title_nouns.json")
    assert "\n" not in str(told.value)


def test_odd_lines_in_the_cache_of_nouns_are_passed_over(tmp_path, monkeypatch):
    monkeypatch.setenv("WEBSHOP_CACHE", str(tmp_path))
    (tmp_path / "title_nouns.jsonl").write_bytes(
        b'["red lamp", ["lamp"]]\n3\nnull\n["cut\n\xff\xfe\n'
    )
    assert Nouns().by_title == {"red lamp": ["lamp"]}


def test_a_products_json_may_hold_anything(shop, capsys):
    odd = [
        None,
        3,
        [],
        {},
        {"asin": None},
        {"asin": "B000000009"},
        {"asin": "B000000009", "name": 1},
    ]
    odd += [item("B000000009", "x", price=5), item("B000000009", "x", full_description={})]
    odd += [item("B000000009", "x", customization_options=[1])]
    odd += [item("B00000SURR", "half a face \ud83d", options={"\udc00": ["\ud83d"]})]
    catalogue = Catalogue.build(odd, {}, {})
    assert len(catalogue) == 1 and catalogue.product(0).title == "half a face "
    assert sum(catalogue.skipped.values()) == 10 and "item 2" in sum(catalogue.names.values(), [])
