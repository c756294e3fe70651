"""The wheels with the C kernels inside, one for each platform, into `dist`: `make wheels`.

Zig compiles for every platform from any machine: the kernels once for each path, with the path in the names of all
their functions, and what tells the processor's paths once; all is linked into one library.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from hatchling.builders.wheel import WheelBuilder

from lora_drop.decode.native.loader import (
    ARM_PATHS,
    FLAGS,
    FOLDER,
    X86_PATHS,
    built_for_wheels,
    library_name,
    path_name,
    sources,
)
from lora_drop.paths import CHECKOUT


class Platform(NamedTuple):
    """Where a wheel can be installed.

    Args:
        library: file name of its library.
        target: zig's name.
        tag: the wheel's.
        paths: of the kernels.
    """

    library: str
    target: str
    tag: str
    paths: dict[str, str]


PLATFORMS = {
    "linux-x86_64": Platform(
        *(library_name("linux", "x86_64"), "x86_64-linux-gnu.2.17", "manylinux_2_17_x86_64", X86_PATHS)
    ),
    "linux-arm64": Platform(
        *(library_name("linux", "aarch64"), "aarch64-linux-gnu.2.17", "manylinux_2_17_aarch64", ARM_PATHS)
    ),
    "macos-arm64": Platform(
        *(library_name("darwin", "arm64"), "aarch64-macos.11.0", "macosx_11_0_arm64", ARM_PATHS),
    ),
    "windows-x86_64": Platform(*(library_name("win32", "AMD64"), "x86_64-windows-gnu", "win_amd64", X86_PATHS)),
}
# The declaration in a header of a function that other files call.
DECLARED = re.compile(r"^(?!static|typedef)\w[\w *]*[ *](\w+)\(", re.MULTILINE)


def zig(arguments: Iterable[object]) -> None:
    """Run zig's C compiler, and raise CalledProcessError where it fails; its messages go to stderr."""
    subprocess.run([sys.executable, "-m", "ziglang", "cc", *map(str, arguments)], check=True)


def build_library(platform: Platform) -> Path:
    """Compile and link a platform's library, in `built_for_wheels`."""
    target = built_for_wheels().resolve() / platform.library
    target.parent.mkdir(parents=True, exist_ok=True)
    common = ("-target", platform.target, *(flag for flag in FLAGS if flag != "-shared"), "-Werror")
    functions = {name for header in sources("*.h") for name in DECLARED.findall(header.read_text(encoding="utf-8"))}
    kernels = [source for source in sources("*.c") if source.name != "cpu.c"]
    with tempfile.TemporaryDirectory() as work:
        for path, processor in platform.paths.items():
            renamed = [f"-D{name}={path_name(name, path)}" for name in functions]
            for source in kernels:  # one at a time: for Windows zig takes no more
                made = Path(work) / f"{path}-{source.stem}.o"
                zig([*common, *_processor_flags(processor), *renamed, "-c", source, "-o", made])
        zig([*common, "-c", FOLDER / "cpu.c", "-o", Path(work) / "cpu.o"])
        own_name = (
            ["-install_name", platform.library] if "macos" in platform.target else []
        )  # else this machine's path
        zig(
            [
                *common,
                "-shared",
                "-s",
                *own_name,
                "-o",
                Path(work) / platform.library,
                *sorted(Path(work).glob("*.o")),
                "-lm",
            ]
        )
        shutil.copyfile(Path(work) / platform.library, target)  # alone: beside a DLL zig writes more
    return target


def _processor_flags(processor: str) -> list[str]:
    """Zig's name of a processor of the loader's table."""
    flags = [f"-mcpu={processor.replace('armv8-a', 'generic').replace('-', '_')}"]
    if "v4" in processor:  # by default LLVM halves vectors of 512 bits
        flags.append("-mprefer-vector-width=512")
    return flags


class PlatformWheel(WheelBuilder):
    """A wheel with a library in it."""

    platform: Platform
    library: Path

    def get_default_build_data(self) -> dict[str, Any]:
        """See hatchling."""
        inside = f"lora_drop/decode/native/{self.platform.library}"
        data = {"pure_python": False, "tag": f"py3-none-{self.platform.tag}", "force_include": {self.library: inside}}
        return super().get_default_build_data() | data


def build_wheel(platform: Platform, library: Path, out: Path) -> Path:
    """Build a platform's wheel from the checkout."""
    builder = PlatformWheel(str(CHECKOUT))
    builder.platform, builder.library = platform, library
    return Path(next(builder.build(directory=str(out), versions=["standard"])))


def main() -> None:
    """Build the wheels that are named, or all, and print their sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("platforms", nargs="*", metavar="PLATFORM", help=f"of {', '.join(PLATFORMS)}")
    parser.add_argument("--out", type=Path, default=Path("dist"), metavar="DIR")
    args = parser.parse_args()
    if unknown := set(args.platforms) - PLATFORMS.keys():
        parser.error(f"no such platform: {', '.join(sorted(unknown))}")
    for name in args.platforms or PLATFORMS:
        library = build_library(PLATFORMS[name])
        wheel = build_wheel(PLATFORMS[name], library, args.out)
        print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.2f} MB, its kernels {library.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
