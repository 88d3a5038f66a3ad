"""The recipes of the GPU path, run by their own shell lines on CPU with a random two-layer Qwen2.
pytest tests/test_recipes.py"""

import json
import os
import re
import shutil
import subprocess
import sys
import uuid
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.measure import chat_prompts, make_model
from envs import UserError
from recipes import check
from tests.conftest import free_port

HERE = Path(__file__).parents[1]
# recipe and what it is called with, up to the run's name
RECIPES = {
    "qwen7b": ["alfworld"], "qwen1_5b": ["alfworld"], "qwen_lora": ["alfworld", "1.5B"],
    "qwen7b_webshop": ["webshop"], "qwen1_5b_webshop": ["webshop"],
    "qwen_lora_webshop": ["webshop", "7B"],
    "qwen7b_sharded": ["alfworld"],
}  # fmt: skip
SMALL = (
    "--device cpu --dtype float32 --engine transformers --threads 1 --max-steps 3 --max-response 8"
).split()
TINY = [
    *SMALL,
    *"--allow-malformed --iterations 2 --groups 2 --group-size 4 --micro-batch-tokens "
    "4096 --mini-batch-rows 12".split(),
]


@pytest.fixture(scope="module")
def random_qwen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen")
    shape = dict(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=1500,
    )
    make_model(folder, "qwen2", chat_prompts(40), **shape)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_all_phases_with_a_random_two_layer_model(name, random_qwen, tmp_path):
    recipe = name.removesuffix("_webshop").removesuffix("_sharded")
    if recipe == "qwen_lora" and not find_spec("peft"):
        pytest.skip("peft is not installed (pip install -e '.[gpu]')")
    run = f"test-{uuid.uuid4().hex[:8]}"
    python = f"{sys.executable} {HERE / 'tests' / 'generous.py'}"
    launch = python
    # two processes, as the recipe starts them, with its own accelerate file
    if name.endswith("_sharded"):
        pytest.importorskip("accelerate", reason="needs accelerate: pip install -e '.[gpu]'")
        launch = (
            f"{sys.executable} -m accelerate.commands.launch --config_file "
            "recipes/fsdp.yaml --num_processes 2"
        )
        launch += f" --main_process_port {free_port()} {HERE / 'tests' / 'generous.py'}"
    settings = {
        "LAUNCH": launch, "PYTHON": python, "MODEL": str(random_qwen),
        "MINE": "--n-eval 1",
        "EVALUATE": " ".join(SMALL) + " --games 2 --repetitions 1", "HOME": str(tmp_path),
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    # generated houses and shop: quick anywhere
    kept = {k: v for k, v in os.environ.items() if k not in ("ALFWORLD_DATA", "WEBSHOP_DATA")}
    command = ["bash", str(HERE / "recipes" / f"{recipe}.sh"), *RECIPES[name], run, *TINY]
    try:
        done = subprocess.run(
            command, env=kept | settings, capture_output=True, text=True, cwd=tmp_path
        )
        assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
        for phase in ("warmup", "mine", "distill"):
            arguments = json.loads((HERE / "runs" / run / phase / "args.json").read_text())["args"]
            assert arguments["preset"] == "paper" and arguments["env"] == RECIPES[name][0]
            assert json.loads((HERE / "runs" / run / phase / "done").read_text())["iterations"] == 2
        summary = json.loads((HERE / "runs" / run / "evaluate" / "summary.json").read_text())
        assert "SIRI, plain prompt" in {row["arm"] for row in summary["rows"]}
        if name != "qwen7b":
            return
        again = subprocess.run(
            command, env=kept | settings, capture_output=True, text=True, cwd=tmp_path
        )
        # finished phases are not run again
        assert again.returncode == 0 and "warmup done" not in again.stdout
    finally:
        shutil.rmtree(HERE / "runs" / run, ignore_errors=True)


@pytest.mark.parametrize("recipe", ["qwen7b", "qwen1_5b", "qwen_lora"])
def test_a_recipe_names_only_arguments_that_the_phases_have(recipe):
    known = {
        flag
        for script in ("support/cli", "warmup", "mine", "distill", "evaluate")
        for flag in flags_of(HERE / f"{script}.py")
    }
    lines = [
        line
        for line in (HERE / "recipes" / f"{recipe}.sh").read_text().splitlines()
        if not line.startswith("#")
    ]
    used = set(re.findall(r"(?<!\S)--[a-z][a-z-]+", "\n".join(lines))) - {
        "--config_file",
        "--num_processes",
    }
    assert used - {"--config", "--num"} <= known


@pytest.mark.parametrize("recipe", ["compare", "ablations", "laptop", "laptop_hour"])
def test_a_laptop_recipe_is_valid_shell_and_names_only_arguments_that_its_scripts_have(recipe):
    path = HERE / "recipes" / f"{recipe}.sh"
    assert subprocess.run(["bash", "-n", str(path)]).returncode == 0
    scripts = [
        "support/cli.py",
        "warmup.py",
        "mine.py",
        "distill.py",
        "evaluate.py",
        "recipes/compare.py",
        "tiny/players.py",
        "recipes/ablations/self-imitation.patch",
    ]
    known = {flag for script in scripts for flag in flags_of(HERE / script)}
    lines = [
        line.partition(" #")[0]
        for line in path.read_text().splitlines()
        if not line.startswith("#")
    ]
    assert set(re.findall(r"(?<!\S)--[a-z][a-z-]+", "\n".join(lines))) <= known


def flags_of(path):
    return re.findall(r'add_argument\(\s*"(--[a-z-]+)"', path.read_text())


@pytest.mark.parametrize("recipe", ["qwen7b", "qwen1_5b", "qwen_lora"])
def test_a_recipe_is_valid_shell_and_says_what_it_needs(recipe):
    path = HERE / "recipes" / f"{recipe}.sh"
    assert subprocess.run(["bash", "-n", str(path)]).returncode == 0
    head = path.read_text().split("set -euo")[0]
    assert "memory" in head and "an iteration" in head and "recipes/plan.py" in head


# what is typed wrong: (recipe, its arguments, its environment, what is said)
WRONG = {
    "no name": ("smollm2", "--lr 1e-5", {}, "RUN: expected a name first"),
    "two budgets": ("smollm2", "none-such", {"MINUTES": "1 2"}, "MINUTES: expected such as '10"),
    "tiny is last": ("smollm2", "none-such --tiny-budget", {}, "put it before the run's name"),
    "evaluation": ("smollm2", "none-such", {"DEVICE": "cpu", "EVALUATE": "--gams 3"},
                   "no argument --gams"),
    "of one phase": ("qwen7b", "alfworld none-such --device cpu --engine transformers",
                     {"DISTILL": "--lamda 1"}, "no argument --lamda"),
    "seeds": ("compare", "00", {}, "SEEDS: expected such as"),
    "an option": ("compare", "0", {"AT": "1 --seeds 7"}, "AT: expected such as '1 2 4'"),
    "no minute": ("compare", "0 none-such", {"MINUTES": "0"}, "--minutes: expected a number"),
    "another world's": ("compare", "0 none-such --env webshop", {"SPLIT": "valid_seen"},
                        "has no split"),
    "another run": ("smollm2", "none-such --run other", {"DEVICE": "cpu"}, "--run is said by the"),
    "help": ("compare", "0 none-such --help", {}, "--help: python warmup.py --help shows it"),
    "cold start": ("smollm2", "none-such", {"DEVICE": "cpu", "COLD": "--steps 0"}, "--steps:"),
    "no command": ("smollm2", "none-such", {"LAUNCH": "/none-such"}, "LAUNCH: no command"),
    "no arm": ("ablations", "0", {"ONLY": "siri without-gates"}, "ONLY: expected some of"),
    "no run": ("ablations", "0", {"SOURCE": "none-such"}, "is not there: run recipes/compare.sh"),
}  # fmt: skip


@pytest.mark.slow  # a process per command line
@pytest.mark.parametrize("what", WRONG)
def test_what_is_typed_wrong_is_told_before_anything_runs(what, tmp_path):
    recipe, typed, settings, says = WRONG[what]
    words = [word.replace(",", " ") for word in typed.split()]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", str(HERE / "recipes" / f"{recipe}.sh"), *words],
        env=os.environ | {"PATH": path, "HOME": str(tmp_path)} | settings,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and says in done.stderr, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and not done.stdout
    assert not list((HERE / "runs").glob("*none-such*"))


@pytest.mark.parametrize("line", [["nosuch.py"], ["/etc/passwd"], ["recipes/plan.py", "--gpus=2"]])
def test_a_script_that_cannot_be_checked_is_refused(line):
    with pytest.raises(UserError, match="expected one of warmup, mine"):
        check.check(line)
