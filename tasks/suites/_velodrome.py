"""The fixed tasks of google/learned_optimization, from which VeLOdrome was taken.

Which 83 of them VeLOdrome is was not published. Names are theirs. Data come from
tensorflow-datasets, prepared beforehand; `l2o tasks` shows what is there. Where they
differ from the originals: word pieces are trained on the corpus that is there, layers
of transformers begin as flax's do, and a meta-loss is normalised in our way. Left out:
the five whose model state is that of a meta-gradient estimator (LOptPES).

Source: google/learned_optimization, tasks/fixed (2021-2023).
"""

from typing import Any

from .._spec import Augmentation, TaskSpec
from ._base import Suite, labelled


def _mlp(
    dataset: str, *hidden: int, size: int, grey: bool = False, **options: Any
) -> TaskSpec:
    model = {
        key: options.pop(key) for key in ("normalization", "dropout") if key in options
    }
    return TaskSpec(
        "supervised",
        {
            "model": "mlp",
            "datasets": (dataset,),
            "data": {"size": size, "grey": grey},
            "options": {"hidden": hidden, **model},
            "batch_size": 128,
            "initializer": "truncated_normal",
            **options,
        },
    )


def _mlps() -> dict[str, TaskSpec]:
    def cifar(*hidden: int, **options: Any) -> TaskSpec:
        return _mlp("cifar10", *hidden, size=32, **options)

    deep = (128, 128, 128)
    specs = {
        "Cifar10BW8_Relu32": _mlp("cifar10", 32, size=8, grey=True),
        "FashionMnist_Relu128x128": _mlp("fashion_mnist", 128, 128, size=28, grey=True),
        "FashionMnist8_Relu32": _mlp("fashion_mnist", 32, size=8, grey=True),
        "FashionMnist16_Relu32": _mlp("fashion_mnist", 32, size=16, grey=True),
        "FashionMnist32_Relu32": _mlp("fashion_mnist", 32, size=32, grey=True),
        "Cifar10_8_Relu32": _mlp("cifar10", 32, size=8),
        "Imagenet16_Relu256x256x256": _mlp("imagenet16", 256, 256, 256, size=16),
        "Cifar100_128x128x128_Relu": _mlp("cifar100", *deep, size=32),
        "Cifar10_128x128x128_Relu": cifar(*deep),
        "Mnist_128x128x128_Relu": _mlp("mnist", *deep, size=28, grey=True),
        "Cifar10_256x256_Relu": cifar(256, 256),
        "Cifar10_256x256_Relu_BS32": cifar(256, 256, batch_size=32),
        "Cifar10_128x128x128_Relu_MSE": cifar(*deep, loss="one_hot"),
    }
    for batch in (64, 128, 256):
        specs[f"Cifar10_128x128x128_Tanh_bs{batch}"] = cifar(
            *deep, activation="tanh", batch_size=batch
        )
    for width in (1024, 4096, 8192, 16384):
        specs[f"Cifar10_{width}x{width}_Relu"] = cifar(width, width)
    for rate in (2, 5, 8):
        specs[f"Cifar10_128x128_Dropout0{rate}_Relu_MSE"] = cifar(
            128, 128, dropout=rate / 10, loss="one_hot"
        )
    for norm in ("layer", "batch"):
        for activation in ("relu", "tanh"):
            name = f"{norm.capitalize()}Norm_{activation.capitalize()}"
            specs[f"Cifar10_128x128x128_{name}"] = cifar(
                *deep, normalization=norm, activation=activation
            )
    return {f"ImageMLP_{name}": spec for name, spec in specs.items()}


