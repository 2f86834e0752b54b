"""A candidate: one point of a search space, a pure function of the space and its decisions."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

from automl.errors import CandidateError, OpenDecisionError
from automl.space.decisions import DecidingTrial, Open, find_open
from automl.space.files_read import FilesRead

if TYPE_CHECKING:
    import optuna
    from torch import Tensor, nn

    from automl.space.decisions import Opens
    from automl.space.graph import Graph


_GRAPHS = str(Path(__file__).with_name("graph.py"))
"""Where the architectures that are no function of the space's are built."""


@dataclass(frozen=True)
class Signature:
    """What a task feeds a model and expects of it: shapes of one example, without the batch.

    blocks: where inputs that encode one category begin and end: of each such block one is 1, and
    the others are 0.
    """

    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    blocks: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Candidate:
    """An architecture and hyperparameters; `decisions` are the closed ones that made it.

    architecture: a Graph, or a function of no arguments that returns an nn.Module.
    hyperparameters: what the trainer reads beside the model, by the trainer's own names. files:
    what was read while it was proposed and built.
    """

    architecture: "Graph | Callable[[], nn.Module]"
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    decisions: Mapping[str, Any] = field(default_factory=dict)
    open_decisions: Mapping[str, Open] = field(default_factory=dict)
    files: FilesRead = field(default_factory=FilesRead, compare=False, repr=False)

    def build(
        self, probe: "Tensor | None" = None, signature: Signature | None = None
    ) -> "nn.Module":
        """Build the module; with a probe batch and a signature, check its output shape.

        Raises:
            CandidateError: it is no module, or maps the probe to another shape than expected.
            OpenDecisionError: an open decision was used as a value.
        """
        space = next((decision.space for decision in self.open_decisions.values()), "")
        naming = _naming(self.open_decisions, f"the architecture of space {space}")
        with naming, self.files.recording():
            module = _module_of(self.architecture)
        self.files.built = True
        if probe is not None and signature is not None:
            _check_output(module, probe, signature)
        return module

    def costs(self, example: "Tensor") -> dict[str, float]:
        """What the candidate costs: parameters, and FLOPs of a forward pass on one example.

        example: inputs [1, *input_shape]. A multiplication with an addition counts as two; only
        matrix products, convolutions and attention count.
        """
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        module = self.build().eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            module(example)
        parameters = sum(parameter.numel() for parameter in module.parameters())
        return {"parameters": parameters, "flops": counter.get_total_flops()}


def propose(
    function: "Callable[[optuna.trial.BaseTrial], object]",
    trial: "optuna.trial.BaseTrial",
    opens: "Opens" = lambda name, distribution: False,
    *,
    space: str = "",
    trainer: str = "",
) -> Candidate:
    """Let a space propose on a trial, leaving open what the trainer asks for.

    Raises:
        CandidateError: the space returned nothing that can be trained.
        OpenDecisionError: an open decision was used as a value, or is not in the candidate.
    """
    deciding = DecidingTrial(trial, opens, space, trainer)
    files = FilesRead()
    with _naming(deciding.open, f"space {space}"), files.recording():
        made = function(deciding)
    candidate = replace(
        _as_candidate(made, space),
        decisions=deciding.closed,
        open_decisions=deciding.open,
        files=files,
    )
    _find_all_open(candidate, space)
    return candidate


def _as_candidate(made: object, space: str) -> Candidate:
    if isinstance(made, Candidate):
        return made
    # By attributes, for torch is not imported until it is needed; a class has them, too.
    instance = not isinstance(made, type)
    if instance and hasattr(made, "parameters") and hasattr(made, "forward"):
        return Candidate(lambda: cast("nn.Module", made))
    if instance and hasattr(made, "live_nodes"):
        return Candidate(cast("Graph", made))
    raise CandidateError(
        f"space {space} returned {_kind(made)}; expected a Candidate, a Graph or an nn.Module"
    )


def _find_all_open(candidate: Candidate, space: str) -> None:
    missing = dict(candidate.open_decisions)
    for decision in find_open(dict(candidate.hyperparameters)):
        missing.pop(decision.name, None)
    if missing:
        for name in _open_in(candidate):
            missing.pop(name, None)
    if missing:
        raise OpenDecisionError(
            f"space {space} lost the open decision {', '.join(map(repr, missing))}: "
            "it is in no Graph operation, automl.nn layer or hyperparameter; do not branch on "
            "its value, hand it on"
        )


def _open_in(candidate: Candidate) -> Mapping[str, Any]:
    if hasattr(candidate.architecture, "open_decisions"):
        return candidate.architecture.open_decisions()
    from automl.space.layers import open_in

    return open_in(candidate.build())


def raised_in_building(error: BaseException) -> str | None:
    """Where the space's own code raised an error while an architecture was built.

    Returns:
        The function and its line; empty text where that is no code of the space's. None where the
        error, and what it was raised from, came from elsewhere.
    """
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code is _module_of.__code__:
            return _last_of_file(trace.tb_next)
        trace = trace.tb_next
    return None if error.__cause__ is None else raised_in_building(error.__cause__)


def _last_of_file(trace: TracebackType | None) -> str:
    """The deepest place in the file in which a traceback begins."""
    if trace is None:
        return ""
    file, last = trace.tb_frame.f_code.co_filename, trace
    while trace is not None:
        last = trace if trace.tb_frame.f_code.co_filename == file else last
        trace = trace.tb_next
    name = last.tb_frame.f_code.co_name
    return "" if file == _GRAPHS else f"{name} at {Path(file).name}:{last.tb_lineno}"


def _module_of(architecture: "Graph | Callable[[], nn.Module]") -> "nn.Module":
    from torch import nn

    module = architecture() if callable(architecture) else architecture.build()
    if not isinstance(module, nn.Module):
        raise CandidateError(
            f"the candidate's architecture returned {_kind(module)}; expected an nn.Module"
        )
    return module


def _check_output(module: "nn.Module", probe: "Tensor", signature: Signature) -> None:
    import torch

    was_training = module.training
    module.eval()
    with torch.no_grad():
        try:
            output = module(probe)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise CandidateError(
                f"the model cannot take an input of shape {signature.input_shape}: "
                f"{str(error).strip().splitlines()[0]}"
            ) from error
    module.train(was_training)
    shape = tuple(getattr(output, "shape", ()))
    if shape != (len(probe), *signature.output_shape):
        raise CandidateError(
            f"the model returns shape {shape[1:]} for an input of {signature.input_shape}; "
            f"expected {signature.output_shape}"
        )


@contextmanager
def _naming(decisions: Mapping[str, Open], where: str) -> Iterator[None]:
    """Name the open decisions in what a library raises when it meets one unawares."""
    try:
        yield
    except (OpenDecisionError, CandidateError):
        raise
    except Exception as error:
        if not decisions:
            raise
        some = next(iter(decisions.values()))
        names = ", ".join(map(repr, decisions))
        raise OpenDecisionError(
            f"{where} raised {type(error).__name__}: {error} while {names} "
            f"{'is' if len(decisions) == 1 else 'are'} left open by trainer {some.trainer}: "
            "plain torch.nn layers cannot hold an open value, automl.nn has those that can"
        ) from error


def _kind(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
