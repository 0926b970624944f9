"""What every transformation of this package promises about trees, types and buffers."""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import dtypes, lax
from jax.sharding import AxisType

from ._tensors import finite_gradient

_config: Any = jax.config  # whose attributes its type does not name
# Whether an update is traced inside another: the outer one has seen the gradients.
_inside: contextvars.ContextVar[bool] = contextvars.ContextVar("inside", default=False)


def transformation(
    init: Callable[[Any], Any],
    update: Callable[..., tuple[Any, Any]],
    *,
    name: str = "this optimizer",
    finite: bool = True,
    reads_params: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """An optax transformation that keeps what users of optax rely on.

    - Every state leaf keeps its dtype, and every update has the dtype of its gradient,
      whatever the arithmetic in between promotes to.
    - State leaves have buffers of their own, so that state and parameters can be
      donated.
    - Leaves that are no floating-point arrays (integers, booleans) get updates of zero
      and no state. Python floats are arrays. Complex leaves, PRNG keys and everything
      that is no array are refused, with the remedy.
    - Gradients that do not fit the parameters, and a state that does not fit the
      gradients, are refused; the message names the leaf.
    - A step is skipped where an entry of its gradients is NaN or infinite: updates are
      zero, and the state stays as it is. A state with a field `skipped` counts these
      steps there; `init` and `update` as given here have None in it. With
      `jax_debug_nans` such a gradient is an error that names the leaf.
    - An entry of a gradient of more than 1e15 counts as 1e15.
    - The arithmetic is the same under `jax_numpy_dtype_promotion="strict"`.

    Args:
      init: `params -> state`.
      update: `(grads, state, params, **extra_args) -> (updates, state)`.
      name: who asks, in messages.
      finite: whether gradients are cut here. A rule that does so itself, in a kernel,
        saves a pass over memory.
      reads_params: whether `init` depends on the values of the parameters. Otherwise
        leaves of the type `jax.ShapeDtypeStruct` will do.

    Example:
      >>> import l2o, optax
      >>> tx = l2o.transformation(
      ...     lambda params: (),
      ...     lambda grads, state, params: (optax.tree.scale(-0.5, grads), state))
      >>> updates, state = tx.update({"w": 1.0}, tx.init({"w": 2.0}), {"w": 2.0})
      >>> float(updates["w"])
      -0.5
    """

    def fresh(params):
        return _with_counter(init(params), jnp.zeros([], jnp.int32))

    def init_fn(params):
        with _usual_arithmetic():
            selected = _select(params, params, name)
            if reads_params and any(_is_shape(x) for x in selected.seen):
                raise ValueError(
                    f"{name}'s state depends on the values of the parameters, got "
                    "jax.ShapeDtypeStruct: give arrays, or ask for shapes alone, "
                    "`jax.eval_shape(tx.init, params)`"
                )
            given = selected.tree([_as_array(x) for x in selected.seen])
            return _with_own_buffers(fresh(given), given)

    def update_fn(updates, state, params=None, **extra_args):
        with _usual_arithmetic():
            if params is not None:
                params = _aligned(updates, params, name)
            like = updates if params is None else params
            selected = _select(like, updates, name)
            _refuse_nans(selected)
            grads = [jnp.asarray(x) for x in selected.seen]
            dtypes = selected.dtypes(like)
            if params is not None:
                params = selected.tree([_as_array(x) for x in selected.of(params)])

            def make(state):
                given = selected.tree(
                    [finite_gradient(x) for x in grads] if finite else grads
                )
                own = _with_counter(state, None)
                try:
                    new, after = update(given, own, params, **extra_args)
                    after = _with_counter(after, getattr(state, "skipped", None))
                    after = optax.tree.cast_like(after, state)
                    _check_shapes(after, state)
                except (TypeError, ValueError) as error:
                    like = given if params is None else params
                    _explain(fresh, like, state, name, error)
                    raise
                structure: Any = jax.tree.structure(given)
                pairs = zip(structure.flatten_up_to(new), dtypes, strict=True)
                steps = [jnp.asarray(step, dtype) for step, dtype in pairs]
                return steps, _with_own_buffers(after, (steps, given, params))

            def nothing():
                pairs = zip(grads, dtypes, strict=True)
                return [jnp.zeros_like(x, dtype) for x, dtype in pairs]

            steps, after = _where_finite(grads, make, nothing, state)
            return selected.restored(steps), after

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def without_skipping(
    tx: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """The same transformation, with steps that are never skipped.

    An entry that is NaN counts as zero, and one of more than 1e15 as 1e15. Under
    `jax.vmap` the choice of whether to skip writes two states, so this is faster where
    many models are trained at once. Meta-training does so.

    Args:
      tx: of l2o, or what holds such ones.

    Example:
      >>> import l2o
      >>> tx = l2o.without_skipping(l2o.load("adaptive_muon", num_steps=100))
    """
    tx = optax.with_extra_args_support(tx)

    def update_fn(updates, state, params=None, **extra_args):
        token = _inside.set(True)
        try:
            return tx.update(updates, state, params, **extra_args)
        finally:
            _inside.reset(token)

    return optax.GradientTransformationExtraArgs(tx.init, update_fn)


class _Selected(NamedTuple):
    """The floating-point leaves of a tree.

    Attributes:
      seen: these leaves, in order.
      others: None where a leaf is seen, else the update of that leaf.
      structure: of the whole tree.
      names: of the leaves that are seen, for messages.
    """

    seen: list[Any]
    others: list[Any]
    structure: Any
    names: list[str]

    def dtypes(self, like: Any) -> list[Any]:
        """Types of the leaves; of another tree where they are no numbers."""
        pairs = zip(map(_dtype, self.seen), map(_dtype, self.of(like)), strict=True)
        return [x if jnp.issubdtype(x, jnp.floating) else y for x, y in pairs]

    def tree(self, leaves: Sequence[Any]) -> Any:
        """The tree of these leaves, None in the place of the others."""
        rest = iter(leaves)
        return self.structure.unflatten(
            [next(rest) if other is None else None for other in self.others]
        )

    def of(self, tree: Any) -> list[Any]:
        """The same leaves of another tree."""
        leaves = self.structure.flatten_up_to(tree)
        return [
            x for x, other in zip(leaves, self.others, strict=True) if other is None
        ]

    def restored(self, leaves: Sequence[Any]) -> Any:
        """The whole tree."""
        rest = iter(leaves)
        return self.structure.unflatten(
            [next(rest) if other is None else other for other in self.others]
        )


def _where_finite(
    grads: Sequence[jax.Array],
    make: Callable[[Any], Any],
    nothing: Callable[[], Any],
    state: Any,
) -> Any:
    """`make(state)` if all gradients are finite, else nothing and the state."""
    if _inside.get() or not any(x.size for x in grads):
        return make(state)
    token = _inside.set(True)
    try:
        # NaN as soon as one entry is not finite; a sum is what compilers vectorise.
        finite = jnp.isfinite(sum(jnp.sum(x * 0, dtype=jnp.float32) for x in grads))
        if not isinstance(finite, jax.core.Tracer):  # else every call would compile
            steps, after = make(state) if finite else (nothing(), state)
        elif _is_manual():  # where JAX cannot map a loop
            steps, after = jax.tree.map(
                lambda x, y: jnp.where(finite, x, y), make(state), (nothing(), state)
            )
        else:
            # As an argument is what the rule closes over, too: it may have derivatives.
            program, result = jax.make_jaxpr(make, return_shape=True)(state)
            structure: Any = jax.tree.structure(result)

            def given(state, consts):
                leaves = jax.tree.leaves(state)
                found = jax.core.eval_jaxpr(program.jaxpr, consts, *leaves)
                return structure.unflatten(found)

            consts = list(program.consts)
            steps, after = _if(given, finite, nothing(), state, consts)
        return steps, _counted(after, ~finite)
    finally:
        _inside.reset(token)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _if(
    make: Callable[..., Any], finite: jax.Array, nothing: Any, state: Any, consts: Any
) -> Any:
    """`make(state, consts)` if that is so, else nothing and the state.

    A loop of one step or none, because XLA changes what a loop carries in its place.
    What a condition returns has memory of its own beside the state.
    """

    def body(carry):
        _, _, state = carry
        return jnp.zeros_like(finite), *make(state, consts)

    _, steps, after = lax.while_loop(
        lambda carry: carry[0], body, (finite, nothing, state)
    )
    return steps, after


@_if.defjvp
def _if_jvp(make, primals, tangents):
    # Nothing propagates backwards through such a loop.
    finite, *otherwise, consts = primals
    _, *slopes, more = tangents

    def choose(x, y):
        return x if x.dtype == dtypes.float0 else jnp.where(finite, x, y)

    def known(slope):  # zero times NaN is no derivative
        return choose(slope, 0)

    given = jax.tree.map(known, (slopes[1], more))
    made, along = jax.jvp(make, (otherwise[1], consts), given)
    pairs = (made, tuple(otherwise)), (along, tuple(slopes))
    found, derivatives = (jax.tree.map(choose, *pair) for pair in pairs)
    return found, derivatives


def _is_manual() -> bool:
    """Whether what is traced here is inside `jax.shard_map`."""
    kinds = jax.sharding.get_abstract_mesh().axis_types
    return AxisType.Manual in kinds


def _with_counter(state: Any, skipped: Any) -> Any:
    """The state with its own count of skipped steps, if it has a field for that."""
    if "skipped" not in getattr(state, "_fields", ()):
        return state
    return state._replace(skipped=skipped)


def _counted(state: Any, skipped: jax.Array) -> Any:
    """The state after a step that was skipped, or not."""

    def count(path, x):
        named = path and getattr(path[-1], "name", "") == "skipped"
        return jnp.where(skipped, optax.safe_increment(x), x) if named else x

    return jax.tree_util.tree_map_with_path(count, state)


def _select(params: Any, tree: Any, name: str) -> _Selected:
    """The leaves of `tree` whose parameters are floating-point numbers."""
    paths = jax.tree_util.tree_leaves_with_path(params)
    structure: Any = jax.tree.structure(params)
    leaves = structure.flatten_up_to(tree)
    seen: list[Any] = []
    others: list[Any] = []
    names: list[str] = []
    for (path, param), leaf in zip(paths, leaves, strict=True):
        if _is_seen(param, path, name):
            seen.append(leaf)
            names.append(_named(path))
            others.append(None)
        else:
            # `optax.apply_updates` adds it: also where the gradient is a float0.
            dtype = _dtype(param)
            dtype = jnp.bool_ if dtype == dtypes.float0 else dtype
            others.append(jnp.zeros(np.shape(param), dtype))
    return _Selected(seen, others, structure, names)


def _is_seen(param: Any, path: Any, name: str) -> bool:
    if not isinstance(param, bool | int | float | complex) and not (
        hasattr(param, "shape") and hasattr(param, "dtype")
    ):
        raise ValueError(
            f"{name} updates arrays, and {_named(path)} is a "
            f"{type(param).__name__}: give the arrays of the model alone, such as "
            "`nnx.state(model, nnx.Param)` or `eqx.filter(model, "
            "eqx.is_inexact_array)`"
        )
    dtype = _dtype(param)
    if jnp.issubdtype(dtype, dtypes.prng_key):
        raise ValueError(
            f"{name} updates numbers, and {_named(path)} is a PRNG key: keep keys out "
            "of the parameters, or away from this optimizer with `optax.masked`"
        )
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise ValueError(
            f"{name} updates real numbers, and {_named(path)} is complex: let it see "
            "real and imaginary parts, `optax.contrib.split_real_and_imaginary(tx)`"
        )
    return jnp.issubdtype(dtype, jnp.floating)


def _as_array(x: Any) -> Any:
    """An array of it; zeros for a mere shape."""
    if _is_shape(x):
        return jnp.zeros(x.shape, x.dtype, device=x.sharding)
    if isinstance(x, jax.Array | np.ndarray | np.generic):
        return x
    return jnp.asarray(x)


def _dtype(x: Any) -> Any:
    return x.dtype if hasattr(x, "dtype") else jnp.asarray(x).dtype


def _is_shape(x: Any) -> bool:
    return isinstance(x, jax.ShapeDtypeStruct)


def _aligned(grads: Any, params: Any, name: str) -> Any:
    """The parameters, None where the gradients are None.

    Raises:
      ValueError: the trees or the shapes of two leaves differ.
    """
    is_none = lambda x: x is None
    wanted = jax.tree_util.tree_leaves_with_path(grads, is_leaf=is_none)
    found = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_none)
    structure: Any = jax.tree.structure(grads, is_leaf=is_none)
    other: Any = jax.tree.structure(params, is_leaf=is_none)
    if structure != other:
        ours, theirs = ({_named(path) for path, _ in x} for x in (found, wanted))
        lacking, unknown = sorted(ours - theirs), sorted(theirs - ours)
        problems = [f"lack {', '.join(lacking[:3])}"] if lacking else []
        problems += [f"have {', '.join(unknown[:3])} more"] if unknown else []
        if not problems:
            problems = [f"are a {structure} and the parameters a {other}"]
        raise ValueError(
            f"{name} got gradients that are not those of the parameters: they "
            f"{' and '.join(problems)}"
        )
    kept = []
    for (path, grad), (_, param) in zip(wanted, found, strict=True):
        if grad is not None and param is not None and np.shape(grad) != np.shape(param):
            raise ValueError(
                f"{name} got a gradient of shape {np.shape(grad)} for "
                f"{_named(path)}, which has shape {np.shape(param)}"
            )
        kept.append(None if grad is None else param)
    return structure.unflatten(kept)


def _refuse_nans(selected: _Selected) -> None:
    """Raises where JAX looks for NaN, before an operation of ours is blamed."""
    nans, infs = _config.jax_debug_nans, _config.jax_debug_infs
    if not (nans or infs):
        return
    for name, x in zip(selected.names, selected.seen, strict=True):
        if isinstance(x, jax.core.Tracer):
            continue
        values = np.asarray(x)
        bad = (nans and np.isnan(values)) | (infs and np.isinf(values))
        if np.any(bad):
            raise FloatingPointError(
                f"the gradient of {name} is not finite before the optimizer sees it: "
                "look for the cause in your loss (jax_debug_nans is on)"
            )


def _check_shapes(after: Any, before: Any) -> None:
    for new, old in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True):
        if np.shape(new) != np.shape(old):
            raise ValueError(f"a state of shape {np.shape(old)} does not fit")


