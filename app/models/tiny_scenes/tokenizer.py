"""The tokenizer: byte-level BPE in CLIP's form, its merges learnt from the grammar's captions.

Sennrich et al. 2016 (arXiv:1508.07909) for BPE; CLIP's form (``</w>`` marks a word's end) is that of
Radford et al. 2021 (arXiv:2103.00020). Every word of the grammar becomes one token; all others fall
apart into bytes, so nothing is unknown.
"""

# ruff: noqa: S311 -- pictures and captions are drawn at random, nothing here is a secret.

import random
from collections import Counter
from itertools import pairwise

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

from app.models.tiny_scenes.captions import captioned_scene

MAX_TOKENS = 32
CAPTIONS = 20_000
WORD_END = "</w>"

Pair = tuple[str, str]


def build_tokenizer(seed: int = 0) -> CLIPTokenizer:
    """Learn the merges from captions drawn with ``seed``; the same for the same seed."""
    rng = random.Random(seed)
    words = Counter(word.strip(".") for _ in range(CAPTIONS) for word in captioned_scene(rng)[1].split())
    merges = _learn_merges(words)
    characters = sorted(ByteLevel.alphabet())
    tokens = characters + [character + WORD_END for character in characters]
    tokens += [left + right for left, right in merges] + ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS)


def _learn_merges(words: Counter[str]) -> list[Pair]:
    """Join the commonest pair of neighbours until every word is one token."""
    spelt = {word: [*word[:-1], word[-1] + WORD_END] for word in sorted(words)}
    merges: list[Pair] = []
    while pairs := _count_pairs(spelt, words):
        best = max(sorted(pairs), key=lambda pair: pairs[pair])
        merges.append(best)
        spelt = {word: _merged(parts, best) for word, parts in spelt.items()}
    return merges


def _count_pairs(spelt: dict[str, list[str]], words: Counter[str]) -> Counter[Pair]:
    pairs: Counter[Pair] = Counter()
    for word, parts in spelt.items():
        for pair in pairwise(parts):
            pairs[pair] += words[word]
    return pairs


def _merged(parts: list[str], pair: Pair) -> list[str]:
    joined: list[str] = []
    for part in parts:
        if joined and (joined[-1], part) == pair:
            joined[-1] += part
        else:
            joined.append(part)
    return joined
