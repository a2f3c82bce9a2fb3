"""Runs in MLflow: settings as parameters, curves and measures as metrics, and the files of each run.

MLflow reports its use to its makers unless it is told not to; it is told before it is imported.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.core.errors import RunError, UsageError
from featcache.core.extras import require_extra
from featcache.core.progress import SILENT, Progress
from featcache.datasets import SPLITS
from featcache.reporting._runs import flat
from featcache.training import HISTORY_FILE, Run, read_notes

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
"""MLflow's own would wait minutes for a server that is not there; what the user has set is kept."""

_RUN_TAG = "featcache.run"
_CREATED_TAG = "featcache.created"
_SMALL = (".json", ".csv", ".png")
"""Endings of files that are no weights, states or features of training images."""
_MOST_METRICS, _MOST_PARAMETERS, _LONGEST_PARAMETER = 1000, 100, 6000  # in one request of MLflow's


@dataclass(frozen=True)
class LoggedRun:
    """A run in MLflow.

    mlflow_id : its name there
    new : whether it was not there before
    """

    name: str
    mlflow_id: str
    new: bool


def log_to_mlflow(
    results: Path,
    runs: Sequence[Run],
    *,
    to: str,
    experiment: str,
    with_model: bool = False,
    progress: Progress = SILENT,
) -> list[LoggedRun]:
    """Write runs to an MLflow server or database. A run that is whole there is not written again.

    to : http://HOST:PORT, sqlite:///PATH, the path of an SQLite file, or what else MLflow takes
    with_model : weights, states and what a head keeps of training rows too, which can be large

    Raises MissingPackageError without MLflow, UsageError for an address that MLflow does not take, RunError where it
    cannot be reached or written, and for a damaged run.
    """
    require_extra("mlflow", "writing to MLflow")
    notes = read_notes(results)
    address = _address(to)
    with _explaining(address):
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=address)
        experiment_id = _experiment(client, experiment, address=address)
        logged = []
        with progress.begin("runs in MLflow", len(runs)) as advance:
            for run in runs:
                there = _there_already(client, experiment_id, run)
                mlflow_id = there or _log(client, experiment_id, run=run, with_model=with_model)
                note = notes.get(run.name)
                if note is not None:  # notes change, and runs do not
                    client.set_tag(mlflow_id, "mlflow.note.content", note.text)
                    client.set_tag(mlflow_id, "featcache.tags", ", ".join(note.tags))
                logged.append(LoggedRun(run.name, mlflow_id, new=there is None))
                advance(1)
    return logged


def _address(to: str) -> str:
    """What MLflow calls a tracking URI. Its folders of files ("mlruns") are no longer written by MLflow itself."""
    scheme, colon, _ = to.partition("://")
    if not to.strip():
        raise UsageError("`to` is empty: name a server (http://HOST:PORT) or a file (runs.db)")
    if colon and scheme != "file":
        return to
    if colon or Path(to).is_dir():
        raise UsageError(
            f"{to}: MLflow writes to a server (http://HOST:PORT) or an SQLite file (runs.db), not a folder"
        )
    return f"sqlite:///{Path(to).absolute()}"


def _experiment(client: MlflowClient, name: str, *, address: str) -> str:
    there = client.get_experiment_by_name(name)
    if there is not None:
        return str(there.experiment_id)
    files = None
    if address.startswith("sqlite:///"):  # by itself MLflow would write to wherever the command runs
        files = (Path(address.removeprefix("sqlite:///")).absolute().parent / "mlartifacts" / name).as_uri()
    return client.create_experiment(name, artifact_location=files)


def _there_already(client: MlflowClient, experiment: str, run: Run) -> str | None:
    """The whole run of this name and date; halves of it, left by an interruption, are removed."""
    whole = None
    for found in client.search_runs([experiment], f"tags.`{_RUN_TAG}` = '{run.name}'"):
        if found.info.status != "FINISHED":
            client.delete_run(found.info.run_id)
        elif found.data.tags.get(_CREATED_TAG) == run.config.get("created"):
            whole = str(found.info.run_id)
    return whole


