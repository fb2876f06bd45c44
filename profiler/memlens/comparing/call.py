"""`python -m memlens.comparing.call FILE`: calls a function that `memlens.compare` has pickled.

The file is our own, written a moment ago by the process that started this one.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

__all__: list[str] = []

if __name__ == "__main__":
    pickle.loads(Path(sys.argv[1]).read_bytes())()
