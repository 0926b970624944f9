"""Training in low precision."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from l2o.names import check_known

from .._base import TaskFamily
from ._wrap import wrap

Dtype = Literal["bfloat16", "float16"]


def reduced_precision(family: TaskFamily, dtype: Dtype = "bfloat16") -> TaskFamily:
    """Parameters and batches in a dtype of few bits, and so gradients and updates.

    The optimizer's state follows where it takes the parameters' dtype. Inside the loss
    JAX's promotion decides: what meets a float32 constant is computed in float32. Loss
    and aux come back as float32; the model state keeps its dtypes.

    Args:
      family: any family; entries that are not floats stay as they are.
      dtype: "bfloat16", with float32's range and 8 significant bits, or "float16".

    Raises:
      ValueError: another dtype.

    Example:
      >>> import jax
      >>> from l2o.tasks import quadratic, reduced_precision
      >>> family = reduced_precision(quadratic(3))
      >>> task = family.task(family.sample(jax.random.key(0)), family.data)
      >>> task.init(jax.random.key(1))[0].dtype.name
      'bfloat16'

    Source: VeLO (Metz et al., 2022).
    """
    check_known("dtype", dtype, ("bfloat16", "float16"))

    def change(task, config):
        del config

        def init(key):
            params, model_state = task.init(key)
            return _cast(params, dtype), model_state

        def batch(key, split):
            return _cast(task.batch(key, split), dtype)

        def loss(params, model_state, key, batch):
            value, (new, aux) = task.loss(params, model_state, key, batch)
            # Promotion must not change a scan's carry.
            kept = jax.tree.map(lambda x, old: _cast(x, old.dtype), new, model_state)
            return value.astype(jnp.float32), (kept, _cast(aux, "float32"))

        return task._replace(init=init, batch=batch, loss=loss)

    return wrap(family, dtype, change)


def _cast(tree: Any, dtype: Any) -> Any:
    """Its floats in that dtype."""

    def cast(x):
        return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(cast, tree)
