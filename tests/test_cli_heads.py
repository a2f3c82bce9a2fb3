"""fit-head and sweep as commands: their options, what they say, their JSON; Gram matrices in ls and rm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Made, Run

QUICK = ("fit-head", "--solver", "gram", "--hidden", "8", "--lr", "1e-4")


def test_more_epochs_and_what_was_there(run: Run, project: Path) -> None:
    first = run(*QUICK, "--epochs", "4", "--json", cwd=project).value
    assert (first["resumed_at"], first["epochs"], first["epoch_of_head"], first["why"]) == (0, 4, 4, "asked for")
    more = run(*QUICK, "--more-epochs", "3", "--json", cwd=project).value
    assert (more["resumed_at"], more["epochs"]) == (4, 7)
    said = run(*QUICK, "--epochs", "9", cwd=project)
    assert f"9 epochs (continued after epoch 7 of {more['run']}) on" in said.out
    assert run(*QUICK, "--epochs", "7", "--json", cwd=project).value["reused"]
    assert "no finished run with these settings" in run(*QUICK, "--seed", "3", "--more-epochs", "1", cwd=project).error


def test_the_solver_that_was_chosen_says_why(run: Run, project: Path) -> None:
    assert "times fewer operations than" in run("fit-head", "--epochs", "2", "--json", cwd=project).value["why"]


def test_resume_refuses_other_settings_field_by_field(run: Run, project: Path) -> None:
    name = run(*QUICK, "--epochs", "2", "--json", cwd=project).value["run"]
    assert run("fit-head", "--resume", name, "--json", cwd=project).value["reused"]
    longer = run("fit-head", "--resume", name, "--epochs", "5", "--lr", "1e-4", "--json", cwd=project).value
    assert (longer["resumed_at"], longer["epochs"]) == (2, 5)
    for args, said in (
        (("--lr", "0.5", "--hidden", "9"), "hidden is (8,) there, (9,) here; lr is 0.0001 there, 0.5 here"),
        (("--solver", "primal"), "solver is 'gram' there, 'primal' here"),
        (("--cache", "other"), "cache is "),
        (
            ("--preset", "study"),
            "lr is 0.0001 there, 1e-05 here; decay is 0.0 there, 0.001 here; l2 is 0.1 there, 0.0 here; scale is",
        ),
    ):
        message = run("fit-head", "--resume", name, *args, cwd=project).error
        assert f"{name} was begun with other settings: " in message
        assert said in message
    assert "no training 'nothing'" in run("fit-head", "--resume", "nothing", cwd=project).error


def test_seeds(run: Run, project: Path) -> None:
    value = run(*QUICK, "--epochs", "2", "--seeds", "2", "--json", cwd=project).value
    assert len(value["runs"]) == 2
    assert [line["split"] for line in value["summary"]] == ["train"] * 3 + ["val"] * 3 + ["test"] * 3
    assert {"split", "measure", "mean", "std"} == set(value["summary"][0])
    said = run(*QUICK, "--epochs", "2", "--seeds", "2", cwd=project)
    assert said.out.count("this run exists already") == 2
    assert "mean of 2" in said.out
    for args in (("--more-epochs", "2"), ("--resume", "x")):
        assert "--seeds excludes" in run(*QUICK, "--seeds", "2", *args, cwd=project).error


SWEEP = ("sweep", "--solver", "gram", "--epochs", "3")


def test_sweep(run: Run, project: Path) -> None:
    space = ("--lr", "0.0001,1e9,0.001", "--hidden", "8,8+4", "--seeds", "2")
    value = run(*SWEEP, *space, "--json", cwd=project).value
    assert {"sweep", "path", "heads", "winner", "train", "val", "test"} == set(value)
    assert len(value["heads"]) == 6
    assert value["heads"][0].keys() == {"lr", "hidden", "epochs", "val_loss", "spread", "epoch", "diverged"}
    assert [head["lr"] for head in value["heads"] if head["val_loss"] is None] == [1e9] * sum(
        head["diverged"] > 0 for head in value["heads"]
    )
    assert value["heads"][-1]["val_loss"] is None
    assert json.loads((Path(value["path"]) / "sweep.json").read_text())["winner"] == value["winner"]
    said = run(*SWEEP, *space, cwd=project)
    assert said.code == 0
    assert "diverged" in said.out
    assert "best on validation, evaluated on test once" in said.out
    assert run("report", cwd=project).code == 0
    some = run(*SWEEP, "--lr", "0.0001,0.001,0.002", "--random", "2", "--json", cwd=project).value
    assert len(some["heads"]) == 2


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        ((), 1, "nothing to sweep over"),
        (("--lr", "a,b"), 2, "expected numbers like 0.001,0.003"),
        (("--hidden", "8,x"), 2, "expected numbers like"),
        (("--dropout", "0,1"), 2, "--dropout"),
        (("--lr", "1e9", "--hidden", "8,4"), 1, "every combination diverged"),
    ],
)
def test_sweeps_that_cannot_be(run: Run, project: Path, args: tuple[str, ...], code: int, said: str) -> None:
    ran = run("sweep", *args, cwd=project)
    assert said in ran.error
    assert ran.code == code
    assert not list((project / "results").glob("*"))


def test_ls_and_rm_know_the_gram_matrices(run: Run, project: Path, made: Made) -> None:
    assert run("ls", "--json", cwd=project).value[0]["gram_bytes"] == 0
    run(*QUICK, "--epochs", "1", cwd=project)
    (listed,) = run("ls", "--json", cwd=project).value
    assert listed["gram_bytes"] > 0
    assert "Gram" in run("ls", cwd=project).out
    removed = run("rm", made.cache.name, "--yes", "--json", cwd=project).value
    assert [Path(item["path"]).suffix for item in removed["items"]] == ["", ".gram"]
    assert not [path for path in (project / "cache").iterdir() if not path.name.startswith((".", "README"))]


# What it takes, before it begins


FIELDS = {"solver", "why", "epochs", "gram_bytes", "gram_kept", "gram_in_memory", "memory_bytes", "free_bytes"}
FIELDS |= {"before_s", "epochs_s", "cache"}


def test_a_dry_run_says_what_it_takes_and_trains_nothing(run: Run, project: Path) -> None:
    value = run("fit-head", "--epochs", "5000", "--dry-run", "--json", cwd=project).value
    assert value.keys() == FIELDS
    assert (value["epochs"], value["gram_kept"]) == (5000, False)
    said = run("fit-head", "--epochs", "5000", "--dry-run", cwd=project)
    assert said.out.startswith("Gram space: ")
    assert "for 5000 epochs" in said.out
    assert not list((project / "results").glob("*head*"))
    assert not list((project / "cache").glob("*.gram/*"))
    primal = run("fit-head", "--optimizer", "adam", "--dry-run", cwd=project)
    assert primal.out.startswith("primal: the solvers gram and block do not support the optimizer adam; memory about")


def test_a_training_says_before_what_it_takes(run: Run, project: Path) -> None:
    first = run(*QUICK, "--epochs", "3", "--json", cwd=project)
    assert next(line.partition(": ")[0] for line in first.err.splitlines()) == "Gram space"
    assert first.value["expected"].keys() == FIELDS
    assert first.value["expected"]["epochs"] == 3
    again = run(*QUICK, "--epochs", "3", "--json", cwd=project)
    assert again.value["expected"] is None
    assert "Gram space: " not in again.err
    seeds = run(*QUICK, "--epochs", "4", "--seeds", "3", cwd=project)
    assert seeds.err.count("each: Gram space: ") == 1
    more = run(*QUICK, "--more-epochs", "2", "--dry-run", "--json", cwd=project).value
    assert (more["epochs"], more["gram_kept"]) == (6, True)


def test_what_has_no_epochs_has_no_log_and_no_dry_run(run: Run, project: Path) -> None:
    for option in ("--tensorboard", "--dry-run"):
        assert "--head knn has no epochs" in run("fit-head", "--head", "knn", option, cwd=project).error


def test_resume_goes_on_with_a_primal_run(run: Run, project: Path) -> None:
    primal = ("fit-head", "--optimizer", "adam", "--hidden", "8", "--lr", "1e-4")
    name = run(*primal, "--epochs", "2", "--json", cwd=project).value["run"]
    longer = run("fit-head", "--resume", name, "--epochs", "4", "--json", cwd=project).value
    assert (longer["resumed_at"], longer["epochs"], longer["solver"]) == (2, 4, "primal")
    more = run(*primal, "--more-epochs", "1", "--json", cwd=project).value
    assert (more["resumed_at"], more["epochs"]) == (4, 5)


CROSS = ("cross-validate", "--epochs", "2", "--hidden", "8")


def test_cross_validate(run: Run, project: Path) -> None:
    value = run(*CROSS, "--folds", "3", "--repeats", "2", "--json", cwd=project).value
    assert {"run", "folds", "repeats", "trainings", "seconds", "measures"} <= set(value)
    assert (value["folds"], value["repeats"], value["trainings"], value["reused"]) == (3, 2, 6, False)
    assert {"accuracy", "balanced_accuracy", "macro_f1", "kappa", "mcc", "roc_auc"} <= set(value["measures"])
    assert set(value["measures"]["accuracy"]) == {"mean", "low", "high"}
    assert value["images"] == sum(of["images"] for of in value["per_class"].values())
    said = run(*CROSS, "--folds", "3", "--repeats", "2", cwd=project).out
    assert f"{value['run']}: this run exists already; --again begins anew: 3 folds x 2" in said
    assert "balanced accuracy, %" in said
    assert "majority-class baseline" in said
    fitted = run(*QUICK, "--epochs", "2", "--json", cwd=project).value
    assert run("report", cwd=project).code == 0
    report = (project / "results" / "report.md").read_text()
    assert "## Cross-validations" in report
    assert "Not readable" not in report
    assert fitted["run"] in report
    assert value["run"] in (project / "results" / "report.html").read_text()
    assert "a cross-validation keeps no head" in run("predict", value["run"], "images", cwd=project).error
    assert "is a cross-validation" in run("fit-head", "--resume", value["run"], cwd=project).error


def test_cross_validate_chooses_settings_and_leaves_groups_out(run: Run, project: Path) -> None:
    few = ("--folds", "2", "--inner-folds", "2", "--json")
    tuned = run(*CROSS, "--lr", "0.001,0.003", *few, cwd=project).value
    assert tuned["trainings"] == 2 * (1 + 2 * 2)
    named = run("cross-validate", "--tune", "lr", "--epochs", "1", *few, cwd=project).value
    assert named["trainings"] == 2 * (1 + 3 * 2)
    logreg = run("cross-validate", "--head", "logreg", "--folds", "2", "--judge", "views", "--json", cwd=project).value
    assert logreg["trainings"] == 2
    left = run(*CROSS, "--leave-group-out", "--json", cwd=project).value
    assert left["folds"] == left["trainings"] == left["groups"]


def test_cross_validations_that_cannot_be(run: Run, project: Path) -> None:
    for args, said in (
        (("--folds", "900"), "--folds 900: there are only "),
        (("--test-on", "north"), "no image is of the source 'north'"),
        (("--leave-group-out", "--test-on", "x"), "--leave-group-out excludes --test-on"),
        (("--tune", "lrr"), "--tune: 'lrr' cannot be tuned: did you mean lr?"),
        (("--head", "knn", "--tune", "lr"), "leave out --tune"),
        (("--optimizer", "adam"), "does not support the optimizer adam"),
        (("--batch", "5000"), "a batch of 5000 rows is more than"),
    ):
        assert said in run("cross-validate", *args, cwd=project).error
    assert not list((project / "results").glob("cv-*"))
