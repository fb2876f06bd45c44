"""Where TensorBoard was told to look: `--logdir`, or the parts of `--logdir_spec`."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tensorboard.plugins import base_plugin

from memlens.web.scan import Folder, Place

__all__ = ["places_of"]

_URL = re.compile(r"[a-zA-Z][0-9a-zA-Z.+-]*://.*")


def places_of(context: base_plugin.TBContext) -> list[Place]:
    """All of them; none if TensorBoard reads no folder."""
    if context.logdir:
        return [_place(context.logdir, "")]
    spec = getattr(context.flags, "logdir_spec", None) or ""
    return [_place(path, name) for name, path in map(_split, filter(None, spec.split(",")))]


def _split(part: str) -> tuple[str, str]:
    """`name:/path`, `/path` or `s3://path`, as TensorBoard reads them: name and path."""
    if _URL.match(part) or part.startswith("/") or ":" not in part:
        return "", part
    name, _, path = part.partition(":")
    return name, path


def _place(path: str, name: str) -> Place:
    if _URL.match(path):
        from memlens_integrations.tensorboard.remote import RemoteFolder

        return RemoteFolder(path, name)
    return Folder(Path(os.path.realpath(os.path.expanduser(path))), name)
