"""Gene names as tokens: as text through any tokenizer, or one token a gene.

Either way an example is put together of words and of genes in rank order, and its ids are those that the tokenizer
gives the written-out text; a test holds the two against each other.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

from jaxllm.cells.expression import NOT_A_GENE, PostProcess, Processed, post_process
from jaxllm.config import ConfigError, check
from jaxllm.data import check_vocabulary
from jaxllm.data.tokenizer import SPECIAL_TOKENS
from jaxllm.models import ModelConfig

# Signs at a word's end stand alone; within a word they belong to it (RP11-34P13.7, CD4+/CD25).
ENDINGS = r"[.,:;?!]+$"
PROBES = 24  # genes whose joint text is encoded to see that spaces separate tokens
# A repeated gene keeps its first place, and what is no gene leaves none.
GENERATED = PostProcess(unknown="drop", duplicates="first")


class GeneTokens:
    """How the genes of a vocabulary are written by a tokenizer.

    Attributes:
      tokenizer: of words and genes.
      genes: gene names by index.
      single: whether every gene is one token.
    """

    def __init__(self, tokenizer: Tokenizer, genes: Sequence[str]) -> None:
        """Encode every gene once.

        Raises:
          ConfigError: a gene is unknown to the tokenizer, or it joins neighbouring words into one token.
        """
        self.tokenizer, self.genes = tokenizer, tuple(genes)
        self._first = [_ids(tokenizer, gene) for gene in self.genes]  # where nothing stands before
        self._later = self._after_a_space()
        for gene, ids in zip(self.genes, self._later, strict=True):
            if not ids or tokenizer.token_to_id(SPECIAL_TOKENS[2]) in ids:
                raise ConfigError(f"tokenizer: gene {gene!r} has no token; build the tokenizer for this vocabulary, or "
                                  "take one that writes any text")
        self.single = all(len(ids) == 1 for ids in self._later) and self._first == self._later
        self._lengths = np.array([len(ids) for ids in self._later], np.int64)
        self._table = np.array([ids[0] for ids in self._later], np.int32) if self.single else None
        self._gene_of = {} if self._table is None else {int(t): i for i, t in enumerate(self._table)}
        self._index = {gene: i for i, gene in enumerate(self.genes)}

    def _after_a_space(self) -> list[list[int]]:
        """Ids of every gene behind another one; checked on a few that the joint text says the same."""
        lead = self.genes[0]
        start = len(self._first[0])
        encoded = self.tokenizer.encode_batch([f"{lead} {gene}" for gene in self.genes], add_special_tokens=False)
        later = []
        for gene, found in zip(self.genes, encoded, strict=True):
            if found.ids[:start] != self._first[0]:
                raise ConfigError(f"tokenizer: writes {lead!r} before {gene!r} with other tokens than alone; it does "
                                  "not keep words apart, so sentences cannot be put together of genes")
            later.append(found.ids[start:])
        probe = np.random.default_rng(0).choice(len(self.genes), min(PROBES, len(self.genes)), replace=False)
        joint = _ids(self.tokenizer, " ".join(self.genes[i] for i in probe))
        pieces = self._first[probe[0]] + [i for p in probe[1:] for i in later[p]]
        if joint != pieces:
            raise ConfigError("tokenizer: does not keep words apart, so sentences cannot be put together of genes")
        return later

    @property
    def gene_ids(self) -> tuple[int, ...]:
        """Token id of every gene; none where a gene is several tokens."""
        return tuple(self._gene_of)

    def words(self, text: str) -> list[int]:
        """Ids of literal text."""
        return _ids(self.tokenizer, text)

    def lengths(self, ranked: np.ndarray) -> np.ndarray:
        """Tokens of each gene, int64 `[n]`, of gene indices `[n]`."""
        return self._lengths[ranked]

    def longest(self, genes: int) -> int:
        """Most tokens that a sentence of so many genes and its end can have."""
        return int(self._lengths.max()) * genes + 1

    def sentence(self, ranked: np.ndarray, spaced: bool = True) -> list[int]:
        """Ids of genes `[n]` in order; `spaced` where text stands before them."""
        if self._table is not None:
            return self._table[ranked].tolist()
        first = ranked[:1] if not spaced else ranked[:0]
        out = [i for g in first for i in self._first[g]]
        return out + [i for g in ranked[len(first):] for i in self._later[g]]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids, with a space before every gene that is a token.

        The tokenizer's own decoding loses the space that an added token took in.
        """
        if not self._gene_of:
            return self.tokenizer.decode(list(ids))
        text = ""
        for gene, run in itertools.groupby(ids, self._gene_of.get):
            if gene is None:
                more = self.tokenizer.decode(list(run))
                text += more if not text or more[:1].isspace() or more[:1] in ".,:;" else f" {more}"
            else:
                text += "".join(f" {self.genes[gene]}" for _ in run)
        return text.removeprefix(" ")

    def ranked(self, ids: Iterable[int], settings: PostProcess = GENERATED) -> tuple[np.ndarray, Processed]:
        """Genes that generated ids name, int32 `[n]` in their order, each once; and what was made of the text."""
        found = post_process(self.decode(ids), self._index, settings)
        return np.array([self._index[gene] for gene in found.genes if gene != NOT_A_GENE], np.int32), found


