"""Prompts to calibrate on: a list for any model of pictures or videos, and how some are drawn."""

from __future__ import annotations

import random
from collections.abc import Sequence

SAMPLES = 8
"""Runs of a calibration where nothing else is said."""

GENERIC = (
    "A fishing boat pulls into a small harbour at dawn, gulls circling above the nets",
    "Close-up of an old watchmaker's hands setting a tiny gear under a bright lamp",
    "Watercolour of a hillside village in autumn, smoke rising from the chimneys",
    "A brown dog shakes the water off its fur on a pebble beach, backlit droplets flying",
    "City crossing in heavy rain at night, umbrellas and neon signs mirrored in the asphalt",
    "Isometric drawing of a tiny greenhouse with cacti, flat colours and thin outlines",
    "A woman in a yellow raincoat laughs while cycling down a cobbled lane",
    "Macro photograph of a honeybee landing on lavender, very shallow depth of field",
    "An astronaut plants a flag on a dune of red sand, two moons low over the horizon",
    "Oil painting of a bowl of lemons and a pewter jug on a blue tablecloth",
    "Drone flight over a winding river in a pine forest, mist between the trees",
    "A chef tosses noodles in a flaming wok, sparks and steam in a narrow kitchen",
    "Pencil sketch of a sleeping cat on a stack of books",
    "A steam train crosses a stone viaduct in deep snow, seen from the valley",
    "Portrait of a bearded man with round glasses against a plain grey wall, soft light",
    "A glass of iced tea with mint on a wooden table, sunlight through the leaves behind it",
    "Cartoon fox in a green scarf waves from the basket of a hot-air balloon",
    "Waves break over a lighthouse in a storm, slow motion, dark clouds",
    "A child blows soap bubbles in a garden, the bubbles drift toward the camera",
    "Low-poly render of a mountain lake at sunset, pink sky, calm reflections",
    "A dancer in white spins on an empty stage, one spotlight, dust in the air",
    "Street market with baskets of spices, a vendor weighs turmeric on brass scales",
    "Black and white photograph of a spiral staircase seen from above",
    "A robot waters tomato plants on a rooftop, skyscrapers in the haze behind",
    "An owl takes off from a mossy branch and glides through a moonlit wood",
    "Stained glass window of a ship at sea, strong leading, saturated blues",
    "A red sports car takes a bend on a coastal road, camera following from the side",
    "Time lapse of clouds moving over wheat fields, long shadows at noon",
    "Paper cut-out scene of whales swimming under a crescent moon, layered shadows",
    "A potter shapes a vase on a turning wheel, wet clay between the fingers",
    "Reading room of an old library, green lamps, ladders, rain on tall windows",
    "Two football players jump for a header in a packed stadium, confetti in the air",
)
"""Subjects, styles, lights and motions as unlike as can be, for models that take any text."""


def drawn(prompts: Sequence[str], samples: int | None, seed: int) -> list[str]:
    """`samples` of the prompts, 8 if None, in the order they have; the same for the same seed.

    Where there are no more prompts than that, all of them: once each if `samples` is None, else
    over and over, which is another run each time, for its noise is another.

    Raises:
        ValueError: no prompts, or fewer than one sample.
    """
    if not prompts:
        raise ValueError("calibration needs at least one prompt")
    if samples is not None and samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    count = min(SAMPLES, len(prompts)) if samples is None else samples
    if count >= len(prompts):
        return [prompts[i % len(prompts)] for i in range(count)]
    chosen = random.Random(seed).sample(range(len(prompts)), count)
    return [prompts[i] for i in sorted(chosen)]
