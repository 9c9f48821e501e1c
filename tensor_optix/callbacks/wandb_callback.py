"""A run as Weights & Biases curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tensor_optix.callbacks._records import RecordCallback, require


class WandbCallback(RecordCallback):
    """Opens a W&B run when training begins, logs to it by window, and finishes it when training is over.

    A W&B run that is open already is used as it is and left open.

    Args:
        project: as `wandb.init` takes it; so are `name`, `config`, `tags`, `group` and `resume`.
        init: further arguments of `wandb.init`, for example `mode="offline"` or `dir="logs"`.

    Raises:
      ImportError: the package wandb is missing.
    """

    def __init__(
        self,
        project: str | None = None,
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
        tags: Sequence[str] | None = None,
        group: str | None = None,
        resume: bool | str | None = None,
        **init: Any,
    ) -> None:
        self._wandb: Any = require("wandb", "wandb", "WandbCallback")
        given = {"project": project, "name": name, "config": config, "tags": tags, "group": group, "resume": resume}
        self._init = {key: value for key, value in given.items() if value is not None} | init
        self.run: Any = None  # the `wandb.Run` of the training that goes on
        self._own = False  # opened here

    def open(self) -> None:
        self.run = None
        before = self._wandb.run
        self.run = self._wandb.init(**self._init)
        self._own = self.run is not before

    def write(self, step: int, values: Mapping[str, float]) -> None:
        if self.run is not None:
            self.run.log(dict(values), step=step)

    def close(self) -> None:
        run, self.run = self.run, None
        if run is not None and self._own:
            run.finish()
