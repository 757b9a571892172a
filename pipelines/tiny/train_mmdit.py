"""Trains `shapes-mmdit` on latents of the autoencoder of `shapes-t2i`.

    python -m accel.pipelines.tiny.train_mmdit denoiser --folder runs/mmdit
    python -m accel.pipelines.tiny.train_mmdit larger --folder runs/mmdit
    python -m accel.pipelines.tiny.train_mmdit export --folder runs/mmdit --to shapes-mmdit

Rectified flow with the noise levels of Stable Diffusion 3 (Esser et al. 2024, arXiv:2403.03206,
section 3.1): logit-normal, then shifted. Pictures of 64×64 pixels (256 tokens) first, then of
128×128 (1,024 tokens) beside them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from diffusers import AutoencoderKL, SD3Transformer2DModel
from safetensors.torch import load_model
from torch import Tensor, nn

from . import MANIFEST, mmdit, save, verify
from .binding import Readers, teach
from .loop import SEGMENT, fit
from .muon import Muon, hidden_matrices
from .picture import SIZE, TOKENS, build_tokenizer
from .picture_loss import shape_places
from .teacher import Teacher
from .train_picture import encoded_pictures

LARGE = 2 * SIZE
"""Side, in pixels, of the pictures of the second stage."""
DROPPED = 0.1
"""Share of captions replaced by the empty one, for guidance."""
WORDS_SHARE = 0.1
"""Weight of what the text does not tell about its phrases (`binding`), beside the velocity's."""
PICTURE_MODEL = Path(__file__).parent / "shapes-t2i"

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__.split("\n")[0])
Folder = Annotated[Path, typer.Option(help="Where checkpoints, logs and latents are kept.")]
Coder = Annotated[Path, typer.Option(help="Pipeline whose autoencoder is used.")]
Pictures = Annotated[int, typer.Option(help="Different pictures among them.")]
Pairs = Annotated[int, typer.Option(help="More pictures, of two objects each.")]
Emphasis = Annotated[float, typer.Option(help="Weight of shapes and their edges.")]
Until = Annotated[float, typer.Option(help="Part of the samples up to which it is in force.")]
Rate = Annotated[float, typer.Option(help="Learning rate.")]
Ratio = Annotated[float, typer.Option(help="Rate of hidden matrices, in units of lr.")]
Decay = Annotated[float, typer.Option(help="Decay of the averaged weights.")]
Start = Annotated[Path | None, typer.Option(help="Pipeline folder whose weights to begin with.")]
Half = Annotated[bool, typer.Option(help="Compute in bfloat16.")]


def load_autoencoder(pipeline: Path) -> AutoencoderKL:
    """The autoencoder of a pipeline folder, in single precision; a shipped one is verified."""
    if (pipeline / MANIFEST).is_file():
        verify(pipeline)
    return AutoencoderKL.from_pretrained(pipeline / "vae", torch_dtype=torch.float32).eval()


