"""CogVideoX: fused guidance [uncond, cond], joint text and video tokens, rotary embeddings."""

from diffusers import AutoencoderKLCogVideoX, CogVideoXPipeline, CogVideoXTransformer3DModel

from . import text
from .schedulers import SCHEDULERS

CALL = {"height": 32, "width": 32, "num_frames": 5, "max_sequence_length": 16}
SCHEDULER = "cogvideox_ddim"


def transformer() -> CogVideoXTransformer3DModel:
    return CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=text.WIDTH,
        num_layers=4,
        sample_width=8,
        sample_height=8,
        sample_frames=5,
        max_text_seq_length=16,
        use_rotary_positional_embeddings=True,
    )


def build(scheduler: str = SCHEDULER) -> CogVideoXPipeline:
    vae = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 3,
        up_block_types=("CogVideoXUpBlock3D",) * 3,
        block_out_channels=(8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        sample_height=32,
        sample_width=32,
    )
    return CogVideoXPipeline(
        tokenizer=text.tokenizer(16),
        text_encoder=text.t5(),
        vae=vae,
        transformer=transformer(),
        scheduler=SCHEDULERS[scheduler](),
    )
