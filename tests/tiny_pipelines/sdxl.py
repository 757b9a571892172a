"""Stable Diffusion XL's shape, tiny: three levels, the first plain, fused guidance."""

from diffusers import (
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)

from . import text
from .schedulers import SCHEDULERS
from .sd import controlnet, vae

CALL = {"height": 32, "width": 32}
SCHEDULER = "euler"
CLASSES = {
    "text2img": StableDiffusionXLPipeline,
    "img2img": StableDiffusionXLImg2ImgPipeline,
    "controlnet": StableDiffusionXLControlNetPipeline,
}


def unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(8, 16, 16),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2),
        cross_attention_dim=2 * text.WIDTH,
        attention_head_dim=(1, 2, 2),
        norm_num_groups=4,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + text.WIDTH,
    )


def build(scheduler: str = SCHEDULER, task: str = "text2img") -> StableDiffusionXLPipeline:
    """`task` is a key of `CLASSES`."""
    denoiser = unet()
    extra = {"controlnet": controlnet(denoiser)} if task == "controlnet" else {}
    return CLASSES[task](
        vae=vae(),
        text_encoder=text.clip(),
        text_encoder_2=text.clip(projection=True),
        tokenizer=text.tokenizer(77, clip=True),
        tokenizer_2=text.tokenizer(77, clip=True),
        unet=denoiser,
        scheduler=SCHEDULERS[scheduler](),
        add_watermarker=False,
        **extra,
    )
