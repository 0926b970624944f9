"""The options of a learned schedule: an LSTM that sees the run, as in VeLO and Celo."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypedDict

Defect = Literal["dead_mix_layer", "bugged_next_lstm_state", "bugged_loss_features"]


class ScheduleOptions(TypedDict, total=False):
    """Options of the LSTM in VeLO, Celo and Celo-Adam.

    Attributes:
      mix_layers: whether what the LSTM's rows see is mixed between them.
      rnn_state_decay: share of the LSTM's state that is lost per step.
      validation_mode: value of an additional feature that tells the LSTM whether to
        care for validation loss; None for none.
      constant_loss: replaces the loss by 1, which then need not be given.
      published: defects of the published code that are kept. "dead_mix_layer" holds a
        layer in theta that nothing depends on; published files have it. Of VeLO,
        "bugged_next_lstm_state" drops the LSTM's new state, so that it starts every
        step from the learned initial one, and "bugged_loss_features" makes loss
        features for a run of ten steps whatever its length, so that they are 0 or -1.
        Files from before there were configs were trained with both.
    """

    mix_layers: bool
    rnn_state_decay: float
    validation_mode: bool | None
    constant_loss: bool
    published: Sequence[Defect]


SCHEDULE: Mapping[str, Any] = {
    "mix_layers": True,
    "rnn_state_decay": 0.0,
    "validation_mode": None,
    "constant_loss": False,
    "published": ("dead_mix_layer",),
}


def flag_of(
    defect: str, defaults: Sequence[str]
) -> Callable[[dict[str, Any], Any], None]:
    """Turns an old argument, which was a flag, into an entry of `published`."""

    def move(arguments: dict[str, Any], value: Any) -> None:
        if not isinstance(value, bool):
            raise ValueError(f"the defect {defect} is on or off, got {value!r}")
        names = list(arguments.get("published", defaults))
        if value != (defect in names):
            names = [*names, defect] if value else [x for x in names if x != defect]
        arguments["published"] = names

    move.__doc__ = f"published={[defect]}"
    return move


OLD_FLAGS = {
    "dead_mix_layer": flag_of("dead_mix_layer", SCHEDULE["published"]),
    "use_bugged_next_lstm_state": flag_of(
        "bugged_next_lstm_state", SCHEDULE["published"]
    ),
    "use_bugged_loss_features": flag_of("bugged_loss_features", SCHEDULE["published"]),
}
