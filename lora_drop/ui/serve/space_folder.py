"""Write the folder to push to a HuggingFace Space: `python -m lora_drop space OUT [--space OWNER/NAME]`.

It holds the files that the page needs and those that README.md shows or links to, and nothing else. The front matter
and the requirements are checked against the documentation of Spaces. Gradio is not among the folder's requirements: a
Space installs the version that the front matter names. Push the folder with
`hf upload OWNER/NAME OUT . --repo-type space`.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import SpaceHardware
from packaging.requirements import Requirement

from lora_drop.decode.native.loader import built_for_wheels, library_name
from lora_drop.errors import LoraDropError
from lora_drop.paths import ASSETS, PACKAGE, SPACE_FILES, new_folder

FILES = ("app.py", "requirements.txt", "README.md", "LICENSE")
# Gradio writes .pyi files beside its components; a Space runs on Linux, whichever wheel makes its folder.
LEFT_OUT = ("__pycache__", "*.py[cio]", "screenshots", ".*", "*.dylib", "*.dll")
KERNELS = f"lora_drop/decode/native/{library_name('linux', 'x86_64')}"
REQUIRED = {
    **dict.fromkeys(("title", "emoji", "colorFrom", "colorTo", "app_file", "license", "short_description"), str),
    **dict.fromkeys(("sdk", "sdk_version", "python_version"), str),
    **dict.fromkeys(("models", "tags"), list),
}
OPTIONAL = (
    *("thumbnail", "suggested_hardware", "preload_from_hub", "fullWidth", "header", "pinned"),
    "startup_duration_timeout",
)
COLORS = ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")
SHORT = 60  # characters of a short_description
PICTURE = "assets/screenshots/page.png"
ZERO_GPU = SpaceHardware.ZERO_A10G.value
ZERO_GPU_TORCH = "2.11.0"  # the newest that ZeroGPU's documentation lists (August 2026)
ZERO_GPU_PYTHON = ("3.12.12",)  # ZeroGPU also lists 3.10.13, which is too old for transformers 5.24


def front_matter(readme: str) -> dict[str, Any]:
    """The YAML block at the top of a README.

    Raises:
        LoraDropError: the README has no readable front matter.
    """
    match = re.match(r"---\n(.*?)\n---\n", readme, re.DOTALL)
    try:
        content = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:
        content = None
    if not isinstance(content, dict):
        raise LoraDropError("README.md has no front matter: a YAML block between two lines of --- at its top.")
    return content


def problems(meta: dict[str, Any], requirements: str, folder: Path = SPACE_FILES) -> list[str]:
    """Reasons why a Space would refuse this front matter, one line each; none if it is valid."""
    # A key of another type counts as missing: an unquoted 3.10 is the number 3.1.
    wrong = [
        f"{name} is missing or no {kind.__name__}"
        for name, kind in REQUIRED.items()
        if not isinstance(meta.get(name), kind) or not meta[name]
    ]
    if wrong:
        return wrong
    wrong += [f"{name} is no documented key" for name in sorted(meta.keys() - REQUIRED.keys() - set(OPTIONAL))]
    colors = ("colorFrom", "colorTo")
    wrong += [f"{name} must be one of {', '.join(COLORS)}" for name in colors if meta[name] not in COLORS]
    if meta["sdk"] != "gradio":
        wrong.append("sdk is not gradio")
    if len(meta["short_description"]) > SHORT:
        wrong.append(f"short_description has {len(meta['short_description'])} characters, more than {SHORT}")
    if not (folder / meta["app_file"]).is_file():
        wrong.append(f"app_file names {meta['app_file']}, which does not exist")
    if re.fullmatch(r"\d+\.\d+\.\d+", meta["sdk_version"]) is None:
        wrong.append("sdk_version is not a full version, such as 6.31.0")
    elif not allowed(requirements, "gradio", meta["sdk_version"]):
        wrong.append(f"requirements.txt does not allow gradio {meta['sdk_version']}, which sdk_version names")
    if meta["python_version"] not in ZERO_GPU_PYTHON:
        wrong.append(f"python_version must be one of ZeroGPU's: {', '.join(ZERO_GPU_PYTHON)}")
    if meta.get("suggested_hardware", "cpu-basic") not in list(SpaceHardware):
        wrong.append(f"suggested_hardware must be one of {', '.join(SpaceHardware)}")
    if "thumbnail" in meta and not str(meta["thumbnail"]).startswith("https://"):
        wrong.append("thumbnail is no https address")
    return wrong


def allowed(requirements: str, package: str, version: str) -> bool:
    """True if a requirements.txt names a package and every line of it allows the version."""
    lines = [Requirement(line) for line in requirements.splitlines() if line.strip() and not line.startswith("#")]
    specifiers = [line.specifier for line in lines if line.name == package]
    return bool(specifiers) and all(version in specifier for specifier in specifiers)


def linked(readme: str) -> list[str]:
    """Relative paths that a README shows or links to, in order, each once."""
    paths = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", readme)
    return list(dict.fromkeys(paths))


def build(
    out: Path,
    space: str | None = None,
    zero_gpu: bool = False,
    torch_index: str | None = None,
    preload: str | None = None,
) -> dict[str, int]:
    """Write the folder.

    Args:
        out: a folder that is empty or does not exist yet.
        space: OWNER/NAME, for the thumbnail's address; without it the Space has no thumbnail.
        zero_gpu: suggest ZeroGPU, and require the newest torch that it lists, not the newest of all.
        torch_index: address of a further package index for the Space's requirements.
        preload: OWNER/NAME of a model on the Hub, which is downloaded while the Space is built.

    Returns:
        Size of each file in bytes, by its path in the folder.

    Raises:
        LoraDropError: the folder is in use, or a Space would refuse these files.
    """
    for option, name in (("--space", space), ("--preload", preload)):
        if name is not None and re.fullmatch(r"[\w.-]+/[\w.-]+", name) is None:
            raise LoraDropError(f"{option} must be OWNER/NAME, not {name!r}.")
    if torch_index is not None and re.fullmatch(r"(https?|file)://[^\s@]+", torch_index) is None:
        raise LoraDropError("--torch-index must be an address, https://..., without a password: the folder is public.")
    readme = (SPACE_FILES / "README.md").read_text(encoding="utf-8")
    requirements = (SPACE_FILES / "requirements.txt").read_text(encoding="utf-8")
    more = []
    if space is not None:
        more.append(f"thumbnail: https://huggingface.co/spaces/{space}/resolve/main/{PICTURE}")
    if preload is not None:
        more.append(f"preload_from_hub: [{preload}]")
    readme = readme.replace("\n---\n", "\n".join(["", *more, "---", ""]), 1)
    if zero_gpu:
        readme = re.sub(r"(?m)^suggested_hardware: .*$", f"suggested_hardware: {ZERO_GPU}", readme, count=1)
        requirements = re.sub(r"(?m)^torch\b.*$", f"torch=={ZERO_GPU_TORCH}", requirements)
    if wrong := problems(front_matter(readme), requirements):
        raise LoraDropError(f"README.md, front matter: {'; '.join(wrong)}.")
    requirements = re.sub(r"(?m)^gradio\b.*\n", "", requirements)
    if torch_index is not None:
        requirements = f"--extra-index-url {torch_index}\n{requirements}"
    with new_folder(out) as draft:
        in_a_wheel = "assets", "space"  # folders that the package has only there
        shutil.copytree(PACKAGE, draft / "lora_drop", ignore=shutil.ignore_patterns(*LEFT_OUT, *in_a_wheel))
        shutil.copytree(ASSETS, draft / "assets", ignore=shutil.ignore_patterns(*LEFT_OUT))
        if (built := built_for_wheels() / Path(KERNELS).name).is_file():  # in a checkout; a wheel has its own
            shutil.copyfile(built, draft / KERNELS)
        for name in (*FILES, PICTURE, *linked(readme)):
            if (SPACE_FILES / name).is_file():
                (draft / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(SPACE_FILES / name, draft / name)
        (draft / "README.md").write_text(readme, encoding="utf-8")
        (draft / "requirements.txt").write_text(requirements, encoding="utf-8")
    return {path.relative_to(out).as_posix(): path.stat().st_size for path in sorted(out.rglob("*")) if path.is_file()}


def report(sizes: dict[str, int]) -> str:
    """Sizes of the folder's parts, the largest first."""
    parts: Counter[str] = Counter()
    for name, size in sizes.items():
        head, *rest = name.split("/")
        parts["/".join([head, *rest[:1]]) + "/" if len(rest) > 1 else f"{head}/" if rest else head] += size
    lines = [f"{size / 1e3:10,.0f} kB  {name}" for name, size in parts.most_common()]
    return "\n".join([*lines, f"{sum(sizes.values()) / 1e3:10,.0f} kB  in {len(sizes)} files"])
