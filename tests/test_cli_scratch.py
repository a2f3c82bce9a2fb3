"""fit-scratch and fine-tune as a person runs them: what they print, leave behind, and refuse."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Ran, Run, run_command, start_command

from featcache.backbones.import_keras import import_keras

SCRATCH = ("fit-scratch", "--model", "resnet20", "--input-size", "32")
LEARNS = ("--epochs", "16", "--warmup", "2", "--lr", "0.005")
QUICK = ("--epochs", "2", "--warmup", "0", "--views", "1")
KILLS = int(os.environ.get("FEATCACHE_KILLS", "2"))
"""Each takes as long as compiling; twenty are a matter of minutes."""
OFTEN = """
import sys
sys.path.insert(0, ".")
from featcache.training import checkpoint
checkpoint.LEAST_S = checkpoint.COST = 0
from featcache.cli import main
main()
"""

TINY = """
import keras

def net():
    layers = keras.layers
    x = pixels = keras.Input((32, 32, 3))
    for n in (8, 16):
        x = layers.BatchNormalization()(layers.Conv2D(n, 3, 2, use_bias=False)(x))
        x = layers.Activation("relu")(x)
    return keras.Model(pixels, x)
"""
"""A network that is compiled in a moment."""


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of 80 generated leukocytes, with a head on features of the network with random weights."""
    folder = tmp_path_factory.mktemp("scratch")
    run_command("init", "--per-class", "20", cwd=folder, check=True)
    return folder


@pytest.fixture(scope="module")
def trained(cells: Path) -> Ran:
    return run_command(*SCRATCH, *LEARNS, "--json", cwd=cells, check=True)


@pytest.fixture
def own(cells: Path, tmp_path: Path) -> Path:
    """A copy of the project of the test's own, without runs."""
    return shutil.copytree(cells, tmp_path / "own", ignore=shutil.ignore_patterns("results"))


def test_a_small_network_learns_from_scratch(cells: Path, trained: Ran) -> None:
    value = trained.value
    low, _ = value["test"]["intervals"]["accuracy"]
    assert low > value["test"]["majority"]
    assert value["train"]["accuracy"] > 0.7
    run = Path(value["path"])
    names = {path.name for path in run.iterdir()}
    assert {"config.json", "metrics.json", "history.csv", "predictions.csv", "model.keras", "curves.png"} <= names
    config = json.loads((run / "config.json").read_text())
    assert (config["kind"], config["backbone"], config["training"]["lr"]) == ("scratch", "resnet20", 0.005)
    assert len((run / "history.csv").read_text().splitlines()) == 17
    assert not list(cells.glob("results/*.training"))


def test_its_model_gives_its_predictions(cells: Path, trained: Ran) -> None:
    """The saved model on the cache's pixels, and predictions.csv, and metrics.json are of one network."""
    run = Path(trained.value["path"])
    model = import_keras().saving.load_model(run / "model.keras", safe_mode=True)
    cache = run_cache(cells, trained)
    with (run / "predictions.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    pixels = cache.features[np.arange(len(lines))].astype(np.float32)
    found = model.predict(pixels, verbose=0)
    classes = json.loads((run / "config.json").read_text())["classes"]
    written = np.array([[float(line[f"p_{label}"]) for label in classes] for line in lines])
    np.testing.assert_allclose(found, written, atol=2e-5)
    right = [line["predicted"] == line["label"] for line in lines if line["split"] == "test"]
    assert np.mean(right) == pytest.approx(trained.value["test"]["accuracy"])


def run_cache(cells: Path, ran: Ran) -> Any:
    import featcache

    return featcache.open_cache(cells / "cache" / ran.value["cache"])


def test_a_second_call_trains_nothing_and_a_report_shows_it_beside_a_head(cells: Path, trained: Ran, run: Run) -> None:
    again = run(*SCRATCH, *LEARNS, "--json", cwd=cells).value
    assert (again["reused"], again["run"]) == (True, trained.value["run"])
    network = ("--model", "resnet20", "--weights", "random", "--input-size", "32")
    assert run("extract", *network, cwd=cells).code == 0
    head = run("fit-head", "--cache", "resnet20", "--epochs", "20", "--json", cwd=cells).value
    assert run("report", cwd=cells).code == 0
    report = (cells / "results" / "report.md").read_text()
    assert trained.value["run"] in report
    assert head["run"] in report
    assert "resnet20, from scratch" in report and "resnet20, head" in report
    assert "- **solver**: keras-tensorflow" in report
    assert "## Transfer against scratch" in report
    assert "mean of 1" not in report, "one run of each kind: nothing to take a mean of"
    assert "learning rate 0.005" in report


def test_fine_tuning_begins_with_a_model_that_was_trained(cells: Path, trained: Ran, run: Run) -> None:
    """Its weights are those of the run before, its frozen layers stay so, and the top may be that of a head."""
    model = Path(trained.value["path"]) / "model.keras"
    network = ("--model", "resnet20", "--input-size", "32")
    cache = run("extract", *network, "--weights", str(model), "--json", cwd=cells).value["cache"]
    head = run("fit-head", "--cache", cache, "--epochs", "5", "--json", cwd=cells).value
    arguments = ("fine-tune", *network, "--from", str(model), "--epochs", "2", "--train-blocks", "1")
    tuned = run(*arguments, "--head", head["run"], "--lr", "1e-4", "--json", cwd=cells).value
    assert tuned["run"].startswith("fine-tune-resnet20-")
    assert tuned["train"]["accuracy"] >= trained.value["train"]["accuracy"] - 0.1
    before, after = (backbone_of(path) for path in (model, Path(tuned["path"]) / "model.keras"))
    same = [np.array_equal(old, new) for old, new in zip(before, after, strict=True)]
    trained_ones = [number for number, is_same in enumerate(same) if not is_same]
    assert len(trained_ones) == 2  # kernels of the last block: normalisation is frozen there too
    assert min(trained_ones) > len(same) - 13
    expected = run(*arguments, "--head", head["run"], "--dry-run", "--json", cwd=cells).value
    assert expected["weights"] > expected["trained_weights"] > 256 * 64  # of the head's hidden layer
    for more in ((), ("--dry-run",)):
        other = run("fine-tune", *network, "--from", "random", "--head", head["run"], *more, cwd=cells)
        assert "was trained on features of another network" in other.error


def backbone_of(path: Path) -> list[Any]:
    """The weights of the network within a saved classifier, in its order."""
    model = import_keras().saving.load_model(path)
    inner = next(layer for layer in model.layers if hasattr(layer, "layers"))
    return [weight.numpy() for weight in inner.weights]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--lr", "-1"), "--lr"),
        (("--input-size", "16"), "input size 16 px: expected at least 32 px"),
        (("--model", "resnet21"), "did you mean resnet20"),
        (("--head", "head-none-00000000"), "there is no run 'head-none-00000000' to start from"),
        (("--from", "imagenet"), "resnet20"),
        (("--from", "nowhere.h5"), "there is no weights file nowhere.h5"),
        (("--batch", "8", "--accumulate", "3"), "expected a multiple of --accumulate 3"),
        (("--stochastic-depth", "1"), "--stochastic-depth"),
        (("--model", "vgg16", "--stochastic-depth", "0.2", *QUICK), "vgg"),
    ],
)
def test_what_cannot_be_is_one_message_and_leaves_nothing(
    own: Path, run: Run, change: tuple[str, ...], message: str
) -> None:
    refused = run(*SCRATCH, *change, cwd=own)
    assert message in refused.error
    assert not [path for path in (own / "results").glob("*") if path.name != "README.md"]


