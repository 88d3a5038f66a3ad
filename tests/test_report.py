"""The report: what stands in it, and in a real browser what its controls do.

apt-get install chromium chromium-driver; pip install selenium        (the browser's tests are
skipped without) pytest -q tests/test_report.py"""

import base64
import gzip
import json
import shutil
import time

import numpy as np
import pytest

import common
import distill
import evaluate
import mine
import warmup
from envs import UserError
from support import figures, report, traces
from support.files import read_jsonl, write_jsonl
from tests.conftest import run_main
from tests.toy import Doors

HOSTILE = "</script><img src=x onerror='window.hacked=1'><!-- \u2028 & <b>bold</b>"


@pytest.fixture(scope="module")
def run(tmp_path_factory, model_folder):
    """A run of all phases on the doors; nobody changes it."""
    folder = tmp_path_factory.mktemp("report")
    shutil.copytree(model_folder, folder / "model")
    some = "--groups 6 --group-size 8 --threads 1 --seed 1 --lr 0.003".split()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_main(
            patch,
            warmup,
            *some,
            "--model",
            "model",
            "--env",
            "tests.toy:Doors",
            "--iterations",
            "5",
            "--stop-at",
            "0",
        )
        run_main(patch, mine, *some, "--iterations", "4", "--n-eval", "2")
        # whether a random policy's skill is promoted is luck, and no matter here
        bank = read_jsonl(folder / "runs/default/mine/skills.jsonl")
        write_jsonl("bank.jsonl", [skill | {"status": "active"} for skill in bank[:2]] + bank[2:])
        many = ["--iterations", "5", "--k-warm", "0", "--skills", "bank.jsonl"]
        run_main(patch, distill, *some, *many)
        run_main(patch, evaluate, "--games", "8", "--repetitions", "1", "--threads", "1")
    return folder / "runs" / "default"


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(
        run, tmp_path / "runs" / "default", ignore=shutil.ignore_patterns("checkpoints", "policy")
    )


def part(path, name):
    """One of the page's three JSON elements."""
    text = path.read_text(encoding="utf-8")
    return json.loads(text.split(f'id="{name}">')[1].split("</script>")[0])


def unpacked(text):
    return json.loads(gzip.decompress(base64.b64decode(text)))


# ---- traces ----


def test_traces_are_two_episodes_at_iterations_that_double_and_never_more_than_asked_for():
    assert [k for k in range(200) if traces.due(k, 16)] == [0, 1, 2, 4, 8, 16, 32, 64]
    assert [k for k in range(200) if traces.due(k, 4)] == [0, 1]
    assert not any(traces.due(k, 0) for k in range(200))


def test_a_trace_agrees_with_the_sampler_and_with_the_mask_that_was_taught(run):
    policy = common.Policy(run / "distill" / "policy")
    for phase in ("warmup", "mine", "distill"):
        known = {r["traj_id"]: r for r in read_jsonl(run / phase / "trajectories.jsonl")}
        lines = read_jsonl(run / phase / "traces.jsonl")
        assert len(lines) == 2 * len({line["iteration"] for line in lines}) and len(lines) >= 6
        for line in lines:
            for s, step in zip(line["steps"], known[line["traj_id"]]["steps"], strict=True):
                assert (
                    "".join(s["tokens"]) == step["response"] and step["action"] in s["admissible"]
                )
                gate = step.get("gate", 0)
                assert s["M"] == [gate * m for m in distill.action_token_mask(policy, step)]
                assert s["w"] == pytest.approx(step.get("weight", 0), abs=1e-4)
                if line["condition"] == "plain":
                    assert "plain" not in s and s["before"] == pytest.approx(s["sampled"], abs=1e-3)
                else:
                    assert "hint" in s["prompt"] and "hint" not in s["plain"]
        assert any(s["before"] != s["after"] for line in lines for s in line["steps"])


# ---- the data ----


def test_a_run_that_has_not_begun_is_answered_in_one_line(tmp_path):
    with pytest.raises(
        UserError, match="nothing to report in .*: run `python warmup.py --run other` first"
    ):
        report.write_report(tmp_path / "other")


