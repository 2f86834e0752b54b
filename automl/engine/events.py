"""Events: calls the hooks of event plugins, whose errors never stop a search."""

import logging
from dataclasses import dataclass
from typing import Any

from pluggy import PluginManager

from automl.engine.failures import failure
from automl.trial_code.boundary import TrialCode

_log = logging.getLogger("automl")


@dataclass(frozen=True)
class Events:
    """The event plugins of a search.

    Attributes:
        hooks: The plugins to call.
        study: The study's name, which every event has.
    """

    hooks: PluginManager
    study: str

    def send(self, event: str, **arguments: Any) -> None:
        """Call each plugin's hook for an event, with these arguments."""
        try:
            with TrialCode(watched=False):
                getattr(self.hooks.hook, event)(study=self.study, **arguments)
        except Exception as error:
            # The error's text is made by the plugin's code, so `failure` guards it.
            shown = failure(error)
            _log.warning("a plugin's %s raised %s; the search continues", event, shown.message)
            _log.debug("%s", shown.traceback)
