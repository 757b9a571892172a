"""Stable Diffusion 1.5's shape, tiny: four levels, two layers a block, fused guidance."""

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)

from . import text
from .schedulers import SCHEDULERS

CALL = {"height": 32, "width": 32}
IMAGE = torch.linspace(0, 20, 3 * 32 * 32).reshape(1, 3, 32, 32).sin().abs()  # RGB in [0, 1]
IMG2IMG = {"image": IMAGE, "strength": 0.7}
CONTROLNET = CALL | {"image": IMAGE}
CONTROLNET_IMG2IMG = IMG2IMG | {"control_image": 1 - IMAGE}
SCHEDULER = "ddim"
CLASSES = {
    "text2img": StableDiffusionPipeline,
    "img2img": StableDiffusionImg2ImgPipeline,
    "controlnet": StableDiffusionControlNetPipeline,
    "controlnet_img2img": StableDiffusionControlNetImg2ImgPipeline,
}


def unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(8, 16, 16, 16),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=text.WIDTH,
        attention_head_dim=2,
        norm_num_groups=4,
    )


def vae() -> AutoencoderKL:
    """Halves each side: 32×32 pixels are 4×16×16 latents."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        force_upcast=False,
    )


def controlnet(denoiser: UNet2DConditionModel) -> ControlNetModel:
    """Its last layers, zero as published before training, are drawn at random to have an effect."""
    model = ControlNetModel.from_unet(denoiser, conditioning_embedding_out_channels=(8, 8))
    for layer in [*model.controlnet_down_blocks, model.controlnet_mid_block]:
        torch.nn.init.normal_(layer.weight, std=0.1)
    return model


def build(scheduler: str = SCHEDULER, task: str = "text2img") -> StableDiffusionPipeline:
    """`task` is a key of `CLASSES`."""
    denoiser = unet()
    extra = {"controlnet": controlnet(denoiser)} if "controlnet" in task else {}
    return CLASSES[task](
        vae=vae(),
        text_encoder=text.clip(),
        tokenizer=text.tokenizer(77, clip=True),
        unet=denoiser,
        scheduler=SCHEDULERS[scheduler](),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **extra,
    )
