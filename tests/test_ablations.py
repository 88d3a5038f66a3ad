"""Every patch of recipes/ablations/ applies to today's code, touches one file and runs for two
iterations.

pytest tests/test_ablations.py"""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.files import write_jsonl
from tests.conftest import run_main, toy_worlds
from tests.toy import Doors

ROOT = Path(__file__).parents[1]
PATCHES = sorted((ROOT / "recipes" / "ablations").glob("*.patch"))
METHOD = ("common", "warmup", "mine", "distill")  # in the order of their imports
SMALL = "--groups 6 --group-size 4 --threads 1 --mini-batch-rows 30 --seed 1 --lr 0.003".split()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, model_folder):
    """Warm-up and mining on the toy, by today's code."""
    import mine
    import warmup

    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(model_folder, folder / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        toy_worlds(patch)
        run_main(patch, warmup, *SMALL, "--model", "model", "--iterations", "5", "--stop-at", "0")
        run_main(patch, mine, *SMALL, "--iterations", "2")
    return folder


def test_there_are_at_least_six_patches():
    assert len(PATCHES) >= 6


@pytest.mark.parametrize("patch_file", PATCHES, ids=lambda path: path.stem)
def test_a_patch_changes_a_few_lines_of_one_file_and_runs(
    patch_file, finished, tmp_path, monkeypatch
):
    text = patch_file.read_text()
    changed = [line[6:] for line in text.splitlines() if line.startswith("+++ b/")]
    added = [line for line in text.splitlines() if line[:1] == "+" and line[:3] != "+++"]
    most = {"self-imitation": 40, "muon": 24}.get(patch_file.stem, 4)
    assert len(changed) == 1 and len(added) <= most
    for name in METHOD:
        shutil.copy(ROOT / f"{name}.py", tmp_path)
    subprocess.run(["git", "apply", patch_file], cwd=tmp_path, check=True)
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    for name in METHOD:  # the patched file, and whatever imports it
        about = importlib.util.spec_from_file_location(name, tmp_path / f"{name}.py")
        module = importlib.util.module_from_spec(about)
        monkeypatch.setitem(sys.modules, name, module)
        about.loader.exec_module(module)
    phase = Path(changed[0]).stem if changed[0] != "common.py" else "warmup"
    module = sys.modules[phase]
    more = ["--model", "model", "--run", "patched"] if phase == "warmup" else ["--overwrite"]
    if "--dose-of" in text:  # a control that teaches as many tokens as another run did
        write_jsonl(tmp_path / "metrics.jsonl", [{"gated_tokens": 6, "mean_weight": 0.5}] * 2)
        more += ["--dose-of", "."]
    monkeypatch.setattr(module, "make_env", lambda *given: Doors())
    run_main(monkeypatch, module, *SMALL, *more, "--iterations", "2")
    run = "patched" if phase == "warmup" else "default"
    assert (tmp_path / "runs" / run / phase / "policy" / "model.safetensors").exists()
