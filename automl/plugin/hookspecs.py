"""Every hook a plugin can implement: this file is the plugin guide.

A plugin is a module with functions marked `@automl.hookimpl`. It is found through an entry point
of the group `automl` named `kind.name` (`space.mlp = "my_package.mlp"`), or named on the command
line with `--plugin my_plugin.py`. It is imported when something it offers is asked for.

A factory is a frozen dataclass or a function; its fields or keyword-only parameters are its
options, given as `-o space.depth=3` and converted by their annotations.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    import click
    import optuna

    from automl.plugin.protocols import Launcher, SearchSpace, Task, Trainer
    from automl.plugin.report import Outcome

hookspec = pluggy.HookspecMarker("automl")
hookimpl = pluggy.HookimplMarker("automl")


class Hooks:
    """The hooks; implement those you need as module functions of the same names."""

    @hookspec
    def register_spaces(self) -> "Mapping[str, Callable[..., SearchSpace]]":
        """Offer search spaces; a plain function (trial, task) is one, too."""
        raise NotImplementedError

    @hookspec
    def register_tasks(self) -> "Mapping[str, Callable[..., Task]]":
        """Offer tasks. A factory with a `data_dir` option is given `--data-dir`."""
        raise NotImplementedError

    @hookspec
    def register_trainers(self) -> "Mapping[str, Callable[..., Trainer]]":
        """Offer trainers."""
        raise NotImplementedError

    @hookspec
    def register_strategies(self) -> "Mapping[str, Callable[..., optuna.samplers.BaseSampler]]":
        """Offer strategies. A factory must take `seed`: it is called anew for each trial."""
        raise NotImplementedError

    @hookspec
    def register_pruners(self) -> "Mapping[str, Callable[..., optuna.pruners.BasePruner]]":
        """Offer pruners."""
        raise NotImplementedError

    @hookspec
    def register_launchers(self) -> "Mapping[str, Callable[..., Launcher]]":
        """Offer launchers."""
        raise NotImplementedError

    @hookspec
    def register_commands(self, cli: "click.Group") -> None:
        """Add commands to `automl`; kind `command`, imported at `automl --help`."""

    @hookspec
    def trial_proposed(self, study: str, number: int, decisions: Mapping[str, Any]) -> None:
        """A candidate was proposed and will be trained; kind `event`, in the worker's process."""

    @hookspec
    def trial_reused(self, study: str, number: int, source: int, level: str) -> None:
        """A trial was told the result of an equal one; kind `event`."""

    @hookspec
    def trial_finished(self, study: str, number: int, outcome: "Outcome") -> None:
        """A trial that was paid for has ended; kind `event`."""

    @hookspec
    def search_finished(self, study: str, trials: int) -> None:
        """This worker found nothing more to do; kind `event`."""
