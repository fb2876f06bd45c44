"""Another stage of ZeRO for an unchanged job, in whatever way it hands its ds_config to DeepSpeed.

All ways (a dict or a file for `deepspeed.initialize`, `--deepspeed_config`, `zero.Init`, a Trainer's or
Accelerate's plugin) end in a `DeepSpeedConfig`; Hugging Face's libraries read the stage before that, from
an object of their own.
"""

from __future__ import annotations

import base64
import copy
import functools
import inspect
import json
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

from memlens.catalogue.variant import Variant
from memlens.simulation.disguise.imports import when_imported
from memlens.variants.witness import Witness

__all__ = ["changed_config", "replace_stage"]

Config = dict[str, Any]

FILE = "ds_config.json"
"""In the variant's folder: what DeepSpeed was given."""
_TESTED = ("torch.optim:Adam", "torch.optim:AdamW", "torch.optim:Adagrad")
"""DeepSpeed lets these train under ZeRO without being told that it may."""


def changed_config(
    config: Mapping[str, Any], stage: int, variant: Variant
) -> tuple[Config, list[str]]:
    """A job's ds_config with another stage, and with what this and the variant's optimizer need.

    Returns:
        The new one, and what was changed besides the stage, for people.
    """
    changed, notes = copy.deepcopy(dict(config)), []
    zero = changed.get("zero_optimization")
    zero = dict(zero) if isinstance(zero, dict) else {}
    zero["stage"] = stage
    for part, least in (("offload_param", 3), ("offload_optimizer", 1)):
        if stage < least and _offloads(zero.pop(part, None)):
            notes.append(f"{part} is left out: ZeRO {stage} has no such thing")
    changed["zero_optimization"] = zero
    row = variant.row
    if row is None:
        return changed, notes
    if row.home not in _TESTED and stage and not changed.get("zero_allow_untested_optimizer"):
        changed["zero_allow_untested_optimizer"] = True
        notes.append(
            "zero_allow_untested_optimizer is set: DeepSpeed has no tests of this optimizer"
        )
    if _offloads(zero.get("offload_optimizer")) and changed.get(
        "zero_force_ds_cpu_optimizer", True
    ):
        changed["zero_force_ds_cpu_optimizer"] = False
        notes.append("zero_force_ds_cpu_optimizer is off: this optimizer steps on the CPU as it is")
    return changed, notes


def _offloads(part: Any) -> bool:
    """Whether a part of the config says where to; it may also say `none`."""
    return isinstance(part, Mapping) and part.get("device", "none") != "none"


def replace_stage(
    stage: int, variant: Variant, witness: Witness, found_it: Callable[[], None], undo: ExitStack
) -> None:
    """Replace the stage in every ds_config of this process from here on.

    Args:
        stage: of ZeRO; 0: DeepSpeed without it.
        variant: the optimizer that takes the place of the job's.
        witness: takes notes.
        found_it: called when the job hands DeepSpeed a config.
        undo: gets the ways back.
    """

    def change(config: Any) -> Config:
        changed, notes = changed_config(_read(config), stage, variant)
        witness.notes += notes
        return changed

    def for_deepspeed(config: Any) -> Config:
        changed = change(config)
        found_it()
        _keep(changed, witness.folder)
        return changed

    def in_config() -> None:
        owner = import_module("deepspeed.runtime.config").DeepSpeedConfig
        _change_argument(owner, "config", for_deepspeed, undo)

    def in_init() -> None:
        owner = import_module("deepspeed.runtime.zero.partition_parameters").Init
        if stage < 3:
            _change_argument(owner, "enabled", lambda _: False, undo)

    def in_accelerate() -> None:
        owner = import_module("accelerate.utils.deepspeed").HfDeepSpeedConfig
        _change_argument(owner, "config_file_or_dict", change, undo)

    for module, call in (
        ("deepspeed.runtime.config", in_config),
        ("deepspeed.runtime.zero.partition_parameters", in_init),
        ("accelerate.utils.deepspeed", in_accelerate),
    ):
        undo.callback(when_imported(module, call))


def _change_argument(owner: Any, name: str, change: Callable[[Any], Any], undo: ExitStack) -> None:
    """Have a constructor get something else for one of its arguments."""
    original: Callable[..., None] = owner.__init__
    signature = inspect.signature(original)

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **kwargs)
        bound.arguments[name] = change(bound.arguments.get(name))
        original(*bound.args, **bound.kwargs)

    owner.__init__ = __init__
    undo.callback(setattr, owner, "__init__", original)


def _read(config: Any) -> Config:
    """A ds_config in all forms that DeepSpeed takes; what it cannot read, it may say itself."""
    if isinstance(config, Mapping):
        return dict(config)
    if os.path.exists(config):
        text = Path(config).read_text()
    elif str(config).lstrip().startswith("{"):
        text = str(config)
    else:
        text = base64.urlsafe_b64decode(config).decode()
    # DeepSpeed's own parser: it takes comments, too.
    read: Config = dict(import_module("hjson").loads(text))
    return read


def _keep(config: Config, folder: Path) -> None:
    if os.environ.get("RANK", "0") == "0":
        (folder / FILE).write_text(json.dumps(config, indent=2, default=str) + "\n")