def flow_loss(
    transformer: SD3Transformer2DModel,
    encoders: nn.ModuleList,
    readers: Readers,
    batch: tuple[Tensor, Tensor, Tensor],
    *,
    emphasis: float = 1.0,
    teacher: Teacher | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean squared error of the predicted velocity, noise - latents.

    Takes latents (B, 4, h, w), tokens (B, 32) and whether it is early (). If so, the places of
    shapes weigh more by `emphasis`, the less of them shows through the noise, the less; and where
    `teacher` knows the noise level, its velocity is the goal. The error without weights is logged
    as "plain". That of `readers` on the words is added.
    """
    latents, tokens, early = batch
    level = torch.sigmoid(torch.randn(len(latents), device=latents.device))
    sigma = (mmdit.SHIFT * level / (1 + (mmdit.SHIFT - 1) * level))[:, None, None, None]
    noise = torch.randn_like(latents)
    text, pooled = mmdit.embed(encoders, tokens)
    noisy, goal = (1 - sigma) * latents + sigma * noise, noise - latents
    velocity = transformer(noisy, text, pooled, 1000 * sigma.flatten()).sample.float()
    plain = (velocity.detach() - goal).square().mean()
    if teacher is not None and early:
        taught, known = teacher(noisy, sigma, tokens)
        goal = torch.where(known[:, None, None, None], taught, goal)
    weight = 1 + early * (emphasis - 1) * shape_places(latents) * (1 - sigma)
    errors = (velocity - goal).square()
    words = readers.of_words(text[:, :TOKENS], tokens)
    total = (errors * weight / weight.mean()).mean() + WORDS_SHARE * words
    return total, {"plain": plain, "words": words}


class Batches:
    """Random pictures of one or several sizes, one size per batch, by turns."""

    def __init__(self, data: list[dict[str, Tensor]], batch: int, until: float) -> None:
        """Up to the sample number `until` it is early."""
        self.data, self.batch, self.until = data, batch, until
        self.empty = build_tokenizer()([""], padding="max_length", return_tensors="pt").input_ids

    def __call__(self, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Endless (latents (B, 4, h, w), tokens (B, 32), early ()); `fit` tells by the seed how
        many samples were seen."""
        rng = np.random.default_rng(seed)
        seen = seed * SEGMENT * self.batch
        early = torch.tensor(seen < self.until)
        while True:
            for data in self.data:
                rows = torch.from_numpy(rng.integers(len(data["latents"]), size=self.batch))
                dropped = torch.from_numpy(rng.random((self.batch, 1)) < DROPPED)
                tokens = torch.where(dropped, self.empty, data["tokens"][rows].long())
                yield data["latents"][rows].float(), tokens, early


def encoded(folder: Path, model: AutoencoderKL, size: int, count: int, pairs: int):
    """Latents and tokens of `count` pictures and `pairs` more of two objects."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = [encoded_pictures(folder, count, size=size, model=model)]
    if pairs:
        parts.append(encoded_pictures(folder, pairs, pairs=True, size=size, model=model))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def untrained() -> tuple[SD3Transformer2DModel, nn.ModuleList]:
    """The trained parts with random weights."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    return mmdit.build_transformer(), nn.ModuleList(
        mmdit.build_text_encoder(tokenizer) for _ in range(2)
    )


def exported(pipeline: Path) -> tuple[SD3Transformer2DModel, nn.ModuleList]:
    """The trained parts as a pipeline folder has them; a shipped one is verified."""
    if (pipeline / MANIFEST).is_file():
        verify(pipeline)
    transformer, encoders = untrained()
    load_model(transformer, pipeline / "transformer" / "diffusion_pytorch_model.safetensors")
    for encoder, name in zip(encoders, ("text_encoder", "text_encoder_2"), strict=True):
        load_model(encoder, pipeline / name / "model.safetensors")
    return transformer, encoders


def averaged(stage: Path) -> tuple[SD3Transformer2DModel, nn.ModuleList]:
    """The trained parts with the averaged weights of one stage of a run."""
    transformer, encoders = untrained()
    load_model(transformer, stage / "ema-transformer.safetensors")
    load_model(encoders, stage / "ema-text.safetensors")
    return transformer, encoders


def readers() -> Readers:
    """Of both encoders' states; no place of a picture is read."""
    return Readers(2 * mmdit.TEXT_WIDTH, 1, build_tokenizer(), causal=True)


def train(
    parts: tuple[SD3Transformer2DModel, nn.ModuleList],
    batches: Batches,
    muon: float,
    *,
    words: int = 0,
    emphasis: float,
    teacher: Teacher | None = None,
    **options,
) -> None:
    """Runs `fit`, the transformer's hidden matrices by Muon; before, `words` steps of the text
    encoders alone, in which they learn which words belong together. For `emphasis` and `teacher`
    see :func:`flow_loss`."""
    transformer, encoders = parts
    reader = readers()
    if words and not (options["folder"] / "log.jsonl").exists():
        tokens = torch.cat([data["tokens"].long() for data in batches.data])
        error = teach(encoders, words_of, reader, tokens, steps=words)
        typer.echo(f"the text encoders' words tell their phrases with an error of {error:.3f}")
    with Muon(hidden_matrices(transformer.transformer_blocks), ratio=muon):
        fit(
            {"transformer": transformer, "text": encoders, "readers": reader},
            lambda batch: flow_loss(
                transformer, encoders, reader, batch, emphasis=emphasis, teacher=teacher
            ),
            batches,
            batch_size=batches.batch,
            **options,
        )


