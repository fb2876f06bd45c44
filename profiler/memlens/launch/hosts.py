"""Jobs on several hosts: which commands start one part of them, and how the others learn of memlens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["deepspeed_environment", "names_several_hosts"]

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


def deepspeed_environment(
    words: Sequence[str], run: Path, job: Mapping[str, str]
) -> dict[str, str]:
    """What DeepSpeed's launcher needs so that its processes on other hosts record themselves.

    It hands on few variables of its own environment (PYTHONPATH among them), and whatever stands in a
    file. Ours holds what stood in the user's, and the variables of memlens.

    Args:
        words: of the job's command.
        run: the run's folder; the file goes into it.
        job: the job's environment.

    Returns:
        Variables to add; none if this is not DeepSpeed's launcher with a list of hosts.

    Raises:
        OSError: the file can not be written.
    """
    if not words or Path(words[0]).name != "deepspeed":
        return {}
    options = {word.partition("=")[0] for word in words}
    if not (options & {"-H", "--hostfile"} or Path("/job/hostfile").is_file()):
        return {}
    name = job.get("DS_ENV_FILE", ".deepspeed_env")
    lines: list[str] = []
    for folder in (Path.home(), Path.cwd()):
        if (folder / name).is_file():
            lines += (folder / name).read_text().splitlines()
    lines += [f"{key}={value}" for key, value in job.items() if key.startswith("MEMLENS_")]
    path = run / "deepspeed_env"
    path.write_text("".join(f"{line}\n" for line in dict.fromkeys(lines) if "=" in line))
    return {"DS_ENV_FILE": str(path)}
