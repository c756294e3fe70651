"""`adapters`: trained corrections on the Hub, and what a folder of them holds."""

from __future__ import annotations

import argparse

from lora_drop.cli.arguments import Commands, add_command
from lora_drop.cli.output import note, print_result


def add(commands: Commands) -> None:
    """Add the options of the four actions."""
    parser = commands.add_parser("adapters", help="pull, push, show or verify adapters of the Hub", allow_abbrev=False)
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    pull = add_command(actions, "pull", pull_files, "fetch adapters from the Hub, and print their folder")
    push = add_command(actions, "push", push_files, "commit an adapter folder, with its card, to the Hub")
    show = add_command(actions, "show", show_card, "the card: what adapters were trained for, and on")
    verify = add_command(actions, "verify", verify_files, "check the files, their checksums and the card")
    pull.add_argument("name", metavar="USER/REPO", help="or USER/REPO@REVISION: a branch, a tag or a commit")
    push.add_path("folder", "DIR", "an adapter folder, or that of `train --out`")
    push.add_argument("name", metavar="USER/REPO", help="made if it is missing; or USER/REPO@BRANCH")
    push.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    for parser in (show, verify):
        parser.add_argument("name", metavar="NAME", help="an adapter folder, USER/REPO or USER/REPO@REVISION")


def pull_files(args: argparse.Namespace) -> None:
    """Run `pull`."""
    from lora_drop.adapters.bank import AdapterBank
    from lora_drop.adapters.hub import bank_name, download

    folder = download(args.name)
    AdapterBank.load(folder)
    print_result(args, {"adapters": bank_name(folder), "folder": str(folder)}, lambda: print(folder))


def push_files(args: argparse.Namespace) -> None:
    """Run `push`."""
    from lora_drop.adapters.bank import push_folder

    address = push_folder(args.folder, args.name, args.private)
    print_result(args, {"commit": address}, lambda: print(address))


def show_card(args: argparse.Namespace) -> None:
    """Run `show`."""
    from lora_drop.adapters.bank import AdapterBank, BankConfig, read_card
    from lora_drop.adapters.card import card
    from lora_drop.adapters.hub import bank_name, local_folder

    folder = local_folder(args.name)
    facts = {"adapters": bank_name(folder.resolve()), **BankConfig.read(folder).model_dump()}
    print_result(args, facts, lambda: print(read_card(folder) or card(AdapterBank.load(folder))))


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
    result = {"adapters": name, "checksums": has_sums}
    print_result(args, result, lambda: print(f"{name}: the files and the card are in order."))
