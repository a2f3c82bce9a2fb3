"""Passwords and keys are neither stored nor shown: not of refused addresses, not of files that cannot be read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Run

from featcache.core.errors import FeatcacheError, ProjectError
from featcache.core.project import read_settings
from featcache.remotes.objects import _aws_settings
from featcache.remotes.urls import open_remote, parse_url, redacted
from featcache.remotes.web import _login
from featcache.sharing.keys import read_trusted

SECRET = "hunter2"  # noqa: S105 - nobody's
URLS = [
    "s3://lab/x?endpoint=https://anna:hunter2@host",
    "s3://lab/x?endpoint=https://:hunter2@host",
    "s3://lab/x?endpoint=https://hunter2@host",
    "s3://lab/x?endpoint=https%3A%2F%2Fanna%3Ahunter2%40host",
    "s3://lab/x?endpoint=https%253A%252F%252Fanna%253Ahunter2%2540host",
    "s3://lab/x?endpoint=https://host?token=hunter2",
    "s3://lab/x?endpoint=https://host;token=hunter2",
    "s3://lab/x?endpoint=https://host%23hunter2",
    "s3://lab/x?endpoint=https://anna:hunter2@host&endpoint=https://host",
    "s3://lab/x?region=hunter2/x",
    "s3://lab/x?region=a&secret_access_key=hunter2",
    "s3://AKIA:hunter2@lab/x",
    "s3://AKIA%3Ahunter2%40lab/x",
    "https://anna:hunter2@host/x",
    "https://anna:hun/hunter2@host/x",
    "https://anna:hun?hunter2@host/x",
    "https://anna:hun#hunter2@host/x",
    "https://anna:p@hunter2@host/x",
    "https://anna:hunter2",
    "https://anna:hunter2/x",
    "https://anna:hunter2@[::1/x",
    "https://anna:hunter2\u2100@host/x",
    "https://host/x?sig=hunter2",
    "https://host/x?a=b&hunter2",
    "https://host/x#hunter2",
    "sftp://anna:hunter2@host/x",
    "sftp://anna%3Ahunter2@host/x",
    "ftp://anna:hunter2@host/x",
    "file://anna:hunter2@host/x",
    "//anna:hunter2@host://x",
]


@pytest.mark.parametrize("url", URLS)
def test_an_address_with_a_secret_is_refused_without_it(url: str) -> None:
    for call in (parse_url, open_remote):
        with pytest.raises(FeatcacheError) as caught:
            call(url)
        assert SECRET not in str(caught.value)
    assert SECRET not in redacted(url)


def test_a_remote_that_was_written_by_hand_is_shown_without_its_secret(run: Run, tmp_path: Path) -> None:
    lines = [f'[remotes.r{number}]\nurl = "{url}"\n' for number, url in enumerate(URLS)]
    (tmp_path / "featcache.toml").write_text("".join(lines), encoding="utf-8")
    for more in ((), ("--json",)):
        said = run("remote", "ls", *more, cwd=tmp_path)
        assert said.code == 0, said.err
        assert SECRET not in said.out + said.err


@pytest.mark.parametrize(
    "line", ['url = "https://anna:hunter2@h/%s"' % ("x" * 2000), 'url = ["hunter2"]', "url = 'hunter2"]
)
def test_settings_that_cannot_be_read_do_not_tell_a_remote(tmp_path: Path, line: str) -> None:
    (tmp_path / "featcache.toml").write_text(f"[remotes.lab]\n{line}\n")
    with pytest.raises(ProjectError) as caught:
        read_settings(tmp_path / "featcache.toml")
    assert SECRET not in str(caught.value)


FILES: list[tuple[str, Callable[[], object], str]] = [
    *(
        (".aws/credentials", _aws_settings, text)
        for text in (
            "aws_secret_access_key = hunter2\n",
            "[default]\nhunter2\n",
            "[default]\nhunter2 = 1\nhunter2 = 2\n",
            "[default\nhunter2",
            "[default]\nx = hunter2\n\xff",
        )
    ),
    *(
        (".netrc", lambda: _login("https://host/"), text)
        for text in (
            "hunter2\n",
            "machine host login anna hunter2\n",
            "machine host password hunter2 x\n\xff",
            "macdef hunter2",
        )
    ),
    *((".trust", lambda: read_trusted(Path("~/.trust").expanduser()), text) for text in ("hunter2\n", "a hunter2 b\n")),
]


@pytest.mark.parametrize(("name", "read", "text"), FILES)
def test_files_of_credentials_that_cannot_be_read_are_named_and_not_quoted(
    home: Path, monkeypatch: pytest.MonkeyPatch, name: str, read: Callable[[], object], text: str
) -> None:
    for variable in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE", "NETRC"):
        monkeypatch.delenv(variable, raising=False)
    file = home / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(text.encode("latin-1"))
    try:
        read()
    except FeatcacheError as error:
        assert name.rpartition("/")[2] in str(error)
        assert SECRET not in str(error)


def test_a_key_that_is_none_is_not_said_again(run: Run, home: Path, tmp_path: Path) -> None:
    assert home.is_dir()
    (tmp_path / "their.pub").write_text("anna hunter2\n")
    for given in (("anna", "hunter2"), ("anna", str(tmp_path / "their.pub"))):
        said = run("key", "trust", *given, cwd=tmp_path)
        assert said.code != 0
        assert SECRET not in said.out + said.err
