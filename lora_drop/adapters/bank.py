"""A bank of corrections and the folder that keeps it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
from annotated_types import Ge
from pydantic import AfterValidator, BaseModel, ConfigDict, FiniteFloat, Strict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora_drop.adapters.card import card, check_card
from lora_drop.adapters.hub import (
    CARD_NAME,
    CONFIG_NAME,
    SUMS_NAME,
    WEIGHTS_NAME,
    bank_name,
    download,
    hub_name,
    upload,
)
from lora_drop.decode.correction import Correction
from lora_drop.decode.head import ScreenedHead
from lora_drop.errors import LoraDropError, first_mistake
from lora_drop.models.load import LoadedModel, ModelInfo, distance
from lora_drop.paths import PRESETS_NAME, drafted, sha256

CHECKPOINTS = ("checkpoint", "checkpoint.old")  # of `train --out`; a kill may leave the last good one in the second
CHECKPOINT_BANK = "adapter"  # a checkpoint's folder of the bank
# The farthest weights that a bank fits: Q4_1 rounding changes 9%, and Q4_0 of that is 13% off.
NEAR = 0.15
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def broken(name: str, why: str) -> LoraDropError:
    """The error for a damaged adapter folder, or repository of the Hub."""
    repair = "Put the folder's files back, train the bank again"
    if "@" in name:
        repair = "If its files are damaged here only, delete its folder in the Hub's cache and load it again"
    return LoraDropError(f"the adapters in {name} are broken: {why}. {repair}, or use adapters none.")


def files_of(folder: Path) -> Path:
    """Folder of a bank's files: the folder itself, or of the last checkpoint in it if `train --out` wrote it."""
    places = (folder, *(folder / name / CHECKPOINT_BANK for name in CHECKPOINTS))
    return next((place for place in places if os.path.exists(place / CONFIG_NAME)), folder)


def _different(layers: list[int]) -> list[int]:
    if len(set(layers)) != len(layers):
        raise ValueError("a layer is named twice")
    return layers


_Layers = Annotated[list[Annotated[int, Strict(), Ge(0)]], AfterValidator(_different)]


class HeadSizes(BaseModel):
    """The screened head's rank R, and for how many tokens it computes exact logits."""

    rank: int
    best: int


class BankConfig(BaseModel):
    """`lora_drop_config.json`. Further keys stay as they are (schedules, data, tokens, quality)."""

    model_config = ConfigDict(extra="allow")

    base_model_name_or_path: str = ""
    revision: str = ""
    sketch: str = ""
    num_layers: int = 0
    r: Annotated[int, Ge(1)]
    lora_alpha: FiniteFloat
    reuse: str
    part: str
    kv: str
    refresh: str = "single"
    layers: _Layers
    head: HeadSizes | None = None

    @classmethod
    def read(cls, folder: Path) -> BankConfig:
        """The config of an adapter folder, or of a training's. Raises LoraDropError if it is missing or broken."""
        try:
            return cls.model_validate_json((files_of(folder) / CONFIG_NAME).read_bytes())
        except OSError as error:
            raise _unreadable(folder, error) from None
        except ValidationError as error:
            raise broken(bank_name(folder), f"{CONFIG_NAME}, {first_mistake(error)}") from None


def _unreadable(folder: Path, error: OSError) -> LoraDropError:
    return LoraDropError(
        f"cannot read the adapters in {bank_name(folder)}: {error.strerror or 'a file is missing'} "
        f"(an adapter folder holds {WEIGHTS_NAME} and {CONFIG_NAME}; that of `train --out` will do once it has a "
        "checkpoint)."
    )


