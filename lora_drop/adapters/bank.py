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

from lora_drop.decode.correction import PROJECTIONS, Correction
from lora_drop.decode.head import ScreenedHead
from lora_drop.errors import LoraDropError
from lora_drop.paths import drafted, sha256

WEIGHTS_NAME = "adapter_model.safetensors"
CONFIG_NAME = "lora_drop_config.json"
SUMS_NAME = "SHA256SUMS"  # of the two, as `sha256sum -c` reads them; an older folder has none
_CONFIG_KEYS = (
    *("base_model_name_or_path", "revision", "num_layers"),
    *("r", "lora_alpha", "reuse", "part", "kv", "refresh", "layers"),
    *("mlp_width", "mlp_layers", "kept_rank", "kept_layers", "head"),
)
_BOTTLENECK = ("gate_up", "down")  # tensors of a layer's `mlp` part
_HEAD = ("project", "codes", "scale")  # tensors of the screened head
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
        reuse, part, kv, refresh: the rules that the bank was trained for.
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
    refresh: str = "single"

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
        self,
        *,
        num_layers: int,
        hidden_size: int,
        revision: str,
        reuse: str,
        part: str,
        name: str,
        vocab_size: int = 0,
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
        sizes = {down.shape[0] for _, down in self.mlp.values()} | {
            gate_up.shape[1] for gate_up, _ in self.mlp.values()
        }
        sizes |= {size for pairs in self.kept.values() for name in ("qkv", "gate_up") for size in _inner(pairs, name)}
        if self.head is not None:
            sizes.add(self.head.project.shape[1])
        beyond = max([*self.mlp, *self.kept], default=0) >= num_layers
        if sizes - {hidden_size} or beyond or (vocab_size and self.head and len(self.head.codes) != vocab_size):
            raise LoraDropError(
                f"adapters {name} belong to another model: one of their parts, or their screened head, does not fit "
                f"this one's {num_layers} layers, hidden size {hidden_size} and vocabulary. Use their model, or "
                "adapters none."
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
        """Write the files of the adapter folder: all of them or none.

        Raises:
            LoraDropError: they cannot be written.
        """
        folder = Path(folder)
        tensors = {}
        for i in self.layers:
            tensors[f"layers.{i}.lora_A.weight"] = self.a[i]
            tensors[f"layers.{i}.lora_B.weight"] = self.b[i]
            tensors[f"layers.{i}.gate"] = self.gate[i]
        for i, pair in self.mlp.items():
            tensors |= {f"layers.{i}.mlp.{name}.weight": t for name, t in zip(_BOTTLENECK, pair, strict=True)}
        for i, projections in self.kept.items():
            for name, (a, b) in projections.items():
                tensors |= {f"layers.{i}.{name}_proj.lora_A.weight": a, f"layers.{i}.{name}_proj.lora_B.weight": b}
        if self.head is not None:
            tensors |= {"head.project": self.head.project, "head.codes": self.head.packed()}
            tensors["head.scale"] = self.head.scale.half()
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
            "refresh": self.refresh,
            "layers": self.layers,
            **({"mlp_width": self.mlp_width, "mlp_layers": sorted(self.mlp)} if self.mlp else {}),
            **({"kept_rank": self.kept_rank, "kept_layers": sorted(self.kept)} if self.kept else {}),
            **({"head": {"rank": self.head.rank, "best": self.head.best}} if self.head else {}),
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # The sums first: a kill between two renames is seen.
            with drafted(*(folder / name for name in (SUMS_NAME, WEIGHTS_NAME, CONFIG_NAME))) as (sums, weights, text):
                save_file({name: t.contiguous() for name, t in tensors.items()}, weights)
                text.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
                sums.write_text(f"{sha256(weights)}  {WEIGHTS_NAME}\n{sha256(text)}  {CONFIG_NAME}\n")
        except (OSError, SafetensorError) as error:  # so safetensors reports a full disk
            raise LoraDropError(f"the adapters cannot be written to {folder.name}: {error}") from None

    @classmethod
    def load(cls, folder: str | Path) -> AdapterBank:
        """Read an adapter folder.

        Raises:
            LoraDropError: a file is missing, broken, not what its checksum says, of other shapes than its config
                says, or holds NaN or no floats.
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
            num_layers, refresh = int(config.get("num_layers", 0)), str(config.get("refresh", "single"))
            parts = _read_parts(config, tensors)
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
        if why := _parts_fault(parts):
            raise broken(name, why)
        _check_sums(folder)
        meta = {k: v for k, v in config.items() if k not in _CONFIG_KEYS}
        base, revision = str(config.get("base_model_name_or_path", "")), str(config.get("revision", ""))
        return cls(a, b, gate, alpha, reuse, part, kv, base, revision, num_layers, meta, refresh, **parts)


def _check_sums(folder: Path) -> None:
    """Raises LoraDropError where a file is not what the folder's checksums say, if it has any."""
    if not (folder / SUMS_NAME).exists():
        return
    try:
        sums = (folder / SUMS_NAME).read_text(encoding="utf-8").splitlines()
        other = [name for name in (WEIGHTS_NAME, CONFIG_NAME) if f"{sha256(folder / name)}  {name}" not in sums]
    except (OSError, UnicodeDecodeError) as error:
        raise broken(folder.name, f"{SUMS_NAME} cannot be read ({error})") from None
    if other:
        raise broken(folder.name, f"{other[0]} is not what {SUMS_NAME} says (if you changed it, delete {SUMS_NAME})")


def _read_parts(config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The parts beyond `linear` that a config names, as arguments of `Correction`. Raises KeyError, ValueError."""
    mlp = {
        i: tuple(tensors[f"layers.{i}.mlp.{name}.weight"] for name in _BOTTLENECK)
        for i in _layers(config.get("mlp_layers", []))
    }
    kept = {
        i: {
            name: tuple(tensors[f"layers.{i}.{name}_proj.lora_{side}.weight"] for side in "AB")
            for name in PROJECTIONS
            if f"layers.{i}.{name}_proj.lora_A.weight" in tensors
        }
        for i in _layers(config.get("kept_layers", []))
    }
    if "head" not in config:
        return {"mlp": mlp, "kept": kept}
    project, packed, scale = (tensors[f"head.{name}"] for name in _HEAD)
    head = ScreenedHead.unpacked(project, packed, scale.float(), int(config["head"]["best"]))
    return {"mlp": mlp, "kept": kept, "head": head}


def _parts_fault(parts: dict[str, Any]) -> str | None:
    """What is wrong with the tensors of the parts beyond `linear`; None where nothing is."""
    low_rank = [(i, pair) for i, projections in parts["kept"].items() for pair in projections.values()]
    for i, (first, second) in [*low_rank, *parts["mlp"].items()]:
        if first.dtype not in _DTYPES or second.dtype not in _DTYPES or first.dim() != 2 or second.dim() != 2:
            return f"layer {i} has a part that is no pair of matrices of numbers"
        if not all(tensor.to(torch.bfloat16).isfinite().all() for tensor in (first, second)):
            return f"layer {i} has a part with NaN or infinity"
    shapes = {first.shape[0] for _, (first, _) in low_rank} | {second.shape[1] for _, (_, second) in low_rank}
    widths = {width for first, second in parts["mlp"].values() for width in (first.shape[0], 2 * second.shape[1])}
    if len(shapes) > 1 or len(widths) > 1:
        return "a part has layers of different rank or width"
    head = parts.get("head")
    if head is None:
        return None
    if not (head.project.isfinite().all() and head.scale.isfinite().all() and 1 <= head.best <= len(head.codes)):
        return "the screened head holds NaN, infinity or a number of tokens that it lacks"
    return None


def _inner(pairs: dict[str, Any], name: str) -> list[int]:
    """The input's size of a kept layer's projection, if it has one."""
    return [pairs[name][0].shape[1]] if name in pairs else []


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
