"""Parts of installed plugins, for parts that build on another one."""

from collections.abc import Mapping
from pathlib import Path
from typing import cast

from automl.errors import UsageError
from automl.plugin.protocols import Task
from automl.plugin.registry import Kind, Registry
from automl.plugin.trust import Trust


def installed_task(
    name: str, options: Mapping[str, object] | None = None, data_dir: Path | None = None
) -> Task:
    """Make a task by its name, for a task that changes the data of another one.

    Args:
        name: The name of a task that a plugin offers; code in a file cannot be named.
        options: The task's options. A path must be a `Path`: take it from an option of your own
            that is a path, which users approve.
        data_dir: The folder of its data, for a task with an option `data_dir`.

    Raises:
        UnknownNameError: There is no such task, or it has no such option.
        UsageError: A value does not fit, a path is plain text, or the name is that of a file.
    """
    if ":" in name:
        raise UsageError(f"expected the name of an installed task, got {name!r}")
    offer, given = Registry(Trust()).find(Kind.TASK, name), dict(options or {})
    known = offer.options()
    if data_dir is not None and "data_dir" in known:
        given.setdefault("data_dir", data_dir)
    hidden = [key for key in given if key in known and known[key].is_path]
    if text := [key for key in hidden if not isinstance(given[key], Path)]:
        raise UsageError(f"{offer.label}: option {text[0]} is a path and cannot be given as text")
    return cast(Task, offer.build(given).make())
