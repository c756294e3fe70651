"""Options that commands share, and their values."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_drop.cli.output import note
from lora_drop.errors import LineParser, LoraDropError
from lora_drop.method.fields import SCHEDULE, Setting
from lora_drop.method.kinds import Choice, Flag
from lora_drop.method.presets import PRESETS, config_from
from lora_drop.method.settings import BY_NAME, settings_of

if TYPE_CHECKING:
    from lora_drop.evaluation.measure.pairs import PromptSet
    from lora_drop.method.config import LoraDropConfig
    from lora_drop.models.load import LoadedModel

Commands = Any  # what `ArgumentParser.add_subparsers` returns: argparse has no public name for it
Run = Callable[[argparse.Namespace], int | None]


class Parser(LineParser):
    """A command's parser, with the options that commands share."""

    def add_path(self, name: str, metavar: str, help: str | None = None, **more: Any) -> None:
        """Add an option or an argument that is a path."""
        self.add_argument(name, type=parse_path, metavar=metavar, help=help, **more)

    def add_out(self, help: str) -> None:
        """Add the folder that a command writes to."""
        self.add_path("--out", "DIR", help, required=True)

    def add_model_options(self) -> None:
        """Add the model, device and dtype options; `load` reads them."""
        self.add_argument("--model", default="bundled", help=f"{BY_NAME['model'].help} (default bundled)")
        self.add_argument("--device", default="auto", help="auto (default), cpu, cuda")
        self.add_argument("--dtype", default="auto", help="auto (default), float32, bfloat16")

    def add_data_options(self, required: bool = True) -> None:
        """Add the options that name prompt and target pairs; `read_data` reads them."""
        self.add_path("--data", "FILE.jsonl", required=required)
        self.add_argument("--prompt-field", required=required, metavar="NAME")
        self.add_argument("--target-field", required=required, metavar="NAME")
        self.add_argument("--limit", type=int, help="only the first N records")
        self.add_argument("--context-tokens", type=int, help="keep only the prompt's last N tokens")

    def add_prompt_options(self) -> None:
        """Add the options that name the prompts of a measurement; `read_measured` reads them."""
        self.add_path("--data", "FILE.jsonl", "prompts (default the 96 that figures are reported on)")
        self.add_argument("--prompt-field", default="prompt", metavar="NAME", help="of --data (default prompt)")
        self.add_argument("--limit", type=int, metavar="N", help="only the first N prompts (default all)")

    def add_config_options(self) -> None:
        """Add the settings of `LoraDropConfig`, and a preset; unset ones are the preset's, or the defaults."""
        self.add_argument("--preset", help=f"{BY_NAME['preset'].help}: {', '.join(PRESETS)}")
        self.add_settings(settings_of(SCHEDULE), unset=True)

    def add_settings(self, settings: Iterable[Setting], unset: bool = False) -> None:
        """Add a flag for each setting. With `unset` its default is None, so that a preset can have the value.

        The config checks words, ranges and bounds, so that every way in has the same errors.
        """
        for setting in settings:
            default = None if unset else setting.default
            help_ = f"{setting.help}{_default(setting)}".replace("%", "%%")
            if isinstance(setting.kind, Flag):
                self.add_argument(setting.flag, action=argparse.BooleanOptionalAction, default=default, help=help_)
            else:
                self.add_argument(
                    setting.flag, type=setting.kind.python, default=default, metavar=setting.metavar, help=help_
                )

    def add_reading_options(self) -> None:
        """Add the options that say how to read text files."""
        self.add_argument(
            "--chat",
            nargs="+",
            default=[],
            metavar="PROMPT:TARGET",
            help="fields of json and jsonl records that make a turn of chat, through the chat template; PROMPT may "
            "join several with +, a dot leads deeper: question:answer "
            "instruction+instances.0.input:instances.0.output",
        )
        self.add_argument(
            "--file-tokens", type=int, metavar="N", help="at most about N tokens of each file, from its beginning"
        )


