"""The text encoder: a small CLIPTextModel that has learnt to say what a caption names.

It is trained alone, before the diffusion model and without pictures: from the state at the end of the
text, and at each place of padding after it, four linear probes must name the noun, the colour, the
background and the size, or that the text leaves them open. Two minutes of that spare the diffusion
model, whose steps are a hundred times dearer, from learning to read. The probes are thrown away and
the encoder is frozen.
"""

# ruff: noqa: S311 -- pictures and captions are drawn at random, nothing here is a secret.
# mypy: disallow-untyped-calls=False
# diffusers and transformers ship no types that mypy can follow, hence Any for their networks.

import random
import string

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from app.models.tiny_scenes.captions import captioned_scene
from app.models.tiny_scenes.checkpoint import Run
from app.models.tiny_scenes.grammar import COLOURS, NOUNS, SIZES, parse
from app.models.tiny_scenes.tokenizer import MAX_TOKENS

WIDTH = 128
BATCH = 32
SAMPLES = 28_000
FILLERS = ("beautiful", "bright", "highly", "detailed", "cute", "nice", "simple", "please", "draw", "paper",
           "art", "in", "with", "the", "and", "of", "very", "soft", "light", "4k", "minimal", "style")  # fmt: skip

ANSWERS: dict[str, tuple[str | None, ...]] = {
    "noun": (None, *NOUNS), "colour": (None, *COLOURS), "background": (None, *COLOURS), "size": (None, *SIZES),
}  # fmt: skip


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Seeded by the caller's ``torch.manual_seed``."""
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=3 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            hidden_act="gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    # CLIP's own start, a deviation of 0.02, is meant for far longer training.
    nn.init.normal_(encoder.embeddings.token_embedding.weight, std=0.3)
    nn.init.normal_(encoder.embeddings.position_embedding.weight, std=0.1)
    return encoder


class Reader(nn.Module):
    """The encoder and its probes."""

    def __init__(self, encoder: CLIPTextModel) -> None:
        super().__init__()
        self.encoder = encoder
        self.probes = nn.ModuleDict({part: nn.Linear(WIDTH, len(answers)) for part, answers in ANSWERS.items()})

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        """Token ids (N, MAX_TOKENS) to scores of each part's answers, (N, MAX_TOKENS, answers)."""
        states = self.encoder(tokens).last_hidden_state
        return {part: probe(states) for part, probe in self.probes.items()}


def tokenise(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Captions as token ids (N, MAX_TOKENS), cut or padded."""
    padded = tokenizer(captions, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
    tokens: Tensor = padded.input_ids
    return tokens


def reader_run(reader: Reader, tokenizer: CLIPTokenizer, samples: int = SAMPLES) -> Run:
    """The training of ``reader``; one linear descent of the learning rate over ``samples`` captions."""

    def loss(_: torch.Generator, seen: int) -> Tensor:
        rng = random.Random(f"reader {seen}")
        captions = [_any_caption(rng) for _ in range(BATCH)]
        return _loss(reader, tokenise(tokenizer, captions), captions, tokenizer.eos_token_id)

    def learning_rate(seen: int) -> float:
        return 2e-3 * min(1.0, (seen + BATCH) / 1500) * max(0.02, 1 - seen / samples)

    return Run(reader, loss, learning_rate, BATCH, ema_decay=0.99)


@torch.no_grad()
def share_understood(reader: Reader, tokenizer: CLIPTokenizer, count: int, seed: int) -> float:
    """The share of ``count`` fresh captions of which all four parts are read right, at the end of the text."""
    rng = random.Random(f"held out {seed}")
    captions = [_any_caption(rng) for _ in range(count)]
    scores = reader(tokenise(tokenizer, captions))
    right = torch.stack([scores[part][:, -1].argmax(-1) == answers for part, answers in _answers(captions)])
    return right.all(0).float().mean().item()


def _any_caption(rng: random.Random) -> str:
    """A caption as people may write it: now and then with other words in it, or saying nothing at all."""
    chance = rng.random()
    if chance < 0.04:
        return " ".join(_other_word(rng) for _ in range(rng.randint(0, 5)))
    words = captioned_scene(rng)[1].split()
    if chance < 0.3:
        for _ in range(rng.randint(1, 4)):
            place = rng.choice((0, 0, len(words), len(words), rng.randint(0, len(words))))
            words.insert(place, _other_word(rng))
    return " ".join(words)


def _other_word(rng: random.Random) -> str:
    if rng.random() < 0.7:
        return rng.choice(FILLERS)
    return "".join(rng.choice(string.ascii_lowercase) for _ in range(rng.randint(2, 7)))


def _answers(captions: list[str]) -> list[tuple[str, Tensor]]:
    scenes = [parse(caption) for caption in captions]
    return [
        (part, torch.tensor([answers.index(getattr(scene, part)) for scene in scenes]))
        for part, answers in ANSWERS.items()
    ]


def _loss(reader: Reader, tokens: Tensor, captions: list[str], end: int) -> Tensor:
    scores = reader(tokens)
    after = tokens == end  # padding is the same token as the end
    losses = [
        functional.cross_entropy(scores[part][after], answers[:, None].expand_as(tokens)[after])
        for part, answers in _answers(captions)
    ]
    return torch.stack(losses).mean()
