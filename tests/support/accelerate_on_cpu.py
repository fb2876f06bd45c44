"""Run a script of Accelerate's on CPUs as if each process had a GPU: SCRIPT [ARGUMENTS]

Without an accelerator, Accelerate knows neither FSDP (and quietly takes DDP) nor how many processes
DeepSpeed has. Here it takes the CPU for one, and gloo for what connects them. The script and all that it
calls are as they are.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

from accelerate.state import PartialState
from accelerate.utils import DistributedType

os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)

del sys.argv[0]
sys.path[0] = str(Path(sys.argv[0]).parent)
runpy.run_path(sys.argv[0], run_name="__main__")
