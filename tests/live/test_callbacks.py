"""Real trainings log the same scalars through every door, and those are the capture's."""

from __future__ import annotations

import csv
import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from tests.support.jobs import ours, run_memlens, run_plain, write_script

import memlens
from memlens.events import Category
from memlens.live.scalars import SCALARS

SUPPORT = """
import json, sys
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.Linear(128, 4))

    def forward(self, x, labels=None):
        out = self.body(x)
        loss = torch.nn.functional.cross_entropy(out, labels)
        return {"loss": loss, "logits": out}

class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 48

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return {"x": torch.randn(64, generator=generator), "labels": torch.tensor(index % 4)}

torch.manual_seed(0)
"""

OWN_LOOP = """
import memlens
logged = []
net = Net()
optimizer = torch.optim.AdamW(net.parameters())
logger = lambda scalars, step: logged.append([step, scalars])
with memlens.profile(out="run", logger=logger, log_every=1):
    for batch in torch.utils.data.DataLoader(Data(), batch_size=8):
        optimizer.zero_grad()
        net(**batch)["loss"].backward()
        optimizer.step()
        assert memlens.scalars() == logged[-1][1]
assert memlens.scalars() == {}
json.dump(logged, open("logged.json", "w"))
"""

TRAINER = """
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import TrainerCallback
from memlens_integrations.transformers_callback import MemlensCallback

seen = []
class Writer(TrainerCallback):  # as those that report to TensorBoard: added before ours
    def on_log(self, args, state, control, logs=None, **kwargs):
        seen.append([state.global_step - 1, dict(logs)])

arguments = TrainingArguments(
    output_dir="out", max_steps=6, logging_steps=2, per_device_train_batch_size=8, report_to=[],
    save_strategy="no", use_cpu=True, disable_tqdm=True, remove_unused_columns=False,
)
callbacks = [Writer(), MemlensCallback(out=OUT)]
trainer = Trainer(model=Net(), args=arguments, train_dataset=Data(), callbacks=callbacks)
trainer.train()
history = [[each["step"] - 1, each] for each in trainer.state.log_history]
for (step, logs), (other, kept) in zip(seen, history, strict=True):
    assert step == other and logs.items() <= kept.items()
memory = lambda logs: {key: value for key, value in logs.items() if key.startswith("memory/")}
json.dump([[step, memory(logs)] for step, logs in seen], open("logged.json", "w"))
"""

LIGHTNING = """
import importlib
pl = importlib.import_module(PACKAGE)
from memlens_integrations.lightning_callback import MemlensCallback
CSVLogger = importlib.import_module(PACKAGE + ".loggers").CSVLogger

class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = Net()

    def training_step(self, batch, index):
        return self.net(**batch)["loss"]

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters())

trainer = pl.Trainer(
    max_epochs=1, accelerator="cpu", devices=1, logger=CSVLogger("logs", name="", version=""),
    log_every_n_steps=2, enable_progress_bar=False, enable_checkpointing=False,
    enable_model_summary=False, callbacks=[MemlensCallback(out=OUT)],
)
trainer.fit(Module(), torch.utils.data.DataLoader(Data(), batch_size=8))
"""


def check(logged: list[tuple[int, dict[str, int]]], run: Path, steps: list[int]) -> None:
    """What was logged of some steps is what the capture says of them, to the byte.

    But for what a loader has made for the next forward: that is an input once that forward has begun.
    """
    recorded = {step.step: step for step in memlens.load(run).ranks[0].steps()}
    assert [number for number, _ in logged] == steps
    for number, scalars in logged:
        step = recorded[number]
        assert set(scalars) == set(SCALARS) - {"memory/reserved_bytes"}
        assert scalars["memory/peak_bytes"] == step.peak_bytes
        assert scalars["memory/end_bytes"] == step.end_bytes
        so_far = [each.peak_bytes for each in recorded.values() if each.step <= number]
        assert scalars["memory/run_peak_bytes"] >= max(so_far)
        found = {each: scalars[f"memory/{each.value}_bytes"] for each in Category}
        for_next = step.categories[Category.INPUT] - found[Category.INPUT]
        assert for_next >= 0
        found[Category.INPUT] += for_next
        found[Category.UNKNOWN] -= for_next
        assert found == step.categories
        assert sum(found.values()) == step.peak_bytes
        # Two moments of AdamW and its count of steps, of four parameters.
        states = 2 * 4 * (64 * 128 + 128 + 128 * 4 + 4) + 4 * 4
        assert scalars["memory/optimizer_state_bytes"] in (0, states)
    assert logged[-1][1]["memory/optimizer_state_bytes"] > 0


