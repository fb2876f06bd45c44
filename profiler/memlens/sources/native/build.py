"""Compiles the allocator hook for the torch that is installed, once, and keeps the result."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

from memlens.errors import SourceError

__all__ = ["build_hook", "cache_folder", "find_compiler"]

_SOURCE = Path(__file__).with_name("allocator_hook.cpp")
# Headers of torch 2.9 ask for C++17; later ones may ask for more.
_STANDARDS = ("c++17", "c++20")
_TIMEOUT_S = 300


def find_compiler() -> str | None:
    """Path of the C++ compiler: CXX, or the first of the usual names that is there."""
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        if name and (found := shutil.which(name)):
            return found
    return None


def cache_folder() -> Path:
    """Where compiled hooks are kept: `memlens` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "memlens"


def build_hook() -> Path:
    """Compile the hook (under a second), unless that was done before.

    Returns:
        The shared library.

    Raises:
        SourceError: there is no compiler, or it fails.
    """
    home = Path(torch.__file__).parent
    key = hashlib.sha256(
        b"\0".join(
            [
                _SOURCE.read_bytes(),
                torch.__version__.encode(),
                str(home).encode(),
                platform.machine().encode(),
            ]
        )
    ).hexdigest()[:16]
    name = f"allocator_hook-{torch.__version__}-{key}.so"
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        folder = Path(tempfile.mkdtemp(prefix="memlens-"))
    library = folder / name
    if library.exists():
        return library
    compiler = find_compiler()
    if compiler is None:
        raise SourceError(
            "no C++ compiler found (CXX, g++, clang++, c++); on Debian and Ubuntu: apt install g++"
        )
    # Ranks compile at the same time; each into a file of its own, and the last rename stands.
    handle, partial = tempfile.mkstemp(dir=folder, prefix=".allocator_hook-", suffix=".so")
    os.close(handle)
    try:
        errors = _compile(compiler, home, partial)
        if errors is None:
            os.replace(partial, library)
            return library
    finally:
        if os.path.exists(partial):
            os.unlink(partial)
    first = next((line for line in errors.splitlines() if "error" in line), errors[:200])
    raise SourceError(f"{compiler} fails on the allocator hook: {first.strip()}")


def _compile(compiler: str, home: Path, target: str) -> str | None:
    """Compile the hook; None when it worked, else what the compiler says."""
    abi = int(torch.compiled_with_cxx11_abi())
    errors = ""
    for standard in _STANDARDS:
        command = [compiler, "-O2", f"-std={standard}", "-shared", "-fPIC"]
        command += [f"-D_GLIBCXX_USE_CXX11_ABI={abi}", f"-I{home / 'include'}"]
        command += [str(_SOURCE), "-o", target, f"-L{home / 'lib'}", "-lc10"]
        try:
            result = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_S,
                stdin=subprocess.DEVNULL,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise SourceError(f"{compiler} does not run: {error}") from error
        if result.returncode == 0:
            return None
        errors = result.stderr
    return errors
