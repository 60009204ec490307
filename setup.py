"""Extensions, their compiler and their directives; everything else stands in pyproject.toml."""

import shutil
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

EXT = Path("pyclattn/_ext")
LANES = [str(EXT / f"lanes_{isa}.c") for isa in ("baseline", "avx2", "avx512", "avx512_bf16")]
INT8 = [str(EXT / f"int8_{isa}.c") for isa in ("baseline", "avx2", "avxvnni", "avx512", "avx512vnni")]
ROWS = [str(EXT / f"rows_{isa}.c") for isa in ("baseline", "avx2", "avx512")]
WINOGRAD = [str(EXT / f"winograd_{isa}.c") for isa in ("baseline", "avx2", "avx512")]
HEADERS = [str(path) for path in sorted(EXT.glob("*.h"))]
# gnu11: -std=c11 would turn off the fusing of multiply and add that the tiles live on.
FLAGS = ["-std=gnu11", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fvisibility=hidden", "-g0"]
if sys.platform == "win32":  # clang-cl takes clang's own options behind this word
    FLAGS = [f"/clang:{flag}" for flag in FLAGS if flag not in ("-fvisibility=hidden", "-g0")]
MODULES = {
    "isa": LANES,
    "attention": [],
    "cast": [],
    "centroid": [],
    "clustering": [],
    "coclusters": [],
    "conv": [],
    "dense": [],
    "int8": INT8,
    "memberships": [],
    "points": [],
    "rows": ROWS,
    "tails": [],
    "winograd": WINOGRAD,
}


class BuildExt(build_ext):
    """On Windows the C is compiled by clang-cl, since Microsoft's compiler has no vectors; all else is Microsoft's."""

    def build_extensions(self):
        if self.compiler.compiler_type == "msvc":
            if not self.compiler.initialized:
                self.compiler.initialize()  # finds Microsoft's tools, its linker and headers among them
            self.compiler.cc = shutil.which("clang-cl")
            if self.compiler.cc is None:
                raise SystemExit("clang-cl, which LLVM has, is needed to build pyclattn on Windows: put it on the PATH")
        super().build_extensions()


extensions = [
    Extension(f"pyclattn._ext.{name}", [str(EXT / f"{name}.pyx"), *sources], depends=HEADERS, extra_compile_args=FLAGS)
    for name, sources in MODULES.items()
]

DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "initializedcheck": False,
    "cdivision": True,
    "freethreading_compatible": True,
}

# export/ is installed as pyclattn_export
packages = [
    *find_packages(include=["pyclattn", "pyclattn.*"]),
    "pyclattn_export",
    *(f"pyclattn_export.{name}" for name in find_packages("export")),
]

setup(
    ext_modules=cythonize(extensions, compiler_directives=DIRECTIVES),
    cmdclass={"build_ext": BuildExt},
    package_dir={"pyclattn": "pyclattn", "pyclattn_export": "export"},
    packages=packages,
    include_package_data=False,  # sources of extensions stay in the sdist
    package_data={"pyclattn": ["serving/*.html", "py.typed"]},
)
