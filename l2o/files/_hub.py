"""Weights from a model hub, through the optional `huggingface_hub`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

# All that a folder of weights consists of; nothing else is fetched.
_FILES = [
    "model.safetensors",
    "config.json",
    "decays.json",
    "theta.state",
    "params",
    "config.gin",
]

# Published weights in formats that `load` reads: factory, and the arguments that
# their files do not tell.
IMPORTABLE: dict[str, tuple[str, Mapping[str, Any]]] = {
    "amoudgl/celo": ("celo", {}),
    "amoudgl/celo-adam": ("celo_adam", {}),
    "amoudgl/celo2": ("celo2", {}),
    "amoudgl/celo2-base": ("celo2_base", {}),
    "amoudgl/rnn-mlp-lopt": ("rnn_mlp", {}),
    "amoudgl/adafac-mlp-lopt": ("small_fc", {}),
    "amoudgl/velo-s": (
        "velo",
        {"lstm_hidden_size": 64, "param_inits": 32, "ff_mult": 1.0},
    ),
    "amoudgl/velo-4000": ("velo", {}),
    "btherien/mulo": ("mulo", {}),
    "DiamondXL/elo": ("elo", {}),
    "DiamondXL/celo2": ("celo2", {"variant": "pylo"}),
    "DiamondXL/elo-celo2": ("elo_celo2", {}),
    "Pauljanson002/VeLO_RNN": ("velo", {}),
}


def is_known(source: str) -> bool:
    """Whether a repository is one that l2o lists, or is in the hub's local cache."""
    if source.partition("@")[0] in IMPORTABLE:
        return True
    try:
        hub_folder(source, download=False)
    except (ModuleNotFoundError, FileNotFoundError):
        return False
    return True


def hub_folder(source: str, *, download: bool) -> Path:
    """The local folder of a hub repository.

    Args:
      source: `owner/name` or `owner/name@revision`.
      download: whether to fetch what the local cache lacks; nothing is fetched without.

    Raises:
      ModuleNotFoundError: `huggingface_hub` is not installed.
      FileNotFoundError: the repository is not in the local cache, or could not be
        fetched.
    """
    try:
        import huggingface_hub
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"{source!r} is not a folder, and reading it from a model hub needs "
            "huggingface_hub: `pip install l2o[hub]`"
        ) from None
    name, _, revision = source.partition("@")
    try:
        folder = huggingface_hub.snapshot_download(
            name,
            revision=revision or None,
            allow_patterns=_FILES,
            local_files_only=not download,
        )
    except (
        Exception
    ) as error:  # of many classes: offline, no such repository, no access
        if download:
            said = str(error).partition("\n")[0]
            raise FileNotFoundError(
                f"{source!r} could not be fetched from the model hub ({said}): check "
                "its name and your connection"
            ) from error
        raise FileNotFoundError(
            f"{source!r} is neither a folder nor in the local cache of the model hub: "
            "`download=True` in Python, or `--download` on the command line, fetches it"
        ) from error
    return Path(folder)
