"""What a suite is."""

import dataclasses
from collections.abc import Mapping

from .._base import Split
from .._spec import TaskSpec


@dataclasses.dataclass(frozen=True)
class Suite:
    """A list of tasks that results are compared on, so it never changes: versions do.

    Attributes:
      name: such as "heldout/small".
      version: another one is another suite; results of two are not to be mixed.
      about: one line.
      tasks: specs by name; a spec's label is its name.
      seed: draws configurations and initial parameters.
      steps: of inner training, the budget.
      metric: what a run is judged by: the loss, or a metric of the task; mean over
        fresh batches of `split` at the end.
      split: see `metric`.
      augmented: whether the specs bring their augmentations with them.
    """

    name: str
    version: int
    about: str
    tasks: Mapping[str, TaskSpec]
    seed: int = 0
    steps: int = 1000
    metric: str = "loss"
    split: Split = "test"
    augmented: bool = False


def labelled(specs: Mapping[str, TaskSpec]) -> dict[str, TaskSpec]:
    """The specs, each labelled with its name."""
    return {name: dataclasses.replace(s, label=name) for name, s in specs.items()}
