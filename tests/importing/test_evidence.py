"""What single stacks say. Names and files are those of torch 2.x and of common libraries."""

from __future__ import annotations

import pytest

from memlens.importing.evidence import Evidence, read_stacks
from memlens.importing.stacks import Stacks, short_native

TORCH = "/venv/lib/python3.11/site-packages/torch/"
MAIN = "<module> /job/train.py"
CALL = f"_call_impl {TORCH}nn/modules/module.py"
LINEAR = f"forward {TORCH}nn/modules/linear.py"
STEP = (f"step {TORCH}optim/adamw.py", f"wrapper {TORCH}optim/optimizer.py")
ENGINE = (
    "torch::autograd::Engine::thread_main(std::shared_ptr<torch::autograd::GraphTask> const&) ??"
)
ALLOCATE = "c10::cuda::CUDACachingAllocator::Native::malloc(void**, int, unsigned long) ??"


def evidence(*stacks: tuple[str, ...]) -> list[Evidence]:
    """Read stacks of frames "function file", the innermost first."""
    known = Stacks()
    told = [
        [
            dict(zip(("name", "filename"), each.rsplit(" ", 1), strict=True), line=1)
            for each in stack
        ]
        for stack in stacks
    ]
    numbers = list(map(known.number, told))
    found = read_stacks(known)
    return [found[number] for number in numbers]


ON_MAIN = {
    "module": ((LINEAR, CALL, MAIN), Evidence.FORWARD),
    "module with qualified names": (
        (f"Linear.forward {TORCH}nn/modules/linear.py", MAIN),
        Evidence.FORWARD,
    ),
    "module on Windows": (
        ("forward C:\\venv\\torch\\nn\\modules\\linear.py", "<module> C:\\job\\train.py"),
        Evidence.FORWARD,
    ),
    "module called from a file named like an optimizer": (
        (LINEAR, CALL, "step /job/optim/trainer.py", MAIN),
        Evidence.FORWARD,
    ),
    "loss": (
        (f"cross_entropy {TORCH}nn/functional.py", "loss_of /job/train.py", MAIN),
        Evidence.JOB,
    ),
    "step": ((f"_multi_tensor_adamw {TORCH}optim/adamw.py", *STEP, MAIN), Evidence.OPTIMIZER),
    "module in a step's closure": (
        (LINEAR, CALL, "closure /job/train.py", *STEP, MAIN),
        Evidence.FORWARD,
    ),
    "handmade step": (
        ("step /job/mine.py", f"wrapper {TORCH}optim/optimizer.py", MAIN),
        Evidence.OPTIMIZER,
    ),
    "handmade step under no_grad": (
        (
            "step /job/mine.py",
            f"decorate_context {TORCH}utils/_contextlib.py",
            f"wrapper {TORCH}optim/optimizer.py",
            MAIN,
        ),
        Evidence.OPTIMIZER,
    ),
    "handmade function": (("adamw_update /job/train.py", MAIN), Evidence.OPTIMIZER),
    "bitsandbytes": (
        ("update_step /venv/bitsandbytes/optim/optimizer.py", *STEP, MAIN),
        Evidence.OPTIMIZER,
    ),
    "a step in a folder called adam": (("step /users/adam/job/env.py", MAIN), Evidence.JOB),
    "DeepSpeed's ZeRO": (("step /venv/deepspeed/runtime/zero/stage3.py", MAIN), Evidence.OPTIMIZER),
    "a step of the learning rate": ((f"step {TORCH}optim/lr_scheduler.py", MAIN), Evidence.JOB),
    "zero_grad": ((f"zero_grad {TORCH}optim/optimizer.py", MAIN), Evidence.ZEROING),
    "clip_grad": ((f"clip_grad_norm_ {TORCH}nn/utils/clip_grad.py", MAIN), Evidence.JOB),
    "backward on the caller's thread": (
        (f"_engine_run_backward {TORCH}autograd/graph.py", f"backward {TORCH}_tensor.py", MAIN),
        Evidence.BACKWARD,
    ),
    "linear being made": (
        (f"__init__ {TORCH}nn/modules/linear.py", "__init__ /job/net.py", MAIN),
        Evidence.MAKING,
    ),
    "moved to the device": (
        (f"convert {TORCH}nn/modules/module.py", f"_apply {TORCH}nn/modules/module.py", MAIN),
        Evidence.MAKING,
    ),
    "initialised": ((f"normal_ {TORCH}nn/init.py", "main /job/train.py", MAIN), Evidence.MAKING),
    "pretrained": (
        ("load_shard /venv/transformers/modeling_utils.py", "from_pretrained /venv/t/m.py", MAIN),
        Evidence.MAKING,
    ),
    "a trainer that trains while it is made": (
        ("run /job/train.py", "__init__ /job/trainer.py", MAIN),
        Evidence.JOB,
    ),
    "loader": ((f"fetch {TORCH}utils/data/_utils/fetch.py", MAIN), Evidence.LOADING),
    "batch": (("get_batch /job/train.py", MAIN), Evidence.LOADING),
    "under torchrun's record": (
        (
            "main /job/train.py",
            f"wrapper {TORCH}distributed/elastic/multiprocessing/errors/__init__.py",
            MAIN,
        ),
        Evidence.JOB,
    ),
    "all-gather of FSDP in a hook": (
        (
            f"foreach_all_gather {TORCH}distributed/fsdp/_fully_shard/_fsdp_collectives.py",
            f"_pre_forward {TORCH}distributed/fsdp/_fully_shard/_fsdp_state.py",
            CALL,
            MAIN,
        ),
        Evidence.COMMUNICATION,
    ),
    "shards of FSDP being made": (
        (
            f"_init_sharded_param {TORCH}distributed/fsdp/_fully_shard/_fsdp_param.py",
            f"fully_shard {TORCH}distributed/fsdp/_fully_shard/_fully_shard.py",
            MAIN,
        ),
        Evidence.MAKING,
    ),
    "a sharded module at work": (
        (f"dispatch {TORCH}distributed/tensor/_dispatch.py", LINEAR, CALL, MAIN),
        Evidence.FORWARD,
    ),
    "an optimizer of sharded weights": (
        (f"dispatch {TORCH}distributed/tensor/_dispatch.py", *STEP, MAIN),
        Evidence.OPTIMIZER,
    ),
    "DDP making its buckets": (
        (f"_ddp_init_helper {TORCH}nn/parallel/distributed.py", MAIN),
        Evidence.COMMUNICATION,
    ),
    "a workspace": (
        (ALLOCATE, "at::cuda::getNewWorkspace() ??", LINEAR, CALL, MAIN),
        Evidence.WORKSPACE,
    ),
    "a collective in C++": (
        (ALLOCATE, "c10d::ProcessGroupNCCL::collective() ??", MAIN),
        Evidence.COMMUNICATION,
    ),
}


