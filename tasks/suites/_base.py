"""What a suite is."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from .._spec import TaskSpec
from ..data import Split


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
      heldout: what of it nothing may be trained or chosen on; see `held_out`.
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
    heldout: Literal["", "tasks", "tasks and data"] = ""


def labelled(specs: Mapping[str, TaskSpec]) -> dict[str, TaskSpec]:
    """The specs, each labelled with its name."""
    return {name: dataclasses.replace(s, label=name) for name, s in specs.items()}