@dataclass(repr=False)
class AdapterBank(Correction):
    """Corrections for the layers of one model, with what they were trained for.

    Args:
        reuse: the reuse rule that the bank was trained for.
        part: what is skipped, `block` or `attention`, the same.
        kv: what LoRA steps write to skipped layers' caches, the same.
        refresh: the rule of full steps, the same.
        base_model: name of the model that it belongs to.
        revision: fingerprint of that model's weights.
        sketch: some of their elements, by which near weights are recognised (`models.load.sketch`).
        num_layers: that model's number of layers; 0 if unknown.
        meta: the further keys of the folder's config (schedules, data, tokens, quality).
    """

    reuse: str
    part: str = "block"
    kv: str = "skip"
    base_model: str = ""
    revision: str = ""
    num_layers: int = 0
    meta: dict[str, Any] = field(default_factory=dict)
    refresh: str = "single"
    sketch: str = ""

    @classmethod
    def new(
        cls, layers: list[int], hidden_size: int, rank: int = 16, alpha: float = 16.0, **rules: str
    ) -> AdapterBank:
        """A bank for the start of training: A small and random, B zero, g one, so that it changes nothing yet."""
        a = {i: torch.randn(rank, hidden_size) * hidden_size**-0.5 for i in layers}
        b = {i: torch.zeros(hidden_size, rank) for i in layers}
        fields: dict[str, Any] = {"reuse": "residual", **rules}
        return cls(a, b, {i: torch.ones(hidden_size) for i in layers}, alpha, **fields)

    def __repr__(self) -> str:
        about = f"{self.reuse}, {self.part}, kv {self.kv}, refresh {self.refresh}"
        return f"AdapterBank({self.base_model or 'no model'}: {len(self.a)} layers, rank {self.rank}, {about})"

    def check(self, loaded: LoadedModel | ModelInfo, name: str, reuse: str, part: str) -> str | None:
        """Refuse a bank that does not fit the model or the rule.

        Args:
            name: the bank's, for the messages.
            reuse: the run's.
            part: the run's.

        Returns:
            A warning if the bank fits but was trained on other weights (the Hub's original of a quantised model, a
            fine-tuned sister), else None.

        Raises:
            LoraDropError: the bank does not fit.
        """
        size, tokens, other = loaded.shape.hidden_size, loaded.shape.vocab_size, f"adapters {name} belong to another"
        last = max(self.layers, default=0)
        if (self.num_layers and self.num_layers != loaded.num_layers) or last >= loaded.num_layers:
            raise LoraDropError(
                f"{other} model: it has {self.num_layers or last + 1} layers, this one {loaded.num_layers}. Use the "
                "model that they were trained for, or adapters none."
            )
        expected = ((self.rank, size), (size, self.rank), (size,))
        fits = all((self.a[i].shape, self.b[i].shape, self.gate[i].shape) == expected for i in self.layers)
        if head := self.head:
            codes = len(head.codes) or tokens  # not made yet
            fits &= head.project.shape[1] == size and codes == tokens and head.best <= tokens
        if not fits:
            raise LoraDropError(
                f"{other} model: their tensors do not fit this one's hidden size {size} and vocabulary of {tokens}. "
                "Use the model that they were trained for, or adapters none."
            )
        if (self.reuse, self.part) != (reuse, part):
            raise LoraDropError(
                f"adapters {name} were trained for reuse {self.reuse}, part {self.part}; this run has reuse {reuse}, "
                f"part {part}: set the same, or adapters none."
            )
        if (apart := weights_apart(self, loaded)) == 0 or not self.revision:
            return None
        if apart <= NEAR:
            return (
                f"adapters {name} were trained on the weights of {self.base_model or 'another model'}, which are "
                f"{apart:.1%} from this model's: about what 4-bit rounding changes."
            )
        return (
            f"adapters {name} were trained on other weights ({self.base_model or 'unnamed'}, {self.revision}) "
            f"than this model's ({loaded.revision}): expect them to correct less."
        )

    def save(self, folder: str | Path) -> None:
        """Write the files of the adapter folder: all of them or none. A card that is there stays.

        Raises:
            LoraDropError: they cannot be written.
        """
        folder = Path(folder)
        tensors = {}
        for i in self.layers:
            tensors[f"layers.{i}.lora_A.weight"] = self.a[i]
            tensors[f"layers.{i}.lora_B.weight"] = self.b[i]
            tensors[f"layers.{i}.gate"] = self.gate[i]
        if (head := self.head) is not None:
            tensors["head.project"] = head.project
            if head.lift is not None:  # much smaller than the codes, which `preview` makes again
                tensors["head.lift"] = head.lift
            else:
                tensors |= {"head.codes": head.packed(), "head.scale": head.scale.half()}
        config = {
            **self.meta,
            "base_model_name_or_path": self.base_model,
            "revision": self.revision,
            **({"sketch": self.sketch} if self.sketch else {}),
            "num_layers": self.num_layers,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "reuse": self.reuse,
            "part": self.part,
            "kv": self.kv,
            "refresh": self.refresh,
            "layers": self.layers,
            **({"head": {"rank": self.head.rank, "best": self.head.best}} if self.head else {}),
        }
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        names = [SUMS_NAME, WEIGHTS_NAME, CONFIG_NAME]  # the sums first: then a kill between two renames is noticed
        names += [] if (folder / CARD_NAME).exists() else [CARD_NAME]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with drafted(*(folder / name for name in names)) as (sums, weights, draft, *new_card):
                for path in new_card:
                    path.write_bytes(card(self).encode("utf-8", "replace"))
                save_file({name: t.contiguous() for name, t in tensors.items()}, weights)
                draft.write_bytes(text.encode("utf-8", "replace"))  # names of files need not be UTF-8
                sums.write_text(f"{sha256(weights)}  {WEIGHTS_NAME}\n{sha256(draft)}  {CONFIG_NAME}\n")
        except (OSError, SafetensorError) as error:  # safetensors' for a full disk
            raise LoraDropError(f"the adapters cannot be written to {folder.name}: {error}") from None

    def save_pretrained(self, folder: str | Path) -> None:
        """`save` by the name that transformers' users know, beside `from_pretrained`."""
        self.save(folder)

    @classmethod
    def load(cls, folder: str | Path) -> AdapterBank:
        """Read an adapter folder, or the last checkpoint of a training's.

        Raises:
            LoraDropError: a file is missing, broken, differs from its checksum or from its config's shapes, or holds
                NaN or no floats, or a part that is no longer supported.
        """
        folder = Path(folder)
        config = BankConfig.read(folder)
        for part in ("mlp", "kept"):
            if (config.model_extra or {}).get(f"{part}_layers"):
                raise LoraDropError(
                    f"the adapters in {bank_name(folder)} hold the part {part}, which is no longer supported: train "
                    "them again, or use adapters none."
                )
        try:
            tensors = _Tensors(load_file(files_of(folder) / WEIGHTS_NAME))
            a = {i: tensors[f"layers.{i}.lora_A.weight"] for i in config.layers}
            b = {i: tensors[f"layers.{i}.lora_B.weight"] for i in config.layers}
            gate = {i: tensors[f"layers.{i}.gate"] for i in config.layers}
            head = _read_head(config, tensors)
        except OSError as error:
            raise _unreadable(folder, error) from None
        except (SafetensorError, ValueError) as error:
            raise broken(bank_name(folder), f"{WEIGHTS_NAME}, {error}") from None
        faults = (_layer_fault(i, a[i], b[i], gate[i], config.r) for i in config.layers)
        if fault := next(filter(None, faults), None) or _head_fault(head):
            raise broken(bank_name(folder), fault)
        _check_sums(files_of(folder), bank_name(folder))
        return cls(
            *(a, b, gate, config.lora_alpha, config.reuse, config.part, config.kv),
            *(config.base_model_name_or_path, config.revision, config.num_layers, config.model_extra or {}),
            *(config.refresh, config.sketch),
            head=head,
        )

    @classmethod
    def from_pretrained(cls, name: str | Path, revision: str | None = None) -> AdapterBank:
        """Read adapters from a repository of the Hub, or from a folder, which comes first.

        Args:
            name: `USER/REPO`, `USER/REPO@REVISION` or a folder.
            revision: branch, tag or commit, in place of the name's; of a folder it is an error.

        Raises:
            LoraDropError: see `hub.download` and `load`.
        """
        if hub_name(str(name)):
            return cls.load(download(str(name), revision))
        if revision:
            raise LoraDropError(f"{str(name)[:80]!r} is no repository USER/REPO, so it has no revision: leave it out.")
        return cls.load(name)

    def push_to_hub(self, name: str, private: bool | None = None) -> str:
        """Commit the bank and its card to a repository of the Hub; returns the commit's address.

        The card takes its base model from `base_model` and its licence from `meta["license"]`.

        Args:
            name: `USER/REPO`, which is made if it is missing, or `USER/REPO@BRANCH`.
            private: of a new repository; None is the account's default.

        Raises:
            LoraDropError: the card lacks one of them, or the Hub refuses.
        """
        with TemporaryDirectory() as folder:
            self.save(folder)
            return push_folder(Path(folder), name, private)


