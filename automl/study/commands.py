"""The `automl` lines that people are shown."""

import shlex

from automl.storage.storage import Storage


def command_line(storage: Storage, study: str, verb: str, *options: str) -> str:
    """An `automl` line on a study, as a person types it; never with a password."""
    given = [word for word in (storage.option().strip(), *options) if word]
    name = shlex.quote(study)
    words = [*given, "--", name] if study.startswith("-") else [name, *given]
    unsaid = " and ".join(storage.variables)
    note = f"  (with {unsaid} set as now)" if unsaid else ""
    return " ".join(["automl", verb, *words]) + note
