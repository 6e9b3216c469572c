"""Build of the compiled data plane: one Extension per `.pyx` in `sabot/_cython/`.

`SABOT_DEBUG=1` turns bounds checks, `None` checks, the C asserts and those of the C++ library on. `SABOT_SANITIZE=1` builds with
AddressSanitizer, UBSan and these asserts, and without Cython's checks, which would raise before a sanitizer sees anything.
"""

import os
import re
import runpy
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

DEBUG = os.environ.get("SABOT_DEBUG") == "1"
SANITIZE = os.environ.get("SABOT_SANITIZE") == "1"
# -g1: lines in traces; names of locals cost a fifth of the build. To optimize takes two thirds of a build with sanitizers, and a third of
# one with checks, whose tests take a few seconds either way.
CHECKED = ["-g1", "-UNDEBUG", "-D_GLIBCXX_ASSERTIONS"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
if DEBUG:
    FLAGS = ["-O0", *CHECKED]
elif SANITIZE:
    FLAGS = ["-O0", *CHECKED, *SANITIZERS]
else:
    FLAGS = ["-O2", "-g0", "-DNDEBUG"]
ROOT = Path("sabot/_cython")
INCLUDED = re.compile(r'(?:#include|extern from) "([\w/]+\.h)"|^from sabot\._cython\.([\w.]+) cimport', re.MULTILINE)


def headers(source: Path) -> set[Path]:
    """The headers of ours that a module is compiled from, those behind other headers and behind cimported modules among them."""
    found, waiting = set(), [source, source.with_suffix(".pxd")]
    while waiting:
        path = waiting.pop()
        if path in found or not path.exists():
            continue
        found.add(path)
        for header, module in INCLUDED.findall(path.read_text()):
            waiting.append(ROOT / header if header else ROOT / f"{module.replace('.', '/')}.pxd")
    return {path for path in found if path.suffix == ".h"}


# The largest first: no core waits for the last one.
EXTENSIONS = [
    Extension(
        ".".join(path.with_suffix("").parts),
        [path.as_posix()],
        language="c++",
        depends=sorted(path.as_posix() for path in headers(path)),
        include_dirs=["sabot/_cython"],
        extra_compile_args=["-std=c++17", "-fvisibility=hidden", *FLAGS],
        extra_link_args=SANITIZERS if SANITIZE else [],
    )
    for path in sorted(ROOT.rglob("*.pyx"), key=lambda path: (-path.stat().st_size, path))
]

DIRECTIVES = {
    "language_level": 3,
    "boundscheck": DEBUG,
    "wraparound": False,
    "nonecheck": DEBUG,
    "cdivision": True,
    "initializedcheck": DEBUG,
    "embedsignature": True,
}


class TranslateAndBuild(build_ext):
    """A build of the extensions, which translates them first. An sdist and a list of requirements need no translation."""

    def run(self) -> None:
        """Translates all modules in several processes, then compiles them."""
        cores = os.cpu_count() or 1
        self.parallel = (
            self.parallel or cores
        )  # setuptools forgets options={"build_ext": ...} when it builds an editable package
        folder = "build/cython-debug" if DEBUG else "build/cython"
        translated = cythonize(self.extensions, nthreads=cores, build_dir=folder, compiler_directives=DIRECTIVES)
        sources = {extension.name: extension.sources for extension in translated}
        for extension in self.extensions:
            extension.sources = sources[extension.name]
        super().run()


if __name__ == "__main__":  # the processes that translate may import this file
    setup(
        version=runpy.run_path("sabot/base/version.py")["sabot_version"](),
        ext_modules=EXTENSIONS,
        cmdclass={"build_ext": TranslateAndBuild},
    )