def weights_apart(bank: AdapterBank | BankConfig, loaded: LoadedModel | ModelInfo) -> float:
    """The relative distance of a model's weights from those of a bank's training; infinity if it is unknown."""
    return 0.0 if bank.revision == loaded.revision else distance(bank.sketch, loaded.sketch)


def push_folder(folder: Path, name: str, private: bool | None = None) -> str:
    """Commit an adapter folder, or a training's last checkpoint, as `AdapterBank.push_to_hub` does.

    Raises:
        LoraDropError: the bank or its card is broken, or the Hub refuses.
    """
    bank = AdapterBank.load(folder)
    text = read_card(folder) or card(bank)
    check_card(text, name)
    paths = [*(files_of(folder) / file for file in (WEIGHTS_NAME, CONFIG_NAME, SUMS_NAME)), folder / PRESETS_NAME]
    return upload({CARD_NAME: text.encode(), **{path.name: path for path in paths if path.exists()}}, name, private)


def read_card(folder: Path) -> str:
    """The text of a bank's card; empty without one. Raises LoraDropError if it cannot be read."""
    try:
        return (files_of(folder) / CARD_NAME).read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise broken(bank_name(folder), f"{CARD_NAME} cannot be read ({error})") from None


class _Tensors(dict[str, Tensor]):
    def __missing__(self, name: str) -> Tensor:
        raise ValueError(f"no tensor {name}")


