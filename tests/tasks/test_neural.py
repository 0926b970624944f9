"""Losses of the neural families against closed forms and plain re-implementations."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from helpers import (
    ERRORS,
    KEY,
    KEYS,
    assert_close,
    assert_log_uniform,
    assert_uniform_integers,
    mapped,
)

from l2o import tasks
from l2o.tasks import SPLITS, make_family
from l2o.tasks._choices import (
    ACTIVATIONS,
    INITIALIZERS,
    VELO_ACTIVATIONS,
    Choices,
    chosen_weights,
)
from l2o.tasks._orthonormal import orthonormal
from l2o.tasks.data import photograph


def _parts(family, key=KEY, split="train"):
    """config, task, params, state, batch; all drawn inside one program."""

    @jax.jit
    def draw(data):
        config = family.sample(key)
        task = family.task(config, data)
        return config, *task.init(key), task.batch(key, split)

    config, params, state, batch = draw(family.data)
    return config, family.task(config, family.data), params, state, batch


def _zeros(params):
    return jax.tree.map(jnp.zeros_like, params)


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("constrain", [False, True])
def test_autoencoder_without_weights_says_the_middle(center, log, constrain):
    family = make_family(
        "autoencoder",
        hidden=(4,),
        center_data=center,
        log_loss=log,
        constrain_output=constrain,
    )
    _, task, params, state, batch = _parts(family)
    x = np.asarray(batch["x"], np.float64) * (2 if center else 1) - center
    said = 0.5 if constrain and not center else 0.0
    error = (said - x) ** 2
    expected = np.log(error.mean(1) + 1e-8).mean() if log else error.mean()
    loss, _ = task.loss(_zeros(params), state, KEY, batch)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_vae_with_known_outputs_costs_what_the_formula_says():
    family = make_family("vae", encoder=(), decoder=(), latent=2, per_dim_loss=False)
    _, task, params, state, batch = _parts(family)
    params = _zeros(params)
    mean, log_std, out_mean, out_log_std = 0.3, -0.4, 0.5, -1.5
    encoder, decoder = params["MLP_0"]["Dense_0"], params["MLP_1"]["Dense_0"]
    encoder["bias"] = jnp.array([mean, mean, log_std, log_std])
    decoder["bias"] = jnp.concatenate(
        [jnp.full(64, out_mean), jnp.full(64, out_log_std)]
    )
    kl = 2 * (0.5 * (mean**2 + math.exp(2 * log_std) - 1) - log_std)
    x = np.asarray(batch["x"], np.float64).reshape(64, 64)
    density = scipy.stats.norm(out_mean, math.exp(out_log_std))
    likelihood = density.logpdf(x).sum(1).mean() - 64 * math.log(255)
    loss, (_, metrics) = task.loss(params, state, KEY, batch)
    np.testing.assert_allclose(metrics["kl"], kl, rtol=1e-5)
    # The noise within a grey value moves the density a little.
    np.testing.assert_allclose(
        metrics["negative_log_likelihood"], -likelihood, rtol=2e-3
    )
    np.testing.assert_allclose(loss, kl - likelihood, rtol=2e-3)
    other, _ = task.loss(params, state, KEYS[0], batch)
    assert loss != other


def test_language_models_do_not_count_padding():
    x = np.array([[5, 6, 7, 0, 0], [1, 0, 0, 0, 0]] * 20, np.int32)
    data = tasks.from_arrays({"x": x, "y": np.roll(x, -1, 1)})
    family = make_family("language_model", datasets=(data,), batch_size=4, length=5)
    _, task, params, state, batch = _parts(family)
    loss, _ = task.loss(_zeros(params), state, KEY, batch)
    np.testing.assert_allclose(loss, math.log(128), rtol=1e-5)
    changed = {**batch, "y": jnp.where(batch["x"] == 0, 9, batch["y"])}
    for b in (batch, changed):
        same, _ = task.loss(params, state, KEY, b)
        np.testing.assert_allclose(same, task.loss(params, state, KEY, batch)[0])


def test_supervised_losses_are_those_of_their_names():
    def family(**options):
        return make_family("supervised", model="mlp", options={"hidden": ()}, **options)

    classes = family(datasets=("iris",), batch_size=4, loss="one_hot")
    _, task, params, state, batch = _parts(classes)
    logits = np.asarray(batch["x"]) @ np.asarray(params["Dense_0"]["kernel"])
    one_hot = np.eye(3)[np.asarray(batch["y"])]
    loss, (_, metrics) = task.loss(params, state, KEY, batch)
    np.testing.assert_allclose(loss, np.mean((logits - one_hot) ** 2), rtol=1e-5)
    right = logits.argmax(1) == np.asarray(batch["y"])
    np.testing.assert_allclose(metrics["accuracy"], right.mean())
    # Best constant: the share 1/C, which costs (1 - 1/C) / C.
    np.testing.assert_allclose(task.normalize((1 - 1 / 3) / 3), 2.0, rtol=1e-5)

    numbers = family(datasets=("diabetes",), batch_size=4, loss="squared")
    _, task, params, state, batch = _parts(numbers)
    y = np.asarray(batch["x"]) @ np.asarray(params["Dense_0"]["kernel"])
    loss, _ = task.loss(params, state, KEY, batch)
    np.testing.assert_allclose(loss, np.mean((y - batch["y"]) ** 2), rtol=1e-5)
    np.testing.assert_allclose(task.normalize(1.0), 2.0, rtol=1e-4)
    with pytest.raises(ValueError, match="cross_entropy needs integer labels"):
        family(datasets=("diabetes",))
    with pytest.raises(ValueError, match="unknown loss 'mse'; known: cross_entropy"):
        family(datasets=("iris",), loss="mse")


def test_coordinate_network_sees_the_photograph_and_disjoint_pixels():
    family = make_family(
        "coordinate_network", hidden=(4,), image_size=16, batch_size=10, image="flower"
    )
    photo = photograph("flower", 16)
    seen = []
    config = family.sample(KEY)
    task = family.task(config, family.data)
    corner = np.asarray(config["corner"])
    for split in SPLITS:
        pixels = set()
        for key in KEYS[:20]:
            batch = task.batch(key, split)
            at = np.rint((np.asarray(batch["x"]) + 1) / 2 * 7).astype(int)
            rows, cols = (at + corner).T
            np.testing.assert_array_equal(batch["y"], photo[rows, cols])
            pixels |= set(map(tuple, at.tolist()))
        seen.append(pixels)
    # 64 pixels: 32, 11, 11, 10; 200 draws meet nearly all of them.
    assert 28 <= len(seen[0]) <= 32 and all(9 <= len(s) <= 11 for s in seen[1:])
    assert len(set.union(*seen)) == sum(map(len, seen))
    with pytest.raises(ValueError, match="larger than a split with 10 pixels"):
        make_family("coordinate_network", image_size=16)
    with pytest.raises(ValueError, match="unknown photograph 'lena'; known: china"):
        make_family("coordinate_network", image="lena")


def test_pinn_loss_equals_derivatives_by_hand():
    family = make_family("pinn_heat", hidden=(5,), points=7, weight=3.0)
    config, task, params, state, batch = _parts(family)
    config, params, batch = jax.tree.map(
        lambda x: np.asarray(x, np.float64), (config, params, batch)
    )
    w1, b1 = params["Dense_0"]["kernel"], params["Dense_0"]["bias"] + 0.1
    w2 = params["Dense_1"]["kernel"][:, 0]
    params["Dense_0"]["bias"] = b1

    def u(t, x):
        return np.tanh(np.stack([t, x], -1) @ w1 + b1) @ w2

    t, x, x_0, t_b = batch
    h = np.tanh(np.stack([t, x], -1) @ w1 + b1)
    u_t = (1 - h**2) @ (w2 * w1[0])
    u_xx = (-2 * h * (1 - h**2)) @ (w2 * w1[1] ** 2)
    k = np.arange(1, 4)
    nu, a = config["diffusivity"], config["amplitudes"]

    def solution(t, x):
        decay = np.exp(-nu * (k * np.pi) ** 2 * t[:, None])
        return (a * decay * np.sin(k * np.pi * x[:, None])).sum(1)

    zero = np.zeros(7)
    start = u(zero, x_0) - solution(zero, x_0)
    border = u(t_b, zero) ** 2 + u(t_b, zero + 1) ** 2
    expected = np.mean((u_t - nu * u_xx) ** 2) + 3 * np.mean(start**2 + border)
    float32 = jax.tree.map(jnp.float32, (params, batch))
    loss, (_, metrics) = jax.jit(task.loss)(float32[0], state, KEY, float32[1])
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    error = np.mean((u(t, x) - solution(t, x)) ** 2)
    np.testing.assert_allclose(metrics["error"], error, rtol=1e-4)
    # The solution solves the equation: by differences in the middle of the square.
    d = 1e-4
    t, x = np.full(1, 0.3), np.full(1, 0.4)
    s_t = (solution(t + d, x) - solution(t - d, x)) / (2 * d)
    s_xx = (solution(t, x + d) - 2 * solution(t, x) + solution(t, x - d)) / d**2
    np.testing.assert_allclose(s_t, nu * s_xx, rtol=1e-4)


def _gyms_cartpole(state, force, cart, pole, half_length):
    """One step as Gym's source has it, for one pole."""
    x, x_dot, theta, theta_dot = state
    total, moment = cart + pole, pole * half_length
    temp = (force + moment * theta_dot**2 * math.sin(theta)) / total
    theta_acc = (9.8 * math.sin(theta) - math.cos(theta) * temp) / (
        half_length * (4.0 / 3.0 - pole * math.cos(theta) ** 2 / total)
    )
    x_acc = temp - moment * theta_acc * math.cos(theta) / total
    return (
        x + 0.02 * x_dot,
        x_dot + 0.02 * x_acc,
        theta + 0.02 * theta_dot,
        theta_dot + 0.02 * theta_acc,
    )


def test_cartpole_falls_when_gyms_does():
    family = make_family("cartpole", hidden=(4,), steps=300, episodes=3, pairs=1)
    config, task, params, state, starts = _parts(family)
    physics = {k: float(v) for k, v in config["base"].items()}
    layers = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    up = 0
    for start in np.asarray(starts, np.float64):
        s = tuple(start)
        for _ in range(300):
            h = np.tanh(np.array(s) @ layers[0]["w"] + layers[0]["b"])
            force = 10.0 * np.sign(h @ layers[1]["w"] + layers[1]["b"]).item()
            s = _gyms_cartpole(s, force, **physics)
            if abs(s[0]) >= 2.4 or abs(s[2]) >= 12 * 2 * math.pi / 360:
                break
            up += 1
    loss, _ = jax.jit(task.loss)(params, state, KEY, starts)
    np.testing.assert_allclose(loss, 1 - up / (3 * 300), atol=0.02)
    assert 0 < up < 3 * 300


def test_copy_task_asks_for_what_it_showed():
    family = make_family("copy_task", symbols=5, length=3, delay=2, batch_size=40)
    config, task, params, state, batch = _parts(family)
    x, y, order = (np.asarray(v) for v in (batch["x"], batch["y"], config["order"]))
    assert x.shape == y.shape == (40, 8) and sorted(order) == list(range(5))
    assert np.all(x[:, 3:5] == 0) and np.all(x[:, 5] == 1) and np.all(x[:, 6:] == 0)
    assert np.all(y[:, :5] == 0)
    np.testing.assert_array_equal(y[:, 5:], order[x[:, :3] - 2] + 2)
    assert set(x[:, :3].ravel()) == set(range(2, 7))
    loss, (_, metrics) = task.loss(_zeros(params), state, KEY, batch)
    np.testing.assert_allclose(loss, math.log(7), rtol=1e-5)
    assert metrics["accuracy"] == 0  # ties say the blank


def test_training_a_learned_optimizer_is_its_mean_loss():
    inner = {"kind": "quadratic", "options": {"dim": 3, "log10_condition": 0.0}}
    family = make_family(
        "train_learned_optimizer",
        optimizer="learnable_sgd",
        inner=inner,
        steps=4,
        runs=50,
    )
    _, task, _, state, keys = _parts(family)
    rate = 0.3
    theta = {"log_lr": jnp.log(rate)}
    value, slope = jax.jit(
        jax.value_and_grad(lambda theta: task.loss(theta, state, KEY, keys)[0])
    )(theta)
    # Curvature 1: every step multiplies the distance to the minimum by 1 - rate.
    quadratic = tasks.quadratic(3, log10_condition=0.0)

    def start(key):
        k_config, k_init, _ = jax.random.split(key, 3)
        config = quadratic.sample(k_config)
        x = quadratic.task(config, ()).init(k_init)[0]
        return 0.5 * jnp.sum((x - config["minimum"]) ** 2)

    first = np.mean(np.asarray(mapped(start)(keys)))
    k = np.arange(4)
    np.testing.assert_allclose(value, first * np.mean((1 - rate) ** (2 * k)), rtol=1e-4)
    d = first * np.mean(2 * k * (1 - rate) ** (2 * k - 1)) * -rate
    np.testing.assert_allclose(slope["log_lr"], d, rtol=1e-4)


def test_choices_are_drawn_uniformly_and_only_where_there_is_one():
    family = make_family(
        "supervised",
        model="mlp",
        datasets=("shapes", "textures"),
        options={"hidden": (4,)},
        activation=VELO_ACTIVATIONS,
        initializer=("normal", "uniform"),
        init_scale=(0.5, 2.0),
    )
    config = mapped(family.sample)(KEYS)
    assert_uniform_integers(config["activation"], 12)
    assert_uniform_integers(config["initializer"], 2)
    assert_uniform_integers(config["dataset"], 2)
    assert_log_uniform(config["init_scale"], 0.5, 2.0)
    plain = make_family("supervised", model="mlp", datasets=("shapes",))
    assert plain.sample(KEY) == {}


@pytest.mark.parametrize("name", INITIALIZERS)
def test_initializers_have_the_deviation_of_one_over_fan_in(name):
    weights = np.asarray(jax.jit(INITIALIZERS[name], static_argnums=1)(KEY, (40, 50)))
    if name == "orthogonal":
        assert_close(weights @ weights.T, np.eye(40), atol=1e-4)
        return
    scaled = weights * math.sqrt(40)
    variance = 0.774 if name == "truncated_normal" else 1.0  # cut at two deviations
    assert abs(scaled.var() - variance) < ERRORS * 2 / math.sqrt(scaled.size)
    assert abs(scaled.mean()) < ERRORS / math.sqrt(scaled.size)
    if name == "uniform":
        assert abs(scaled).max() <= math.sqrt(3)


def test_chosen_weights_scale_matrices_and_spare_vectors():
    def family(scale):
        return make_family(
            "supervised",
            model="mlp",
            datasets=("digits",),
            options={"hidden": (4,), "normalization": "layer"},
            init_scale=(scale, scale),
        )

    one, three = (_parts(family(scale))[2] for scale in (1.0, 3.0))
    for (path, x), y in zip(jax.tree.leaves_with_path(one), jax.tree.leaves(three)):
        assert_close(y, x * (3.0 if x.ndim > 1 else 1.0))
        assert x.ndim > 1 or "kernel" not in jax.tree_util.keystr(path)


def test_activation_index_selects_the_activation():
    names = tuple(ACTIVATIONS)
    family = make_family(
        "supervised",
        model="mlp",
        datasets=("digits",),
        options={"hidden": (6,)},
        activation=names,
        batch_size=4,
    )

    def run(index, data):
        task = family.task({"activation": index}, data)
        params, state = task.init(KEY)
        batch = task.batch(KEY, "train")
        return params, batch, task.loss(params, state, KEY, batch)[0]

    params, batch, losses = mapped(run, (0, None))(jnp.arange(len(names)), family.data)
    # No input exceeds 6, where relu6 would differ from relu.
    assert len({round(float(x), 5) for x in losses}) == len(names) - 1
    for i, f in enumerate(ACTIVATIONS.values()):
        w = jax.tree.map(lambda x, i=i: x[i], params)
        h = f(batch["x"][i].reshape(4, -1) @ w["Dense_0"]["kernel"])
        logits = h @ w["Dense_1"]["kernel"]
        expected = tasks.cross_entropy(logits, batch["y"][i])
        np.testing.assert_allclose(losses[i], expected, rtol=1e-4)