def test_the_dissected_group_has_the_advantages_of_the_file_in_both_modes():
    stream = np.random.default_rng(0)
    for mode in ("mean_norm", "mean_std_norm"):
        group = []
        for _ in range(8):
            steps = [
                {
                    "reward": 0.0,
                    "valid": stream.random() < 0.9,
                    "observation": f"room {stream.integers(3)}",
                }
                for _ in range(stream.integers(1, 6))
            ]
            steps[-1]["reward"] = 10.0 * (stream.random() < 0.5)
            group.append({"group_id": "g", "steps": steps})
        common.assign_advantages([r | {"group_id": "g"} for r in group], Doors(), mode=mode)
        assert report.dissect(group, mode, 1.0) < 1e-9


def test_the_page_holds_whole_groups_whose_numbers_are_those_of_the_file(copy):
    payloads = part(report.write_report(copy), "payloads")
    groups = [g for g in map(unpacked, payloads.values()) if not g.get("alone")]
    assert {g["phase"] for g in groups} == {"warmup", "mine", "distill"}
    assert all(len(g["episodes"]) == 8 and g["gap"] < 1e-6 for g in groups)
    assert sum("trace" in e for g in groups for e in g["episodes"]) >= 18


def test_every_metric_of_a_run_is_explained_with_the_line_that_computes_it(run):
    rows = {row[0]: row for row in report.glossary()}
    written = {
        key
        for phase in report.PHASES
        for line in read_jsonl(run / phase / "metrics.jsonl")
        for key in line
    } - {"iteration"}
    assert written <= set(rows), written - set(rows)
    for name, _, file, line, code in rows.values():
        assert file, f"no line computes {name}"
        assert code and (report.ROOT / file).read_text().splitlines()[line - 1].strip() == code


ODD = {  # the last line of a file, by what is done to it
    "no no_signal": ("mine/metrics", lambda row: row.pop("no_signal")),
    "iteration": ("warmup/metrics", lambda row: row.update(iteration="x")),
    "tokens": ("distill/traces", lambda row: row.update(steps=["x"])),
    "an episode": ("warmup/trajectories", lambda row: row.pop("final_observation")),
    "delta": ("mine/pairs", lambda row: row.update(delta="x")),
    "ids": ("mine/pairs", lambda row: row.update(skill_ids=[{}])),
    "deltas": ("distill/skills", lambda row: row.update(deltas="x")),
    "sources": ("distill/skills", lambda row: row.update(source_traj_ids=7)),
    "effect": ("distill/skills", lambda row: row.update(effect="x", status="active")),
    "steps": ("evaluate/results", lambda row: row.update(steps="xyz")),
}


@pytest.mark.parametrize("what", ODD)
def test_lines_of_another_form_are_named_and_the_rest_is_read(copy, what):
    name, change = ODD[what]
    path = copy / f"{name}.jsonl"
    rows = read_jsonl(path)
    change(rows[-1])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    problems = part(report.write_report(copy), "data")["problems"]
    assert len(problems) == 1 and f"{name}.jsonl, line {len(rows)} has no" in problems[0], problems


def test_half_written_lines_are_named_and_the_rest_is_read(copy):
    with open(copy / "distill" / "metrics.jsonl", "a") as file:
        file.write('{"iteration": 5, "success_pl')
    with open(copy / "distill" / "trajectories.jsonl", "a") as file:
        file.write("[1, 2]\n")
    (copy / "evaluate" / "summary.json").write_text("{")
    data = part(report.write_report(copy), "data")
    text = "\n".join(data["problems"])
    assert (
        len(data["problems"]) == 3
        and "distill/metrics.jsonl, line 6" in text
        and "evaluate/summary.json" in text
    )
    assert len(data["phases"][2]["metrics"]) == 5 and data["evaluation"] == {}


def test_numbers_that_cannot_be_computed_with_are_named(copy):
    about = json.loads((copy / "mine" / "args.json").read_text())
    about["args"]["omega"] = ["x"]
    (copy / "mine" / "args.json").write_text(json.dumps(about))
    path = copy / "distill" / "pairs.jsonl"
    last = read_jsonl(path)[-1]
    with open(path, "a") as file:
        file.write(json.dumps(last).replace('"delta": ', f'"delta": 1{"0" * 400}, "was": ') + "\n")
    problems = part(report.write_report(copy), "data")["problems"]
    assert len(problems) == 2, problems
    assert "mine/args.json has no args" in problems[0] and "distill/pairs.jsonl" in problems[1]


