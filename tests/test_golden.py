"""Recordings of the official software, replayed: the environments have to answer character by
character, the method to the last digit.

    ALFWORLD_DATA=... GOLDEN=../shared/golden python -m pytest tests/test_golden.py

The recordings are not part of this repository.  They are looked for in $GOLDEN (default:
../shared/golden beside the repository); what is missing is skipped, with the reason.
"""

import hashlib
import json
import lzma
import os
import re
from pathlib import Path

import pytest
import torch

from common import gigpo_advantages, kl_k3, policy_loss
from envs import UserError
from envs.alfworld import AlfWorld
from envs.alfworld_engine import Game
from envs.webshop import Nouns, WebShop
from envs.webshop import score as webshop_score
from envs.webshop_data import clean, find_files, parse_item, stream_json
from envs.webshop_search import analyze


def recording(name):
    """The content of a recording; skips the test where there is none."""
    path = Path(os.environ.get("GOLDEN") or Path(__file__).parents[2] / "shared" / "golden") / name
    if not path.exists():
        pytest.skip(f"no recording {path} (set GOLDEN to the folder that has {name})")
    return json.loads(lzma.open(path).read() if path.suffix == ".xz" else path.read_bytes())


# ---- ALFWorld ------------------------------------------------------------------------------------


def alfworld():
    """The environment on the official games; skips the test where there are none."""
    if not os.environ.get("ALFWORLD_DATA"):
        pytest.skip("no ALFWorld games (set ALFWORLD_DATA to the folder that holds json_2.1.1/)")
    return AlfWorld()


def alfworld_episodes(stack):
    """(environment, id, recorded episode) for every episode recorded with one stack of the official
    wrappers."""
    env, count = alfworld(), 0
    for game in recording("alfworld.json.xz")["games"]:
        for episode in game["episodes"]:
            if episode["stack"] == stack:
                count += 1
                yield env, game["game"].removesuffix("/game.tw-pddl"), episode
    assert count, f"the recording has no episode of stack {stack}"


def test_alfworld_texts_and_commands_are_those_of_the_official_engine():
    # no step limit, and the game goes on after it is won
    for env, task_id, episode in alfworld_episodes("raw"):
        play = env.game(task_id).start()
        assert (play.observation, play.won, play.admissible()) == (
            episode["obs"],
            episode["won"],
            episode["adm"],
        ), task_id
        for command, observation, won, score, done, admissible in episode["steps"]:
            assert play.step(command) == play.observation == observation, f"{task_id}: {command!r}"
            assert (play.won, play.won, play.won) == (won, bool(score), done), (
                f"{task_id}: {command!r}"
            )
            assert play.admissible() == admissible, f"{task_id}: {command!r}"


def test_alfworld_episodes_end_where_the_official_ones_do():
    # ends at the goal or the 50th step; the recording then repeats itself
    for env, task_id, episode in alfworld_episodes("batch"):
        step = env.reset(task_id)
        assert (step.observation, step.won, step.done) == (episode["obs"], False, False)
        for command, observation, won, score, done, admissible in episode["steps"]:
            if step.done:
                with pytest.raises(RuntimeError):
                    env.step(command)
            else:
                step = env.step(command)
            seen = step.observation, step.won, step.score, step.done, step.admissible
            assert seen == (
                observation,
                won,
                score,
                done,
                [name for name in admissible if name != "help"],
            ), f"{task_id}: {command!r}"
            assert step.reward == 10 * won


def test_alfworld_walkthroughs_in_the_recording_are_those_of_the_games():
    env = alfworld()
    for game in recording("alfworld.json.xz")["games"]:
        assert (
            env.game(game["game"].removesuffix("/game.tw-pddl")).walkthrough == game["walkthrough"]
        )


@pytest.mark.slow
def test_every_official_alfworld_walkthrough_wins_exactly_at_its_last_step():
    env = alfworld()
    for split in env.split_names:
        for task_id in env.tasks(split):
            game = Game.load(env.path(task_id))
            assert game.task_type == env.task_type(task_id)
            play, won = game.start(), []
            for command in game.walkthrough:
                assert command in play.admissible(), f"{task_id}: {command}"
                play.step(command)
                won.append(play.won)
            assert won == [False] * (len(won) - 1) + [True], task_id


