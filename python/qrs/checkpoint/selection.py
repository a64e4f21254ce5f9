"""Which tensors of a model are quantized: the default rule, and `--include` / `--exclude`.

By default the floating-point tensors with two or more axes longer than one are quantized, unless
their name says embedding or bias. Norms and biases fall out by their shape, since they are vectors
(also as `(1, 1, n)`); the few that are stacked into matrices fall out by name. Float8 tensors are
left alone: they are quantized already, and their scales lie in other tensors.

Patterns are those of `fnmatch`, case-sensitive, on the whole tensor name. With `include`, the
patterns replace the default rule: every floating-point tensor with two or more axes that matches
one of them is quantized, embeddings too. `exclude` wins over everything. Nothing here reads a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ..constants import DTYPES
from ..errors import bad
from ..formats.header import dtype_name

EMBEDDINGS = ("*embed*", "*wte.*", "*wpe.*", "shared.weight", "*.shared.weight",
              "emb.weight", "*[._]emb.weight")  # fmt: skip
"""Names of embeddings, in lower case: BERT, Llama and their kin say `embed`, GPT-2 `wte` and `wpe`,
T5 and BART `shared`, RWKV `emb`, others `tok_emb`."""

BIASES_AND_NORMS = ("*bias*", "*norm.weight", "*norm?.weight", "*.ln_?.weight")
"""Names of biases and norms, in lower case, where layers or heads are stacked into one matrix."""

FLOATS = {dtype_name(dtype): name for name, dtype in DTYPES.items()}
"""What can be quantized: dtype in a file -> dtype of the QTensor."""

KEEP, WEIGHT, EMBEDDING = "keep", "weight", "embedding"


@dataclass(frozen=True)
class Selection:
    """The rule of one run: `choose` says for each tensor what it is and why.

    >>> rule = Selection()
    >>> rule.choose("encoder.layer.0.attention.self.query.weight", "F32", (384, 384))
    ('weight', 'a 2-D float weight')
    >>> rule.choose("embeddings.word_embeddings.weight", "F32", (30522, 384))[0]
    'embedding'
    >>> rule.choose("encoder.layer.0.output.LayerNorm.weight", "F32", (384,))
    ('keep', 'a vector')
    >>> Selection(exclude=("*.query.*",)).choose("layer.0.query.weight", "F32", (384, 384))
    ('keep', "excluded by '*.query.*'")
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def choose(self, name: str, dtype: str, shape: Sequence[int]) -> tuple[str, str]:
        """(KEEP, WEIGHT or EMBEDDING, the reason in words)."""
        refused = refusal(dtype, shape)
        if refused:
            return KEEP, refused
        excluded = first_match(name, self.exclude)
        if excluded is not None:
            return KEEP, f"excluded by {excluded!r}"
        kind = EMBEDDING if first_match(name.lower(), EMBEDDINGS) is not None else WEIGHT
        if self.include:
            included = first_match(name, self.include)
            if included is None:
                return KEEP, "not included"
            return kind, f"included by {included!r}"
        return self._by_default(kind, name, shape)

    @staticmethod
    def _by_default(kind: str, name: str, shape: Sequence[int]) -> tuple[str, str]:
        if sum(n > 1 for n in shape) < 2:
            return KEEP, "a vector"
        if kind == EMBEDDING:
            return EMBEDDING, "an embedding"
        if first_match(name.lower(), BIASES_AND_NORMS) is not None:
            return KEEP, "a bias or a norm"
        return WEIGHT, f"a {len(shape)}-D float weight"

    def check(self, tensors: Iterable[tuple[str, str, Sequence[int]]]) -> None:
        """Raise ArgValueError for a pattern that matches no tensor, or nothing quantizable."""
        tensors = list(tensors)
        names = [name for name, _, _ in tensors]
        able = [name for name, dtype, shape in tensors if not refusal(dtype, shape)]
        for arg, patterns, among, what in (
            ("include", self.include, able, "tensor that can be quantized"),
            ("exclude", self.exclude, names, "tensor"),
        ):
            for pattern in patterns:
                if not any(fnmatchcase(name, pattern) for name in among):
                    found = f"pattern {pattern!r} matches no {what}"
                    raise bad(arg, found, pattern, "one that does")


def refusal(dtype: str, shape: Sequence[int]) -> str:
    """Why a tensor can never be quantized, or an empty string."""
    if dtype not in FLOATS:
        return f"{dtype} values" + ", quantized already" * (dtype[:2] in {"F8", "F6", "F4"})
    if len(shape) < 2:
        return "a vector" if shape else "a single value"
    return "" if all(shape) else "empty"


def first_match(name: str, patterns: Iterable[str]) -> str | None:
    """The first of `patterns` that matches `name`."""
    return next((pattern for pattern in patterns if fnmatchcase(name, pattern)), None)


def source_dtype(dtype: str) -> str:
    """The name that a QTensor has for a dtype of a file: "BF16" -> "bfloat16"."""
    return FLOATS[dtype]