def _check_sums(folder: Path, name: str) -> None:
    """Raise LoraDropError where a file differs from the folder's checksums, if it has any; `name` is for the line."""
    if not (folder / SUMS_NAME).exists():
        return
    try:
        sums = (folder / SUMS_NAME).read_text(encoding="utf-8").splitlines()
        other = [name for name in (WEIGHTS_NAME, CONFIG_NAME) if f"{sha256(folder / name)}  {name}" not in sums]
    except (OSError, UnicodeDecodeError) as error:
        raise broken(name, f"{SUMS_NAME} cannot be read ({error})") from None
    if other:
        raise broken(name, f"{other[0]} differs from {SUMS_NAME} (if you changed it, delete {SUMS_NAME})")


def _read_head(config: BankConfig, tensors: _Tensors) -> ScreenedHead | None:
    """The screened head, if a config has one. Raises ValueError."""
    if config.head is None:
        return None
    if "head.lift" in tensors:
        return ScreenedHead.without_codes(tensors["head.project"], tensors["head.lift"], config.head.best)
    project, packed, scale = (tensors[f"head.{name}"] for name in ("project", "codes", "scale"))
    return ScreenedHead.unpacked(project, packed, scale.float(), config.head.best)


def _are_finite(*tensors: Tensor) -> bool:
    """As bfloat16, which a run may use: float64 reaches further."""
    return all(bool(tensor.to(torch.bfloat16).isfinite().all()) for tensor in tensors)


def _layer_fault(layer: int, a: Tensor, b: Tensor, gate: Tensor, rank: int) -> str | None:
    """What is wrong with a layer's tensors, or None."""
    if odd := [tensor.dtype for tensor in (a, b, gate) if tensor.dtype not in _DTYPES]:
        names = [str(dtype).removeprefix("torch.") for dtype in (odd[0], *_DTYPES)]
        return f"layer {layer} holds {names[0]} numbers, not {', '.join(names[1:])}"
    if a.dim() != 2 or a.shape[0] != rank:
        return f"layer {layer} has A {tuple(a.shape)}, not of rank {rank}"
    return None if _are_finite(a, b, gate) else f"layer {layer} holds NaN or infinity"


def _head_fault(head: ScreenedHead | None) -> str | None:
    """What is wrong with the tensors of a screened head, or None."""
    if head is None:
        return None
    numbers, most = (head.scale, len(head.codes)) if head.lift is None else (head.lift, head.best)
    if not (head.project.isfinite().all() and numbers.isfinite().all() and 1 <= head.best <= most):
        return "the screened head holds NaN, infinity or more tokens than its vocabulary"
    return None
