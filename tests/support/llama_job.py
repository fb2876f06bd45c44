"""A fake training job of a small Llama: realistic sizes, names and shapes over time."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tests.support.fake_capture import Block, FakeRank, make_capture

from memlens.answers import Frame, Growth
from memlens.events import Category, Certainty, Phase

if TYPE_CHECKING:
    from memlens.capture import Capture

MS = 1_000_000
LAYERS = 4
HIDDEN, INTERMEDIATE, VOCABULARY, TOKENS = 512, 1376, 16_000, 8 * 256

MAIN = Frame("main", "/home/ada/llm/train.py", 58)
FORWARD = (
    MAIN,
    Frame("train_step", "/home/ada/llm/train.py", 41),
    Frame(
        "forward",
        "/opt/venv/lib/python3.11/site-packages/transformers/models/llama/modeling_llama.py",
        512,
    ),
)
BUILD = (MAIN, Frame("build_model", "/home/ada/llm/model.py", 23))
UPDATE = (
    MAIN,
    Frame("train_step", "/home/ada/llm/train.py", 47),
    Frame("_init_group", "/opt/venv/lib/python3.11/site-packages/torch/optim/adamw.py", 120),
)


def parameters() -> dict[str, int]:
    """Module to bytes of its weights, in float32."""
    sizes = {"model.embed_tokens": VOCABULARY * HIDDEN}
    for layer in range(LAYERS):
        sizes[f"model.layers.{layer}.self_attn"] = 4 * HIDDEN * HIDDEN
        sizes[f"model.layers.{layer}.mlp"] = 3 * HIDDEN * INTERMEDIATE
    sizes["lm_head"] = VOCABULARY * HIDDEN
    return {module: 4 * numbers for module, numbers in sizes.items()}


CLASS_NAMES = {
    "model.embed_tokens": "Embedding",
    "lm_head": "Linear",
    **{f"model.layers.{layer}.self_attn": "LlamaAttention" for layer in range(LAYERS)},
    **{f"model.layers.{layer}.mlp": "LlamaMLP" for layer in range(LAYERS)},
}


def make_rank(rank: int = 0, steps: int = 8, leak_bytes: int = 0, tokens: int = TOKENS) -> FakeRank:
    """One rank of the job.

    Args:
        rank: its number.
        steps: how many training steps.
        leak_bytes: what every step leaves behind.
        tokens: in one batch; what makes ranks differ.
    """
    sizes = parameters()
    blocks = [
        Block(size, Category.WEIGHT, at * 6 * MS, None, f"{module}.weight", module, stack=BUILD)
        for at, (module, size) in enumerate(sizes.items())
    ]
    clock = 90 * MS
    ends = []
    for step in range(steps):
        step_blocks, clock = _step(step, clock, sizes, tokens)
        blocks += step_blocks
        if leak_bytes:
            blocks.append(Block(leak_bytes, Category.UNKNOWN, clock - 1, None, stack=(MAIN,)))
        ends.append(clock)
    suspects = (
        Growth(
            Category.UNKNOWN, "", "", leak_bytes, leak_bytes, leak_bytes * steps, steps, (MAIN,)
        ),
    )
    return FakeRank(
        rank,
        blocks,
        ends,
        suspects=suspects if leak_bytes else (),
        class_names=CLASS_NAMES,
    )


def _step(step: int, clock: int, sizes: dict[str, int], tokens: int) -> tuple[list[Block], int]:
    activation = {
        module: 4 * tokens * (VOCABULARY // 4 if module == "lm_head" else 9 * HIDDEN)
        for module in sizes
    }
    blocks: list[Block] = []
    forward: dict[str, int] = {}
    batch_ns = clock
    clock += 1 * MS
    for module in sizes:
        forward[module] = clock
        blocks.append(
            Block(
                activation[module] // 6,
                Category.TEMPORARY,
                clock + MS,
                clock + 2 * MS,
                "",
                module,
                Phase.FORWARD,
                Certainty.INFERRED,
                FORWARD,
            )
        )
        clock += 3 * MS
    backward: dict[str, int] = {}
    for module in reversed(sizes):
        clock += 5 * MS
        backward[module] = clock
    update_ns = clock + 2 * MS
    done_ns = update_ns + 14 * MS
    for module, size in sizes.items():
        blocks.append(
            Block(
                activation[module],
                Category.ACTIVATION,
                forward[module],
                backward[module],
                "",
                module,
                Phase.FORWARD,
                Certainty.INFERRED,
                FORWARD,
            )
        )
        blocks.append(
            Block(
                size,
                Category.GRADIENT,
                backward[module] - 2 * MS,
                done_ns + 3 * MS,
                f"{module}.weight.grad",
                module,
                Phase.BACKWARD,
                stack=FORWARD[:2],
            )
        )
    for at, (module, size) in enumerate(sizes.items()):
        blocks.append(
            Block(
                size // 2,
                Category.OPTIMIZER_TEMPORARY,
                update_ns + at * MS,
                update_ns + (at + 2) * MS,
                "",
                module,
                Phase.OPTIMIZER,
                Certainty.INFERRED,
                UPDATE,
            )
        )
        if step == 0:
            state = Block(
                size,
                Category.OPTIMIZER_STATE,
                update_ns + at * MS,
                None,
                f"exp_avg of {module}.weight",
                module,
                Phase.OPTIMIZER,
                stack=UPDATE,
            )
            blocks += [state, replace(state, name=f"exp_avg_sq of {module}.weight")]
    blocks.append(
        Block(8 * tokens * 16, Category.INPUT, batch_ns, done_ns, "input_ids", "", Phase.OTHER)
    )
    return blocks, done_ns + 4 * MS


def llama_job(steps: int = 8, leak_bytes: int = 0) -> Capture:
    """Two ranks of the job; the second has longer sequences, and so the higher peak."""
    return make_capture(
        make_rank(0, steps, leak_bytes),
        make_rank(1, steps, leak_bytes, tokens=TOKENS + TOKENS // 8),
        command=("torchrun", "--nproc-per-node", "2", "train.py", "--model", "llama-26m"),
    )
