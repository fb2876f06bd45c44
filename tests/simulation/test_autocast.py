"""Autocast and gradient scaling on the simulated device."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

Told = Callable[[str], Any]
_REPOSITORY = Path(__file__).parents[2]
LOWER = ["float16", "bfloat16"]


@cache
def _told(job: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", f"tests.support.autocast_{job}"],
        cwd=_REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module", name="told")
def told_by() -> Told:
    """What `tests.support.autocast_operators` or `..._regions` finds, in a process that simulates."""
    return _told


# -- the same as torch's own kernels ----------------------------------------------------------------


def _lacks_cuda(result: Any) -> bool:
    """Torch's kernel asked for the device, after autocast had done its part."""
    return isinstance(result, str) and any(
        words in result
        for words in ("compiled with CUDA", "linked with support for cuda", "NVIDIA")
    )


def test_each_operator_that_torch_treats_has_a_policy(told: Told) -> None:
    assert told("operators")["without_policy"] == []


@pytest.mark.parametrize("dtype", LOWER)
def test_operators_run_as_with_torchs_kernels_for_cuda(told: Told, dtype: str) -> None:
    """The same operators, in the same order, on the same dtypes; casts included."""
    cuda, ours = told("operators")["compared"][dtype]

    assert cuda.keys() == ours.keys()
    whole = 0
    for name, (rows, result) in cuda.items():
        if _lacks_cuda(result):
            assert ours[name][0][: len(rows)] == rows, name
        else:
            assert ours[name] == [rows, result], name
            whole += not str(result).startswith(("TypeError", "RuntimeError"))
    assert whole > 120


@pytest.mark.parametrize("dtype", LOWER)
@pytest.mark.parametrize("policy", ["lower", "float32", "widest"])
def test_results_have_the_dtypes_of_torchs_lists(told: Told, dtype: str, policy: str) -> None:
    kinds = {
        "lower": ("torch_fp16", "nn_fp16", "linalg_fp16", "methods_fp16"),
        "float32": ("torch_fp32", "nn_fp32", "methods_fp32"),
        "widest": ("torch_need_autocast_promote",),
    }[policy]
    expected = dtype if policy == "lower" else "float32"
    _, ours = told("operators")["compared"][dtype]
    found = {
        name: result
        for name, (_, result) in ours.items()
        if name.split("/")[0] in kinds and "Error" not in str(result)
    }

    assert len(found) > 5
    for name, result in found.items():
        assert set(result if isinstance(result, list) else [result]) == {expected}, name


def test_widest_refuses_the_other_lower_precision(told: Told) -> None:
    _, ours = told("operators")["compared"]["bfloat16"]
    results = {name.split("/")[-1]: result for name, (_, result) in ours.items()}

    assert results["dot"].endswith("Unexpected floating ScalarType in at::autocast::prioritize")


def test_binary_cross_entropy_is_refused(told: Told) -> None:
    _, ours = told("operators")["compared"]["float16"]
    results = {name.split("/")[-1]: result for name, (_, result) in ours.items()}

    assert "binary_cross_entropy and torch.nn.BCELoss are unsafe" in results["binary_cross_entropy"]


@pytest.mark.parametrize("mode", ["grad", "no_grad, then grad", "grad, then no_grad", "inference"])
def test_weights_are_cast_as_by_torchs_own_cache(told: Told, mode: str) -> None:
    """Forward and backward, against the host's autocast, which has the same cache."""
    host, ours = told("operators")["weights"]

    assert ours[mode] == host[mode]


@pytest.mark.parametrize("dtype", LOWER)
@pytest.mark.parametrize("part", ["forward", "backward", "gradients"])
def test_model_runs_as_if_cast_by_hand(told: Told, dtype: str, part: str) -> None:
    place = ["forward", "backward", "gradients"].index(part)
    by_autocast, by_hand = told("operators")["model"][dtype]

    assert by_autocast[place] == by_hand[place]
    assert len(by_autocast[place]) > 7


