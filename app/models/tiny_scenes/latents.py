"""Pictures as the diffusion model sees them: latents and token ids, made once and kept on disk.

They come in shards. A shard is drawn and encoded when it is first wanted, so that training starts at
once; the place in the data is a function of the number of samples seen.
"""

# mypy: disallow-untyped-calls=False
# diffusers and transformers ship no types that mypy can follow, hence Any for their networks.

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from app.models.tiny_scenes.autoencoder import encode
from app.models.tiny_scenes.checkpoint import save_atomically
from app.models.tiny_scenes.pictures import scenes
from app.models.tiny_scenes.text_encoder import tokenise

SHARD = 4096  # pictures
SHARDS = 12
VISIT = 3 * SHARD  # samples taken from one shard before the next one's turn
CHUNK = 64  # pictures encoded at a time


class Shards:
    """Batches of latents and text states, from what ``autoencoder`` and ``text_encoder`` make of the drawings."""

    def __init__(self, folder: Path, autoencoder: Any, tokenizer: CLIPTokenizer, text_encoder: Any) -> None:
        self._folder = folder
        self._autoencoder = autoencoder
        self._tokenizer = tokenizer
        self._text_encoder = text_encoder.eval()
        self._silence = tokenise(tokenizer, [""])
        self._held: tuple[int, Tensor, Tensor] | None = None

    @torch.no_grad()
    def batch(self, seen: int, count: int, generator: torch.Generator, hidden: float) -> tuple[Tensor, Tensor]:
        """Latents (count, 4, 16, 16) and text states (count, tokens, width), a ``hidden`` share of them of ""."""
        latents, tokens = self._shard(seen // VISIT % SHARDS)
        picks = torch.randint(len(latents), (count,), generator=generator)
        silent = torch.rand(count, generator=generator) < hidden
        chosen = torch.where(silent[:, None], self._silence, tokens[picks].long())
        return latents[picks].float(), self._text_encoder(chosen).last_hidden_state

    def _shard(self, number: int) -> tuple[Tensor, Tensor]:
        if self._held is None or self._held[0] != number:
            self._held = (number, *self._load(number))
        return self._held[1:]

    def _load(self, number: int) -> tuple[Tensor, Tensor]:
        path = self._folder / f"latents-{number}.pt"
        if not path.exists():
            save_atomically(self._make(number), path)
        latents, tokens = torch.load(path, weights_only=True)
        return latents, tokens

    def _make(self, number: int) -> tuple[Tensor, Tensor]:
        """Latents as float16 (SHARD, 4, 16, 16) and token ids as int16 (SHARD, tokens)."""
        latents, captions = [], []
        for chunk in range(SHARD // CHUNK):
            pictures, said = scenes(CHUNK, seed=1000 + number * SHARD + chunk)
            latents.append(encode(self._autoencoder, pictures).half())
            captions += said
        return torch.cat(latents), tokenise(self._tokenizer, captions).short()
