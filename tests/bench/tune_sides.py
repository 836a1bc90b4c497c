"""Three ways to take an optimizer step of LoRA trials: packed, alone, and alone with PEFT.

Each side has a `step()` that returns a loss. No Ray is in it.
"""

import warnings
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch

from ftray.config.base import override
from ftray.config.run import RunConfig
from ftray.data.rendering.chat import Tokens
from ftray.data.tokens.memory import MemoryRows
from ftray.model.shape import read_shape
from ftray.train.memory import USABLE_OF_GPU, Worker
from ftray.train.optim import build_optimizer, learning_rate, set_learning_rate
from ftray.train.parallel import Place
from ftray.train.step import micro_batch, train_step
from ftray.train.trainee import build_trainee, random_state
from ftray.tune.packed.intake import Intake, Tables
from ftray.tune.packed.memory import plan_capacity
from ftray.tune.packed.trainer import PackedTrainer
from ftray.tune.packed.trial import Trial

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
RANK, ALPHA, RATE = 16, 32, 2e-4
MIXED = (8, 16, 32)  # ranks of trials that differ
_PLACE = Place(0, 1, DEVICE)
_ROWS = 64


@dataclass(frozen=True)
class Base:
    """A base model's shape, and what is trained on it: so many trials, so many tokens a step."""

    name: str
    shape: dict[str, Any]
    tokens: tuple[int, ...]
    trials: tuple[int, ...]

    def rows(self) -> MemoryRows:
        """Rows of the most tokens that a step has, of which all but the first are learned."""
        length, generator = max(self.tokens), torch.Generator().manual_seed(0)
        ids = torch.randint(8, self.shape["vocab_size"], (_ROWS, length), generator=generator)
        return MemoryRows([Tokens(row, bytes([0, *[1] * (length - 1)])) for row in ids.tolist()])


class Host:
    """One copy of the base, with as much room as a search would plan for these trials.

    `tokens` is how many a step of each has at most; `graphs` is `train.graphs`.
    """

    def __init__(self, base: Base, folder: Path, tokens: int, graphs: bool | str) -> None:
        config = override(config_of(folder, tokens), {"train.graphs": graphs})
        most = max(base.trials)
        capacity = plan_capacity(config, [config], most, read_shape(folder), _worker())
        if capacity.slots < most:
            raise SystemExit(f"{base.name}: {capacity.slots} of {max(base.trials)} trials fit here")
        tables = Tables(base.rows(), None)
        self.trainer = PackedTrainer(config, folder, tables, DEVICE, capacity)


class Packed:
    """Trials side by side on a host."""

    def __init__(self, host: Host, folder: Path, trials: int, tokens: int, *, mixed: bool) -> None:
        self._trainer = host.trainer
        self._ids = [f"trial-{number}" for number in range(trials)]
        for number, name in enumerate(self._ids):
            changes: dict[str, Any] = {"train.seed": number}
            if mixed:
                changes["adapter.rank"] = MIXED[number % len(MIXED)]
                changes["train.learning_rate"] = RATE * (1 + number) / 4
            config = override(config_of(folder, tokens), changes)
            self._trainer.attach(Trial(name, config))

    def step(self) -> float:
        """Return the first trial's loss; whatever went wrong with any of them is raised."""
        outcomes = self._trainer.step(self._ids)
        for outcome in outcomes.values():
            if isinstance(outcome, Exception):
                raise outcome
        loss = dict(outcomes[self._ids[0]])["loss"]  # type: ignore[arg-type]  # errors are raised
        return float(loss)  # type: ignore[arg-type]  # a number in each line

    def end(self) -> None:
        """Free the slots."""
        for name in self._ids:
            self._trainer.detach(name)


class Alone:
    """One trial as `ftray train` takes its steps, with the same kernels."""

    def __init__(self, base: Base, folder: Path, tokens: int) -> None:
        self._train = config_of(folder, tokens).train
        config = config_of(folder, tokens)
        self._trainee = build_trainee(config, folder, _PLACE, "")
        self._optimizer = build_optimizer(self._trainee.attached.trainable.values(), self._train)
        self._rows = base.rows()
        self._intake = Intake(Tables(self._rows, None), config)
        self._numbers = count()

    def step(self) -> float:
        """Return the trial's loss."""
        number, train = next(self._numbers), self._train
        work = [micro_batch(self._rows, self._intake.packs(number), [0])]
        random_state(train.seed, number, _PLACE.rank)
        rate = learning_rate(number, self._intake.total_steps, train)
        set_learning_rate(self._optimizer, rate)
        loss = train_step(self._trainee, work, _PLACE, train, number).loss
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss


class Peft:
    """One trial as transformers and PEFT do it: bf16 base, fp32 adapter, fused AdamW."""

    def __init__(self, base: Base, folder: Path, tokens: int) -> None:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        self._mixed = DEVICE.type == "cuda"
        dtype = torch.bfloat16 if self._mixed else torch.float32
        plain = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(DEVICE)
        wanted = LoraConfig(
            task_type="CAUSAL_LM", r=RANK, lora_alpha=ALPHA, target_modules="all-linear"
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PEFT 0.21 with transformers 5.23
            self._model = get_peft_model(plain, wanted)
        self._model.train()
        self._trained = [one for one in self._model.parameters() if one.requires_grad]
        self._optimizer = torch.optim.AdamW(
            self._trained, lr=RATE, weight_decay=0.0, fused=self._mixed
        )
        self._rows, self._tokens, self._numbers = base.rows(), tokens, count()

    def step(self) -> float:
        """Return the trial's loss."""
        row = self._rows.ids(next(self._numbers) % _ROWS)[: self._tokens]
        ids = torch.from_numpy(row).long()[None].to(DEVICE)  # [1, tokens]
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16, enabled=self._mixed):
            loss = self._model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._trained, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return float(loss.item())


def config_of(folder: Path, tokens: int) -> RunConfig:
    """The config of a trial, which takes one pack of so many tokens a step."""
    return RunConfig.model_validate(
        {
            "name": "bench",
            "model": {"name": str(folder)},
            "adapter": {"method": "lora", "rank": RANK, "alpha": ALPHA},
            "data": {"train": "made.jsonl", "max_length": tokens},
            "train": {
                "max_steps": 10_000,
                "global_batch_size": 1,
                "micro_batch_size": 1,
                "learning_rate": RATE,
                "schedule": "constant",
            },
        }
    )


def _worker() -> Worker:
    if DEVICE.type == "cpu":
        return Worker("cpu", 1, None, "here")
    return Worker("gpu", 1, int(torch.cuda.mem_get_info()[1] * USABLE_OF_GPU), "here")