# ---- WebShop -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def webshop(tmp_path_factory):
    """webshop(human=..., show_attrs=..., seed=...): the environment on the official products,
    without a step limit."""
    data, cached = os.environ.get("WEBSHOP_DATA"), {}
    if not data:
        pytest.skip(
            "no WebShop products (set WEBSHOP_DATA to the folder that holds items_shuffle*.json)"
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WEBSHOP_CACHE", str(tmp_path_factory.mktemp("cache")))
        folders = [Path(__file__).parents[2] / "shared" / "data"]
        if os.environ.get("GOLDEN"):
            folders.insert(0, Path(os.environ["GOLDEN"]).parent / "data")
        beside = [path for folder in folders for path in folder.glob("webshop_title_nouns.json*")]
        nouns = (
            Nouns.read(beside[0])
            if beside and not os.environ.get("WEBSHOP_NOUNS")
            else Nouns.find(data)
        )

        def make(**settings):
            key = tuple(sorted(settings.items()))
            cached.setdefault(
                key,
                WebShop(nouns=nouns, max_steps=10**9, **settings) if key not in cached else None,
            )
            return cached[key]

        catalogue = make().catalogue
        try:
            for number in range(len(catalogue)):
                nouns.check(catalogue.product(number))
        except UserError as error:
            pytest.skip(str(error))
        yield make


def webshop_step(env, step):
    """What the recordings hold of a step, in their words."""
    search_bar = step.admissible[:1] == ["search[<your query>]"]
    clickables = [action[len("click[") : -1] for action in step.admissible[search_bar:]]
    seen = {
        "obs": step.observation,
        "has_search_bar": search_bar,
        "clickables": clickables,
        "done": step.done,
    }
    if env.purchase:
        seen |= {key: env.purchase[key] for key in ("asin", "options")}
    return seen


def test_webshop_sessions_are_those_of_the_official_environment(webshop):
    for number, session in enumerate(recording("webshop.json.xz")["sessions"]):
        env = webshop(human=session["human"], show_attrs=session["show_attrs"])
        for expected in session["steps"]:
            step = (
                env.reset(f"goal-{session['goal']:07d}")
                if expected["action"] is None
                else env.step(expected["action"])
            )
            where = f"session {number}, {session['kind']}, {expected['action']!r}"
            assert webshop_step(env, step) == {
                key: expected[key] for key in webshop_step(env, step)
            }, where
            assert step.score == pytest.approx(expected["reward"], abs=1e-9), where
            assert (step.reward, step.won) == (10 * (step.score == 1), step.score == 1), where
            assert bool(env.purchase) == ("info" in expected), where
            if env.purchase:
                assert env.purchase["info"] == pytest.approx(expected["info"], abs=1e-9), where


def test_webshop_rewards_and_their_parts_are_the_official_ones(webshop):
    for case in recording("webshop.json.xz")["rewards"]:
        env = webshop(human=case["human"])
        number, wanted = env.catalogue.by_asin[case["asin"]], int(env.goals.product[case["goal"]])
        product, wanted = env.catalogue.product(number), env.catalogue.product(wanted)
        nouns = env.nouns(product), env.nouns(wanted)
        value, info = webshop_score(
            env.goals[case["goal"]], product, case["options"].values(), case["price"], *nouns
        )
        assert value == pytest.approx(case["reward"], abs=1e-9), case
        assert info == pytest.approx(case["info"], abs=1e-9), case


def test_webshop_goals_and_prices_are_the_official_ones(webshop):
    golden = recording("webshop.json.xz")
    for name, goal in golden["goals_used"].items():
        assert webshop(human=name[0] == "h").goals[int(name[1:])] == goal, name
    for name, listed in golden["goal_lists"].items():
        if name == "range_prices":
            for prices_name, prices in listed.items():
                goals = webshop(
                    human="human" in prices_name, seed=int(re.search(r"seed(\d+)", prices_name)[1])
                ).goals
                for asin, price in prices.items():
                    assert goals.prices[goals.catalogue.by_asin[asin]] == pytest.approx(
                        price, abs=1e-9
                    ), (prices_name, asin)
            continue
        seed = re.search(r"seed\((\d+)\)", listed.get("rule", "seed(233)"))[1]
        goals = webshop(human="human" in name, seed=int(seed)).goals
        assert len(goals) == listed["n"], name
        recorded = dict(enumerate(listed.get("all", listed.get("first20", [])))) | listed.get(
            "random20", {}
        )
        for i, goal in recorded.items():
            assert goals[int(i)] == goal, (name, i)
        if "sha1_of_instructions" in listed:
            texts = "\n".join(goals[i]["instruction_text"] for i in range(len(goals)))
            assert hashlib.sha1(texts.encode()).hexdigest() == listed["sha1_of_instructions"], name


def test_webshop_pages_of_all_products_are_the_official_ones(webshop, monkeypatch):
    golden = recording("webshop.json.xz")["page_hashes"]
    env = webshop(show_attrs=True).fork()
    env.reset(f"goal-{golden['goal']:07d}")
    for asin, hashes in golden["pages"].items():
        monkeypatch.setattr(
            env, "_hits", lambda query, number=env.catalogue.by_asin[asin]: [number]
        )
        results, item = env.step("search[anything]"), env.step(f"click[{asin}]")
        texts = [
            results.observation,
            item.observation,
            "\n".join(webshop_step(env, item)["clickables"]),
        ]
        for page in ("description", "features", "attributes"):
            texts.append(env.step(f"click[{page}]").observation)
            env.step("click[< prev]")
        assert [hashlib.sha1(text.encode()).hexdigest()[:12] for text in texts] == hashes, asin


def test_webshop_search_finds_what_lucene_finds_in_the_same_order(webshop):
    env = webshop()
    asins = {number: asin for asin, number in env.catalogue.by_asin.items()}
    for case in recording("webshop_search.json.xz")["queries"]:
        assert analyze(case["query"]) == case["terms"], case["query"]
        assert [asins[number] for number in env.catalogue.search(case["query"])] == [
            asin for asin, _ in case["hits"]
        ], case["query"]
    env.reset("goal-0000000")
    for query, expected in recording("webshop.json.xz")["searches"].items():
        assert [asins[number] for number in env._hits(query)] == expected, query


def test_webshop_documents_have_the_terms_of_the_lucene_index(webshop):
    documents = recording("webshop_search.json.xz")["documents"]
    for item in stream_json(find_files(os.environ["WEBSHOP_DATA"])[0]):
        terms = analyze(parse_item(item, {}, [])[2])
        assert [len(terms), hashlib.sha1(" ".join(terms).encode()).hexdigest()[:12]] == documents[
            item["asin"]
        ], item["asin"]


def test_webshop_cleaning_leaves_the_official_texts_alone(webshop):
    catalogue = webshop().catalogue
    assert catalogue.skipped == {}
    for number, item in enumerate(stream_json(find_files(os.environ["WEBSHOP_DATA"])[0])):
        product = catalogue.product(number)
        bullets = (
            item["small_description"]
            if isinstance(item["small_description"], list)
            else [item["small_description"]]
        )
        assert (product.title, product.description, product.bullets) == (
            item["name"],
            item["full_description"],
            bullets,
        )
        assert all(
            clean(text) == text
            for text in (
                product.category,
                product.query,
                product.product_category,
                *product.attributes,
            )
        )


def test_webshop_splits_and_ceilings_are_those_of_the_facts(webshop):
    env = webshop()
    if len(env.goals) != 6910:
        pytest.skip(
            "the facts are about the 1,000 products with 6,910 goals; WEBSHOP_DATA has "
            f"{len(env.goals)}"
        )
    assert (len(env.tasks("train")), len(env.tasks("test"))) == (6410, 500)
    # 20 of the 458 goals that the official formula keeps from 1
    assert env.ceiling("test") == 480 / 500
    assert env.ceiling("train") == (6410 - 438) / 6410
    product = env.goals.product
    assert sum(number in set(product[500:].tolist()) for number in product[:500].tolist()) == 481


@pytest.mark.slow
def test_webshop_nouns_of_spacy_are_those_of_the_recorded_titles(webshop):
    env = webshop()
    if not env.nouns.by_asin:
        pytest.skip("no recorded title nouns to compare with")
    tagger = Nouns()
    try:
        for asin, nouns in env.nouns.by_asin.items():
            assert tagger(env.catalogue.product(env.catalogue.by_asin[asin])) == nouns, asin
    except UserError as error:
        pytest.skip(str(error))


# ---- GiGPO ---------------------------------------------------------------------------------------


def close(found, expected, tolerance):
    return (
        torch.tensor(found, dtype=torch.float64)
        .sub(torch.tensor(expected, dtype=torch.float64))
        .abs()
        .max()
        <= tolerance
    )


def advantage_rows(case, **more):
    settings = case["params"]
    names = {"invalid_coef": "invalid_cost", "epsilon": "eps"}
    episodes = [
        dict(zip(("anchors", "rewards", "valid"), list(zip(*t["steps"]))[:3]))
        | {"group": t["group"]}
        for t in case["trajectories"]
    ]
    return gigpo_advantages(
        episodes, **{names.get(key, key): value for key, value in settings.items()}, **more
    )


def test_gigpo_advantages_are_those_of_the_reference():
    cases = recording("gigpo.json")["advantage_cases"]
    assert cases
    for case in cases:
        rows, expected = advantage_rows(case), case["expected"]
        assert close([r["step_return"] for r in rows], expected["step_return_penalized"], 1e-5), (
            case["name"]
        )
        assert close([r["row_score"] for r in rows], expected["row_score"], 1e-5), case["name"]
        for ours, theirs in (
            ("episode_advantage", "episode_adv"),
            ("step_advantage", "step_adv"),
            ("advantage", "advantage"),
        ):
            assert close([r[ours] for r in rows], expected[theirs], 2e-4), (case["name"], ours)
        labels = list(zip([r["anchor"] for r in rows], expected["step_group"]))
        assert len({a for a, _ in labels}) == len({b for _, b in labels}) == len(set(labels)), case[
            "name"
        ]
        if "episode_adv_per_trajectory" in expected:
            rows = advantage_rows(case, episode_stats="trajectories")
            assert close(
                [r["episode_advantage"] for r in rows], expected["episode_adv_per_trajectory"], 2e-4
            ), case["name"]


def test_gigpo_losses_and_their_gradients_are_those_of_the_reference():
    cases = recording("gigpo.json")["loss_cases"]
    assert cases
    for case in cases:
        settings, expected, inputs = case["params"], case["expected"], case["inputs"]
        count = torch.tensor(inputs["n_tokens"])
        logp, old, ref, advantage, entropy = (
            torch.tensor(inputs[key], dtype=torch.float64)
            for key in ("logp", "old_logp", "ref_logp", "advantage", "entropy")
        )
        real = torch.arange(logp.shape[1]) < count[:, None]
        logp.requires_grad_()
        loss, clipped, capped = policy_loss(
            logp,
            old,
            advantage,
            settings["clip_low"],
            settings["clip_high"],
            settings["dual_clip_c"],
        )
        pg, kl = loss[real].mean(), kl_k3(logp, ref)[real].mean()
        total = pg - settings["entropy_coef"] * entropy[real].mean() + settings["kl_coef"] * kl
        for found, name in ((pg, "pg_loss"), (kl, "kl_loss_k3"), (total, "total_loss")):
            assert found.item() == pytest.approx(expected[name], abs=1e-5), (case["name"], name)
        assert clipped[real].double().mean().item() == pytest.approx(
            expected["clip_fraction"], abs=1e-5
        ), case["name"]
        assert capped[real].double().mean().item() == pytest.approx(
            expected["dual_clip_fraction"], abs=1e-5
        ), case["name"]
        for part, name in ((pg, "grad_pg_wrt_logp"), (kl, "grad_kl_wrt_logp")):
            gradient = torch.autograd.grad(part, logp, retain_graph=True)[0]
            assert close(
                gradient[real].tolist(), torch.tensor(expected[name])[real].tolist(), 1e-5
            ), (case["name"], name)
