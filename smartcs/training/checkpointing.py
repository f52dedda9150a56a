"""When a run writes checkpoints, and what is in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shutil import copyfile
from time import perf_counter
from typing import Any

from smartcs.training.checkpoint import Checkpoint, digest_of, name_of, prune, write_checkpoint
from smartcs.training.config import TrainConfig
from smartcs.training.inputs import Inputs
from smartcs.training.pretraining import Pretrainer
from smartcs.training.record import Record
from smartcs.training.resume import FINE_TUNING, FORMAT, PRETRAINING
from smartcs.training.run_folder import CHECKPOINTS, LOSSES, MODEL_FILES, write_config
from smartcs.training.state import pretrainer_state, trainer_state
from smartcs.training.state_files import write_state
from smartcs.training.trainer import Trainer


class Checkpointer:
    """Writes a run's checkpoints: a model that ``--model`` and `transformers` read, and the run's state beside it.

    Args:
        folder: the run's.
        config: its settings; `keep` 0 writes none.
        inputs: data and model.
        conditions: what else decides the last bits of a step, by name.
        say: is told what could not be written.

    Attributes:
        last: the newest that this run has written or was resumed from.
        seconds: spent on writing.
    """

    def __init__(
        self, folder: Path, config: TrainConfig, inputs: Inputs, conditions: dict[str, Any], say: Callable[[str], None]
    ) -> None:
        self._run, self._config, self._say = folder, config, say
        self._model, self._inputs = inputs.model, inputs
        self.conditions = conditions
        self.last: Checkpoint | None = None
        self._failed = False
        self.seconds = 0.0

    def advice(self) -> str:
        """For people: how to go on after the run has ended."""
        if self.last is None:
            return "there is no checkpoint to go on from"
        return (
            f"to go on from step {self.last.step}: python -m smartcs.train --resume {self._run}\n"
            f"or anew from its weights, with other settings: python -m smartcs.train --model {self.last.folder} ..."
        )

    def due(self, step: int) -> bool:
        """Whether the interval ends with this step of the run."""
        return bool(self._config.checkpoint_every) and step % self._config.checkpoint_every == 0

    def best_weights(self, step: int) -> dict[str, Any]:
        """`Record.weights` where those in the run's folder are of this step."""
        present = [name for name in MODEL_FILES if (self._run / name).is_file()]
        return {"checkpoint": name_of(step), "files": {name: digest_of(self._run / name) for name in present}}

    def save(self, step: int, loop: Trainer | Pretrainer, record: Record, log: Path, *, final: bool = False) -> None:
        """Writes one, and removes those that are too many.

        Args:
            step: optimizer steps of the run so far, in both stages.
            loop: of the stage, between two steps.
            record: what the run has reached.
            log: losses.csv of the stage, with all steps so far.
            final: whether it is an error that it cannot be written: the run ends with it, or later ones need it. Else
                that is a warning; but the second in a row is an error, too, or a run would train on with ever more to
                lose.

        Raises:
            OSError: it could not be written. The one before is whole.
        """
        if not self._config.keep:
            return

        def fill(folder: Path) -> None:
            self._model.save_pretrained(folder)
            write_config(folder, self._config)
            copyfile(log, folder / LOSSES)
            write_state(folder, self._state(loop, record))

        best = record.weights["checkpoint"] if record.weights else None
        begin = perf_counter()
        try:
            self.last = write_checkpoint(
                self._run / CHECKPOINTS, step, fill, [best] if best and best != name_of(step) else []
            )
        except OSError as error:
            before = "there is none before it" if self.last is None else f"the one before, {self.last.folder}, is whole"
            message = f"the checkpoint of step {step} could not be written ({error}); {before}"
            if final or self._failed:
                raise OSError(message) from error
            self._failed = True
            self._say(f"warning: {message}; going on")
        else:
            self._failed = False
            prune(self._run / CHECKPOINTS, self.last, self._config.keep)
        finally:
            self.seconds += perf_counter() - begin

    def _state(self, loop: Trainer | Pretrainer, record: Record) -> dict[str, Any]:
        common = {
            "format": FORMAT,
            "stage": FINE_TUNING if isinstance(loop, Trainer) else PRETRAINING,
            "seconds": record.seconds,
            "data": self._inputs.digests,
            "conditions": self.conditions,
            "record": record.state_dict(),
        }
        if isinstance(loop, Trainer):
            return {**common, **trainer_state(loop)}
        # What a stopped stage has reached so far is in its own state.
        return {**common, "record": replace(record, pretrained=None).state_dict(), **pretrainer_state(loop)}