def test_a_run_in_progress_has_a_page_from_its_first_file_on(copy):
    for name in ("mine", "distill", "evaluate"):
        shutil.rmtree(copy / name)
    for name in ("done", "traces.jsonl", "trajectories.jsonl", "metrics.jsonl"):
        (copy / "warmup" / name).unlink()
        data = part(report.write_report(copy), "data")
        assert [p["phase"] for p in data["phases"]] == ["warmup"] and data["phases"][0][
            "done"
        ] == {}


def hostile(copy):
    """Puts a hostile text everywhere where a model or a world writes."""
    for phase in ("mine", "distill"):
        rows = read_jsonl(copy / phase / "skills.jsonl")
        write_jsonl(
            copy / phase / "skills.jsonl",
            [row | {"strategy": HOSTILE, "title": HOSTILE, "condition": HOSTILE} for row in rows],
        )
    for phase in report.PHASES:
        rows = read_jsonl(copy / phase / "trajectories.jsonl")
        for row in rows:
            row["task"] = HOSTILE
            for s in row["steps"]:
                s |= {
                    "action": HOSTILE,
                    "response": HOSTILE,
                    "observation": s["observation"] + HOSTILE,
                }
        write_jsonl(copy / phase / "trajectories.jsonl", rows)
        rows = read_jsonl(copy / phase / "traces.jsonl")
        for s in (s for row in rows for s in row["steps"]):
            s |= {
                "prompt": HOSTILE + s["prompt"],
                "admissible": [HOSTILE],
                "tokens": [HOSTILE] * len(s["tokens"]),
            }
        write_jsonl(copy / phase / "traces.jsonl", rows)
    write_jsonl(
        copy / "mine" / "rejected.jsonl", [{"iteration": 0, "reason": HOSTILE, "answer": HOSTILE}]
    )
    rows = read_jsonl(copy / "evaluate" / "results.jsonl")
    write_jsonl(copy / "evaluate" / "results.jsonl", [row | {"task": HOSTILE} for row in rows])
    return report.write_report(copy)


def test_hostile_texts_do_not_leave_their_json(copy):
    text = hostile(copy).read_text(encoding="utf-8")
    assert "<img" not in text and "\u2028" not in text and text.count("</script>") == 4
    assert part(copy / "report.html", "data")["skills"][0]["condition"] == HOSTILE


