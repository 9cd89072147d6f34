"""The diffusion model: a UNet that learns, cell by cell of the latents, what a caption looks like.

Velocity prediction (Salimans and Ho 2022, arXiv:2202.00512) on a noise schedule that ends in pure noise
(Lin et al. 2023, arXiv:2305.08891). The caption reaches the UNet twice: by cross-attention, as in Stable
Diffusion, and, pooled, through the time embedding, which scales and shifts every residual block. The
second way is what makes a small net follow its nouns.
"""

# mypy: disallow-untyped-calls=False
# diffusers and transformers ship no types that mypy can follow, hence Any for their networks.

import math
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, UNet2DConditionModel
from torch import Tensor
from torch.nn import functional

from app.models.tiny_scenes.autoencoder import LATENT_CHANNELS, LATENT_SIZE
from app.models.tiny_scenes.checkpoint import Run
from app.models.tiny_scenes.latents import Shards
from app.models.tiny_scenes.text_encoder import WIDTH

BATCH = 24
PEAK_RATE = 1e-3
WARM_UP = 5_000  # samples
STEADY = 120_000  # samples; then the rate falls with the root of the samples, so a run can always go on
UNCONDITIONED = 0.1  # share of captions hidden, for classifier-free guidance
FOCUSED = 0.6  # share of steps in the range of noise where shapes are made


def build_unet() -> Any:
    """Seeded by the caller's ``torch.manual_seed``."""
    unet: Any = UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(48, 96, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        cross_attention_dim=WIDTH,
        norm_num_groups=16,
        resnet_time_scale_shift="scale_shift",
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
    )
    with torch.no_grad():
        unet.conv_out.weight.mul_(0.1)  # an almost silent start
    return unet.to(memory_format=torch.channels_last)


def build_scheduler() -> Any:
    """The sampler that the model is shipped with, and the noise schedule that it is trained on."""
    return DPMSolverMultistepScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        steps_offset=1,
    )


def unet_run(unet: Any, shards: Shards) -> Run:
    """The training of ``unet``; without an end, for its learning rate knows none."""
    kept = build_scheduler().alphas_cumprod

    def loss(generator: torch.Generator, seen: int) -> Tensor:
        latents, states = shards.batch(seen, BATCH, generator, UNCONDITIONED)
        return _loss(unet, latents, states, kept, generator)

    return Run(unet, loss, learning_rate, BATCH, ema_decay=0.999)


def learning_rate(seen: int) -> float:
    """Up in a line, level, then down with the square root (Karras et al. 2024, arXiv:2312.02696)."""
    return PEAK_RATE * min(1.0, (seen + BATCH) / WARM_UP) * math.sqrt(min(1.0, STEADY / max(1, seen)))


def _loss(unet: Any, latents: Tensor, states: Tensor, kept: Tensor, generator: torch.Generator) -> Tensor:
    """Mean squared error of the velocity; ``kept`` is the share of signal power at each timestep."""
    noise = torch.randn(latents.shape, generator=generator)
    timesteps = _timesteps(len(latents), generator)
    signal, rest = (share[timesteps].sqrt()[:, None, None, None] for share in (kept, 1 - kept))
    noisy = (signal * latents + rest * noise).contiguous(memory_format=torch.channels_last)
    predicted = unet(noisy, timesteps, states).sample
    return functional.mse_loss(predicted, signal * noise - rest * latents)


def _timesteps(count: int, generator: torch.Generator) -> Tensor:
    """0 to 999: most from the middle, where shapes are made, the others from everywhere."""
    anywhere = torch.rand(count, generator=generator)
    middle = 0.25 + 0.6 * torch.rand(count, generator=generator)
    focused = torch.rand(count, generator=generator) < FOCUSED
    return (torch.where(focused, middle, anywhere) * 1000).long()
