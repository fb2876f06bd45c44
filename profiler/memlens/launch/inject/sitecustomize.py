"""Imported by Python at start-up, because `memlens run` put this folder on PYTHONPATH.

Chains to the sitecustomize that would have been imported without us, then lets memlens wait for torch.
Nothing here may ever stop the job.
"""

import os
import sys


def _chain() -> None:
    import importlib.machinery
    import importlib.util

    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if not entry or os.path.abspath(entry) != here]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", sys.path)
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


def _begin() -> None:
    try:
        from memlens.launch.bootstrap import begin

        begin()
    except ImportError:
        _say(f"not installed for {sys.executable}; this process is not recorded")
    except Exception as error:
        _say(f"this process is not recorded: {' '.join(str(error).split())}")


def _say(text: str) -> None:
    print(f"memlens: {text}", file=sys.stderr)


try:
    _chain()
finally:  # what the user's own raises is theirs, and reported as it would be without us
    if os.environ.get("MEMLENS_RUN"):
        _begin()
