"""`adapters`: trained corrections on the Hub, and what a folder of them holds."""

from __future__ import annotations

import argparse
from typing import Any

from lora_drop.cli.arguments import Commands, add_command
from lora_drop.cli.output import note, print_json

NAME = "an adapter folder, or a repository of the Hub: USER/REPO or USER/REPO@REVISION"


def add(commands: Commands) -> None:
    """Add the options of the four actions."""
    parser = commands.add_parser("adapters", help="pull, push, show or verify adapters of the Hub", allow_abbrev=False)
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    pull = add_command(actions, "pull", pull_files, "fetch adapters from the Hub, and print their folder")
    push = add_command(actions, "push", push_files, "commit an adapter folder, with its card, to the Hub")
    show = add_command(actions, "show", show_facts, "what adapters were trained for, and on")
    verify = add_command(actions, "verify", verify_files, "check the files, their checksums and the card")
    pull.add_argument("name", metavar="USER/REPO", help="or USER/REPO@REVISION: a branch, a tag or a commit")
    push.add_path("folder", "DIR", "an adapter folder, or that of `train --out`")
    push.add_argument("name", metavar="USER/REPO", help="made if it is missing; or USER/REPO@BRANCH")
    push.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    for parser in (show, verify):
        parser.add_argument("name", metavar="NAME", help=NAME)


def pull_files(args: argparse.Namespace) -> None:
    """Run `pull`."""
    from lora_drop.adapters.bank import AdapterBank
    from lora_drop.adapters.hub import bank_name, download

    folder = download(args.name)
    AdapterBank.load(folder)
    _print(args, {"adapters": bank_name(folder), "folder": str(folder)}, str(folder))


def push_files(args: argparse.Namespace) -> None:
    """Run `push`."""
    from lora_drop.adapters.bank import push_folder

    address = push_folder(args.folder, args.name, args.private)
    _print(args, {"commit": address}, address)


def show_facts(args: argparse.Namespace) -> None:
    """Run `show`."""
    from lora_drop.adapters.bank import BankConfig, files_of
    from lora_drop.adapters.card import dropped_in
    from lora_drop.adapters.hub import WEIGHTS_NAME, bank_name, local_folder

    folder = local_folder(args.name)
    config = BankConfig.read(folder)
    meta = config.model_extra or {}
    facts = {
        "adapters": bank_name(folder.resolve()),
        "base model": config.base_model_name_or_path,
        "weights": config.revision,
        **{name: getattr(config, name) for name in ("reuse", "part", "refresh", "kv")},
        "rank": config.r,
        "layers": config.layers,
        "parts": ["linear"] + [part for part, has in (("mlp", config.mlp_width), ("kept", config.kept_rank)) if has],
        "screened head": config.head.model_dump() if config.head else None,
        "tokens": meta.get("tokens"),
        "text": meta.get("data"),
        "bytes": (files_of(folder) / WEIGHTS_NAME).stat().st_size,
        "quality": meta.get("quality"),
    }
    rows = (facts["quality"] or {}).get("schedules", [])
    words = {f"KL, period {row['period']}, {dropped_in(row)}": f"{row['kl']:.3f}" for row in rows}
    lines = {name: value for name, value in facts.items() if value is not None and name != "quality"} | words
    _print(args, facts, "\n".join(f"{name}: {_words(value)}" for name, value in lines.items()))


def verify_files(args: argparse.Namespace) -> None:
    """Run `verify`."""
    from lora_drop.adapters.bank import AdapterBank, files_of, read_card
    from lora_drop.adapters.card import check_card
    from lora_drop.adapters.hub import SUMS_NAME, bank_name, local_folder

    folder = local_folder(args.name)
    AdapterBank.load(folder)
    name, has_sums = bank_name(folder.resolve()), (files_of(folder) / SUMS_NAME).exists()
    check_card(read_card(folder), name)
    if not has_sums:
        note(f"{name} has no {SUMS_NAME}: a changed number would not be noticed.")
    _print(args, {"adapters": name, "checksums": has_sums}, f"{name}: the files and the card are in order.")


def _words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _print(args: argparse.Namespace, facts: dict[str, Any], text: str) -> None:
    print_json(facts) if args.json else print(text)
