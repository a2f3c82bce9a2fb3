"""featcache remote add, ls, rm"""

from __future__ import annotations

from pathlib import Path

import click

from featcache.cli.command import Group, option
from featcache.cli.options import json_option, project_option, project_or_none
from featcache.cli.output import print_json, print_table, say, shown
from featcache.core.files import resolved

_user_option = option("--user", is_flag=True, help="Keep the name in ~/.config/featcache, for all projects.")


@click.group("remote", cls=Group)
def command() -> None:
    """Name the remotes that caches and runs are shared on: S3, gs, az, http(s), SFTP, or a folder."""


@command.command("add", short_help="Give a URL a name.")
@click.argument("name")
@click.argument("url")
@option("--signed", is_flag=True, help="Pull from it only what a trusted key has signed.")
@_user_option
@project_option
@json_option
def add(name: str, url: str, signed: bool, user: bool, folder: Path, as_json: bool) -> None:
    """Give the remote at URL a name, in featcache.toml or, with --user, for all projects.

    URL is s3://BUCKET/PREFIX (?endpoint=https://HOST for your own server), gs://, az://, https://HOST/PATH,
    sftp://USER@HOST/PATH or a folder. Credentials come from the environment, ~/.aws, ~/.netrc or ~/.ssh.
    featcache.toml is created if it is missing.
    """
    from featcache.core.project import PROJECT_FILE
    from featcache.sharing import USER_FILE, add_remote, own_config_folder

    project = project_or_none(folder)
    file = own_config_folder() / USER_FILE if user else (project.folder if project else folder) / PROJECT_FILE
    remote = add_remote(name, url, file=file, signed=signed)
    say(f"{name} is {remote.url}, in {shown(resolved(file))}", as_json)
    if as_json:
        print_json({"name": name, "url": remote.url, "signed": signed, "file": str(file)})


@command.command("ls", short_help="List the remotes.")
@project_option
@json_option
def list_all(folder: Path, as_json: bool) -> None:
    """List the remotes of the project and of the user."""
    from featcache.remotes import presentable
    from featcache.sharing import remotes_of

    known = remotes_of(project_or_none(folder))
    urls = {name: presentable(remote.url) for name, remote in known.items()}
    if as_json:
        print_json([{"name": name, "url": urls[name], "signed": known[name].signed} for name in known])
    elif not known:
        say("no remotes: 'featcache remote add NAME URL' adds one")
    else:
        rows = [[name, urls[name], "signed only" if known[name].signed else ""] for name in known]
        print_table(["remote", "url", ""], rows, numbers=False)


@command.command("rm", short_help="Forget a remote.")
@click.argument("name")
@project_option
@json_option
def remove(name: str, folder: Path, as_json: bool) -> None:
    """Forget the remote NAME. What is on it stays."""
    from featcache.core.project import PROJECT_FILE
    from featcache.sharing import USER_FILE, config_folder, remove_remote

    project = project_or_none(folder)
    files = [project.folder / PROJECT_FILE] if project else []
    own = config_folder()
    file = remove_remote(name, [*files, *([own / USER_FILE] if own else [])])
    say(f"{name} is no longer in {shown(resolved(file))}", as_json)
    if as_json:
        print_json({"name": name, "file": str(file)})
