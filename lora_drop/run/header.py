"""The first record of a run: lanes, model, device, prompt and settings."""

from __future__ import annotations

import dataclasses
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from lora_drop.adapters.find import config_fingerprint
from lora_drop.decode.reference import Decoder
from lora_drop.method.cost import ModelShape
from lora_drop.method.fields import RUN
from lora_drop.method.settings import settings_of
from lora_drop.models.load import LoadedModel
from lora_drop.models.place import describe_device
from lora_drop.run.request import LanePlan, Plan, Request
from lora_drop.run.trace.records import BASELINE, Header

# Settings that a header has elsewhere: `seed` beside the prompt, `lanes` as its list of lanes.
ELSEWHERE = ("seed", "lanes")


def make_header(loaded: LoadedModel, request: Request, checked: Plan, decoder: Decoder) -> Header:
    """The header of a run on this model, with every setting resolved."""
    shape = loaded.shape
    # Any: these two have keys that the trace's types do not name.
    model: Any = {
        "id": loaded.id,
        "revision": loaded.revision,
        "layers": loaded.num_layers,
        "hidden_size": shape.hidden_size,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "params": shape.params,
        "kv_bytes_per_token": shape.kv_per_token * loaded.dtype.itemsize,
        "shape": dataclasses.asdict(shape),
    }
    device: Any = describe_device(loaded.device) | decoder_facts(decoder)
    return Header(
        lanes=[
            {
                "id": name,
                "label": lane.label,
                "config": {
                    **lane.config.to_dict(),
                    # The name only: a trace is shared, and the path would tell about the machine.
                    "adapters": Path(lane.config.adapters).name,
                    "dropped": list(lane.schedule.dropped),
                    **_corrections(lane, shape),
                    **({"bank": config_fingerprint(loaded, lane.config)} if lane.bank else {}),
                },
            }
            for name, lane in checked.lanes.items()
        ],
        model=model,
        device=device,
        prompt=request.prompt,
        prompt_tokens=len(checked.prompt_ids),
        seed=request.seed,
        sampling={
            **{one.name: getattr(request, one.name) for one in settings_of(RUN) if one.name not in ELSEWHERE},
            "notes": checked.notes,
        },
        idle=request.idle,
        version=2 if request.audit and BASELINE in checked.lanes or _verifies(checked) else 1,
        software={name: metadata.version(name) for name in ("torch", "transformers")}
        | {"python": platform.python_version()},
    )


def _corrections(lane: LanePlan, shape: ModelShape) -> dict[str, Any]:
    sizes = dataclasses.asdict(lane.corrections(shape))
    return {"rank": sizes.pop("rank"), "corrected": list(sizes.pop("layers")), "extras": sizes}


def decoder_facts(decoder: Decoder) -> dict[str, str]:
    """The decoder's name, and the instructions that its kernels use, for headers and reports."""
    return {"decoder": decoder.name} | ({"kernels": decoder.kernels} if decoder.kernels else {})


def _verifies(checked: Plan) -> bool:
    return any(lane.schedule.verifies for lane in checked.lanes.values())
