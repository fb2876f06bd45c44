"""Whether a command starts one part of a job, on one of several hosts."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["names_several_hosts"]

_HOSTS = ("--nnodes", "--num_machines", "--num-machines")
"""How torchrun and accelerate call the number of hosts; each host gets a command of its own."""
_ONE = ("1", "1:1")


def names_several_hosts(words: Sequence[str]) -> bool:
    """Whether a command says that it is started on several hosts.

    DeepSpeed's launcher is started once, and reaches the hosts by itself.
    """
    for position, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name in _HOSTS:
            value = value if equals else "".join(words[position + 1 : position + 2])
            return value not in _ONE
    return False
