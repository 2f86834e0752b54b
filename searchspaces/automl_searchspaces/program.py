"""Programs that learn: instructions on registers that set up, predict and learn.

Source: E. Real, C. Liang, D. So, Q. Le: AutoML-Zero: Evolving Machine Learning Algorithms From
Scratch, arXiv 2003.03384, section 3; with fewer primitives, none of which is random.

A program has three components, each a list of instructions. It works on scalars s0, s1, …,
vectors v0, v1, … and matrices m0, m1, … with one row or column per feature. All registers start at
zero. `setup` runs once. To learn from an example, v0 is set to its features, s0 and s1 to zero,
`predict` runs, s0 is set to the target, and `learn` runs; the registers keep their values. To
predict for an example, the same steps up to `predict` run on a copy of the registers, and s1 is the
prediction. The registers do not change, so the order of predictions does not matter. With several
outputs, each has its own copy of the memory and its own target (0 or 1 for a class), and runs the
same program.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache, partial
from typing import Any

import optuna
import torch
from torch import Tensor, nn

from automl import Candidate, CandidateError, Task, UnknownNameError, UsageError, hookimpl

_COMPONENTS = ("setup", "predict", "learn")
_NUMBER = r"(-?\d+(?:\.\d*)?(?:e[+-]?\d+)?)"
_CONSTANTS = (-1.0, 0.001, 0.01, 0.1, 0.5, 1.0, 2.0)
_LARGEST_CONSTANT = torch.finfo(torch.float32).max
_LARGEST_REGISTERS = 2**22
"""Forward passes are split so that one register of all examples has at most this many numbers."""


class Kind(Enum):
    """The kind of a register; the letter starts its name."""

    SCALAR = "s"
    VECTOR = "v"
    MATRIX = "m"


@dataclass(frozen=True)
class Primitive:
    """One operation on registers; without a function it writes a constant, or nothing.

    Attributes:
        template: Its text, with {} for each operand.
        inputs: The kinds of the registers it reads.
        output: The kind of the register it writes.
        function: Called with tensors of any leading dimensions, and `out`, which may be one of
            them.
    """

    template: str
    inputs: tuple[Kind, ...] = ()
    output: Kind | None = None
    function: Callable[..., Tensor] | None = None

    @property
    def constant(self) -> bool:
        return self.output is not None and self.function is None


def _heaviside(x: Tensor, out: Tensor | None = None) -> Tensor:
    return torch.heaviside(x, x.new_zeros(()), out=out)


def _relu(x: Tensor, out: Tensor | None = None) -> Tensor:
    return torch.clamp(x, min=0, out=out)


def _mean(x: Tensor, out: Tensor | None = None) -> Tensor:
    return torch.mean(x, -1, out=out)


def _scale(s: Tensor, x: Tensor, out: Tensor | None = None) -> Tensor:
    while s.dim() < x.dim():
        s = s.unsqueeze(-1)
    return torch.mul(s, x, out=out)


def _matvec(m: Tensor, v: Tensor, out: Tensor | None = None) -> Tensor:
    result = (m @ v.unsqueeze(-1)).squeeze(-1)
    return result if out is None else out.copy_(result)


def _outer(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    return torch.mul(a.unsqueeze(-1), b.unsqueeze(-2), out=out)


def _transpose(m: Tensor, out: Tensor | None = None) -> Tensor:
    return m.mT if out is None else out.copy_(m.mT.clone())


_S, _V, _M = Kind.SCALAR, Kind.VECTOR, Kind.MATRIX

PRIMITIVES: Mapping[str, Primitive] = {
    "noop": Primitive("pass"),
    "scalar_constant": Primitive("{}", (), _S),
    "scalar_add": Primitive("{} + {}", (_S, _S), _S, torch.add),
    "scalar_subtract": Primitive("{} - {}", (_S, _S), _S, torch.sub),
    "scalar_multiply": Primitive("{} * {}", (_S, _S), _S, torch.mul),
    "scalar_abs": Primitive("abs({})", (_S,), _S, torch.abs),
    "scalar_heaviside": Primitive("heaviside({})", (_S,), _S, _heaviside),
    "vector_constant": Primitive("{}", (), _V),
    "vector_add": Primitive("{} + {}", (_V, _V), _V, torch.add),
    "vector_subtract": Primitive("{} - {}", (_V, _V), _V, torch.sub),
    "vector_multiply": Primitive("{} * {}", (_V, _V), _V, torch.mul),
    "vector_abs": Primitive("abs({})", (_V,), _V, torch.abs),
    "vector_heaviside": Primitive("heaviside({})", (_V,), _V, _heaviside),
    "vector_relu": Primitive("relu({})", (_V,), _V, _relu),
    "vector_scale": Primitive("{} * {}", (_S, _V), _V, _scale),
    "vector_mean": Primitive("mean({})", (_V,), _S, _mean),
    "dot": Primitive("dot({}, {})", (_V, _V), _S, torch.linalg.vecdot),
    "matrix_add": Primitive("{} + {}", (_M, _M), _M, torch.add),
    "matrix_subtract": Primitive("{} - {}", (_M, _M), _M, torch.sub),
    "matrix_scale": Primitive("{} * {}", (_S, _M), _M, _scale),
    "transpose": Primitive("transpose({})", (_M,), _M, _transpose),
    "matvec": Primitive("{} @ {}", (_M, _V), _V, _matvec),
    "outer": Primitive("outer({}, {})", (_V, _V), _M, _outer),
}
"""All operations by name; `heaviside` is 1 above zero, else 0."""


@dataclass(frozen=True)
class Register:
    """One place in memory; its text is its name, such as `v0`."""

    kind: Kind
    index: int

    def __str__(self) -> str:
        return f"{self.kind.value}{self.index}"


TARGET, PREDICTION = Register(_S, 0), Register(_S, 1)
FEATURES = Register(_V, 0)


@dataclass(frozen=True)
class Instruction:
    """One line of a program.

    Attributes:
        operation: The name of the primitive.
        inputs: The registers it reads.
        output: The register it writes.
        constant: The constant it writes.
    """

    operation: str
    inputs: tuple[Register, ...] = ()
    output: Register | None = None
    constant: float | None = None

    @property
    def primitive(self) -> Primitive:
        return PRIMITIVES[self.operation]

    def __str__(self) -> str:
        operands = self.inputs if self.constant is None else (self.constant,)
        text = self.primitive.template.format(*operands)
        return text if self.output is None else f"{self.output} = {text}"

    def decisions(self) -> dict[str, Any]:
        """Return the decisions that make this instruction, without the prefix of its place."""
        made: dict[str, Any] = {"op": self.operation}
        for number, register in enumerate(self.inputs, 1):
            made[f"in{number}_{register.kind.value}"] = str(register)
        if self.constant is not None:
            made["const"] = self.constant
        if self.output is not None:
            made[f"out_{self.output.kind.value}"] = str(self.output)
        return made


@dataclass(frozen=True)
class Program:
    """The instructions of the three components; `parse` reads back its text."""

    setup: tuple[Instruction, ...] = ()
    predict: tuple[Instruction, ...] = ()
    learn: tuple[Instruction, ...] = ()

    def __str__(self) -> str:
        return "\n".join(
            line
            for component in _COMPONENTS
            for line in (f"{component}:", *(f"  {each}" for each in getattr(self, component)))
        )

    @classmethod
    def parse(cls, text: str) -> "Program":
        """Read a program: lines such as `s1 = dot(v0, v1)` below `setup:`, `predict:` and `learn:`.

        Raises:
            UsageError: A line is not an instruction, or comes before the first component.
        """
        parts: dict[str, list[Instruction]] = {component: [] for component in _COMPONENTS}
        part = None
        for line in filter(None, map(str.strip, text.splitlines())):
            if line.removesuffix(":") in parts:
                part = parts[line.removesuffix(":")]
            elif part is None:
                raise UsageError(f"program: {line!r} must be below setup:, predict: or learn:")
            else:
                part.append(_instruction(line))
        return cls(*map(tuple, parts.values()))


def program_decisions(
    text: str, *, setup: int = 2, predict: int = 3, learn: int = 5
) -> dict[str, Any]:
    """Return the decisions of space `program` that make this program, padded with no-ops.

    Args:
        text: The program.
        setup: The number of instructions in `setup`.
        predict: The number of instructions in `predict`.
        learn: The number of instructions in `learn`.

    Raises:
        UsageError: The text is not a program, or a component has more instructions.
    """
    written, decisions = Program.parse(text), {}
    for component, room in zip(_COMPONENTS, (setup, predict, learn), strict=True):
        lines: tuple[Instruction, ...] = getattr(written, component)
        if len(lines) > room:
            raise UsageError(
                f"program: {component} has {len(lines)} instructions, but only room for {room}"
            )
        for place, line in enumerate((*lines, *[Instruction("noop")] * (room - len(lines)))):
            for name, value in line.decisions().items():
                decisions[f"{component}_{place}_{name}"] = value
    return decisions


class Learner(nn.Module):
    """A program with its memory; `learn` changes the memory, and `forward` only reads it.

    The memory is in the buffers `scalars` [registers, outputs], `vectors` [registers, outputs,
    features] and `matrices` [registers, outputs, features, features].

    Args:
        program: The program.
        features: The number of features of an example.
        outputs: The number of outputs.
        scalars: The number of scalar registers.
        vectors: The number of vector registers.
        matrices: The number of matrix registers.
    """

    scalars: Tensor
    vectors: Tensor
    matrices: Tensor

    def __init__(
        self,
        program: Program,
        features: int,
        outputs: int,
        *,
        scalars: int = 4,
        vectors: int = 3,
        matrices: int = 1,
    ) -> None:
        super().__init__()
        self.program = program
        self.register_buffer("scalars", torch.zeros(scalars, outputs))
        self.register_buffer("vectors", torch.zeros(vectors, outputs, features))
        self.register_buffer("matrices", torch.zeros(matrices, outputs, features, features))
        _run(self._bound(program.setup))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return predictions [n, outputs] for examples [n, ...], each from the current memory."""
        rows = inputs.flatten(1)
        parts = torch.split(rows, self._examples_at_once())
        return torch.cat([self._predict(part) for part in parts])

    @torch.no_grad()
    def learn(self, inputs: Tensor, targets: Tensor) -> None:
        """Learn from examples [n, ...], one after another.

        Args:
            inputs: Examples [n, ...].
            targets: Class numbers [n], or numbers [n, outputs].
        """
        predict, learn = self._bound(self.program.predict), self._bound(self.program.learn)
        features = self._register(FEATURES)
        target, prediction = self._register(TARGET), self._register(PREDICTION)
        rows, wanted = inputs.flatten(1), self._wanted(targets)
        for row, label in zip(rows.unbind(), wanted.unbind(), strict=True):
            features.copy_(row)
            target.zero_()
            prediction.zero_()
            _run(predict)
            target.copy_(label)
            _run(learn)

    def extra_repr(self) -> str:
        return str(self.program)

    def _register(self, register: Register) -> Tensor:
        memory = {_S: self.scalars, _V: self.vectors, _M: self.matrices}[register.kind]
        return memory[register.index]

    def _wanted(self, targets: Tensor) -> Tensor:
        if targets.is_floating_point():
            return targets
        return nn.functional.one_hot(targets, self.scalars.shape[1])

    @torch.no_grad()
    def _bound(self, instructions: Sequence[Instruction]) -> list[Callable[[], object]]:
        """Return calls that run the instructions in place.

        They refer to the current buffers, which moving the module replaces.
        """
        bound: list[Callable[[], object]] = []
        for each in instructions:
            if each.output is None:
                continue
            out, function = self._register(each.output), each.primitive.function
            if function is None:
                bound.append(partial(out.fill_, each.constant))
            else:
                bound.append(partial(function, *map(self._register, each.inputs), out=out))
        return bound

    def _predict(self, rows: Tensor) -> Tensor:
        """Return predictions for rows [n, features]; a register is copied when it is written."""
        outputs = self.scalars.shape[1]
        features = rows.to(self.vectors).unsqueeze(1).expand(-1, outputs, -1)
        zero = torch.zeros_like(self.scalars[:1])
        written = {FEATURES: features, TARGET: zero, PREDICTION: zero}

        def read(register: Register) -> Tensor:
            if register not in written:
                written[register] = self._register(register).unsqueeze(0)
            return written[register]

        for each in self.program.predict:
            if each.output is None:
                continue
            if (function := each.primitive.function) is None:
                written[each.output] = torch.full_like(read(each.output)[:1], each.constant or 0.0)
            else:
                written[each.output] = function(*map(read, each.inputs))
        return read(PREDICTION).expand(len(rows), -1)

    def _examples_at_once(self) -> int:
        _, outputs, features = self.vectors.shape
        kinds = {kind for each in self.program.predict for kind in _kinds(each.primitive)}
        largest = outputs * features * (features if _M in kinds else 1)
        return max(1, _LARGEST_REGISTERS // largest)


def program(
    trial: optuna.trial.BaseTrial,
    task: Task,
    *,
    scalars: int = 4,
    vectors: int = 3,
    matrices: int = 1,
    setup: int = 2,
    predict: int = 3,
    learn: int = 5,
    operations: tuple[str, ...] = tuple(PRIMITIVES),
    constants: tuple[float, ...] = _CONSTANTS,
) -> Candidate:
    """A program that learns by itself; train it with trainer `online`.

    An instruction first decides on its operation, then on its registers, by kind: `predict_2_op`,
    `predict_2_in1_v`, `predict_2_in2_v`, `predict_2_out_s`.

    Args:
        scalars: The number of scalar registers.
        vectors: The number of vector registers.
        matrices: The number of matrix registers.
        setup: The number of instructions in `setup`.
        predict: The number of instructions in `predict`.
        learn: The number of instructions in `learn`.
        operations: The allowed operations; those without registers of their kinds are ignored.
        constants: The allowed constants.

    Raises:
        UsageError: There are fewer than two scalars or one vector, nothing to choose from, or a
            constant is NaN, infinite or beyond single precision.
        UnknownNameError: An operation does not exist.
        CandidateError: The task's outputs are not vectors.
    """
    registers = {_S: scalars, _V: vectors, _M: matrices}
    usable = _usable(operations, registers)
    if not all(abs(constant) <= _LARGEST_CONSTANT for constant in constants):
        raise UsageError(f"space program: constants must fit single precision, got {constants}")
    if scalars < 2 or vectors < 1 or not usable or not constants:
        raise UsageError(
            "space program needs 2 scalars, 1 vector, a constant and an operation that these "
            f"registers allow; got scalars={scalars}, vectors={vectors}, matrices={matrices}, "
            f"constants={constants}, operations={operations}"
        )
    shape = task.signature.output_shape
    if len(shape) != 1:
        raise CandidateError(f"space program predicts vectors; the task's outputs are {shape}")
    choices = _Choices(trial, registers, usable, constants)
    rooms = zip(_COMPONENTS, (setup, predict, learn), strict=True)
    written = Program(*(choices.component(name, room) for name, room in rooms))
    features = torch.Size(task.signature.input_shape).numel()
    counts = {"scalars": scalars, "vectors": vectors, "matrices": matrices}
    return Candidate(partial(Learner, written, features, *shape, **counts))


@dataclass(frozen=True)
class _Choices:
    """The options for each instruction, and the trial that decides."""

    trial: optuna.trial.BaseTrial
    registers: Mapping[Kind, int]
    operations: Sequence[str]
    constants: Sequence[float]

    def component(self, name: str, room: int) -> tuple[Instruction, ...]:
        return tuple(self._instruction(f"{name}_{place}") for place in range(room))

    def _instruction(self, place: str) -> Instruction:
        operation = self.trial.suggest_categorical(f"{place}_op", self.operations)
        primitive = PRIMITIVES[operation]
        inputs = tuple(
            self._decide(f"{place}_in{number}", kind)
            for number, kind in enumerate(primitive.inputs, 1)
        )
        if primitive.output is None:
            return Instruction(operation)
        constant = None
        if primitive.constant:
            constant = float(self.trial.suggest_categorical(f"{place}_const", self.constants))
        return Instruction(
            operation, inputs, self._decide(f"{place}_out", primitive.output), constant
        )

    def _decide(self, place: str, kind: Kind) -> Register:
        # The kind is part of the name, because Optuna needs the same choices for a name.
        names = [str(Register(kind, index)) for index in range(self.registers[kind])]
        name = self.trial.suggest_categorical(f"{place}_{kind.value}", names)
        return _register(name)


def _usable(operations: Sequence[str], registers: Mapping[Kind, int]) -> list[str]:
    for name in operations:
        if name not in PRIMITIVES:
            raise UnknownNameError("operation of space program", name, PRIMITIVES)
    return [n for n in operations if all(registers[kind] for kind in _kinds(PRIMITIVES[n]))]


def _kinds(primitive: Primitive) -> Iterator[Kind]:
    yield from primitive.inputs
    if primitive.output is not None:
        yield primitive.output


def _run(bound: Sequence[Callable[[], object]]) -> None:
    for call in bound:
        call()


def _register(name: str) -> Register:
    return Register(Kind(name[0]), int(name[1:]))


def _instruction(line: str) -> Instruction:
    for operation, primitive in PRIMITIVES.items():
        found = _pattern(primitive).fullmatch(" ".join(line.split()))
        if found is None:
            continue
        if primitive.output is None:
            return Instruction(operation)
        output, *operands = found.groups()
        if primitive.constant:
            return Instruction(operation, (), _register(output), float(operands[0]))
        return Instruction(operation, tuple(map(_register, operands)), _register(output))
    raise UsageError(f"program: {line!r} is not an instruction such as s1 = dot(v0, v1)")


@cache
def _pattern(primitive: Primitive) -> re.Pattern[str]:
    operands = [rf"({kind.value}\d+)" for kind in primitive.inputs] or [_NUMBER]
    written = re.escape(primitive.template).replace(r"\{\}", "{}").format(*operands)
    return re.compile(
        written if primitive.output is None else rf"({primitive.output.value}\d+) = {written}"
    )


@hookimpl
def register_spaces() -> Mapping[str, Callable[..., Candidate]]:
    return {"program": program}
