"""From text to tokens: bytes, or word pieces learned from the text."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

MISSING_TOKENIZERS = "word pieces need tokenizers: pip install 'l2o[data]'"
PAD = 0
_SMALLEST = 257  # padding and every byte
Encoder = Callable[[Sequence[str]], list[np.ndarray]]


def byte_tokens(texts: Sequence[str]) -> list[np.ndarray]:
    """The bytes of the texts in UTF-8, int32 in `range(256)`; 0 is in no text."""
    return [np.frombuffer(x.encode(), np.uint8).astype(np.int32) for x in texts]


def encoder(vocabulary: int | None, texts: Iterable[str]) -> Encoder:
    """`texts -> their tokens`.

    Args:
      vocabulary: None for bytes; else at most so many word pieces.
      texts: what word pieces are learned from; the training split only.
    """
    return byte_tokens if vocabulary is None else word_pieces(texts, vocabulary)


def word_pieces(texts: Iterable[str], vocabulary: int) -> Encoder:
    """An encoder by byte pairs, merged in the order of how often they occur in `texts`.

    Token 0 is padding. Any text can be encoded, because every byte is a piece.

    Args:
      texts: learned from.
      vocabulary: at most so many pieces, at least 257.

    Raises:
      ValueError: a vocabulary without room for every byte.
      ModuleNotFoundError: tokenizers is not installed.

    Example:
      >>> from l2o.tasks.data import word_pieces
      >>> encode = word_pieces(["the cat and the dog"] * 9, 270)
      >>> [len(tokens) for tokens in encode(["the cat", "tea"])]
      [2, 3]

    Source: Sennrich, Haddow and Birch, Neural Machine Translation of Rare Words with
    Subword Units (2016); on bytes, as in GPT-2.
    """
    if vocabulary < _SMALLEST:
        raise ValueError(
            f"a vocabulary of {vocabulary} has no room for every byte: choose "
            f"{_SMALLEST} or more, None for bytes, or reduce it with reduce_vocabulary"
        )
    try:
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(MISSING_TOKENIZERS) from error
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>"],  # the first token
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)

    def encode(texts: Sequence[str]) -> list[np.ndarray]:
        # Where a text itself says "<pad>" that is no padding.
        tokenizer.encode_special_tokens = True
        found = tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [np.asarray(x.ids, np.int32) for x in found]

    return encode


def reduce_vocabulary(tokens: Any, size: int) -> Any:
    r"""Tokens of a smaller vocabulary: what is not in it shares what is.

    .. math:: t \mapsto t \text{ if } t < V \text{ else } 1 + (t \bmod (V - 1))

    Padding, token 0, stays apart. May be traced.

    Args:
      tokens: integers.
      size: V, at least 2.

    Example:
      >>> import numpy as np
      >>> from l2o.tasks.data import reduce_vocabulary
      >>> reduce_vocabulary(np.array([0, 3, 9, 10, 11, 12]), 10)
      array([0, 3, 9, 2, 3, 4])

    Source: google/learned_optimization, where `1 + t mod V` may be V, one too many.
    """
    if size < 2:
        raise ValueError(f"a vocabulary needs padding and a token, not size={size}")
    where = jnp.where if isinstance(tokens, jax.Array) else np.where
    return where(tokens < size, tokens, 1 + tokens % (size - 1))


def windows(tokens: np.ndarray, length: int) -> dict[str, np.ndarray]:
    """Windows of `length + 1` without overlap, `shifted`; what is left is dropped."""
    count = len(tokens) // (length + 1)
    return shifted(tokens[: count * (length + 1)].reshape(count, length + 1))


def padded(documents: Sequence[np.ndarray], length: int) -> dict[str, np.ndarray]:
    """The first `length + 1` tokens of each document, or padding, `shifted`."""
    tokens = np.full((len(documents), length + 1), PAD, np.int32)
    for row, document in zip(tokens, documents, strict=True):
        part = document[: length + 1]
        row[: len(part)] = part
    return shifted(tokens)


def shifted(tokens: np.ndarray) -> dict[str, np.ndarray]:
    """x: all but the last of each row; y: all but the first."""
    return {"x": tokens[:, :-1], "y": tokens[:, 1:]}
