"""The verbs that learn: the class of their config, and what runs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from pfscale.config import Config
from pfscale.errors import unknown_name
from pfscale.tracking.runs import Tracker
from pfscale.training.run import Run


@dataclass(frozen=True)
class Verb:
    """A verb, imported when it is used.

    Attributes:
        module: below `pfscale.training`.
        config_name, function_name: in it.
        launch_name: function that says what would be run, for trainings that a sweep can watch and stop; empty: it cannot.
    """

    module: str
    config_name: str
    function_name: str
    launch_name: str = ""

    @property
    def config_class(self) -> type[Config]:
        """What its YAML file is read as."""
        found: type[Config] = self._get(self.config_name)
        return found

    def run(self, config: Config) -> Run:
        """Does it; errors as the function's."""
        function: Callable[[Any], Run] = self._get(self.function_name)
        return function(config)

    def launch(self, config: Config) -> tuple[Any, Tracker]:
        """What `run` would run (a `Launch`), and where it logs."""
        function: Callable[[Any], tuple[Any, Tracker]] = self._get(self.launch_name)
        return function(config)

    def _get(self, name: str) -> Any:
        return getattr(import_module(f"pfscale.training.{self.module}"), name)


VERBS = {
    "pretrain": Verb("pretrain", "PretrainConfig", "pretrain", "pretraining"),
    "finetune": Verb("finetune", "FinetuneConfig", "finetune", "finetuning"),
    "downstream": Verb("downstream", "DownstreamConfig", "downstream", "heading"),
}


def find_verb(name: str) -> Verb:
    """The verb of this name.

    Raises:
        UnknownNameError: there is none.
    """
    if name not in VERBS:
        raise unknown_name("verb with a config", name, tuple(VERBS))
    return VERBS[name]