def _log(client: MlflowClient, experiment: str, *, run: Run, with_model: bool) -> str:
    from mlflow.entities import Param

    created = str(run.config.get("created", ""))
    ended_ms = int(datetime.fromisoformat(created).timestamp() * 1000) if created else 0
    started_ms = ended_ms - int(1000 * float(run.metrics.get("seconds") or 0))
    parameters = [Param(name[:250], str(value)[:_LONGEST_PARAMETER]) for name, value in flat(run.config)]
    metrics = [*_curves(run, started_ms), *_measures(run, ended_ms)]
    made = client.create_run(
        experiment,
        start_time=started_ms,
        tags={_RUN_TAG: run.name, _CREATED_TAG: created, "mlflow.source.name": "featcache"},
        run_name=run.name,
    ).info.run_id
    for first in range(0, len(parameters), _MOST_PARAMETERS):
        client.log_batch(made, params=parameters[first : first + _MOST_PARAMETERS])
    for first in range(0, len(metrics), _MOST_METRICS):
        client.log_batch(made, metrics=metrics[first : first + _MOST_METRICS])
    for path in sorted(run.folder.iterdir()):
        if path.is_file() and not path.is_symlink() and (with_model or path.suffix in _SMALL):
            client.log_artifact(made, str(path))
    client.set_terminated(made, status="FINISHED", end_time=ended_ms)
    return str(made)


def _curves(run: Run, started_ms: int) -> Iterator[Metric]:
    """Each column of history.csv, an epoch a step."""
    from mlflow.entities import Metric

    if not (run.folder / HISTORY_FILE).is_file():
        return
    history = run.history
    since_s = history["seconds"].cumsum()
    for column in history.columns.drop(["epoch", "seconds"]):
        for epoch, value, after_s in zip(history["epoch"], history[column], since_s, strict=True):
            if value == value:  # a split that was not judged in this epoch
                yield Metric(column, float(value), started_ms + int(1000 * after_s), int(epoch))


def _measures(run: Run, ended_ms: int) -> Iterator[Metric]:
    """test.accuracy, test.accuracy.low, test.recall.monocyte and so on; of cross-validations without the split."""
    from mlflow.entities import Metric

    if run.is_cross_validation:
        found = {name: value for name, value in run.metrics["measures"].items() if isinstance(value, Mapping)}
        named = [
            (name if which == "mean" else f"{name}.{which}", one)
            for name, of in found.items()
            for which, one in of.items()
        ]
    else:
        named = [line for split in SPLITS if split in run.metrics for line in _of_split(run.metrics[split], split)]
    for name, value in named:
        if isinstance(value, int | float) and value == value:
            yield Metric(_allowed(name), float(value), ended_ms, 0)


def _of_split(measures: Mapping[str, Any], split: str) -> Iterator[tuple[str, Any]]:
    for name, value in measures.items():
        yield f"{split}.{name}", value
    for name, (low, high) in measures["intervals"].items():
        yield f"{split}.{name}.low", low
        yield f"{split}.{name}.high", high
    for label, of_class in measures["per_class"].items():
        for name, value in of_class.items():
            yield f"{split}.{name}.{label}", value


def _allowed(name: str) -> str:
    """A name of a metric as MLflow takes it."""
    return "".join(letter if letter.isalnum() or letter in "_-. /:" else "_" for letter in name)[:250]


@contextmanager
def _explaining(address: str) -> Iterator[None]:
    """MLflow, quiet; what goes wrong in it in one line."""
    os.environ.update(_QUIET)
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)
    for name in ("mlflow.store.db.utils", "alembic"):  # a line for each table that they make
        logging.getLogger(name).setLevel(logging.WARNING)
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError, OSError) as error:
        said = " ".join(str(error).split())[:300].rstrip(".,;(")
        raise RunError(f"{address}: MLflow cannot be reached, or refuses: {said}", "Check the address") from error
