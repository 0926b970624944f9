"""Sound weights in every kind of file, which tests damage or forge."""

import functools
import re
import tempfile
from pathlib import Path

import flax.serialization
import numpy as np
from weight_files import PYLO, PYLO_VELO, SMALL, some_theta

import l2o
from l2o.files._trees import to_tree

HUGE = 10**9
# What Python, NumPy and JAX say.
LEAKS = re.compile(
    r"has no attribute|subscriptable|unhashable|recursion|unsupported operand|argument "
    r"of type|must be real|\w\(\) (arg|got|missing|takes)|not iterable|reshape|codec"
)
OWN = {
    "small_fc": SMALL["small_fc"],
    "celo2": SMALL["celo2"],
    "velo": SMALL["velo"],
    "rnn_mlp": SMALL["rnn_mlp"],
    "lstm": l2o.lstm(hidden_size=3),
    "l2o_pa": l2o.l2o_pa(hidden_size=3),
    "l2o_scale": l2o.l2o_scale(level_sizes=(3, 4, 5)),
    "muon": l2o.hypergradient(l2o.learnable_muon(weight_decay=0.0)),
    "wrapped": l2o.decay_weights(l2o.clip_gradients(SMALL["mlp"]), 0.01),
    "grafted": l2o.grafted(SMALL["mlp"], l2o.learnable_sgd()),
}
GIN = {
    "HyperV2": l2o.velo(lstm_hidden_size=7, param_inits=3, hidden_size=5),
    "AdafacMLPLOpt": SMALL["small_fc"],
    "Celo2": SMALL["celo2"],
}
GIN_ARGUMENTS = {
    "HyperV2": "lstm_hidden_size = 7\nHyperV2.param_inits = 3\nHyperV2.ff_hidden_size "
    "= 5\nHyperV2.initial_rms_decays = (0.999,)",
    "AdafacMLPLOpt": "hidden_size = 3\nAdafacMLPLOpt.hidden_layers = 1",
    "Celo2": "ff_hidden_size = 5\nCelo2.ff_hidden_layers = 3\n"
    "Celo2.regex_1d = '.*bias.*'",
}


def with_theta(optimizer):
    return optimizer, some_theta(optimizer)


def _own(name, folder):
    return l2o.save(folder, *with_theta(OWN[name])), {}


def _flax(name, folder):
    name, _, form = name.partition(" ")
    tree = to_tree(some_theta(SMALL[name]), SMALL[name])
    if form == "scalars":
        tree = {**tree, "nn": {"~": _scalars(tree["nn"]["~"])}}
    elif form == "wrapped":
        tree = {"params": tree, "gen_id": "", "step": 0}
    (folder / "theta.state").write_bytes(flax.serialization.to_bytes(tree))
    return folder, {}


def _scalars(arrays):
    return {
        "_".join([name, *map(str, index)]): np.float32(x)
        for name, array in arrays.items()
        for index, x in np.ndenumerate(array)
    }


def _pylo(name, folder):
    optimizer = PYLO.get(name, PYLO_VELO)
    l2o.save(folder, *with_theta(optimizer), format="pylo")
    if name == "velo":
        return folder / "VeLO_RNN", {}
    return folder, {"optimizer": name}


def _gin(cls, folder):
    text = f"run_train.lopt = @{cls}()\n{cls}.{GIN_ARGUMENTS[cls]}\n"
    (folder / "config.gin").write_text(text)
    tree = to_tree(some_theta(GIN[cls]), GIN[cls])
    (folder / "params").write_bytes(flax.serialization.to_bytes(tree))
    return folder, {}


FLAX = ("celo", "celo wrapped", "celo_adam", "small_fc", "small_fc scalars", "rnn_mlp")
KINDS = {
    "own": (_own, tuple(OWN)),
    "flax": (_flax, (*FLAX, "nn_adam", "mlp wrapped")),
    "pylo": (_pylo, (*PYLO, "velo")),
    "gin": (_gin, tuple(GIN)),
}


def write(kind, name, folder):
    """Writes sound weights; what to load, and what `load` needs to be told."""
    files, source, arguments = _files(kind, name)
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder / source, arguments


@functools.cache
def _files(kind, name):
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source, arguments = KINDS[kind][0](name, folder)
        paths = [path for path in folder.rglob("*") if path.is_file()]
        files = {path.relative_to(folder): path.read_bytes() for path in paths}
        return files, source.relative_to(folder), arguments