def add_command(commands: Commands, name: str, run: Run, help: str, json: bool = True, **more: Any) -> Parser:
    """Add a command's parser, with the option `--json`; `run` does its work."""
    parser: Parser = commands.add_parser(name, help=help, allow_abbrev=False, **more)
    parser.set_defaults(command=run)
    if json:
        parser.add_argument("--json", action="store_true", help="one JSON object on stdout, for other programs")
    return parser


def parse_path(text: str) -> Path:
    """A path of the command line, which need not exist.

    Raises:
        argparse.ArgumentTypeError: the name is too long, or in a folder that this user may not read.
    """
    try:
        os.lstat(text)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # a null byte is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise argparse.ArgumentTypeError(f"cannot use the path {text[:80]!r}: {reason}") from None
    return Path(text)


def load(args: argparse.Namespace, with_numbers: bool = False) -> LoadedModel:
    """Load the model that the model options name; `with_numbers` as in `load_model`.

    Raises:
        LoraDropError: see `load_model`.
    """
    from lora_drop.models.load import load_model  # torch and transformers load only when a model is needed

    return load_model(args.model, args.device, args.dtype, with_numbers)


def load_with_config(args: argparse.Namespace, with_numbers: bool = False) -> tuple[LoadedModel, LoraDropConfig]:
    """Load the model and read the config for its weights.

    Without a preset a named bank's settings take the place of the defaults.

    Raises:
        LoraDropError: see `load_model`, `config_from` and `bank_settings`.
    """
    loaded = load(args, with_numbers)
    from lora_drop.adapters.find import bank_settings
    from lora_drop.run.results.bank_presets import presets_of

    settings = {} if args.preset else bank_settings(args.adapters)
    if settings:
        note(
            f"settings of adapters {args.adapters}: " + ", ".join(f"{name} {text}" for name, text in settings.items())
        )
    return loaded, config_from(vars(args), presets_of(loaded, args.adapters), settings)


def read_data(args: argparse.Namespace) -> list[tuple[str, str]]:
    """Read the pairs that the data options name.

    Raises:
        LoraDropError: a limit below 1, or see `pairs.read_pairs`.
    """
    _check_limits(args)
    from lora_drop.evaluation.measure.pairs import read_pairs

    return list(read_pairs(args.data, args.prompt_field, args.target_field, args.limit))


def read_data_prompts(args: argparse.Namespace) -> list[str]:
    """Read the prompts that the data options name, by default in the field `prompt`; without a file the shipped ones.

    Raises:
        LoraDropError: a limit below 1, or see `pairs.read_prompts`.
    """
    _check_limits(args)
    from lora_drop.evaluation.measure.pairs import read_prompts
    from lora_drop.run.results.prompts import HELD_OUT

    if args.data is None:
        return list(HELD_OUT[: args.limit])
    return read_prompts(args.data, args.prompt_field or "prompt", args.limit)


def read_measured(args: argparse.Namespace) -> PromptSet:
    """Read the prompts that `add_prompt_options` name. Raises LoraDropError: see `read_data_prompts`."""
    _check_limits(args)
    from lora_drop.evaluation.measure.pairs import read_prompt_set
    from lora_drop.paths import REPORT_PROMPTS

    return read_prompt_set(args.data or REPORT_PROMPTS, args.prompt_field, args.limit)


def _check_limits(args: argparse.Namespace) -> None:
    for name in ("limit", "context_tokens"):
        value = getattr(args, name, None)
        if value is not None and value < 1:
            raise LoraDropError(f"--{name.replace('_', '-')} must be at least 1, got {value}.")


def data_source(args: argparse.Namespace) -> dict[str, Any]:
    """The data options as a file of results holds them."""
    options = {name: getattr(args, name) for name in ("prompt_field", "target_field", "limit")}
    return {"file": args.data.name} | options


def read_settings(args: argparse.Namespace, settings: Iterable[Setting]) -> dict[str, Any]:
    """Read the values of these settings' flags.

    Raises:
        LoraDropError: a text that cannot be read.
    """
    return {setting.name: setting.read(getattr(args, setting.name)) for setting in settings}


def _default(setting: Setting) -> str:
    words = f": {', '.join(setting.kind.words)}" if isinstance(setting.kind, Choice) else ""
    return words if setting.default is None else f"{words} (default {setting.kind.write(setting.default)})"
