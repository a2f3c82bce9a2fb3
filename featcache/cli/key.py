"""featcache key new, ls, trust, distrust"""

from __future__ import annotations

from pathlib import Path

import click

from featcache.cli.command import Group
from featcache.cli.options import json_option
from featcache.cli.output import print_json, print_table, say


@click.group("key", cls=Group)
def command() -> None:
    """Manage the keys that sign what you push, and the keys that you trust. They are kept in ~/.config/featcache."""


@command.command("new", short_help="Make a key pair.")
@click.argument("name")
@json_option
def new(name: str, as_json: bool) -> None:
    """Make the key pair NAME. Only you can read the private half; give the public half to others."""
    from featcache.sharing import keys

    key = keys.new_key(name, keys.own_config_folder() / keys.KEYS_FOLDER)
    say(f"{name}: {key.public}", as_json)
    say(f"others trust it by: featcache key trust {name} {key.public}", as_json)
    if as_json:
        print_json({"name": name, "public": key.public, "file": str(key.file)})


@command.command("ls", short_help="List your keys and those you trust.")
@json_option
def list_all(as_json: bool) -> None:
    """List your own keys, and the keys that you trust."""
    from featcache.sharing import keys

    folder = keys.config_folder()
    own = keys.own_keys(folder / keys.KEYS_FOLDER if folder else None)
    trusted = keys.read_trusted(folder / keys.TRUST_FILE if folder else None)
    for why in keys.unusable(folder / keys.KEYS_FOLDER if folder else None):
        say(f"left out: {why}", as_json)
    if as_json:
        print_json(
            {
                "own": [{"name": key.name, "public": key.public, "file": str(key.file)} for key in own],
                "trusted": [{"name": name, "public": public} for public, name in trusted.items()],
            }
        )
    elif not own and not trusted:
        say("no keys: 'featcache key new NAME' makes one, 'featcache key trust NAME KEY' trusts one of others")
    else:
        rows = [[key.name, key.public, "yours"] for key in own]
        print_table(["key", "public", ""], [*rows, *([n, p, "trusted"] for p, n in trusted.items())], numbers=False)


@command.command("trust", short_help="Trust a public key.")
@click.argument("name")
@click.argument("public", metavar="KEY|FILE")
@json_option
def trust(name: str, public: str, as_json: bool) -> None:
    """Trust what KEY (44 characters, or a .pub file) has signed, and call its owner NAME.

    Get the key from its owner, not from the remote: whoever can change a cache there can also change the key.
    """
    from featcache.sharing import keys

    if Path(public).is_file():
        _, public = keys.read_public(Path(public))
    keys.trust(name, public, file=keys.own_config_folder() / keys.TRUST_FILE)
    say(f"{name} is trusted: {public}", as_json)
    if as_json:
        print_json({"name": name, "public": public})


@command.command("distrust", short_help="Stop trusting a key.")
@click.argument("name")
@json_option
def distrust(name: str, as_json: bool) -> None:
    """Stop trusting the key of NAME. What you pulled before stays."""
    from featcache.sharing import keys

    keys.distrust(name, keys.own_config_folder() / keys.TRUST_FILE)
    say(f"{name} is no longer trusted", as_json)
    if as_json:
        print_json({"name": name})