def build_gene_tokenizer(genes: Sequence[str], texts: Iterable[str]) -> Tokenizer:
    """A word-level tokenizer: special tokens, one token a gene in the order given, then the words of `texts`.

    Words are set apart by white space, with signs at their end apart; ids of words are in order of first use.
    """
    pre = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(),
                                   pre_tokenizers.Split(Regex(ENDINGS), behavior="isolated")])
    vocabulary = {token: i for i, token in enumerate((*SPECIAL_TOKENS, *dict.fromkeys(genes)))}
    for text in texts:
        for word, _ in pre.pre_tokenize_str(text):
            vocabulary.setdefault(word, len(vocabulary))
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL_TOKENS[2]))
    tokenizer.pre_tokenizer = pre  # type: ignore[assignment]
    # Special tokens must be found in text before it is split at signs.
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def add_gene_tokens(tokenizer: Tokenizer, genes: Sequence[str]) -> tuple[Tokenizer, dict[int, list[int]]]:
    """A copy of a tokenizer with one token a gene, and the ids of the pieces that each new token stands for.

    The token takes the space before it, so that sentences need no token for spaces. A gene's name is its token
    wherever it stands as a word of its own, in prompts too.
    """
    grown = Tokenizer.from_str(tokenizer.to_str())
    pieces = {}
    # A gene that is one token wherever it stands needs no other.
    fresh = [g for g in dict.fromkeys(genes) if _ids(tokenizer, f"{g} {g}") != [tokenizer.token_to_id(g)] * 2]
    for gene, encoded in zip(fresh, tokenizer.encode_batch([f" {g}" for g in fresh], add_special_tokens=False),
                             strict=True):
        grown.add_tokens([AddedToken(gene, single_word=True, lstrip=True, normalized=False)])
        found = grown.token_to_id(gene)
        assert found is not None
        pieces[found] = encoded.ids
    return grown, pieces


def grow_embeddings(params: Any, model: ModelConfig, tokenizer: Tokenizer,
                    pieces: dict[int, list[int]]) -> tuple[Any, ModelConfig]:
    """Parameters and description with rows for new tokens, each the mean of its pieces' rows.

    Args:
      params: of `models.init` or `load_pretrained`; taken to the host.
      model: their description.
      tokenizer: the grown one; its largest id decides the vocabulary, which never shrinks.
      pieces: ids whose rows are averaged, by new id.

    Raises:
      ConfigError: a piece lies outside the old vocabulary.
    """
    old = model.vocab_size
    size = max(old, max(tokenizer.get_vocab().values()) + 1)
    grown = dataclasses.replace(model, vocab_size=size)
    check_vocabulary(tokenizer, size)
    for new, ids in pieces.items():
        check(bool(ids) and max(ids) < old, "pieces", {new: ids}, f"must lie in the old vocabulary 0..{old - 1}")

    def rows(table: Any) -> np.ndarray:  # [V, D] -> [V', D]
        table = np.asarray(table)
        out = np.concatenate([table, np.broadcast_to(table.mean(0), (size - old, table.shape[1]))]).astype(table.dtype)
        for new, ids in pieces.items():
            out[new] = table[ids].astype(np.float32).mean(0)
        return out

    made = {**params, "embed": {"embedding": rows(params["embed"]["embedding"])}}
    if not model.tied_head:
        made["head"] = {"kernel": rows(np.asarray(params["head"]["kernel"]).T).T}
    return made, grown


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids
