"""Embeddings of word pieces: two tables, of which a batch uses some rows."""

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from .._adapters import from_functions, linen_functions
from .._base import TaskFamily, clipped
from ..data import Dataset, load_all


class Scores(NamedTuple):
    """Products of embeddings.

    Attributes:
      positive: of the middle piece and its neighbours, (b, length - 1).
      negative: of the middle piece and drawn ones, (b, negatives).
    """

    positive: jax.Array
    negative: jax.Array


class _SkipGram(nn.Module):
    vocabulary: int
    width: int
    negatives: int

    @nn.compact
    def __call__(self, x):
        # word2vec's: the first table small and random, the other one zero.
        small = nn.initializers.uniform(1 / self.width)
        centred = lambda *args: small(*args) - 0.5 / self.width
        table = (self.vocabulary, self.width)
        words = nn.Embed(*table, embedding_init=centred, name="words")
        contexts = nn.Embed(
            *table, embedding_init=nn.initializers.zeros, name="contexts"
        )
        middle = x.shape[1] // 2
        # Pieces of other windows are drawn as often as they occur.
        at = jax.random.randint(
            self.make_rng("dropout"), (len(x), self.negatives), 0, x.size
        )
        neighbours = jnp.delete(x, middle, axis=1)
        given = words(x[:, middle])[:, None]
        return Scores(
            jnp.sum(given * contexts(neighbours), -1),
            jnp.sum(given * contexts(x.reshape(-1)[at]), -1),
        )


def skip_gram(
    datasets: Sequence[str | Dataset] = ("python_docs",),
    *,
    width: int = 32,
    length: int = 5,
    vocabulary: int = 1024,
    negatives: int = 8,
    batch_size: int = 64,
    name: str = "",
) -> TaskFamily:
    r"""word2vec: the embedding of a piece of text tells pieces beside it from others.

    .. math:: L = -\mathrm{mean}_c \log \sigma(u_w^\top v_c)
              - \tfrac{K}{n} \sum_{k=1}^n \log \sigma(-u_w^\top v_k)

    w is the middle piece of a window and c are the others. The n negatives are drawn
    from the whole batch, so as often as pieces occur; they weigh as K = 5. Rows of the
    two tables get gradients as often as their pieces occur, which falls about as their
    rank: most rows have none in a batch.

    Args:
      datasets: names of texts; each task draws one.
      width: of an embedding.
      length: pieces of a window.
      vocabulary: pieces, see `word_pieces`.
      negatives: n, for each window.
      batch_size: windows per inner step.
      name: for reports.

    As a meta-loss it is clipped to [0, 9]; it begins at `6 log 2`, 4.16.

    Example:
      >>> from l2o.tasks import make_family
      >>> family = make_family("skip_gram", width=8, vocabulary=300)

    Source: Mikolov et al., "Distributed representations of words and phrases" (2013);
    there negatives are drawn by frequencies to the power 3/4.
    """
    loaded = load_all(datasets, length=length, vocabulary=vocabulary)

    def output_loss(scores: Scores, batch):
        del batch
        near = jnp.mean(jax.nn.log_sigmoid(scores.positive))
        far = jnp.mean(jax.nn.log_sigmoid(-scores.negative))
        return -near - _NEGATIVES * far

    return from_functions(
        lambda _: linen_functions(_SkipGram(vocabulary, width, negatives)),
        output_loss,
        loaded,
        batch_size=batch_size,
        normalize=clipped(9.0),
        name=name or "skip-gram-" + "-".join(map(_name, datasets)),
    )


_NEGATIVES = 5  # what they weigh


def _name(dataset: str | Dataset) -> str:
    return dataset if isinstance(dataset, str) else "data"