def _explain(init: Any, params: Any, state: Any, name: str, error: Exception) -> None:
    """Raises a better error if the state is not one of these parameters."""
    try:
        expected = jax.eval_shape(init, params)
    except (TypeError, ValueError):
        return
    wanted = jax.tree_util.tree_leaves_with_path(expected)
    found = jax.tree_util.tree_leaves_with_path(state)
    problem = None
    structures: list[Any] = [jax.tree.structure(x) for x in (expected, state)]
    if structures[0] != structures[1]:
        problem = "it has other leaves"
    else:
        for (path, leaf), (_, x) in zip(wanted, found, strict=True):
            if leaf.shape != np.shape(x):
                problem = (
                    f"{_named(path)} has shape {np.shape(x)}, expected {leaf.shape}"
                )
                break
    if problem is not None:
        raise ValueError(
            f"{name} got a state that does not fit these parameters: {problem}. Make "
            "a new one, `state = tx.init(params)`"
        ) from error


def _with_own_buffers(state: Any, others: Any) -> Any:
    """The state, with a copy of every leaf that is an array of the others or twice."""
    seen = {id(x) for x in jax.tree.leaves(others)}

    def own(x):
        if not isinstance(x, jax.Array):
            return x
        if id(x) in seen:
            x = jnp.array(x, copy=True)
        seen.add(id(x))
        return x

    return jax.tree.map(own, state)


@contextlib.contextmanager
def _usual_arithmetic() -> Iterator[None]:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def _named(path: Any) -> str:
    return "params" + jax.tree_util.keystr(path)
