"""The autoencoder: 128 x 128 pictures to latents of 4 x 16 x 16 and back, in a third of a million weights.

The architecture is TAESD's (diffusers' AutoencoderTiny). It starts as a network that shrinks the picture,
carries it through in three of its channels and enlarges it again; from a random start it stays for a long
time on a plateau of grey pictures.
"""

# mypy: disallow-untyped-calls=False
# diffusers and transformers ship no types that mypy can follow, hence Any for their networks.

import math
from typing import Any

import torch
from diffusers import AutoencoderTiny
from diffusers.models.unets.unet_2d_blocks import AutoencoderTinyBlock
from torch import Tensor, nn
from torch.nn import functional

from app.models.tiny_scenes.checkpoint import Run
from app.models.tiny_scenes.pictures import as_network_input

LATENT_CHANNELS = 4  # what the inpainting pipeline of diffusers asks for
LATENT_SIZE = 16
CROP = 64
BATCH = 16
SAMPLES = 17_600
CONTRAST = 4.0  # of the first latents: pictures in 0..1 have a deviation near 1/4, latents shall have 1
DECODER_NOISE = 0.08  # so that the decoder bears what the diffusion model gets wrong


def build_autoencoder() -> Any:
    """Seeded by the caller's ``torch.manual_seed``."""
    network: Any = AutoencoderTiny(
        latent_channels=LATENT_CHANNELS,
        encoder_block_out_channels=(24, 24, 24, 24),
        decoder_block_out_channels=(32, 32, 32, 32),
        num_encoder_blocks=(0, 1, 1, 2),
        num_decoder_blocks=(3, 3, 2, 0),
    )
    _pass_through(network)
    return network.to(memory_format=torch.channels_last)


def autoencoder_run(network: Any, pictures: Tensor, samples: int = SAMPLES) -> Run:
    """The training of ``network`` on uint8 ``pictures`` (N, 3, 128, 128): one cosine over ``samples`` crops."""

    def loss(generator: torch.Generator, _: int) -> Tensor:
        return _loss(network, crops(pictures, generator), generator)

    def learning_rate(seen: int) -> float:
        return 2e-3 * min(1.0, (seen + BATCH) / 900) * _cosine(seen / samples)

    return Run(network, loss, learning_rate, BATCH, ema_decay=0.995)


@torch.no_grad()
def decibels(network: Any, pictures: Tensor) -> float:
    """Mean peak signal-to-noise ratio of the reconstructions of uint8 (N, 3, H, W)."""
    wanted = as_network_input(pictures)
    error = network.decoder(network.encoder(wanted)).clamp(-1, 1) - wanted
    return float((10 * torch.log10(4 / error.square().mean(dim=(1, 2, 3)))).mean())


def encode(network: Any, pictures: Tensor) -> Tensor:
    """uint8 (N, 3, H, W) to float32 latents (N, 4, H/8, W/8)."""
    latents: Tensor = network.encoder(as_network_input(pictures))
    return latents


def _cosine(progress: float) -> float:
    return 0.5 + 0.5 * math.cos(math.pi * min(1.0, progress))


def crops(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """A batch of squares of ``CROP`` pixels, half of them mirrored."""
    room = pictures.shape[-1] - CROP + 1
    picks = torch.randint(len(pictures), (BATCH,), generator=generator).tolist()
    corners = torch.randint(room, (BATCH, 2), generator=generator).tolist()
    crops = [pictures[p, :, y : y + CROP, x : x + CROP] for p, (y, x) in zip(picks, corners, strict=True)]
    crops = [crop.flip(-1) if place % 2 else crop for place, crop in enumerate(crops)]
    return as_network_input(torch.stack(crops))


def reconstruction_loss(network: Any, pictures: Tensor, latents: Tensor, generator: torch.Generator) -> Tensor:
    """L1 + squares + L1 of the gradients, of what the decoder makes of ``latents`` with a little noise."""
    noise = torch.randn(latents.shape, generator=generator)
    error = network.decoder(latents + DECODER_NOISE * noise) - pictures
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    loss: Tensor = error.abs().mean() + error.square().mean() + 0.5 * edges
    return loss


def _loss(network: Any, pictures: Tensor, generator: torch.Generator) -> Tensor:
    """The reconstruction's, and what keeps each latent channel near mean 0, deviation 1."""
    latents = network.encoder(pictures)
    return reconstruction_loss(network, pictures, latents, generator) + 0.1 * _spread(latents)


def _spread(latents: Tensor) -> Tensor:
    mean, deviation = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    # The decoder's tanh flattens what is beyond 3.
    excess = functional.relu(latents.abs() - 2.5).mean()
    return (mean.square() + (deviation - 1).square()).mean() + 0.05 * excess


@torch.no_grad()
def _pass_through(network: Any) -> None:
    """Carry red, green and blue through channels 0 to 2: averaged on the way down, repeated on the way up."""
    for block in network.modules():
        if isinstance(block, AutoencoderTinyBlock):
            for weight in _convolutions(block.conv)[-1].parameters():
                weight.zero_()
    encoder, decoder = _convolutions(network.encoder.layers), _convolutions(network.decoder.layers)
    for convolution in (*encoder, *decoder):
        _carry(convolution, 1.0, 0.0)
    _carry(encoder[-1], CONTRAST, -CONTRAST / 2)
    _carry(decoder[0], 1 / CONTRAST, 0.5)


def _convolutions(layers: nn.Sequential) -> list[nn.Conv2d]:
    """Those between the blocks."""
    return [layer for layer in layers if isinstance(layer, nn.Conv2d)]


def _carry(convolution: nn.Conv2d, gain: float, offset: float) -> None:
    """Make channels 0 to 2 copies of the input's, times ``gain``, plus ``offset``."""
    convolution.weight[:3].zero_()
    shrinks = convolution.stride[0] == 2
    # A stride of 2 averages over 2 x 2; the kernel's rows 1 and 2 lie on the pixels of one such square.
    for channel in range(3):
        if shrinks:
            convolution.weight[channel, channel, 1:, 1:] = gain / 4
        else:
            convolution.weight[channel, channel, 1, 1] = gain
    if convolution.bias is not None:
        convolution.bias[:3] = offset