def test_a_dry_run_says_what_it_would_take_and_writes_nothing(own: Path) -> None:
    before = sorted(path for path in own.rglob("*") if path.name not in (".images.csv", ".backbones.json"))
    value = run_command(*SCRATCH, *QUICK, "--batch", "16", "--dry-run", "--json", cwd=own, check=True).value
    assert (value["rows"], value["updates"], value["epochs"]) == (56, 4, 2)
    assert value["weights"] > value["trained_weights"] > 260_000
    assert 0 < value["seconds"] < 600
    after = sorted(path for path in own.rglob("*") if path.name not in (".images.csv", ".backbones.json"))
    assert before == after


def test_a_training_that_diverges_names_epoch_and_step(own: Path, run: Run) -> None:
    refused = run(*SCRATCH, *QUICK, "--optimizer", "sgd", "--lr", "1e30", "--clip", "0", cwd=own)
    assert "the loss is " in refused.err
    assert "in epoch 1, step " in refused.err
    assert refused.code == 1
    assert "Traceback" not in refused.err


def test_a_split_without_a_class_is_refused(own: Path, run: Run) -> None:
    path = own / "dataset.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line for line in lines if not ("monocyte" in line and ",val," in line)) + "\n")
    refused = run(*SCRATCH, *QUICK, cwd=own)
    assert refused.code == 1
    assert "val" in refused.err
    assert "monocyte" in refused.err


def test_killed_again_and_again_it_ends_with_the_same_weights(own: Path) -> None:
    """SIGKILL some checkpoints on, in deterministic mode; the weights are those of a training left alone."""
    (own / "tiny.py").write_text(TINY)
    undisturbed = shutil.copytree(own, own.with_name("undisturbed"))
    network = ("fit-scratch", "--model", "tiny:net", "--preprocess", "tf", "--epochs", str(4 * KILLS), "--warmup", "2")
    command = (*network, "--views", "2", "--deterministic", "--augment", "live", "--batch", "8", "--json")

    def left_alone(project: Path) -> Any:
        ended = start_command(*command, cwd=project, program=OFTEN).wait(600)
        return Ran(ended.code, ended.out, ended.err).value

    whole = left_alone(undisturbed)
    rng = random.Random(0)
    kills = 0
    while kills < KILLS:
        worker = start_command(*command, cwd=own, program=OFTEN)
        for _ in range(rng.randrange(12, 30)):  # an epoch has about ten
            before = stamp(own)
            while not worker.ended() and stamp(own) == before:
                time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.05))
        worker.send(signal.SIGKILL)
        ended = worker.wait()
        assert ended.code in (0, -signal.SIGKILL), ended
        if ended.code == 0:
            break
        kills += 1
    assert kills == KILLS
    done = left_alone(own)
    assert done["resumed_at"] > 0
    load = import_keras().saving.load_model
    first, second = (load(Path(value["path"]) / "model.keras") for value in (whole, done))
    for one, other in zip(first.weights, second.weights, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())
    assert (whole["run"], whole["test"]) == (done["run"], done["test"])
    assert [path.name for path in (own / "results").iterdir() if path.name.startswith(".")] == []


def stamp(project: Path) -> int:
    """When the state of the training there was written last."""
    state = next(iter(project.glob("results/*.training/state.npz")), None)
    return state.stat().st_mtime_ns if state else 0