def _autoencoders() -> dict[str, TaskSpec]:
    def spec(dataset: str, hidden: tuple[int, ...], batch: int) -> TaskSpec:
        grey = dataset != "cifar10"
        return TaskSpec(
            "autoencoder",
            {
                "datasets": (dataset,),
                "hidden": hidden,
                "image_size": 28 if grey else 32,
                "grey": grey,
                "batch_size": batch,
                "initializer": "truncated_normal",
            },
        )

    return {
        f"ImageMLPAE_{label}_{'x'.join(map(str, hidden))}_bs{batch}": spec(
            dataset, hidden, batch
        )
        for label, dataset, hidden, batch in (
            ("Cifar10", "cifar10", (32, 32, 32), 128),
            ("Cifar10", "cifar10", (256, 256, 256), 128),
            ("Cifar10", "cifar10", (256, 256, 256), 1024),
            ("Cifar10", "cifar10", (128, 32, 128), 256),
            ("Mnist", "mnist", (128, 32, 128), 128),
            ("FashionMnist", "fashion_mnist", (128, 32, 128), 128),
        )
    }


def _convs() -> dict[str, TaskSpec]:
    def spec(dataset: str, size: int, channels: tuple[int, ...], **options: Any):
        model = {}
        if "normalization" in options:
            model = {"normalization": options.pop("normalization")}
        return TaskSpec(
            "supervised",
            {
                "model": "conv",
                "datasets": (dataset,),
                "data": {"size": size, "grey": False},
                "options": {"channels": channels, **model},
                "batch_size": 128,
                "initializer": "truncated_normal",
                **options,
            },
        )

    wide = (32, 64, 64)
    return {
        "Conv_Cifar10_8_16x32": spec("cifar10", 8, (16, 32)),
        "Conv_Cifar10_16_32x64x64": spec("cifar10", 16, wide),
        "Conv_Cifar10_32x64x64": spec("cifar10", 32, wide),
        "Conv_Cifar10_32x64x64_Tanh": spec("cifar10", 32, wide, activation="tanh"),
        "Conv_Cifar10_32x64x64_batchnorm": spec(
            "cifar10", 32, wide, normalization="batch"
        ),
        "Conv_Cifar10_32x64x64_layernorm": spec(
            "cifar10", 32, wide, normalization="layer"
        ),
        "Conv_Cifar100_32x64x64": spec("cifar100", 32, wide),
        "Conv_Cifar100_32x64x64_BS32": spec("cifar100", 32, wide, batch_size=32),
        "Conv_Cifar100_32x64x64_Tanh": spec("cifar100", 32, wide, activation="tanh"),
        "Conv_imagenet32_16_32x64x64": spec("imagenet32", 16, wide),
        "Conv_imagenet16_16_64x128x128x128": spec(
            "imagenet16", 16, (64, 128, 128, 128)
        ),
    }


# image, batch, blocks, channels, stem
_RESNETS: tuple[tuple[int, int, tuple[int, ...], tuple[int, ...], int], ...] = (
    (16, 64, (1, 1, 1, 1), (8, 16, 16, 16), 3),
    (16, 64, (1, 1, 1, 1), (8, 16, 16, 32), 3),
    (16, 64, (1, 1, 1, 1), (64, 128, 128, 128), 3),
    (16, 192, (1, 1, 1, 1), (64, 128, 256, 512), 5),
    (16, 192, (1, 1, 1, 1), (128, 256, 512, 512), 5),
    (32, 128, (1, 1, 1, 1), (128, 256, 512, 512), 5),
    (32, 256, (1, 1, 1, 1), (128, 256, 512, 512), 3),
    (32, 256, (1, 1, 1, 1), (256, 512, 512, 1024), 5),
    (64, 256, (1, 1, 1, 1), (256, 512, 1024, 1024), 3),
    (64, 256, (1, 2, 4, 5), (256, 512, 1024, 1024), 3),
    (64, 256, (1, 1, 3, 4), (256, 512, 1024, 1024), 5),
)


def _resnets() -> dict[str, TaskSpec]:
    return {
        f"Resnet_MultiRuntime_{i}": TaskSpec(
            "supervised",
            {
                "model": "resnet",
                "datasets": (f"imagenet{size}",),
                "data": {"size": size, "grey": False},
                "options": {
                    "blocks": blocks,
                    "channels": channels,
                    "stem": stem,
                    "stem_channels": 64,
                    "max_pool": i != 10,
                },
                "batch_size": batch,
            },
        )
        for i, (size, batch, blocks, channels, stem) in enumerate(_RESNETS)
    }


