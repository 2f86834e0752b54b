"""Where an open decision goes, and what may be open in an operation or a layer."""

from dataclasses import dataclass
from enum import Enum


class UseKind(Enum):
    """What a space does with a decision."""

    OPERATION = "operation"
    """It chooses the operation of a Graph's node."""
    ATTRIBUTE = "attribute"
    """It is an attribute of an operation."""
    LAYER = "layer"
    """A layer of `automl.nn` holds it."""
    HYPERPARAMETER = "hyperparameter"
    """It is a hyperparameter."""
    VALUE = "value"
    """The space computes with it, so it cannot be open."""


class Scope(Enum):
    """How finely a value may vary: from example to example, from batch to batch, or not at all."""

    SAMPLE = "sample"
    BATCH = "batch"
    GLOBAL = "global"


@dataclass(frozen=True)
class Openable:
    """What a trainer may do with an attribute that is left open.

    Attributes:
        scope: The finest scope that its values may have.
        differentiable: Whether the output has a derivative with respect to it.
        structural: Whether it decides which weights take part, as a width or a choice does. The
            trained weights then belong to one value or another, and do not respond to it.
    """

    scope: Scope = Scope.GLOBAL
    differentiable: bool = False
    structural: bool = False


@dataclass(frozen=True)
class Use:
    """One place that an open decision goes to.

    Attributes:
        kind: What the space does with it.
        owner: The node's name for an operation, the operation's for an attribute, the class's for a
            layer; empty for hyperparameters and values.
        attribute: The name of the attribute or the hyperparameter; otherwise empty.
        scope: How finely its value may vary.
        differentiable: Whether the output has a derivative with respect to it. For a
            hyperparameter, the trainer has to know.
        structural: Whether it decides which weights take part.
    """

    kind: UseKind
    owner: str = ""
    attribute: str = ""
    scope: Scope = Scope.GLOBAL
    differentiable: bool = False
    structural: bool = False

    @classmethod
    def of(cls, kind: UseKind, owner: str, attribute: str, openable: Openable) -> "Use":
        """Describe the use of an attribute that may be open."""
        also = (openable.scope, openable.differentiable, openable.structural)
        return cls(kind, owner, attribute, *also)


VALUE = Use(UseKind.VALUE)
"""The use of a decision that cannot be open."""
