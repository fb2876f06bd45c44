"""What all tests share."""

from __future__ import annotations

import sys
from pathlib import Path

# `support` is no package of memlens, so in importlib mode pytest does not find it by itself. Only
# this folder is added: with the repository's root, the source roots could be imported as packages.
sys.path.insert(0, str(Path(__file__).parent))
