"""A plugin-based AutoML search engine on PyTorch.

    import automl
    study, best = automl.search("mlp", task="digits", trials=30)

Names are loaded when they are first used, so that importing this package costs next to nothing.
What a script reads from then on is noted, for its space may depend on it, see `files`.
"""

from typing import TYPE_CHECKING, Any

from automl.files import install

if TYPE_CHECKING:
    from automl import nn
    from automl.api import Found, resume, search
    from automl.candidate import Candidate, Signature
    from automl.decisions import Open
    from automl.errors import (
        AutoMLError,
        CandidateError,
        GraphError,
        Interrupted,
        NotFiniteError,
        OpenDecisionError,
        PluginError,
        StorageError,
        TrialError,
        UnknownNameError,
        UntrustedError,
        UsageError,
    )
    from automl.graph import Algebra, Node, Operation, declare
    from automl.hookspecs import hookimpl
    from automl.identity.function import functional_hash, same_function
    from automl.operations import Graph
    from automl.portable.columns import Preparation, Scaling
    from automl.portable.csvfile import read_table, read_text
    from automl.portable.pixels import Pixels, images_in, open_image
    from automl.protocols import (
        Context,
        Launcher,
        Run,
        SearchSpace,
        Split,
        Task,
        Trainer,
        WorkerHandle,
        derive_seed,
    )
    from automl.report import COSTS, Direction, Objective, Outcome, Report, State
    from automl.tables import Goal, Reading, table_task, with_reading
    from automl.tasks import Classification, Regression

__version__ = "0.1.0"

install()

_HOME = {
    "nn": "nn",
    "Found": "api",
    "resume": "api",
    "search": "api",
    "Candidate": "candidate",
    "Signature": "candidate",
    "Open": "decisions",
    "AutoMLError": "errors",
    "CandidateError": "errors",
    "GraphError": "errors",
    "Interrupted": "errors",
    "NotFiniteError": "errors",
    "OpenDecisionError": "errors",
    "PluginError": "errors",
    "StorageError": "errors",
    "TrialError": "errors",
    "UnknownNameError": "errors",
    "UntrustedError": "errors",
    "UsageError": "errors",
    "Algebra": "graph",
    "Node": "graph",
    "Operation": "graph",
    "declare": "graph",
    "hookimpl": "hookspecs",
    "functional_hash": "identity.function",
    "same_function": "identity.function",
    # Through operations, so that a graph always knows the standard ones.
    "Graph": "operations",
    "Preparation": "portable.columns",
    "Scaling": "portable.columns",
    "read_table": "portable.csvfile",
    "read_text": "portable.csvfile",
    "Pixels": "portable.pixels",
    "images_in": "portable.pixels",
    "open_image": "portable.pixels",
    "Context": "protocols",
    "Launcher": "protocols",
    "Run": "protocols",
    "SearchSpace": "protocols",
    "Split": "protocols",
    "Task": "protocols",
    "Trainer": "protocols",
    "WorkerHandle": "protocols",
    "derive_seed": "protocols",
    "COSTS": "report",
    "Direction": "report",
    "Objective": "report",
    "Outcome": "report",
    "Report": "report",
    "State": "report",
    "Goal": "tables",
    "Reading": "tables",
    "table_task": "tables",
    "with_reading": "tables",
    "Classification": "tasks",
    "Regression": "tasks",
}

__all__ = [  # noqa: RUF022 - grouped by home; a test holds it equal to the table above
    "nn",
    "search",
    "resume",
    "Found",
    "Candidate",
    "Signature",
    "Open",
    "AutoMLError",
    "CandidateError",
    "GraphError",
    "Interrupted",
    "NotFiniteError",
    "OpenDecisionError",
    "PluginError",
    "StorageError",
    "TrialError",
    "UnknownNameError",
    "UntrustedError",
    "UsageError",
    "Algebra",
    "Graph",
    "Node",
    "Operation",
    "declare",
    "hookimpl",
    "functional_hash",
    "same_function",
    "Preparation",
    "Scaling",
    "read_table",
    "read_text",
    "Pixels",
    "images_in",
    "open_image",
    "Context",
    "Launcher",
    "Run",
    "SearchSpace",
    "Split",
    "Task",
    "Trainer",
    "WorkerHandle",
    "derive_seed",
    "COSTS",
    "Direction",
    "Objective",
    "Outcome",
    "Report",
    "State",
    "Goal",
    "Reading",
    "table_task",
    "with_reading",
    "Classification",
    "Regression",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'automl' has no attribute {name!r}")
    import importlib

    home = importlib.import_module(f"automl.{_HOME[name]}")
    value = home if _HOME[name] == name else getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
