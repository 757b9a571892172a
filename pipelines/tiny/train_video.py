"""Trains the denoiser and text encoder of ``shapes-t2v`` on latents of a finished autoencoder.

    python -m accel.pipelines.tiny.train_video --autoencoder runs/t2v-autoencoder \
        --folder runs/t2v

Flow matching (Lipman et al. 2023, arXiv:2210.02747) with the timestep shift of the sampler that
ships; two latent frames first, then all five. Resumable by running it again; ``--export DIR``
writes the pipeline with the averaged weights in half precision.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import torch
import typer
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from safetensors.torch import load_model
from torch import Tensor, nn
from transformers import UMT5Config, UMT5EncoderModel

from . import save, write_manifest
from .binding import Readers, teach
from .clips import Latents
from .loop import fit
from .muon import Muon, hidden_matrices
from .scenes import CANVAS
from .train_autoencoder_video import FRAMES, latest
from .words import TOKENS, tokenizer

SHIFT = 3.0
TAPPED = 5
"""Block after which the readers of `binding` look on."""
WORDS_SHARE, PLACES_SHARE = 0.1, 0.05
"""Weights of their errors beside that of the velocity."""
TRANSFORMER = {
    "patch_size": [1, 1, 1],
    "num_attention_heads": 5,
    "attention_head_dim": 32,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 96,
    "freq_dim": 64,
    "ffn_dim": 480,
    "num_layers": 12,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 64,
}
TEXT = {
    "d_model": 96,
    "d_kv": 24,
    "num_heads": 4,
    "d_ff": 192,
    "num_layers": 2,
    "dropout_rate": 0.0,
    "feed_forward_proj": "gated-gelu",
}


def embed(encoder: UMT5EncoderModel, tokens: Tensor) -> Tensor:
    """Token ids (B, TOKENS) to (B, TOKENS, D), zero after the end, as WanPipeline passes them."""
    mask = tokens.ne(0)
    longest = int(mask.sum(1).max())
    states = encoder(tokens[:, :longest], mask[:, :longest].long()).last_hidden_state
    states = states * mask[:, :longest, None]
    return nn.functional.pad(states, (0, 0, 0, TOKENS - longest))


def flow_loss(
    transformer: WanTransformer3DModel,
    encoder: UMT5EncoderModel,
    readers: Readers,
    seen: list[Tensor],
    batch: tuple[Tensor, Tensor, Tensor, Tensor],
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean squared error of the predicted velocity, noise - latents, at shifted noise levels.

    Places unlike the ground (a quarter of all) weigh as much more than the rest as the batch says;
    the unweighted error is logged as "plain". The errors of `readers` are added, the second on the
    last hidden states in `seen`.
    """
    latents, tokens, emphasis, labels = batch
    level = torch.sigmoid(1.2 * torch.randn(len(latents), device=latents.device))
    sigma = (SHIFT * level / (1 + (SHIFT - 1) * level)).view(-1, 1, 1, 1, 1)
    noise, words = torch.randn_like(latents), embed(encoder, tokens)
    velocity = transformer(
        hidden_states=(1 - sigma) * latents + sigma * noise,
        timestep=1000 * sigma.flatten(),
        encoder_hidden_states=words,
        return_dict=False,
    )[0]
    ground = latents.flatten(2).median(2).values[:, :, None, None, None]
    unlike = (latents - ground).square().mean(1).sqrt() > 0.75
    weight = 1 + (emphasis.view(-1, 1, 1, 1) - 1) * unlike
    error = (velocity.float() - (noise - latents)).square().mean(1)
    of_words = readers.of_words(words, tokens)
    of_places = readers.of_places(seen.pop(), labels)
    total = (weight * error).sum() / weight.sum()
    total = total + WORDS_SHARE * of_words + PLACES_SHARE * of_places
    return total, {"plain": error.mean(), "words": of_words, "places": of_places}


def untrained() -> tuple[WanTransformer3DModel, UMT5EncoderModel]:
    """The two trained parts with random weights."""
    torch.manual_seed(0)
    text = UMT5Config(vocab_size=len(tokenizer()), **TEXT)
    return WanTransformer3DModel(**TRANSFORMER), UMT5EncoderModel(text)


def assemble(
    vae: AutoencoderKLWan, transformer: WanTransformer3DModel, encoder: UMT5EncoderModel
) -> WanPipeline:
    """The pipeline as it ships: flow UniPC with shift 3."""
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=SHIFT
    )
    return WanPipeline(
        tokenizer=tokenizer(),
        text_encoder=encoder,
        vae=vae,
        scheduler=scheduler,
        transformer=transformer,
    )