def _patch_models() -> dict[str, TaskSpec]:
    models = {
        "VIT_{}_wideshallow": (
            "vit", {"width": 384, "mlp": 1536, "heads": 6, "layers": 6}, 128
        ),
        "VIT_{}_skinnydeep": (
            "vit", {"width": 128, "mlp": 512, "heads": 4, "layers": 10}, 128
        ),
        "MLPMixer_{}_small16": (
            "mixer",
            {"width": 768, "layers": 8, "token_mlp": 384, "channel_mlp": 3072},
            128,
        ),
        "MLPMixer_{}_tiny16": (
            "mixer",
            {"width": 512, "layers": 5, "token_mlp": 384, "channel_mlp": 2048},
            128,
        ),
        "MLPMixer_{}_bs256_tiny16": (
            "mixer",
            {"width": 512, "layers": 5, "token_mlp": 384, "channel_mlp": 2048},
            256,
        ),
    }  # fmt: skip
    data = (
        ("ImageNet64", "imagenet64", 64),
        ("Food101_64", "food101", 64),
        ("Cifar100", "cifar100", 32),
    )
    return {
        name.format(label): TaskSpec(
            "supervised",
            {
                "model": model,
                "datasets": (dataset,),
                "data": {"size": size, "grey": False},
                "options": {**options, "patch": 16},
                "activation": "gelu",
                "batch_size": batch,
            },
        )
        for name, (model, options, batch) in models.items()
        for label, dataset, size in data
    }


# heads, width, layers, batch, length, dropout
_TRANSFORMERS = (
    (5, 20, 1, 4, 8, 0.1), (6, 24, 1, 4, 8, 0.1), (4, 32, 2, 8, 8, 0.0),
    (4, 32, 1, 8, 16, 0.0), (4, 32, 2, 16, 4, 0.0), (4, 32, 1, 8, 32, 0.0),
    (5, 80, 1, 4, 64, 0.0), (7, 112, 3, 16, 32, 0.0), (4, 128, 1, 64, 32, 0.0),
    (4, 256, 2, 64, 64, 0.0), (4, 256, 3, 128, 64, 0.0), (19, 304, 2, 256, 32, 0.0),
)  # fmt: skip


def _transformers() -> dict[str, TaskSpec]:
    rows = {f"MultiRuntime_{i}": row for i, row in enumerate(_TRANSFORMERS)}
    for width in (32, 128, 256, 512):
        rows[f"5layer_{width}width"] = (8, width, 5, 32, 128, 0.1)
    return {
        f"TransformerLM_LM1B_{name}": TaskSpec(
            "language_model",
            {
                "datasets": ("lm1b",),
                "options": {
                    "heads": heads,
                    "width": width,
                    "layers": layers,
                    "dropout": dropout,
                    "key_size": 32,
                    "positions": False,
                },
                "length": length,
                "vocabulary": 32_000,
                "batch_size": batch,
            },
        )
        for name, (heads, width, layers, batch, length, dropout) in rows.items()
    }


def _rnns() -> dict[str, TaskSpec]:
    rows = [("lm1bbytes", 32, core, 128, 64) for core in ("IRNN", "LSTM", "GRU")]
    rows += [
        ("lm1bbytes", 32, "VanillaRNN", 128, 64),
        ("lm1bbytes", 128, "LSTM", 128, 64),
        ("lm1bbytes", 32, "LSTM", 256, 128),
        ("lm1bbytes", 32, "GRU", 256, 128),
        ("lm1b32k", 32, "VanillaRNN", 256, 128),
        ("lm1b32k", 32, "LSTM", 256, 128),
        ("lm1b32k", 32, "IRNN", 256, 128),
        ("wikipediaen32k", 32, "LSTM", 256, 128),
        ("wikipediaen32k", 32, "GRU", 256, 128),
        ("wikipediaenbytes", 32, "LSTM", 256, 128),
        ("wikipediaenbytes", 32, "GRU", 256, 128),
    ]
    cores = {"IRNN": "irnn", "LSTM": "lstm", "GRU": "gru", "VanillaRNN": "vanilla"}
    return {
        f"RNNLM_{data}_Patch{length}_{core}{size}_Embed{embedding}": TaskSpec(
            "language_model",
            {
                "model": "recurrent",
                "datasets": ("wikipedia" if "wiki" in data else "lm1b",),
                "options": {
                    "core": cores[core],
                    "size": size,
                    "embedding": embedding,
                },
                "activation": "tanh" if core == "VanillaRNN" else "relu",
                "length": length,
                "vocabulary": 32_000 if "32k" in data else None,
                "batch_size": 128,
            },
        )
        for data, length, core, size, embedding in rows
    }


