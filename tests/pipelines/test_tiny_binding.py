"""Labels of the readers that help training bind attributes to objects."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import one_hot

from accel.pipelines.tiny.binding import (
    KINDS,
    NONE,
    SIZES,
    Readers,
    numbers_of,
    phrases,
    places,
    teach,
)
from accel.pipelines.tiny.clips import drawn
from accel.pipelines.tiny.picture import build_tokenizer
from accel.pipelines.tiny.scenes import Placed, Scene, Shape, caption
from accel.pipelines.tiny.train_video import embed, untrained
from accel.pipelines.tiny.words import TOKENS, tokenizer

RED = Placed(Shape("red", "circle", "left"), x=44.0, y=20.0, radius=8.0, travel=32.0)
BLUE = Placed(Shape("blue", "square", "up"), x=12.0, y=52.0, radius=8.0, travel=16.0)


def ids(*captions: str) -> torch.Tensor:
    given = tokenizer()(
        list(captions), padding="max_length", max_length=TOKENS, return_tensors="pt"
    )
    return given.input_ids


def test_words_are_labelled_with_all_that_their_phrase_says() -> None:
    said = caption(Scene("dark", (RED, BLUE)))
    given = ids(said, "a pink triangle on a teal background", "")
    colour, shape, direction = phrases(given, numbers_of(tokenizer()))
    red, blue = KINDS[0].index("red"), KINDS[0].index("blue")
    assert colour[0].tolist()[:13] == [red] * 5 + [NONE] + [blue] * 5 + [NONE] * 2
    assert shape[0, [1, 4, 7]].tolist() == [0, 0, 1]
    assert direction[0, [1, 2, 8]].tolist() == [0, 0, 2]
    assert shape[1].tolist()[:5] == [2, 2, 2, NONE, NONE]
    assert (direction[1] == NONE).all() and (colour[2] == NONE).all()
    _, shape, direction = phrases(given, numbers_of(tokenizer()), causal=True)
    assert shape[0].tolist()[:9] == [NONE, NONE, 0, 0, 0, NONE, NONE, NONE, 1]
    assert (direction[0, :4] == NONE).all() and direction[0, 4] == 0


def test_places_follow_the_objects() -> None:
    labels = places(Scene("dark", (RED, BLUE)), 5, 64)
    assert labels.shape == (3, 5, 8, 8) and labels.dtype == torch.int8
    for frame, at in ((0, 44.0), (2, 44.0 - 32 * 6.5 / 16), (4, 44.0 - 32 * 14.5 / 16)):
        rows, columns = np.nonzero(labels[0, frame].numpy() == KINDS[0].index("red"))
        assert abs((columns.mean() + 0.5) * 8 - at) < 4 and abs((rows.mean() + 0.5) * 8 - 20) < 4
    assert (labels[1] == 1).sum() == (labels[0] == KINDS[0].index("blue")).sum() > 0
    same = places(Scene("dark", (RED, BLUE)), 1, 64)
    assert torch.equal(same[:, 0], labels[:, 0])


def test_a_reader_that_reads_right_has_no_error_and_one_that_does_not_has_one() -> None:
    scenes = drawn(3, 2, pairs=True)
    tokens = ids(*map(caption, scenes))
    labels = phrases(tokens, numbers_of(tokenizer()))
    features = torch.cat(
        [one_hot(kind.clamp_min(0), n) for kind, n in zip(labels, SIZES, strict=True)], -1
    ).float()
    readers = Readers(sum(SIZES), sum(SIZES), tokenizer())
    for reader in (readers.text, readers.hidden):
        torch.nn.init.eye_(reader.weight).data.mul_(50)
        torch.nn.init.zeros_(reader.bias)
    assert readers.of_words(features, tokens) < 1e-3
    assert readers.of_words(features.roll(1, 0), tokens) > 1
    seen = torch.stack([places(scene, 2, 64) for scene in scenes])
    hidden = torch.cat(
        [one_hot(seen[:, k].long().clamp_min(0), n) for k, n in enumerate(SIZES)], -1
    ).float()
    assert readers.of_places(hidden.flatten(1, 3), seen) < 1e-3
    assert readers.of_places(hidden.flip(0).flatten(1, 3), seen) > 1


def test_a_new_text_encoder_learns_to_bind_and_keeps_near_an_earlier_one() -> None:
    tokens = ids(*(caption(scene) for scene in drawn(5, 256, pairs=True)))
    seen, unseen = tokens[:192], tokens[192:]
    earlier, encoder = untrained()[1], untrained()[1]
    with torch.no_grad():
        earlier.shared.weight.mul_(-1)
    readers = Readers(encoder.config.d_model, 8, tokenizer())
    before, wanted = embed(encoder, unseen), embed(earlier, unseen)
    alone = readers.of_words(before, unseen)
    teach(encoder, embed, readers, seen, steps=150, batch_size=32, like=earlier)
    after = embed(encoder, unseen)
    assert readers.of_words(after, unseen) < 0.2 * alone
    assert (after - wanted).square().mean() < 0.3 * (before - wanted).square().mean()


def test_captions_in_words_of_clip_are_labelled_alike() -> None:
    words = build_tokenizer()
    said = ["a red circle and a blue square on a dark background", ""]
    given = words(said, padding="max_length", return_tensors="pt").input_ids
    colour, shape, direction = phrases(given, numbers_of(words), causal=True)
    assert (direction == NONE).all() and (colour[1] == NONE).all()
    assert colour[0].tolist()[:9] == [NONE, NONE, 0, 0, NONE, NONE, 2, 2, NONE]
    assert shape[0].tolist()[:9] == [NONE, NONE, NONE, 0, NONE, NONE, NONE, 1, NONE]
