"""Write the folder to push to a HuggingFace Space: `python -m lora_drop space OUT [--space OWNER/NAME]`.

It holds the files that the page needs and those that README.md shows or links to, and nothing else. Gradio is not
among the folder's requirements: a Space installs the version that the front matter names. Push the folder with
`hf upload OWNER/NAME OUT . --repo-type space`.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from pathlib import Path

from huggingface_hub import SpaceHardware

from lora_drop.decode.native.loader import built_for_wheels, library_name
from lora_drop.errors import LoraDropError
from lora_drop.paths import ASSETS, PACKAGE, SPACE_FILES, new_folder

FILES = ("app.py", "requirements.txt", "README.md", "LICENSE")
# Gradio writes .pyi files beside its components; a Space runs on Linux, whichever wheel makes its folder.
LEFT_OUT = ("__pycache__", "*.py[cio]", "screenshots", ".*", "*.dylib", "*.dll")
KERNELS = f"lora_drop/decode/native/{library_name('linux', 'x86_64')}"
PICTURE = "assets/screenshots/page.png"
ZERO_GPU = SpaceHardware.ZERO_A10G.value
ZERO_GPU_TORCH = "2.11.0"  # the newest that ZeroGPU's documentation lists (August 2026)


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
        LoraDropError: the folder is in use, or an option is not what it must be.
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
