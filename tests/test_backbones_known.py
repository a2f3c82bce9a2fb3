"""What a network computes, remembered by all that decides it and by nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from featcache.backbones import remembered as known
from featcache.backbones.import_keras import import_keras
from featcache.backbones.remembered import identify
from featcache.backbones.spec import NetworkSpec
from featcache.core.errors import BackboneError

SPEC = NetworkSpec("mobilenetv2", "random", 3, input_size_px=32, layers=("Conv_1", "out_relu"), pooling="avg")


def test_the_second_time_nothing_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = tmp_path / "cache" / ".backbones.json"
    cuts, network = identify(memory, SPEC)
    assert network is not None
    assert network.cuts == cuts
    monkeypatch.setattr(known, "open_network", lambda _: pytest.fail("it was built again"))
    assert identify(memory, SPEC) == (cuts, None)
    assert [cut.space.layer for cut in cuts] == ["Conv_1", "out_relu"]


def test_everything_that_decides_a_value_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = tmp_path / ".backbones.json"
    cuts, _ = identify(memory, SPEC)

    class BuiltError(Exception):
        pass

    def build(spec: NetworkSpec) -> None:
        raise BuiltError

    monkeypatch.setattr(known, "open_network", build)
    others = (
        {"precision": "bfloat16"},
        {"layers": ("out_relu", "Conv_1")},
        {"layers": ()},
        {"pooling": "max"},
        {"preprocessing": "rescale"},
        {"input_size_px": 33},
        {"weights_seed": 4},
        {"model": "mobilenet"},
        {"unsafe": True},
    )
    for fields in others:
        with pytest.raises(BuiltError):
            identify(memory, replace(SPEC, **fields))  # type: ignore[arg-type]
    assert identify(memory, SPEC)[0] == cuts
    monkeypatch.setattr(known, "version", lambda _: "99")  # another Keras
    with pytest.raises(BuiltError):
        identify(memory, SPEC)


@pytest.mark.parametrize("damage", ["no json", "[]", "record", "field"])
def test_a_damaged_memory_costs_only_time(damage: str, tmp_path: Path) -> None:
    memory = tmp_path / ".backbones.json"
    spec = replace(SPEC, layers=("Conv1",))
    cuts, _ = identify(memory, spec)
    value = json.loads(memory.read_text())
    if damage == "record":
        value = dict.fromkeys(value, 5)
    elif damage == "field":  # of another version
        value = {key: [{"backbone": "mobilenetv2", "kind": 7}] for key in value}
    memory.write_text(json.dumps(value) if damage in ("record", "field") else damage)
    found, network = identify(memory, spec)
    assert found == cuts
    assert network is not None
    assert identify(memory, spec) == (cuts, None)


def test_a_models_file_is_known_until_it_changes(tmp_path: Path) -> None:
    keras = import_keras()
    path, memory = tmp_path / "mine.keras", tmp_path / ".backbones.json"
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)])
    model.save(path)
    spec = NetworkSpec(str(path), preprocessing="tf")
    first, _ = identify(memory, spec)
    assert identify(memory, spec) == (first, None)
    model.set_weights([value + 1 for value in model.get_weights()])
    model.save(path)
    second, network = identify(memory, spec)
    assert network is not None
    assert second[0].space.weights_digest != first[0].space.weights_digest
    path.unlink()
    with pytest.raises(BackboneError, match="there is no such model file"):
        identify(memory, spec)


def test_what_a_function_builds_is_built_each_time(tmp_path: Path) -> None:
    spec = NetworkSpec("keras.applications:MobileNet", "random", input_size_px=32, preprocessing="tf")
    for _ in range(2):
        assert identify(tmp_path / ".backbones.json", spec)[1] is not None
    assert not (tmp_path / ".backbones.json").exists()
