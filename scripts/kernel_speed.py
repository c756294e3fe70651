"""The wheel's kernels beside the local build of the same path: `python -m scripts.kernel_speed [PATH ...]`.

The bundled model; the two take turns, and figures are medians of ten rounds, in milliseconds inside C.
"""

from __future__ import annotations

import statistics
import sys
from unittest import mock

import torch

from lora_drop.decode.native import decoder, loader
from lora_drop.decode.native.decoder import NativeDecoder
from lora_drop.method.config import LoraDropConfig
from lora_drop.models.load import load_model
from lora_drop.paths import cache_dir

ROUNDS, STEPS = 10, 24
TEXT = torch.arange(1000, 1064)[None]


def time_passes(native: NativeDecoder) -> dict[str, float]:
    """Median milliseconds of each kind of pass."""
    times: dict[str, list[float]] = {"full step": [], "LoRA step": [], "repair of 4 rows": [], "prompt of 512": []}
    for config in (LoraDropConfig(period=1), LoraDropConfig(drop_ratio=0.5, refresh="repair", kv="write")):
        state = native.new_state(config.schedule_for(native.num_layers))
        native.prefill(TEXT, state)
        for at in range(STEPS):
            before = native.kernel_ms
            rows = native.step(TEXT[:, at : at + 1], state).rows
            kind = (
                "full step" if config.period == 1 else "LoRA step" if (at + 1) % config.period else "repair of 4 rows"
            )
            assert rows == (4 if kind.startswith("repair") else 1)
            times[kind].append(native.kernel_ms - before)
    before = native.kernel_ms
    native.prefill(TEXT.repeat(1, 8), native.new_state(LoraDropConfig(period=1).schedule_for(native.num_layers)))
    times["prompt of 512"].append(native.kernel_ms - before)
    return {kind: statistics.median(ms) for kind, ms in times.items()}


def main() -> None:
    """Compare the paths that are named, or all that this processor has."""
    loaded, wheel = load_model(device="cpu"), loader.built_for_wheels() / loader.library_name()
    able = loader.bind(wheel, loader.BEST).ld_paths().decode().split()
    for path in sys.argv[1:] or able:
        local = loader.build(loader.find_compiler(), cache_dir() / "native", loader.PATHS[path])
        rounds: dict[str, list[dict[str, float]]] = {}
        decoders: dict[str, NativeDecoder] = {}
        for library in filter(None, (local, loader.bind(wheel, path))):
            with mock.patch.object(decoder, "compiled", return_value=library):
                native = loaded.new_decoder()
            assert isinstance(native, NativeDecoder)
            decoders[library.about] = native
        for _ in range(ROUNDS + 1):
            for name, native in decoders.items():
                rounds.setdefault(name, []).append(time_passes(native))
        here, there = (rows[1:] for rows in rounds.values())  # the first warms up
        for kind in here[0]:
            both = [statistics.median(row[kind] for row in rows) for rows in (here, there)]
            print(
                f"{path:18} {kind:18} here {both[0]:7.3f}  wheel {both[1]:7.3f}  ratio {both[1] / both[0]:.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