def _es(specs: dict[str, TaskSpec]) -> dict[str, TaskSpec]:
    def wrapped(name: str, pairs: int) -> TaskSpec:
        es = Augmentation("es_gradient", {"std": 0.01, "pairs": pairs})
        return specs[name].augmented(es)

    cases = [
        (pairs, name)
        for name in (
            "ImageMLP_Cifar10_128x128x128_Relu",
            "ImageMLP_Mnist_128x128x128_Relu",
        )
        for pairs in (1, 8)
    ]
    cases += [(1, "ImageMLP_FashionMnist8_Relu32"), (1, "ImageMLP_Cifar10BW8_Relu32")]
    return {
        f"ESWrapped_{pairs}pair_{name}": wrapped(name, pairs) for pairs, name in cases
    }


def _learned(specs: dict[str, TaskSpec]) -> dict[str, TaskSpec]:
    inner = {
        "FashionMnist": "ImageMLP_FashionMnist8_Relu32",
        "FahionMnist": "ImageMLP_FashionMnist8_Relu32",
        "Cifar10_8": "Conv_Cifar10_8_16x32",
        "Cifar10_16": "Conv_Cifar10_16_32x64x64",
    }
    optimizers = {
        "MLPLOpt": "mlp",
        "AdafacMLPLOpt": "small_fc",
        "LearnableAdam": "learnable_adam",
    }

    def spec(optimizer: str, data: str, steps: int, pairs: int = 0) -> TaskSpec:
        made = TaskSpec(
            "train_learned_optimizer",
            {
                "optimizer": optimizers[optimizer],
                "inner": specs[inner[data]].to_dict(),
                "steps": steps,
                "runs": 1,
            },
        )
        if not pairs:
            return made
        return made.augmented(
            Augmentation("es_gradient", {"std": 0.01, "pairs": pairs})
        )

    made = {
        f"LOpt_{optimizer}_{data}_{steps}": spec(optimizer, data, steps)
        for optimizer, data, steps in (
            ("MLPLOpt", "FahionMnist", 100),
            ("MLPLOpt", "FahionMnist", 50),
            ("MLPLOpt", "FahionMnist", 10),
            ("MLPLOpt", "Cifar10_16", 10),
            ("MLPLOpt", "Cifar10_8", 50),
            ("AdafacMLPLOpt", "Cifar10_8", 10),
            ("AdafacMLPLOpt", "FashionMnist", 50),
            ("AdafacMLPLOpt", "FashionMnist", 20),
            ("LearnableAdam", "Cifar10_8", 50),
            ("LearnableAdam", "Cifar10_8", 200),
        )
    }
    made["LOpt_ES4_AdafacMLPLOpt_FashionMnist_20"] = spec(
        "AdafacMLPLOpt", "FashionMnist", 20, 4
    )
    made["LOpt_ES4_LOpt_MLPLOpt_FahionMnist_50"] = spec("MLPLOpt", "FahionMnist", 50, 4)
    made["LOpt_ES4_LOpt_MLPLOpt_Cifar10_16_10"] = spec("MLPLOpt", "Cifar10_16", 10, 4)
    return made


def _all() -> dict[str, TaskSpec]:
    images = {**_mlps(), **_autoencoders(), **_convs(), **_resnets()}
    return {
        **images,
        **_patch_models(),
        **_transformers(),
        **_rnns(),
        **_es(images),
        **_learned(images),
    }


VELODROME = Suite(
    "heldout/velodrome",
    1,
    "the fixed tasks of google/learned_optimization that are known",
    labelled(_all()),
    steps=10_000,
)