def averaged(autoencoder: Path, folder: Path) -> WanPipeline:
    """The pipeline with the averaged weights of the run in `folder`, in single precision."""
    transformer, encoder = untrained()
    load_model(transformer, str(folder / "ema-transformer.safetensors"))
    load_model(encoder, str(folder / "ema-text.safetensors"))
    return assemble(latest(autoencoder), transformer, encoder)


def export(pipe: WanPipeline, folder: Path) -> None:
    """Writes `pipe` in half precision, readable by transformers 4 and 5, with its manifest."""
    save(pipe, folder)
    for name in ("model_index.json", "tokenizer/tokenizer_config.json", "vae/config.json"):
        path = folder / name
        text = path.read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast")
        content = {key: v for key, v in json.loads(text).items() if key != "_name_or_path"}
        path.write_text(json.dumps(content, indent=2) + "\n")
    write_manifest(folder)


def main(
    autoencoder: Path = typer.Option(..., help="Run of train_autoencoder_video."),
    folder: Path = typer.Option(..., help="Where latents, state and log go."),
    scenes: int = typer.Option(4_096, help="Training scenes to encode, in shards of 512."),
    pairs: int = typer.Option(0, help="More scenes, of two objects each; rarer and harder."),
    size: int = typer.Option(CANVAS, help="Side of a frame in pixels, a multiple of 8."),
    length: int = typer.Option(FRAMES, help="Frames of a clip, one more than a multiple of 4."),
    words: int = typer.Option(800, help="Steps of the text encoder alone, to begin with; or 0."),
    short: int = typer.Option(9_440, help="Samples of two latent frames to begin with; or 0."),
    middle: int = typer.Option(22_500, help="Samples up to the end of the emphasis on objects."),
    samples: int = typer.Option(27_000, help="Samples in all; the last 40 % anneal."),
    emphasis: float = typer.Option(4.0, help="Weight of places that hold an object."),
    batch_size: int = 16,
    lr: float = 1e-3,
    muon: float = typer.Option(4.0, help="Rate of the hidden matrices, in units of lr."),
    bf16: bool = True,
    compiled: bool = typer.Option(False, help="Compile the transformer's blocks."),
    start: Path | None = typer.Option(None, help="Pipeline folder to begin with."),
    into: Path | None = typer.Option(
        None, "--export", help="Write the pipeline here and train no more."
    ),
) -> None:
    """Train, or go on training; then (or at once, with --export) the averaged weights are ready."""
    if into is not None:
        export(averaged(autoencoder, folder), into)
        return
    if size % 8 or length % 4 != 1 or min(size, length) < 5:
        raise typer.BadParameter(
            f"--size must be a multiple of 8 and --length one more than a multiple of 4, got "
            f"{size} and {length}"
        )
    data = Latents(folder / "latents", autoencoder, scenes, pairs, size, length)
    whole = (length - 1) // 4 + 1
    transformer, encoder = untrained()
    like = None
    if start is not None:
        load_model(transformer, str(start / "transformer" / "diffusion_pytorch_model.safetensors"))
        like = untrained()[1] if words else encoder
        load_model(like, str(start / "text_encoder" / "model.safetensors"))
    if compiled:
        transformer.compile_repeated_blocks()
    seen: list[Tensor] = []
    transformer.blocks[TAPPED].register_forward_hook(lambda block, given, out: seen.append(out))
    readers = Readers(encoder.config.d_model, transformer.proj_out.in_features, tokenizer())
    if words and not (folder / "log.jsonl").exists():
        error = teach(encoder, embed, readers, data.tokens, steps=words, like=like)
        typer.echo(f"the text encoder's words tell their phrases with an error of {error:.3f}")
    with Muon(hidden_matrices(transformer.blocks), ratio=muon):
        for frames, budget in ((2, short), (whole, samples)):
            if not budget:
                continue
            emphasised = (emphasis, short, middle)
            fit(
                {"transformer": transformer, "text": encoder, "readers": readers},
                partial(flow_loss, transformer, encoder, readers, seen),
                partial(data.batches, batch_size=batch_size, frames=frames, emphasised=emphasised),
                folder=folder,
                samples=budget,
                batch_size=batch_size,
                lr=lr,
                anneal=frames == whole,
                bf16=bf16,
            )
    (folder / "config.json").write_text(json.dumps({"transformer": TRANSFORMER, "text": TEXT}))


if __name__ == "__main__":
    typer.run(main)
