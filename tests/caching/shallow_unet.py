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


def skipped_step(
    unet: torch.nn.Module, args: tuple, kwargs: dict[str, Any], cached: torch.Tensor, branch: int
) -> torch.Tensor:
    """The U-Net's output from the hidden state `cached` that enters the up path at `branch`."""
    sample, text = args[0], kwargs["encoder_hidden_states"]
    emb = embedding(unet, args, kwargs)

    def layer(hidden, resnet, attention):
        hidden = resnet(hidden, emb)
        return hidden if attention is None else attention(hidden, text, return_dict=False)[0]

    hidden = unet.conv_in(sample)
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
    return unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))
