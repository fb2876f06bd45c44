"""`tools/make_capture.py`, which is no part of a package."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

__all__ = ["LAYERS", "LEAK_BYTES", "LEAK_MODULE", "Expected", "make_capture"]

_PATH = Path(__file__).resolve().parents[2] / "tools" / "make_capture.py"
_spec = spec_from_file_location("make_capture", _PATH)
assert _spec is not None
assert _spec.loader is not None
_module = module_from_spec(_spec)
sys.modules[_spec.name] = _module  # dataclasses look for their module there
_spec.loader.exec_module(_module)

LAYERS: int = _module.LAYERS
LEAK_BYTES: int = _module.LEAK_BYTES
LEAK_MODULE: str = _module.LEAK_MODULE
Expected: Any = _module.Expected
make_capture = _module.make_capture