@pytest.mark.parametrize("dtype", LOWER)
def test_model_has_the_dtypes_of_cudas_lists(told: Told, dtype: str) -> None:
    forward, backward, gradients = told("operators")["model"][dtype][0]
    first = {row[0].split(".")[1]: row[1][0] for row in forward + backward}

    assert {name: first[name] for name in ("convolution", "addmm", "mm")} == dict.fromkeys(
        ("convolution", "addmm", "mm"), dtype
    )
    for name in ("native_layer_norm", "_softmax", "nll_loss_forward", "native_layer_norm_backward"):
        assert first[name] == "float32", name
    assert first["_log_softmax"] == dtype  # `cross_entropy` asks for its input's
    assert set(gradients) == {"float32"}


# -- regions ----------------------------------------------------------------------------------------


def test_regions_nest_and_close(told: Told) -> None:
    """Whether autocast is on (asked in two ways), its dtype, and the dtype of a product."""
    off, on = [False, False], [True, True]

    assert told("regions")["state"] == {
        "before": [*off, "float16", "float32"],
        "default": [*on, "float16", "float16"],
        "nested": [*on, "bfloat16", "bfloat16"],
        "disabled": [*off, "bfloat16", "float32"],
        "enabled again": [*on, "bfloat16", "bfloat16"],
        "default again": [*on, "float16", "float16"],
        "torch.cuda.amp": [*on, "float16", "float16"],
        "the device's own name": [*on, "bfloat16", "bfloat16"],
        "decorator": [*on, "bfloat16", "bfloat16"],
        "after an error": [*off, "float16", "float32"],
        "old setters": [*on, "bfloat16", "bfloat16"],
        "after": [*off, "float16", "float32"],
    }


def test_a_weight_is_cast_once_in_an_outermost_region(told: Told) -> None:
    assert told("regions")["casts"] == {
        "cached": 2,  # two regions, four uses
        "not cached": 4,
        "frozen": 4,
        "views of it": 3,  # the weight once, each transposed view
    }


def test_cast_weights_take_memory_until_the_outermost_region_ends(told: Told) -> None:
    cast = 2 * 2**20

    assert told("regions")["memory"] == {
        "in the region": cast,
        "after an inner region": cast,
        "after the region": 0,
    }


def test_custom_functions_run_under_the_state_that_they_ask_for(told: Told) -> None:
    assert told("regions")["custom"] == {
        "forward": "bfloat16",
        "cast_inputs": [False, "float32"],
        "backward of cast_inputs": False,
        "backward": [True, "bfloat16"],
        "gradient": "float32",
    }


def test_checkpoints_compute_again_in_the_same_dtype(told: Told) -> None:
    found = told("regions")["checkpoint"]

    assert found["use_reentrant=True"] == [["bfloat16"] * 2, ["bfloat16"] * 2]
    assert found["use_reentrant=False"] == [["bfloat16"] * 2, ["bfloat16"]]  # stops early


def test_tensors_of_the_host_are_left_alone(told: Told) -> None:
    assert told("regions")["host"] == {
        "in cuda's region": ["float32", False],
        "in the host's": ["bfloat16", [[2.0, 2.0], [2.0, 2.0]], "float32"],
    }


def test_a_function_can_stand_for_an_operator(told: Told) -> None:
    assert told("regions")["stands_for"]["seen"] == [
        ["float32", "NoneType", 2.0, False],
        ["float16", "float16", 1.0, False],
        ["float64", "bool", 2.0, False],
    ]


# -- gradient scaling -------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "for-loop", "fused"])
@pytest.mark.parametrize("clips", [False, True])
@pytest.mark.parametrize("module", ["torch.amp.grad_scaler", "torch.cuda.amp.grad_scaler"])
def test_scaled_steps_are_taken(told: Told, module: str, optimizer: str, clips: bool) -> None:
    found = told("regions")["scaler"][f"{module}, {optimizer}, clips={clips}"]

    assert found == {
        "enabled": True,
        "scale": 65536.0,
        "states": 2,
        "checks": 2,  # one list of gradients in each of two steps
        "updates": 2,
        "gradients": ["float32", "float32"],
    }