def test_an_own_loop(tmp_path: Path) -> None:
    script = write_script(tmp_path / "train.py", SUPPORT + OWN_LOOP)
    answer = run_plain("python", script.name, cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    check(json.loads((tmp_path / "logged.json").read_text()), tmp_path / "run", list(range(6)))


@pytest.mark.slow
@pytest.mark.parametrize("by", ["the callback", "memlens run"])
def test_the_trainer(by: str, tmp_path: Path) -> None:
    out = "'run'" if by == "the callback" else "None"
    write_script(tmp_path / "train.py", f"OUT = {out}\n" + SUPPORT + TRAINER)
    if by == "the callback":
        answer = run_plain("python", "train.py", cwd=tmp_path)
        assert ours(answer.stderr)[-1].endswith("events; read them with: memlens report run")
    else:
        answer = run_memlens("run", "--out", "run", "train.py", cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    logged = json.loads((tmp_path / "logged.json").read_text())
    check(logged, tmp_path / "run", [1, 3, 5, 5])  # the last one is the Trainer's summary


@pytest.mark.slow
@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
@pytest.mark.parametrize("by", ["the callback", "memlens run"])
def test_lightning(by: str, package: str, tmp_path: Path) -> None:
    if find_spec(package.partition(".")[0]) is None:
        pytest.skip(f"{package} is not installed")
    out = "'run'" if by == "the callback" else "None"
    head = f"OUT = {out}\nPACKAGE = {package!r}\n"
    write_script(tmp_path / "train.py", head + SUPPORT + LIGHTNING)
    if by == "the callback":
        answer = run_plain("python", "train.py", cwd=tmp_path)
    else:
        answer = run_memlens("run", "--out", "run", "train.py", cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    with open(tmp_path / "logs" / "metrics.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("memory/peak_bytes")]
    logged = [
        (
            int(row["step"]),
            {name: int(row[name]) for name in row if name.startswith("memory/")},
        )
        for row in rows
    ]
    check(logged, tmp_path / "run", [1, 3, 5])


def test_a_logger_that_fails_is_called_no_more(tmp_path: Path) -> None:
    script = write_script(
        tmp_path / "train.py",
        SUPPORT
        + """
import memlens
calls = []
def logger(scalars, step):
    calls.append(step)
    raise OSError("the server is gone")
net = Net()
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
with memlens.profile(out="run", logger=logger, log_every=1) as session:
    for batch in torch.utils.data.DataLoader(Data(), batch_size=8):
        net(**batch)["loss"].backward()
        optimizer.step()
assert calls == [0]
coverage = session.capture.ranks[0].coverage
assert not coverage.lost_events and len(session.capture.ranks[0].steps()) == 6
print(*coverage.problems)
""",
    )
    answer = run_plain("python", script.name, cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    words = "the logger failed (OSError: the server is gone), and is called no more"
    assert answer.stdout == f"{words}\n"
    assert ours(answer.stderr) == [f"memlens: {words}"]


def test_a_session_that_cannot_start_is_said_once(tmp_path: Path) -> None:
    """The folder is taken: the training goes on and logs nothing of memory."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").touch()
    script = write_script(
        tmp_path / "train.py",
        """
        from memlens_integrations.in_callbacks import Recording
        recording = Recording("run")
        for _ in range(2):
            recording.begin()
            assert recording.scalars() == {}
        recording.end()
        """,
    )
    answer = run_plain("python", script.name, cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    (line,) = ours(answer.stderr)
    assert line.startswith("memlens: nothing is logged of memory (OutputExistsError: ")


def test_log_every(tmp_path: Path) -> None:
    script = write_script(
        tmp_path / "train.py",
        SUPPORT
        + """
import memlens
steps = []
net = Net()
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
with memlens.profile(out="run", steps="2:6", log_every=2, logger=lambda _, step: steps.append(step)):
    for _ in range(8):
        net(**next(iter(torch.utils.data.DataLoader(Data(), batch_size=8))))["loss"].backward()
        optimizer.step()
print(steps)
""",
    )
    answer = run_plain("python", script.name, cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout == "[3, 5]\n"
    with pytest.raises(memlens.MemlensError, match="log_every must be 1 or more, not 0"):
        memlens.profile(log_every=0)