def test_datasets_and_choices_that_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match="a family needs datasets of one shape"):
        make_family("supervised", model="mlp", datasets=("digits", "glyphs"))
    with pytest.raises(ValueError, match="unknown activation 'rely'; known: relu"):
        make_family("supervised", model="mlp", datasets=("digits",), activation="rely")
    with pytest.raises(ValueError, match="init_scale must be 0 < low <= high"):
        make_family("supervised", model="mlp", datasets=("digits",), init_scale=(2, 1))
    with pytest.raises(ValueError, match="unknown dataset 'minst'; known: digits"):
        make_family("supervised", model="mlp", datasets=("minst",))
    with pytest.raises(ValueError, match="unknown task 'mlp'; `l2o tasks` lists"):
        make_family("mlp")
    with pytest.raises(ValueError, match="supervised needs the option datasets"):
        make_family("supervised", model="mlp")


def test_log_scaled_is_two_at_the_baseline_and_bounded():
    normalize = tasks.log_scaled(0.25)
    values = jnp.array([0.25, 0.25 * math.e, 1e30, jnp.nan, jnp.inf, 0.0, -1.0])
    expected = [2.0, 2.2, 2.2, 2.2, 2.2, 0.0, 0.0]
    np.testing.assert_allclose(jax.vmap(normalize)(values), expected, rtol=1e-6)
    np.testing.assert_allclose(normalize(0.25 * math.exp(-5)), 1.0, rtol=1e-6)


def test_drawn_initial_weights_of_attention():
    zeros = {
        "attention": {
            "query": {"kernel": jnp.zeros((64, 4, 16)), "bias": jnp.zeros((4, 16))},
            "out": {"kernel": jnp.zeros((4, 16, 64)), "bias": jnp.zeros(64)},
        },
        "class_token": jnp.zeros((1, 1, 64)),
        "position": jnp.zeros((5, 64)),
    }
    choices = Choices(initializer="normal", init_scale=(3.0, 3.0))
    params = chosen_weights(choices, {}, KEY, zeros)
    for name in ("query", "out"):
        kernel = params["attention"][name].pop("kernel")
        assert_close(np.std(kernel), 3 / math.sqrt(64), rtol=0.1)
    assert not any(map(np.any, jax.tree.leaves(params)))


def test_an_unknown_activation_of_the_copy_task():
    with pytest.raises(ValueError, match="unknown activation 'no'; known: relu"):
        make_family("copy_task", activation="no")


def test_a_vocabulary_without_tokens_of_the_data():
    with pytest.raises(ValueError, match="a vocabulary of 50 has no token 12"):
        make_family(
            "language_model",
            datasets=(tasks.load_dataset("python_docs"),),
            vocabulary=50,
        )


def test_several_orthonormal_draws_in_one_batched_program_end():
    # With LAPACK's QR this program never did, on two cores.
    shapes = [(64, 20), (206, 20), (20, 20), (9, 8), (20, 1)]

    def draw(key):
        keys = jax.random.split(key, len(shapes))
        return [orthonormal(k, *shape) for k, shape in zip(keys, shapes)]

    for q, (_, cols) in zip(mapped(draw)(KEYS[:4]), shapes):
        gram = np.einsum("bij,bik->bjk", q, q)
        np.testing.assert_allclose(
            gram, np.broadcast_to(np.eye(cols), gram.shape), atol=2e-5
        )
    # Uniform: any entry of a column is that of a random direction.
    entries = np.asarray(mapped(lambda key: orthonormal(key, 3, 2))(KEYS))
    assert np.all(abs(entries.mean(0)) < ERRORS * math.sqrt(1 / 3 / len(KEYS)))
    np.testing.assert_allclose((entries**2).mean(0), 1 / 3, atol=ERRORS * 0.3 / 44)
