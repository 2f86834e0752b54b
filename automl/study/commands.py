"""The `automl` command lines shown to users."""

import shlex

from automl.storage.storage import Storage


def command_line(storage: Storage, study: str, verb: str, *options: str) -> str:
    """An `automl` command line for a study, as a user types it; never with a password."""
    given = [word for word in (storage.option().strip(), *options) if word]
    name = shlex.quote(study)
    words = [*given, "--", name] if study.startswith("-") else [name, *given]
    unsaid = " and ".join(storage.variables)
    note = f"  (with {unsaid} set as now)" if unsaid else ""
    return " ".join(["automl", verb, *words]) + note
