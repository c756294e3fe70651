"""`doctor`: what this installation runs on, what makes it slow here, and what to do.

Its output is made to be shared: it has no variable of the environment, and no path beyond the home folder.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora_drop.cli.arguments import Commands, add_command
from lora_drop.cli.output import cell, print_json, print_table
from lora_drop.method.cost import human_bytes
from lora_drop.runtime import VERSION, core_share, package_versions

Facts = dict[str, Any]


def add(commands: Commands) -> None:
    """Add the command's options."""
    help = "kernels, processor, memory, versions, model files and GPU; what makes it slow here, and what to do"
    add_command(commands, "doctor", run, help)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    facts = examine()
    if args.json:
        print_json(facts)
    else:
        _show(facts)


def examine() -> Facts:
    """All facts; `slow` has a problem and what to do about it."""
    packages = list(package_versions("page"))
    facts: Facts = {
        "version": VERSION,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": packages,
        "cores": os.cpu_count(),
        "core_share": core_share(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }
    try:
        facts |= _device() | {"kernels": _kernels(), "model": _model()}
    except (ImportError, OSError) as error:  # without torch, or with one that cannot be loaded
        facts["broken"] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return facts | {"slow": [{"problem": problem, "do": do} for problem, do in _problems(facts)]}


def _device() -> Facts:
    import torch

    from lora_drop.models.place import describe_device, fault_of, free_memory

    cpu = describe_device(torch.device("cpu"))
    cards = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    return {
        "processor": cpu["name"],
        "threads": cpu["threads"],
        "memory_free": free_memory(torch.device("cpu")),
        "omp_wait_policy": cpu["omp_wait_policy"],
        "torch_cuda": torch.version.cuda,
        "gpus": [{"name": torch.cuda.get_device_name(card), "fault": fault_of(card)} for card in cards],
    }


def _kernels() -> Facts:
    """Which library and path run, those that this processor could, and why there is none."""
    from lora_drop.decode.native.loader import library

    with contextlib.redirect_stderr(io.StringIO()) as stream:
        native = library()
    paths = native.ld_paths().decode().split() if native else []
    note = stream.getvalue().strip().replace(str(Path.home()), "~") or None
    return {"runs": native.about if native else None, "paths": paths, "note": note}


def _model() -> Facts:
    """The bundled model's files, each with its checksum and whether it is right."""
    from lora_drop.models import bundled
    from lora_drop.paths import cache_dir, sha256

    folder, files = cache_dir() / bundled.NAME, []
    with contextlib.suppress(OSError, ValueError):
        manifest = bundled.Manifest.model_validate_json((folder / bundled.MANIFEST).read_bytes())
        for name, file in manifest.files.items():
            path = folder / name
            is_right = path.is_file() and sha256(path) == file.sha256
            files.append({"name": name, "bytes": file.size, "sha256": file.sha256, "ok": is_right})
    is_ready = bundled.is_ready(folder) and all(file["ok"] for file in files)
    return {"name": bundled.NAME, "state": "ready" if is_ready else "damaged" if files else "missing", "files": files}


def _problems(facts: Facts) -> Iterator[tuple[str, str]]:
    if old := [package for package in facts["packages"] if package["is_old"]]:
        names = " ".join(f"'{package['name']}>={package['floor']}'" for package in old)
        yield f"packages are older than this program needs: {names}", f"pip install {names}"
    for package in facts["packages"]:
        if package["is_untested"]:
            allowed = f"'{package['name']}{package['bounds']}'"
            yield f"{package['name']} {package['installed']} is not tested with this program", f"pip install {allowed}"
    if broken := facts.get("broken"):
        yield f"torch or transformers cannot be imported ({broken})", "install them again"
        return
    kernels, paths, cores = facts["kernels"], facts["kernels"]["paths"], facts["cores"] or 1
    if kernels["runs"] is None:
        why = kernels["note"] or "LORA_DROP_NATIVE is 0"
        yield f"no compiled kernels ({why})", "install the wheel of this platform, or a C compiler (gcc, clang)"
    elif paths[-1] != (used := kernels["runs"].rpartition(" ")[2]):
        yield f"the kernels use {used}, and this processor has {paths[-1]}", "unset LORA_DROP_NATIVE"
    if paths and paths[-1] in ("plain", "avx2", "avx512", "neon"):
        do = "`lora-drop calibrate` measures which presets gain here"
        yield f"this processor has no byte products in one instruction (its best path is {paths[-1]})", do
    usable = min(cores, int(facts["core_share"] or cores) or 1)
    if facts["threads"] != usable:
        do = f"unset OMP_NUM_THREADS, or set it to {usable}"
        yield f"{facts['threads']} threads, where {usable} cores may be used", do
    if facts["omp_wait_policy"] == "active":
        yield "OpenMP's threads spin while they wait", "unset OMP_WAIT_POLICY, unless nothing else runs here"
    if facts["load"] is not None and facts["load"] > cores + 1:
        yield f"other programs use the processor: load {facts['load']:.1f} on {cores} cores", "stop them, then measure"
    if facts["memory_free"] is not None and facts["memory_free"] < 2e9:
        yield f"{human_bytes(facts['memory_free'])} of memory are free", "close other programs, or take a small model"
    if facts["model"]["state"] != "ready":
        yield f"the bundled model's files are {facts['model']['state']}", "lora-drop fetch --verify"
    for card in facts["gpus"]:
        if card["fault"]:
            yield f"{card['name']} cannot be used: {card['fault']}", "see docs/performance.md, The first card"
    if facts["torch_cuda"] is None and Path("/dev/nvidia0").exists():
        yield "there is a GPU, and this torch was built without CUDA", "install torch's CUDA build"


def _show(facts: Facts) -> None:
    print(f"lora-drop {facts['version']}, Python {facts['python']}, {facts['system']}")
    if "broken" not in facts:
        kernels, model = facts["kernels"], facts["model"]
        print(
            f"kernels    {kernels['runs'] or 'none'} (this processor has {', '.join(kernels['paths']) or 'unknown'})"
        )
        share = f", a share of {facts['core_share']:.1f}" if facts["core_share"] else ""
        print(f"processor  {facts['processor']}: {facts['cores']} cores{share}, {facts['threads']} threads")
        print(f"memory     {cell(facts['memory_free'] and human_bytes(facts['memory_free']))} free")
        print(f"GPU        {', '.join(card['name'] for card in facts['gpus']) or 'none'}")
        print(f"model      {model['name']}: {model['state']}, {len(model['files'])} files")
        for file in model["files"]:
            print(f"           {file['sha256'][:16]}  {file['name']}{'' if file['ok'] else ': wrong'}")
    print()
    print_table(facts["packages"], {"package": ("name",), "installed": ("installed",), "at least": ("floor",)})
    print("\nslow here:" if facts["slow"] else "\nNothing here makes it slow.")
    for slow in facts["slow"]:
        print(f"- {slow['problem']}: {slow['do']}")
