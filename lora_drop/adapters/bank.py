"""A bank of corrections and the folder that keeps it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora_drop.decode import Correction
from lora_drop.errors import LoraDropError

WEIGHTS_NAME = "adapter_model.safetensors"
CONFIG_NAME = "lora_drop_config.json"
_CONFIG_KEYS = (
    *("base_model_name_or_path", "revision", "num_layers"),
    *("r", "lora_alpha", "reuse", "part", "kv", "layers"),
)
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def broken(name: str, why: str) -> LoraDropError:
    """The one line for an adapter folder that is damaged."""
    return LoraDropError(
        f"the adapters in {name} are broken: {why}. Put the folder's files back, train the bank again, or use "
        "adapters none."
    )


def _layers(values: Any) -> list[int]:
    """The layers that a config names; anything else than different whole numbers is a ValueError."""
    if not isinstance(values, list) or [type(value) for value in values] != [int] * len(values):
        raise ValueError("layers are no list of whole numbers")
    if len(set(values)) != len(values) or min(values, default=0) < 0:
        raise ValueError("layers name one twice, or one below 0")
    return values


@dataclass
class AdapterBank(Correction):
    """Corrections for the layers of one model, with what they were trained for.

    Args:
        reuse, part, kv: the rules that the bank was trained for.
        base_model, revision: the model that it belongs to, by name and by the fingerprint of its weights.
        num_layers: how many layers that model has; 0 if not known.
        meta: whatever else the folder's config says (schedules, data, tokens, quality).
    """

    reuse: str
    part: str = "block"
    kv: str = "skip"
    base_model: str = ""
    revision: str = ""
    num_layers: int = 0
    meta: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def new(
        cls, layers: list[int], hidden_size: int, rank: int = 16, alpha: float = 16.0, **rules: str
    ) -> AdapterBank:
        """A bank as training starts from: A small and random, B zero, g one, so that it changes nothing yet."""
        a = {i: torch.randn(rank, hidden_size) * hidden_size**-0.5 for i in layers}
        b = {i: torch.zeros(hidden_size, rank) for i in layers}
        given: dict[str, Any] = {"reuse": "residual", **rules}
        return cls(a, b, {i: torch.ones(hidden_size) for i in layers}, alpha, **given)

    def check(
        self, *, num_layers: int, hidden_size: int, revision: str, reuse: str, part: str, name: str
    ) -> str | None:
        """Refuse a bank that does not fit the model or the rule; `name` is the bank's, for the messages.

        Returns:
            A warning if the bank fits but was trained on other weights (the hub's original of a quantised model, a
            fine-tuned sister), else None.

        Raises:
            LoraDropError: says what differs.
        """
        if (self.num_layers and self.num_layers != num_layers) or (self.layers and self.layers[-1] >= num_layers):
            raise LoraDropError(
                f"adapters {name} belong to another model: it has {self.num_layers or self.layers[-1] + 1} layers, "
                f"this one {num_layers}. Use the model that they were trained for, or adapters none."
            )
        for i in self.layers:
            shapes = (tuple(self.a[i].shape), tuple(self.b[i].shape), tuple(self.gate[i].shape))
            if shapes != ((self.rank, hidden_size), (hidden_size, self.rank), (hidden_size,)):
                raise LoraDropError(
                    f"adapters {name} belong to another model: layer {i} has shapes {shapes}, which do not fit rank "
                    f"{self.rank} and this model's hidden size {hidden_size}. Use their model, or adapters none."
                )
        if (self.reuse, self.part) != (reuse, part):
            raise LoraDropError(
                f"adapters {name} were trained for reuse {self.reuse}, part {self.part}; this run has reuse {reuse}, "
                f"part {part}: set the same, or adapters none."
            )
        if self.revision and self.revision != revision:
            return (
                f"adapters {name} were trained on other weights ({self.base_model or 'unnamed'}, {self.revision}) "
                f"than this model's ({revision}): expect them to correct less."
            )
        return None

    def save(self, folder: str | Path) -> None:
        """Write the two files of the adapter folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {}
        for i in self.layers:
            tensors[f"layers.{i}.lora_A.weight"] = self.a[i].contiguous()
            tensors[f"layers.{i}.lora_B.weight"] = self.b[i].contiguous()
            tensors[f"layers.{i}.gate"] = self.gate[i].contiguous()
        save_file(tensors, folder / WEIGHTS_NAME)
        config = {
            **self.meta,
            "base_model_name_or_path": self.base_model,
            "revision": self.revision,
            "num_layers": self.num_layers,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "reuse": self.reuse,
            "part": self.part,
            "kv": self.kv,
            "layers": self.layers,
        }
        (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> AdapterBank:
        """Read an adapter folder.

        Raises:
            LoraDropError: a file is missing, broken, of other shapes than its config says, or holds NaN or no floats.
        """
        folder = Path(folder)
        name = folder.name
        try:
            config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
            tensors = load_file(folder / WEIGHTS_NAME)
            layers, rank = _layers(config["layers"]), int(config["r"])
            a = {i: tensors[f"layers.{i}.lora_A.weight"] for i in layers}
            b = {i: tensors[f"layers.{i}.lora_B.weight"] for i in layers}
            gate = {i: tensors[f"layers.{i}.gate"] for i in layers}
            alpha, reuse, part, kv = float(config["lora_alpha"]), config["reuse"], config["part"], config["kv"]
            num_layers = int(config.get("num_layers", 0))
        except OSError as error:
            raise LoraDropError(
                f"cannot read the adapters in {name}: {error.strerror or 'a file is missing'} "
                f"(an adapter folder holds {WEIGHTS_NAME} and {CONFIG_NAME})."
            ) from None
        except (SafetensorError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise broken(name, f"{type(error).__name__}: {error}") from None
        if rank < 1 or not math.isfinite(alpha):
            raise broken(name, f"rank {rank}, lora_alpha {alpha}")
        for i in layers:
            if why := _fault(a[i], b[i], gate[i], rank):
                raise broken(name, f"layer {i} {why}")
        meta = {k: v for k, v in config.items() if k not in _CONFIG_KEYS}
        base, revision = str(config.get("base_model_name_or_path", "")), str(config.get("revision", ""))
        return cls(a, b, gate, alpha, reuse, part, kv, base, revision, num_layers, meta)


def _fault(a: Tensor, b: Tensor, gate: Tensor, rank: int) -> str | None:
    """What is wrong with a layer's tensors; None where nothing is."""
    names = {tensor.dtype: str(tensor.dtype).removeprefix("torch.") for tensor in (a, b, gate)}
    if odd := [name for dtype, name in names.items() if dtype not in _DTYPES]:
        kinds = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES)
        return f"holds {odd[0]} numbers, not {kinds}"
    if a.dim() != 2 or a.shape[0] != rank:
        return f"has A {tuple(a.shape)}, not of rank {rank}"
    # As bfloat16, which a run may use: float64 reaches further.
    if not all(tensor.to(torch.bfloat16).isfinite().all() for tensor in (a, b, gate)):
        return "holds NaN or infinity"
    return None
