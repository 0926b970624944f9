"""Diffusion: what is noise, what is image, and the U-net between them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import KEY, KEYS

from l2o import tasks
from l2o.tasks import make_family
from l2o.tasks.families import _diffusion
from l2o.tasks.models import UNet


def _constant(value):
    x = np.full((200, 4, 4, 1), value, np.float32)
    return tasks.from_arrays({"x": x, "y": np.zeros(200, np.int32)})


class _Knows(nn.Module):
    """Tells the noise of images that are `value` everywhere."""

    activation: object
    channels: object
    groups: int
    value: float = 0.0

    def __call__(self, x, time):
        angle = (time * np.pi / 2)[:, None, None, None]
        return (x - jnp.cos(angle) * (2 * self.value - 1)) / jnp.sin(angle)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_who_knows_the_image_knows_the_noise(value, monkeypatch):
    knows = lambda *args, **named: _Knows(*args, value=value, **named)
    monkeypatch.setattr(_diffusion, "UNet", knows)
    family = make_family("diffusion", datasets=(_constant(value),), image_size=4)
    task = family.task(family.sample(KEY), family.data)
    params, state = task.init(KEY)
    for key in KEYS[:5]:
        loss, _ = task.loss(params, state, key, task.batch(key, "train"))
        assert loss < 1e-6


def test_who_says_nothing_pays_the_variance_of_noise():
    family = make_family("diffusion", channels=(8,), batch_size=400)
    task = family.task(family.sample(KEY), family.data)
    params, state = task.init(KEY)
    params = jax.tree.map(jnp.zeros_like, params)
    batch = task.batch(KEY, "train")
    losses = [task.loss(params, state, key, batch)[0] for key in KEYS[:4]]
    # 4 x 400 x 64 squares of variance 2
    np.testing.assert_allclose(np.mean(losses), 1, atol=4 * (2 / 102_400) ** 0.5)
    assert len({float(x) for x in losses}) == 4
    np.testing.assert_allclose(task.normalize(1.0), 2)


def test_times_are_spread_evenly(monkeypatch):
    class Clock(_Knows):
        def __call__(self, x, time):
            return time

    monkeypatch.setattr(_diffusion, "UNet", Clock)
    module = _diffusion._Diffusion(nn.silu, (8,), 8)
    x = jnp.zeros((10, 4, 4, 1))
    drawn = [
        np.sort(module.apply({}, x, rngs={"dropout": key}).predicted)
        for key in KEYS[:4]
    ]
    for times in drawn:
        assert times[0] >= 0 and times[-1] < 1
        np.testing.assert_allclose(np.diff(times), 0.1, atol=1e-6)
    assert len({float(times[0]) for times in drawn}) == 4


def test_u_net_reaches_across_the_image_and_knows_the_time():
    model = UNet(nn.silu, (8, 16), groups=4)
    x = jnp.zeros((1, 8, 8, 2))
    params = model.init(KEY, x, jnp.zeros(1))
    corner = x.at[0, 0, 0, 0].set(1.0)
    run = jax.jit(lambda x, t: model.apply(params, x, jnp.full(1, t)))
    plain = run(x, 0.3)
    assert plain.shape == x.shape
    moved = np.abs(run(corner, 0.3) - plain)[0]
    assert moved[0, 0].max() > 0 and moved[-1, -1].max() > 0
    assert np.abs(run(x, 0.4) - plain).max() > 1e-4


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="cannot be halved 2 times: .* multiple of 4"):
        make_family("diffusion", image_size=6)
    with pytest.raises(ValueError, match=r"8 groups do not divide the channels \(12,"):
        make_family("diffusion", channels=(12, 24))
