"""A skipped DeepCache step, transcribed as a plain loop over the layers of a U-Net."""

from __future__ import annotations

from typing import Any

import torch

Layer = tuple[torch.nn.Module, torch.nn.Module | None, torch.nn.Module | None]


def up_layers(unet: torch.nn.Module) -> list[Layer]:
    """(resnet, attention or None, upsampler after it or None) of the up path, in order."""
    layers: list[Layer] = []
    for block in unet.up_blocks:
        attentions = getattr(block, "attentions", [None] * len(block.resnets))
        rows = [(r, a, None) for r, a in zip(block.resnets, attentions, strict=True)]
        rows[-1] = (*rows[-1][:2], block.upsamplers[0] if block.upsamplers else None)
        layers += rows
    return layers


def entry(unet: torch.nn.Module, branch: int) -> int:
    """Number of the up layer that reads residual `branch`: the last one reads residual 0."""
    return len(up_layers(unet)) - 1 - branch


def embedding(unet: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> torch.Tensor:
    """What the layers are told of the time (and, in SDXL, of the picture's size)."""
    sample, timestep = args
    emb = unet.time_embedding(unet.get_time_embed(sample=sample, timestep=timestep))
    if unet.config.addition_embed_type is not None:
        text = kwargs["encoder_hidden_states"]
        emb = emb + unet.get_aug_embed(emb, text, kwargs["added_cond_kwargs"])
    return emb


def motions(unet: torch.nn.Module) -> dict[torch.nn.Module, torch.nn.Module]:
    """The motion module that follows a ResNet and its attention, in AnimateDiff."""
    blocks = [b for b in (*unet.down_blocks, *unet.up_blocks) if hasattr(b, "motion_modules")]
    return {r: m for b in blocks for r, m in zip(b.resnets, b.motion_modules, strict=True)}


Folded = tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, Any], dict[str, Any]]


def folded(unet: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> Folded:
    """Frames as a batch, their time embedding, their text; arguments of layers; of motion modules.

    Stable Video Diffusion's samples are (batch, frames, channels, ...), AnimateDiff's (batch,
    channels, frames, ...), with a text for every frame.
    """
    (sample, timestep), text = args, kwargs["encoder_hidden_states"]
    if sample.ndim == 4:
        return sample, embedding(unet, args, kwargs), text, {}, {}
    stable, batch = "added_time_ids" in kwargs, len(sample)
    frames = sample.shape[1 if stable else 2]
    emb = unet.time_embedding(unet.time_proj(timestep.expand(batch)))
    if stable:
        ids = unet.add_time_proj(kwargs["added_time_ids"].flatten()).reshape(batch, -1)
        emb, text = emb + unet.add_embedding(ids), text.repeat_interleave(frames, dim=0)
    emb = emb.repeat_interleave(frames, dim=0)
    if stable:
        told = {"image_only_indicator": torch.zeros(batch, frames)}
        return sample.flatten(0, 1), emb, text, told, {}
    return sample.transpose(1, 2).flatten(0, 1), emb, text, {}, {"num_frames": frames}


def skipped_step(
    unet: torch.nn.Module, args: tuple, kwargs: dict[str, Any], cached: torch.Tensor, branch: int
) -> torch.Tensor:
    """The U-Net's output from the hidden state `cached` that enters the up path at `branch`."""
    sample, moving = args[0], motions(unet)
    images, emb, text, told, motion = folded(unet, args, kwargs)

    def layer(hidden, resnet, attention):
        hidden = resnet(hidden, emb, **told)
        if attention is not None:
            hidden = attention(hidden, encoder_hidden_states=text, return_dict=False, **told)[0]
        return moving[resnet](hidden, **motion) if resnet in moving else hidden

    hidden = unet.conv_in(images)
    residuals = [hidden]
    for block in unet.down_blocks:
        attentions = getattr(block, "attentions", [None] * len(block.resnets))
        for resnet, attention in zip(block.resnets, attentions, strict=True):
            if len(residuals) > branch:
                break
            hidden = layer(hidden, resnet, attention)
            residuals.append(hidden)
        if block.downsamplers and len(residuals) <= branch:
            hidden = block.downsamplers[0](hidden)
            residuals.append(hidden)
    control = kwargs.get("down_block_additional_residuals") or [0] * len(residuals)
    residuals = [r + c for r, c in zip(residuals, control, strict=False)]

    hidden = cached
    for resnet, attention, upsampler in up_layers(unet)[entry(unet, branch) :]:
        hidden = layer(torch.cat([hidden, residuals.pop()], 1), resnet, attention)
        hidden = hidden if upsampler is None else upsampler(hidden)
    output = unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))
    if "added_time_ids" in kwargs:
        return output.unflatten(0, sample.shape[:2])
    return output if sample.ndim == 4 else output.unflatten(0, (len(sample), -1)).transpose(1, 2)
