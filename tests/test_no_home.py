"""A user id without a name and without HOME, as of batch nodes and containers; a home that is another user's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import run_command

from featcache.backbones.imagenet import models_folder
from featcache.core.errors import UsageError
from featcache.core.files import expanded, user_path
from featcache.remotes.urls import open_remote
from featcache.sharing import keys
from featcache.sharing.remote import Target, remotes_of, trust_of


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr("pwd.getpwuid", unknown)
    for name in ("HOME", "FEATCACHE_CONFIG", "XDG_CONFIG_HOME", "KERAS_HOME", "LOGNAME", "USER"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("nobody")
def test_without_a_home_there_is_nothing_of_the_user(tmp_path: Path) -> None:
    assert user_path("~/.config") is None
    assert (keys.config_folder(), keys.own_keys(None), keys.read_trusted(None)) == (None, [], {})
    assert remotes_of(None) == {}
    assert trust_of(Target(open_remote(str(tmp_path)), "")).trusted == {}
    assert models_folder().name == "models"
    assert expanded("~/weights.h5") == Path("~/weights.h5")
    open_remote("http://127.0.0.1:1/x")
    with pytest.raises(UsageError, match="set HOME, or FEATCACHE_CONFIG"):
        keys.own_config_folder()


@pytest.mark.skipif(os.getuid() != 0, reason="becomes another user, which only root may")
def test_commands_of_a_user_without_a_home_say_no_defect(tmp_path: Path) -> None:
    script = (
        "import os, sys; sys.argv[0] = 'featcache'; import featcache.cli.key, featcache.sharing.keys, cryptography; "
        "os.setuid(12345); featcache.cli.main()"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "FEATCACHE_CONFIG")}
    for arguments, code, said in ((("key", "ls"), 0, "no keys"), (("key", "new", "x"), 1, "set HOME")):
        ran = subprocess.run(
            [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False, env=environment
        )
        assert (ran.returncode, "defect" in ran.stderr) == (code, False), ran.stderr
        assert said in ran.stdout + ran.stderr


def test_a_home_that_may_not_be_written_keeps_no_key_and_stops_nothing_else(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.write_text("no folder")
    environment = {"HOME": str(home), "FEATCACHE_CONFIG": ""}
    assert run_command("key", "ls", cwd=tmp_path, env=environment).code == 0
    assert "defect" not in run_command("key", "new", "x", cwd=tmp_path, env=environment).error