@pytest.mark.parametrize(("stack", "expected"), ON_MAIN.values(), ids=ON_MAIN)
def test_on_the_main_thread(stack: tuple[str, ...], expected: Evidence) -> None:
    assert evidence(stack) == [expected]


CHECKPOINT = f"{TORCH}utils/checkpoint.py"
ON_THE_ENGINE = {
    "nothing of Python": ((), Evidence.BACKWARD),
    "C++ alone": (
        (
            ALLOCATE,
            "torch::autograd::generated::MmBackward0::apply(std::vector<at::Tensor>&&) ??",
            ENGINE,
        ),
        Evidence.BACKWARD,
    ),
    "a function of the job": (("backward /job/kernels.py",), Evidence.BACKWARD),
    "a hook of the job": (("scale /job/train.py",), Evidence.BACKWARD),
    "an optimizer in a hook": ((*STEP, "hook /job/train.py"), Evidence.STEP_IN_BACKWARD),
    "recomputed, reentrant": ((LINEAR, CALL, f"backward {CHECKPOINT}"), Evidence.RECOMPUTE),
    "recomputed, not reentrant": (
        (LINEAR, CALL, f"recompute_fn {CHECKPOINT}", f"unpack_hook {CHECKPOINT}"),
        Evidence.RECOMPUTE,
    ),
    "backward within a reentrant one": (
        (f"_engine_run_backward {TORCH}autograd/graph.py", f"backward {CHECKPOINT}"),
        Evidence.BACKWARD,
    ),
    "a collective of FSDP": (
        (f"foreach_reduce {TORCH}distributed/fsdp/_fully_shard/_fsdp_collectives.py",),
        Evidence.COMMUNICATION,
    ),
    "another thread of the job": (
        ("prefetch /job/train.py", "run /usr/lib/python3.11/threading.py"),
        Evidence.ASIDE,
    ),
}


@pytest.mark.parametrize(("stack", "expected"), ON_THE_ENGINE.values(), ids=ON_THE_ENGINE)
def test_on_another_thread(stack: tuple[str, ...], expected: Evidence) -> None:
    assert evidence((LINEAR, CALL, MAIN), stack)[1] is expected


def test_trainings_that_are_the_closure_of_a_step() -> None:
    """As Lightning's are, by whose wrappers each step goes."""
    lightning = "/venv/lib/python3.11/site-packages/lightning/pytorch/"
    around = (
        *STEP,
        f"optimizer_step {lightning}plugins/precision/precision.py",
        f"step {lightning}core/optimizer.py",
        f"_optimizer_step {lightning}loops/optimization/automatic.py",
        MAIN,
    )
    closure = (
        "training_step /job/model.py",
        f"closure {lightning}loops/optimization/automatic.py",
        f"__call__ {lightning}loops/optimization/closure.py",
        *around,
    )
    loss = f"cross_entropy {TORCH}nn/functional.py"
    zeroing = f"zero_grad {TORCH}optim/optimizer.py"
    work = f"_multi_tensor_adamw {TORCH}optim/adamw.py"
    assert evidence(
        (LINEAR, CALL, *closure), (loss, *closure), (zeroing, *closure[1:]), (work, *around)
    ) == [Evidence.FORWARD, Evidence.JOB, Evidence.ZEROING, Evidence.OPTIMIZER]


def test_where_no_stack_has_frames_of_python_their_lack_says_nothing() -> None:
    assert evidence((), (ALLOCATE,)) == [Evidence.NOTHING, Evidence.NOTHING]
    assert evidence((ALLOCATE, ENGINE)) == [Evidence.BACKWARD]


def test_a_function_that_calls_modules_is_no_optimizer_whatever_its_name() -> None:
    name = "sgd /job/train.py"
    assert evidence(("loss /job/train.py", name, MAIN)) == [Evidence.OPTIMIZER]
    assert evidence(("loss /job/train.py", name, MAIN), (LINEAR, CALL, name, MAIN)) == [
        Evidence.JOB,
        Evidence.FORWARD,
    ]


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("torch::autograd::Engine::execute(int, bool)", "torch::autograd::Engine::execute"),
        ("void at::cuda::blas::gemm<float>(char, long)", "at::cuda::blas::gemm"),
        ("at::(anonymous namespace)::wrapper(at::Tensor const&)", "at::{anonymous}::wrapper"),
        ("std::vector<std::pair<int, int> > f<std::map<a, b> >(int)", "f"),
        ("main", "main"),
        ("(", "?"),
        ("<" * 2000, "<" * 2000),
    ],
)
def test_names_of_cpp(name: str, short: str) -> None:
    assert short_native(name) == short
