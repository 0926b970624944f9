"""The native kernels: a shared library per instruction set, given a compiler."""

import os
import platform
import shutil
from collections.abc import Iterable
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

FLAGS: dict[str, list[str]] = {"generic": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    FLAGS["avx2"] = ["-mavx2", "-mfma"]
    FLAGS["avx512"] = [*FLAGS["avx2"], "-mavx512f", "-mavx512dq"]
COMMON = ["-std=c++17", "-O3", "-g0", "-fvisibility=hidden", "-Wno-psabi"]
HEADERS = sorted(str(path) for path in Path("l2o/kernels/cpp").glob("*.h"))


def _is_newer(built: Path, sources: Iterable[Path]) -> bool:
    return all(path.stat().st_mtime < built.stat().st_mtime for path in sources)


class BuildLibraries(build_ext):
    """Names the libraries plainly: they are no Python modules."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

    def build_extension(self, ext: Extension) -> None:
        """Compiles it, or takes the library beside its sources if that is newer."""
        built, target = (
            Path(x(ext.name)) for x in (self.get_ext_filename, self.get_ext_fullpath)
        )
        sources = map(Path, [*ext.sources, *ext.depends, __file__])
        elsewhere = built.resolve() != target.resolve()
        if elsewhere and built.exists() and _is_newer(built, sources):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(built, target)
        else:
            super().build_extension(ext)

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", "/") + ".so"


setup(
    cmdclass={"build_ext": BuildLibraries},
    ext_modules=[
        Extension(
            f"l2o.kernels.cpp.{name}",
            [f"l2o/kernels/cpp/{name}.cc"],
            depends=HEADERS,
            extra_compile_args=[*COMMON, *flags],
            language="c++",
            optional=True,  # without a compiler the package works, on XLA alone
        )
        for name, flags in FLAGS.items()
    ],
)