# ---- in a browser ----


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip(
        "selenium.webdriver", reason="needs selenium: pip install -e '.[test]'"
    )
    binary, driver = (
        next(filter(None, map(shutil.which, names)), None)
        for names in (("chromium", "chromium-browser"), ("chromedriver",))
    )
    if not binary or not driver:
        pytest.skip("needs a browser: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-sync"
    flags += " --disable-background-networking --disable-component-update"
    for flag in flags.split() + [
        f"--user-data-dir={tmp_path_factory.mktemp('browser')}",
        "--window-size=1280,900",
    ]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    options.add_experimental_option(
        "prefs", {"download.default_directory": str(tmp_path_factory.mktemp("downloads"))}
    )
    one = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield one
    one.quit()


class Page:
    """The page in the browser, and what a reader does with it."""

    def __init__(self, browser, path, hash=""):
        self.browser = browser
        browser.get("about:blank")
        browser.get_log("browser")
        browser.get(f"file://{path}{hash}")
        self.wait("return document.documentElement.dataset.ready === '1'")

    def js(self, code, *arguments):
        return self.browser.execute_script(code, *arguments)

    def wait(self, condition, *arguments, seconds=20):
        end = time.time() + seconds
        while not self.js(condition, *arguments):
            assert time.time() < end, f"still not so after {seconds} s: {condition} {self.errors()}"
            time.sleep(0.02)

    def click(self, selector):
        self.js("document.querySelector(arguments[0]).click()", selector)

    def choose(self, selector, value):
        self.js(
            "const one = document.querySelector(arguments[0]); one.value = arguments[1]; "
            "one.dispatchEvent(new Event('change'))",
            selector,
            value,
        )

    def key(self, name, selector=None):
        self.js(
            "(arguments[1] ? document.querySelector(arguments[1]) : document.body)"
            ".dispatchEvent(new KeyboardEvent('keydown', { key: arguments[0], bubbles: true, "
            "cancelable: true }))",
            name,
            selector,
        )

    def text(self, selector):
        return self.js("return document.querySelector(arguments[0])?.textContent", selector)

    def errors(self):
        return [
            line["message"]
            for line in self.browser.get_log("browser")
            if line["level"] in ("SEVERE", "WARNING")
        ]


@pytest.fixture(scope="module")
def path(run):
    return report.write_report(run)


@pytest.fixture
def page(browser, path):
    one = Page(browser, path)
    yield one
    assert one.errors() == []


def test_all_nine_sections_are_drawn_and_the_navigation_goes_to_each(page):
    assert page.js("return document.querySelectorAll('section').length") == 9
    for name in (
        "card",
        "curves",
        "group",
        "episode",
        "skills",
        "validation",
        "taught",
        "evaluation",
        "glossary",
    ):
        assert len(page.text(f"#{name} > div")) > 80, name
        page.js(
            "scrollTo(0, 0); document.querySelector(`#nav a[href='#${arguments[0]}']`).click()",
            name,
        )
        page.wait(
            "const y = document.getElementById(arguments[0]).getBoundingClientRect().top; return y "
            "> -5 && y < innerHeight",
            name,
        )
    assert page.js("return document.querySelectorAll('svg').length") > 20


def test_the_curves_go_over_minutes_episodes_or_iterations_and_show_any_metric(page):
    for name in ("episodes", "iterations", "minutes"):
        page.click(f"#x-{name}")
        assert page.js(
            "return document.querySelector('#success svg').getAttribute('aria-label')"
        ).endswith(f"over {name}")
        assert (
            page.js("return document.querySelector('#curves [aria-pressed=true]').id")
            == f"x-{name}"
        )
    page.choose("#metric", "grad_norm")
    assert "grad_norm" in page.js(
        "return [...document.querySelectorAll('#curves h3')].map((one) => one.textContent)"
    )


def test_a_step_of_a_group_shows_its_arithmetic_and_frames_its_state(page):
    for group in page.js(
        "return [...document.querySelectorAll('#pick-group option')].map((one) => one.value)"
    )[:3]:
        page.choose("#pick-group", group)
        page.wait("return document.querySelector('#pick-group').value === arguments[0]", group)
        page.click("#group [data-cell='1,0']")
        page.wait("return document.querySelector('#group .here')?.dataset.cell === '1,0'")
        assert (
            "(7) A" in page.text("#sum")
            and page.js("return document.querySelectorAll('#group .same').length") >= 7
        )  # the first state is everyone's
        page.key("ArrowDown", "#group .here")
        page.wait("return document.querySelector('#group .here')?.dataset.cell === '2,0'")
    page.click("#to-episode")
    page.wait("return location.hash.includes('ep=')")


def test_an_episode_is_walked_through_by_buttons_and_keys_beside_another_one(page):
    longest = page.js("return D.index.reduce((a, b) => (b.traced && b.n > a.n ? b : a)).traj_id")
    page.choose("#pick-episode", longest)
    page.wait(
        "return document.querySelector('#episode > div').dataset.shown === arguments[0]", longest
    )
    steps = int(page.text("#at").split("/")[1])
    assert steps >= 2 and page.text("#at").startswith("1 /")
    page.click("#next-step")
    page.wait("return document.querySelector('#at').textContent.startsWith('2 /')")
    page.js("document.getElementById('episode').scrollIntoView()")
    page.key("ArrowLeft")
    page.wait("return document.querySelector('#at').textContent.startsWith('1 /')")
    page.key("ArrowRight")
    page.wait("return document.querySelector('#at').textContent.startsWith('2 /')")
    page.click("#previous-step")
    page.wait("return document.querySelector('#at').textContent.startsWith('1 /')")
    page.click("#episode [data-step='1']")
    page.wait("return document.querySelector('#at').textContent.startsWith('2 /')")
    page.key("ArrowDown")
    page.wait(
        "return document.querySelector('#episode > div').dataset.shown !== arguments[0]", longest
    )
    page.key("ArrowUp")
    page.wait(
        "return document.querySelector('#episode > div').dataset.shown === arguments[0]", longest
    )
    other = page.js("return document.querySelector('#pick-beside').options[1].value")
    page.choose("#pick-beside", other)
    page.wait("return document.querySelector('#pick-beside').value === arguments[0]", other)


def test_tokens_are_coloured_by_five_quantities_each_written_below_them(page):
    taught = page.js(
        "return D.index.find((e) => e.traced && e.phase === 'distill' && e.condition === "
        "'skill')?.traj_id"
    )
    page.choose("#pick-episode", taught)
    page.wait(
        "return document.querySelector('#episode > div').dataset.shown === arguments[0]", taught
    )
    for name in ("adv", "change", "hint", "entropy", "mw"):
        page.click(f"#tok-{name}")
        page.wait(
            "return document.querySelector(`#tok-${arguments[0]}`).getAttribute('aria-pressed') "
            "=== 'true'",
            name,
        )
        assert page.js(
            "return [...document.querySelectorAll('#tokens small')].every((one) => "
            "/^[+−]?\\d/.test(one.textContent))"
        )
    assert (
        page.js("return document.querySelectorAll('#prompt mark').length") >= 1
    )  # what the skill adds


def test_skills_are_filtered_and_lead_to_their_pairs_and_sources(page):
    first = page.js("return document.querySelector('#skills [data-skill]').dataset.skill")
    page.choose("#filter", first)
    page.wait("return document.querySelectorAll('#skills [data-skill]').length <= 3")
    page.choose("#filter", "nothing like this")
    page.wait("return document.querySelectorAll('#skills [data-skill]').length === 0")
    page.choose("#filter", "")
    page.wait("return document.querySelectorAll('#skills [data-skill]').length > 3")
    page.js("document.querySelector('#all-skills')?.click()")  # where there are more than twelve
    page.wait("return document.querySelectorAll('#skills [data-skill]').length === D.skills.length")
    source = page.js(
        "const one = [...document.querySelectorAll('#skills button')].find((b) => "
        "b.textContent.includes('written from')); one.click(); return 1"
    )
    assert source
    page.wait(
        "return D.skills.some((k) => k.source_traj_ids.includes(document.querySelector('#episode > "
        "div').dataset.shown))"
    )


def test_search_finds_episodes_groups_skills_and_metrics_and_jumps(page):
    for text in (
        page.js("return D.index[0].traj_id"),
        page.js("return groups[0].group"),
        page.js("return D.skills[0].skill_id"),
        "grad_norm",
    ):
        page.js(
            "const one = document.getElementById('search'); one.value = arguments[0]; "
            "one.dispatchEvent(new Event('input'))",
            text,
        )
        assert page.js("return document.querySelectorAll('#found button').length") >= 1, text
        page.key("Enter", "#search")
        assert page.js("return document.getElementById('found').hidden")
    page.js(
        "const one = document.getElementById('search'); one.value = 'zzz'; one.dispatchEvent(new "
        "Event('input'))"
    )
    assert "nothing" in page.text("#found")
    page.key("Escape", "#search")
    assert page.js("return document.getElementById('found').hidden")
    page.js("document.activeElement.blur()")
    page.js("document.getElementById('episode').scrollIntoView()")
    page.key("/")
    assert page.js("return document.activeElement.id") == "search"


def test_theme_and_size_change_and_the_address_keeps_the_selection(browser, path, page):
    colours = []
    for name in ("light", "dark", "system"):
        page.click("#theme")
        assert page.text("#theme") == f"theme: {name}"
        colours.append(page.js("return getComputedStyle(document.body).backgroundColor"))
    assert colours[0] != colours[1]
    page.click("#big")
    assert page.js("return getComputedStyle(document.body).fontSize") == "22px"
    group = page.js("return groups[1].group")
    page.choose("#pick-group", group)
    page.click("#x-episodes")
    chosen = page.js("return D.index[3].traj_id")
    page.choose("#pick-episode", chosen)
    page.wait(
        "return document.querySelector('#episode > div').dataset.shown === arguments[0]", chosen
    )
    again = Page(browser, path, page.js("return location.hash"))
    assert again.js(
        "return [document.querySelector('#pick-group').value, document.querySelector('#episode > "
        "div').dataset.shown, state.x]"
    ) == [
        group,
        chosen,
        "episodes",
    ]
    assert again.js("return document.getElementById('big').getAttribute('aria-pressed')") == "true"


def test_raw_data_comes_out_as_it_is_in_the_files(page, run):
    names = page.js("return Object.keys(F)")
    assert {"warmup/metrics.jsonl", "mine/skills.jsonl", "evaluate/results.jsonl"} <= set(names)
    for name in names:
        page.click(f"[data-file='{name}']")
        page.wait(
            "return document.documentElement.dataset.downloaded === arguments[0]",
            f"{name} {(run / name).stat().st_size}",
        )


@pytest.mark.parametrize("width", [390, 1280, 1920])
def test_nothing_is_wider_than_the_screen(browser, path, width):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    page = Page(browser, path)
    assert page.js("return document.documentElement.scrollWidth") <= width
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_hostile_texts_stay_text_in_the_browser(browser, copy):
    page = Page(browser, hostile(copy))
    for name in page.js(
        "return [...document.querySelectorAll('#pick-episode option')].map((one) => one.value)"
    )[:5]:
        page.choose("#pick-episode", name)
        page.wait(
            "return document.querySelector('#episode > div').dataset.shown === arguments[0]", name
        )
    page.js(
        "const one = document.getElementById('search'); one.value = 'script'; "
        "one.dispatchEvent(new Event('input'))"
    )
    page.js("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    assert page.js(
        "return [window.hacked ?? null, document.images.length, document.querySelectorAll('main b "
        "b').length]"
    ) == [None, 0, 0]
    assert (
        "<img src=x" in page.text("#skills")
        and "<img src=x" in page.text("#episode")
        and "<img src=x" in page.text("#found")
    )
    assert page.errors() == []


def test_what_could_not_be_read_stands_at_the_top(browser, copy):
    with open(copy / "mine" / "pairs.jsonl", "a") as file:
        file.write('{"iteration": 4, "task": "<img src=x onerror=alert(1)>')
    page = Page(browser, report.write_report(copy))
    assert "1 lines could not be read" in page.text(
        "#problems"
    ) and "mine/pairs.jsonl" in page.text("#problems")
    assert not page.js("return document.getElementById('problems').hidden") and page.errors() == []


def test_a_run_that_has_only_begun_shows_a_page_without_errors(browser, copy):
    for name in ("mine", "distill", "evaluate"):
        shutil.rmtree(copy / name)
    for name in ("done", "traces.jsonl", "trajectories.jsonl", "metrics.jsonl"):
        (copy / "warmup" / name).unlink()
        page = Page(browser, report.write_report(copy))
        assert page.errors() == []


# ---- figures ----


def test_the_hero_curve_says_when_the_mean_over_seeds_reaches_the_level(tmp_path):
    points = [
        {"arm": arm, "seed": seed, "split": "valid_unseen", "minutes": m,
         "success": min(1.0, speed * m + 0.01 * seed)}
        for arm, speed in (("siri", 0.2), ("gigpo", 0.1))
        for seed in range(3) for m in (0, 1, 2, 4, 8)
    ]  # fmt: skip
    times = figures.hero(points, tmp_path / "hero.png", {"siri": "SIRI", "gigpo": "GiGPO alone"})
    assert times == pytest.approx({"siri": 3.45, "gigpo": 6.9}, abs=0.05)
    assert (tmp_path / "hero.png").stat().st_size > 10_000


def test_skills_and_episodes_are_drawn(run, tmp_path):
    rows = [
        {
            "condition": "a",
            "strategy": "b",
            "status": "active",
            "mean_delta": 0.4,
            "fresh": 0.3,
            "half": 0.1,
            "pairs": 9,
            "n_eval": 4,
        }
    ]
    figures.skills(rows, tmp_path / "skills.png")
    episodes = read_jsonl(run / "distill" / "trajectories.jsonl")[:4]
    figures.strip(episodes, tmp_path / "strip.png")
    assert all((tmp_path / name).stat().st_size > 5_000 for name in ("skills.png", "strip.png"))
