"""Celo's small_fc baseline, with offline data of the same geometry.

Reproduces the meta-training recipe of the `adafac-mlp-lopt` baseline of Celo (Moudgil
et al., 2025): PES, truncation 50, std 0.01, 4 x 8 pairs, episodes of 100 to 2000 steps,
100 000 outer steps, 8x8 images, MLPs of width 32, reparametrisation over (1e-3, 1e3).
It differs in data (digits and photo patches for MNIST, Fashion-MNIST, CIFAR and SVHN),
in what is sampled (activation and initialisation too), and in the outer schedule
(warm-up and cosine to a tenth of 1e-4 where Celo's is constant AdamW).

320 million inner steps: four to five hours on 2 CPU cores at the demo's 20 000 per
second (an estimate; it was not run, and what it reaches was not measured).
"""

from .._config import Config, Evaluation

META_TRAIN = Config(
    families=("mlp32",),
    particles=32,
    episode_length=(100, 2000),
    outer_steps=100_000,
    outer_lr=1e-4,
    checkpoint_every=1000,
)

EVALUATION = Evaluation(steps=2000)
