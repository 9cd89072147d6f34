"""Small stand-ins of the families of models: real architectures, a few thousand random weights, real files.

Each function writes a pipeline folder as its makers publish theirs, and gives back the folder.
"""

import json
import string

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

LETTERS = string.ascii_lowercase + string.digits
WIDTH = 32


def clip_tokenizer():
    """One token a letter."""
    pieces = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], model_max_length=77)


def clip(*, projected=False):
    torch.manual_seed(0)
    config = CLIPTextConfig(
        bos_token_id=len(LETTERS) * 2, eos_token_id=len(LETTERS) * 2 + 1, pad_token_id=1, vocab_size=100,
        hidden_size=WIDTH, intermediate_size=37, projection_dim=WIDTH, num_attention_heads=4, num_hidden_layers=2,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def t5():
    torch.manual_seed(0)
    config = T5Config(vocab_size=100, d_model=WIDTH, d_kv=8, d_ff=37, num_layers=2, num_heads=4)
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -10.0), ("▁", -2.0), *((letter, -3.0) for letter in LETTERS)]
    return T5EncoderModel(config).eval(), T5Tokenizer(vocab=pieces, extra_ids=0)


def vae(latents=4, **options):
    torch.manual_seed(0)
    return AutoencoderKL(
        sample_size=64, block_out_channels=(8, 16), norm_num_groups=4, latent_channels=latents,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **options,
    ).eval()  # fmt: skip


def unet(**options):
    torch.manual_seed(0)
    return UNet2DConditionModel(
        block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1, sample_size=32,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4), **{"cross_attention_dim": WIDTH, **options},
    ).eval()  # fmt: skip


def safety_checker():
    """One that flags nothing; `flag_everything` turns it."""
    torch.manual_seed(0)
    vision = {"hidden_size": WIDTH, "intermediate_size": 37, "num_attention_heads": 4, "num_hidden_layers": 1}
    config = CLIPConfig(vision_config={**vision, "image_size": 32, "patch_size": 8}, projection_dim=16)
    checker = StableDiffusionSafetyChecker(config).eval()
    checker.concept_embeds_weights.data.fill_(2.0)
    checker.special_care_embeds_weights.data.fill_(2.0)
    return checker


def stable_diffusion(folder, *, checker=None, scheduler=None, **options):
    StableDiffusionPipeline(
        unet=unet(), vae=vae(), text_encoder=clip(), tokenizer=clip_tokenizer(),
        scheduler=scheduler or DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1),
        safety_checker=checker, requires_safety_checker=checker is not None,
        feature_extractor=CLIPImageProcessor(size=32, crop_size=32) if checker else None,
    ).save_pretrained(folder, **options)  # fmt: skip
    return folder


def turbo(folder):
    """SD-Turbo is Stable Diffusion with another scheduler, used without guidance."""
    return stable_diffusion(folder, scheduler=EulerDiscreteScheduler(timestep_spacing="trailing", steps_offset=1))


def sdxl(folder, **options):
    # Text of two encoders beside each other; size and place as six more numbers of eight each.
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "transformer_layers_per_block": (1, 2)}
    StableDiffusionXLPipeline(
        unet=unet(**added, projection_class_embeddings_input_dim=6 * 8 + WIDTH, cross_attention_dim=2 * WIDTH,
                  use_linear_projection=True),
        vae=vae(force_upcast=True), text_encoder=clip(), text_encoder_2=clip(projected=True),
        tokenizer=clip_tokenizer(), tokenizer_2=clip_tokenizer(),
        scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear", steps_offset=1),
    ).save_pretrained(folder, **options)  # fmt: skip
    return folder


def sd3(folder, **options):
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=32, patch_size=1, in_channels=16, num_layers=1, attention_head_dim=8, num_attention_heads=4,
        caption_projection_dim=WIDTH, joint_attention_dim=WIDTH, pooled_projection_dim=2 * WIDTH, out_channels=16,
    ).eval()  # fmt: skip
    third, tokenizer = t5()
    StableDiffusion3Pipeline(
        transformer=transformer, vae=vae(16, shift_factor=0.06, scaling_factor=1.5), text_encoder=clip(projected=True),
        text_encoder_2=clip(projected=True), text_encoder_3=third, tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(), tokenizer_3=tokenizer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    ).save_pretrained(folder, **options)  # fmt: skip
    return folder


def flux(folder, **options):
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=WIDTH, pooled_projection_dim=WIDTH, axes_dims_rope=(4, 4, 8), guidance_embeds=False,
    ).eval()  # fmt: skip
    second, tokenizer = t5()
    FluxPipeline(
        transformer=transformer, vae=vae(shift_factor=0.06, scaling_factor=1.5), text_encoder=clip(),
        text_encoder_2=second, tokenizer=clip_tokenizer(), tokenizer_2=tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
    ).save_pretrained(folder, **options)  # fmt: skip
    return folder


def flag_everything(folder):
    """Make the folder's safety checker flag every picture."""
    from safetensors.torch import load_file, save_file

    path = folder / "safety_checker" / "model.safetensors"
    weights = load_file(path)
    weights["concept_embeds_weights"].fill_(-2.0)
    save_file(weights, path, metadata={"format": "pt"})
    return folder


def index(folder):
    return json.loads((folder / "model_index.json").read_text())