def words_of(encoders: nn.ModuleList, tokens: Tensor) -> Tensor:
    """The states (B, 32, 128) of the captions' own tokens."""
    return mmdit.embed(encoders, tokens)[0][:, :TOKENS]


@app.command()
def denoiser(
    folder: Folder,
    autoencoder: Coder = PICTURE_MODEL,
    samples: Annotated[int, typer.Option(help="Latents to train on, repeats counted.")] = 120_000,
    pictures: Pictures = 24_576,
    pairs: Pairs = 24_576,
    words: Annotated[int, typer.Option(help="Steps of the text encoders alone.")] = 400,
    batch: Annotated[int, typer.Option(help="Latents in a batch.")] = 16,
    lr: Rate = 1e-3,
    muon: Ratio = 4.0,
    emphasis: Emphasis = 3.0,
    until: Until = 0.55,
    ema: Decay = 0.998,
    teacher: Annotated[
        Path | None, typer.Option(help="Pipeline folder of a U-Net to learn from, up to --until.")
    ] = None,
    start: Start = None,
    bf16: Half = True,
) -> None:
    """First stage: pictures of 64×64 pixels (goes on if stopped)."""
    data = encoded(folder, load_autoencoder(autoencoder), SIZE, pictures, pairs)
    batches = Batches([data], batch, until * samples)
    options: dict[str, Any] = {"samples": samples, "lr": lr, "ema": ema, "bf16": bf16}
    options |= {"words": words, "emphasis": emphasis, "folder": folder / "denoiser"}
    parts = untrained() if start is None else exported(start)
    learned_from = None if teacher is None else Teacher.of(teacher)
    train(parts, batches, muon, teacher=learned_from, **options)


@app.command()
def larger(
    folder: Folder,
    autoencoder: Coder = PICTURE_MODEL,
    samples: Annotated[int, typer.Option(help="Latents to train on, of both sizes.")] = 24_000,
    pictures: Pictures = 4_096,
    pairs: Pairs = 4_096,
    batch: Annotated[int, typer.Option(help="Latents in a batch.")] = 8,
    lr: Rate = 5e-4,
    muon: Ratio = 4.0,
    emphasis: Emphasis = 3.0,
    until: Until = 0.55,
    ema: Decay = 0.998,
    start: Start = None,
    bf16: Half = True,
) -> None:
    """Second stage: batches of 128×128 and of 64×64 pixels by turns, on the first stage's weights
    or those to begin with (goes on if stopped)."""
    coder = load_autoencoder(autoencoder)
    data = [encoded(folder, coder, size, pictures, pairs) for size in (LARGE, SIZE)]
    batches = Batches(data, batch, until * samples)
    options: dict[str, Any] = {"samples": samples, "lr": lr, "ema": ema, "bf16": bf16}
    parts = averaged(folder / "denoiser") if start is None else exported(start)
    train(parts, batches, muon, emphasis=emphasis, folder=folder / "larger", **options)


@app.command()
def export(
    folder: Folder,
    to: Annotated[Path, typer.Option(help="Folder of the pipeline to write.")],
    autoencoder: Coder = PICTURE_MODEL,
    stage: Annotated[str, typer.Option(help="denoiser or larger.")] = "larger",
) -> None:
    """Writes the averaged weights as a half-precision pipeline for `from_pretrained`."""
    if stage not in ("denoiser", "larger"):
        raise typer.BadParameter(f"--stage must be denoiser or larger, got {stage}")
    parts = averaged(folder / stage)
    pipe = mmdit.assemble(load_autoencoder(autoencoder), *parts, build_tokenizer())
    save(pipe, to)


if __name__ == "__main__":
    app()
