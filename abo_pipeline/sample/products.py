"""What each product looks like, as strokes, and what people call it.

One function draws one product type in its variants; `PRODUCTS` is the table of all of them. Proportions come from the
`random.Random` they are given. Colours, patterns, poses and backgrounds stay out: they are `drawing`'s.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random

from abo_pipeline.sample.sketch import (
    CREAM,
    GLASS,
    GLOSS,
    GOLD,
    INK,
    METAL,
    PAPER,
    RUBBER,
    SHADOW,
    STEEL,
    WOOD,
    Point,
    Rgba,
    Sketch,
    Tone,
    arc,
    box,
    ellipse,
    mirrored,
    smooth,
)


@dataclass(frozen=True)
class Product:
    """A product type: how it is drawn and what it is called.

    Attributes:
        code: The product_type of its listings, e.g. "SHOES".
        draw: Draws one variant into a new sketch.
        names: What people call any of them; the first name is the plain one.
        variants: Each variant, the usual one first, with the names that only it goes by (besides `names`).
        popular: The two colours that most of them are sold in, the more common one first.
        stands: Whether it stands on the ground, and so has its shadow at its feet.
        tilt: How far it may be turned either way, in degrees.
        patterned: Whether cloth or print may cover it.
        pair: Whether people speak of "a pair of" it.
        material: What it may be said to be made of when it is plain.
    """

    code: str
    draw: Callable[[str, Random], Sketch]
    names: tuple[str, ...]
    variants: Mapping[str, tuple[str, ...]]
    popular: tuple[str, str]
    stands: bool = True
    tilt: float = 2.0
    patterned: bool = True
    pair: bool = False
    material: tuple[str, ...] = ()


def _legs(sketch: Sketch, legs: list[tuple[Point, Point]], width: float, paint: Rgba | Tone) -> None:
    for top, foot in legs:
        sketch.line([top, foot], width, paint)


def _chair(variant: str, rng: Random) -> Sketch:
    return {"office": _office_chair, "dining": _dining_chair, "armchair": _armchair}[variant](rng)


def _office_chair(rng: Random) -> Sketch:
    sketch = Sketch()
    wide, high = rng.uniform(24, 29), rng.uniform(52, 70)
    for angle in (200, 160, 20, -20, 90):
        foot = (36 * math.cos(math.radians(angle)), 74 + 9 * math.sin(math.radians(angle)))
        sketch.line([(0, 68), foot], 4.5, RUBBER)
        sketch.fill(ellipse(foot[0], foot[1] + 5, 4.5, 4.5), RUBBER)
    sketch.line([(0, 34), (0, 68)], 6, STEEL)
    half = wide * 0.82
    right_side = [(half, -high), (wide, -high * 0.4), (half, 11)]
    left_side = [(-x, y) for x, y in reversed(right_side)]
    sketch.fill(smooth([(0, -high - 5), *right_side, (0, 14), *left_side]))
    for part in (0.34, 0.66):
        y = -high + part * (high + 6)
        sketch.seam(smooth([(-wide * 0.9, y), (0, y + 3), (wide * 0.9, y)], closed=False))
    sketch.fill(box(-wide * 0.66, -high + 8, -wide * 0.42, -14, 3), GLOSS)
    if rng.random() < 0.75:
        for side in (-1, 1):
            sketch.line([(side * 37, 26), (side * 38, -1)], 4.5, RUBBER)
            sketch.line([(side * 38, -3), (side * 34, 0)], 7, RUBBER)
    sketch.fill(smooth([(-32, 10), (0, 7), (32, 10), (39, 26), (30, 36), (0, 38), (-30, 36), (-39, 26)]))
    sketch.seam(smooth([(-37, 25), (0, 29), (37, 25)], closed=False))
    return sketch


def _dining_chair(rng: Random) -> Sketch:
    sketch = Sketch()
    frame: Rgba | Tone = rng.choice([WOOD, Tone.PLAIN, Tone.PLAIN, STEEL])
    high, thick = rng.uniform(52, 68), rng.uniform(4, 6)
    _legs(sketch, [((-23, 4), (-23, 54)), ((23, 4), (23, 54))], thick * 0.85, frame)
    style = rng.choice(["padded", "slats", "bars"])
    _legs(sketch, [((-24, 2), (-27, -high)), ((24, 2), (27, -high))], thick, frame)
    if style == "padded":
        sketch.fill(smooth([(-29, -high), (0, -high - 5), (29, -high), (27, -20), (0, -15), (-27, -20)]))
    elif style == "slats":
        for step in range(3):
            y = -high + 3 + step * (high - 10) / 3
            sketch.fill(smooth([(-27, y - 4), (0, y - 8), (27, y - 4), (27, y + 5), (0, y + 1), (-27, y + 5)]))
    else:
        sketch.fill(
            smooth(
                [
                    (-29, -high - 3),
                    (0, -high - 8),
                    (29, -high - 3),
                    (28, -high + 9),
                    (0, -high + 4),
                    (-28, -high + 9),
                ]
            )
        )
        for x in (-14, 0, 14):
            sketch.line([(x, -high + 6), (x * 0.9, 0)], 3.6)
    sketch.fill([(-27, 0), (27, 0), (35, 15), (-35, 15)], Tone.LIGHT)
    sketch.fill(box(-35, 15, 35, 22, 2))
    _legs(sketch, [((-31, 24), (-33, 72)), ((31, 24), (33, 72))], thick, frame)
    if rng.random() < 0.5:
        sketch.line([(-32, 46), (32, 46)], thick * 0.6, frame)
    return sketch


def _armchair(rng: Random) -> Sketch:
    sketch = Sketch()
    high = rng.uniform(46, 58)
    _legs(sketch, [((-30, 36), (-33, 52)), ((30, 36), (33, 52))], 4.5, WOOD)
    sketch.fill(
        smooth(
            [
                (-33, -high + 6),
                (-18, -high),
                (18, -high),
                (33, -high + 6),
                (37, 10),
                (30, 34),
                (-30, 34),
                (-37, 10),
            ]
        )
    )
    for x in (-11, 11) if rng.random() < 0.6 else ():
        sketch.fill(ellipse(x, -high * 0.55, 1.6, 1.6), Tone.TRIM, outlined=False)
        sketch.fill(ellipse(x, -high * 0.2, 1.6, 1.6), Tone.TRIM, outlined=False)
    sketch.fill(box(-30, 20, 30, 40, 4), Tone.DARK)
    sketch.fill(box(-31, 2, 31, 22, 8), Tone.LIGHT)
    for side in (-1, 1):
        arm = [(side * x, y) for x, y in ((30, -8), (40, -13), (48, -6), (47, 18), (45, 40), (32, 40), (31, 14))]
        sketch.fill(smooth(arm))
    return sketch


def _sofa(variant: str, rng: Random) -> Sketch:
    sketch = Sketch()
    seats = 2 if variant == "loveseat" else 3
    half = 29 * seats
    high = rng.uniform(34, 46)
    for x in (-half - 6, half + 6):
        sketch.line([(x, 38), (x + math.copysign(2, x), 50)], 5, rng.choice([WOOD, RUBBER]))
    sketch.fill(box(-half - 2, -high, half + 2, 24, 10), Tone.DARK)
    step = 2 * half / seats
    for seat in range(seats):
        left = -half + seat * step
        sketch.fill(box(left + 1, -high + 5, left + step - 1, 12, 8))
        sketch.fill(
            smooth([(left + 6, -high + 10), (left + step * 0.4, -high + 8), (left + step * 0.3, -high + 24)]),
            GLOSS,
        )
    sketch.fill(box(-half - 6, 18, half + 6, 42, 4), Tone.DARK)
    for seat in range(seats):
        left = -half + seat * step
        sketch.fill(box(left + 0.5, 4, left + step - 0.5, 24, 6), Tone.LIGHT)
    arm_high, arm_wide = rng.uniform(10, 18), rng.uniform(14, 20)
    rolled = rng.random() < 0.45
    for side in (-1, 1):
        inner, outer = sorted((side * half, side * (half + arm_wide)))
        sketch.fill(box(inner, -arm_high, outer, 43, 5 if not rolled else 3))
        if rolled:
            middle = (inner + outer) / 2
            sketch.fill(ellipse(middle, -arm_high + 2, arm_wide * 0.66, arm_wide * 0.62))
            sketch.seam(ellipse(middle, -arm_high + 2, arm_wide * 0.3, arm_wide * 0.28))
    return sketch


def _table(variant: str, rng: Random) -> Sketch:
    sketch = Sketch()
    if variant == "round":
        high, wide = rng.uniform(48, 70), rng.uniform(46, 58)
        sketch.fill(ellipse(0, high, 26, 7), Tone.DARK)
        sketch.fill(smooth([(-6, 0), (6, 0), (5, high * 0.5), (10, high), (-10, high), (-5, high * 0.5)]))
        sketch.fill(ellipse(0, 4, wide, 14), Tone.DARK)
        sketch.fill(ellipse(0, 0, wide, 14), Tone.LIGHT)
        sketch.line(arc(0, 0, wide * 0.82, 10, 185, 260), 1.6, GLOSS)
        return sketch
    high = rng.uniform(30, 38) if variant == "coffee" else rng.uniform(54, 68)
    wide, thick = rng.uniform(66, 84), rng.uniform(4, 7)
    legs: Rgba | Tone = Tone.PLAIN if rng.random() < 0.7 else rng.choice([STEEL, WOOD])
    _legs(
        sketch,
        [((-wide * 0.72, 0), (-wide * 0.72, high - 12)), ((wide * 0.72, 0), (wide * 0.72, high - 12))],
        thick * 0.8,
        legs,
    )
    if variant == "coffee":
        sketch.fill(
            [
                (-wide * 0.72, high - 16),
                (wide * 0.72, high - 16),
                (wide * 0.86, high - 8),
                (-wide * 0.86, high - 8),
            ],
            Tone.DARK,
        )
    _legs(
        sketch,
        [((-wide * 0.92, 12), (-wide * 0.92, high)), ((wide * 0.92, 12), (wide * 0.92, high))],
        thick,
        legs,
    )
    if variant == "desk":
        sketch.fill(box(wide * 0.34, 12, wide * 0.9, high * 0.72, 1))
        for part in (0.3, 0.52):
            sketch.seam([(wide * 0.36, 12 + part * high * 0.72), (wide * 0.88, 12 + part * high * 0.72)])
            sketch.line([(wide * 0.56, 4 + part * high * 0.72), (wide * 0.68, 4 + part * high * 0.72)], 2, METAL)
    sketch.fill([(-wide * 0.8, -10), (wide * 0.8, -10), (wide, 8), (-wide, 8)], Tone.LIGHT)
    sketch.fill(box(-wide, 8, wide, 8 + thick, 1))
    sketch.line([(-wide * 0.7, -5), (-wide * 0.2, -5)], 1.6, GLOSS)
    return sketch


def _lamp(variant: str, rng: Random) -> Sketch:
    sketch = Sketch()
    metal = rng.choice([METAL, GOLD, STEEL, RUBBER])
    if variant == "desk":
        sketch.fill(ellipse(0, 52, 24, 7), Tone.DARK)
        sketch.fill(ellipse(0, 49, 24, 7))
        elbow = (-rng.uniform(18, 26), rng.uniform(2, 10))
        head = (rng.uniform(4, 12), -40.0)
        sketch.line([(0, 48), elbow], 4.5, metal)
        sketch.line([elbow, head], 4.5, metal)
        sketch.fill(ellipse(*elbow, 4, 4), Tone.DARK)
        x, y = head
        sketch.fill([(x - 4, y + 22), (x + 34, y + 6), (x + 60, 46), (x + 2, 50)], (255, 236, 160, 70))
        sketch.fill(ellipse(x + 17, y + 15, 13, 8), (255, 240, 190))
        sketch.fill(
            smooth(
                [
                    (x - 8, y - 4),
                    (x + 4, y - 12),
                    (x + 28, y - 2),
                    (x + 35, y + 8),
                    (x + 14, y + 16),
                    (x - 6, y + 24),
                    (x - 8, y + 10),
                ]
            )
        )
        sketch.line([(x - 2, y + 2), (x + 14, y - 3)], 2.5, GLOSS)
        return sketch
    floor = variant == "floor"
    top, bottom = rng.uniform(12, 24), rng.uniform(29, 36)
    high = rng.uniform(30, 40)
    foot = rng.uniform(120, 145) if floor else rng.uniform(62, 72)
    if floor and rng.random() < 0.35:
        for x in (-22, 0, 22):
            sketch.line([(0, high + 4), (x, foot)], 3.2, WOOD)
    elif floor or rng.random() < 0.3:
        sketch.fill(ellipse(0, foot, 20, 5), metal)
        sketch.line([(0, high), (0, foot - 2)], 3.6, metal)
    else:
        radius = rng.uniform(13, 19)
        sketch.line([(0, high - 4), (0, foot - 2 * radius)], 4, metal)
        sketch.fill(ellipse(0, foot - radius * 0.9, radius, radius), rng.choice([Tone.PLAIN, CREAM, WOOD]))
        sketch.fill(ellipse(-radius * 0.4, foot - radius * 1.3, radius * 0.25, radius * 0.3), GLOSS)
        sketch.fill(ellipse(0, foot, radius * 0.8, 3.5), metal)
    sketch.fill(ellipse(0, high, bottom, 6), (255, 233, 170))
    sketch.fill([(-top, 0), *arc(0, 0, top, 3.5, 180, 360), (bottom, high), *arc(0, high, bottom, 6, 0, 180)])
    sketch.fill([(-top * 0.6, 3), (-top * 0.1, 4), (-bottom * 0.2, high + 3), (-bottom * 0.7, high)], GLOSS)
    return sketch


def _bed(variant: str, rng: Random) -> Sketch:
    sketch = Sketch()
    wide = 44.0 if variant == "single" else 66.0
    high = rng.uniform(30, 44)
    frame = rng.choice([WOOD, Tone.DARK, Tone.PLAIN])
    sketch.fill(
        smooth([(-wide, -high), (0, -high - rng.uniform(0, 10)), (wide, -high), (wide, 10), (-wide, 10)])
        if rng.random() < 0.4
        else box(-wide, -high, wide, 10, 5),
        frame,
    )
    if rng.random() < 0.5:
        for part in (-2.0, -1.0, 0.0, 1.0, 2.0):
            sketch.seam([(part * wide / 2.6, -high + 5), (part * wide / 2.6, -4)])
    sketch.fill([(-wide * 0.94, -4), (wide * 0.94, -4), (wide * 1.12, 38), (-wide * 1.12, 38)], PAPER)
    pillows = [0.0] if wide < 50 else [-wide * 0.46, wide * 0.46]
    for x in pillows:
        half = 25.0 if wide < 50 else wide * 0.4
        sketch.fill(
            smooth([(x - half, -14), (x, -17), (x + half, -14), (x + half - 1, 3), (x, 6), (x - half + 1, 3)]),
            PAPER,
        )
    fold = rng.uniform(10, 15)
    sketch.fill([(-wide * 1.03, fold), (wide * 1.03, fold), (wide * 1.15, 39), (-wide * 1.15, 39)], Tone.LIGHT)
    sketch.fill(
        [
            (-wide * 1.02, fold - 3),
            (wide * 1.02, fold - 3),
            (wide * 1.05, fold + 5),
            (-wide * 1.05, fold + 5),
        ],
        PAPER,
    )
    sketch.fill([(-wide * 1.15, 39), (wide * 1.15, 39), (wide * 1.14, 58), (-wide * 1.14, 58)])
    for part in (-0.6, 0.1, 0.7):
        sketch.seam([(part * wide, 42), (part * wide * 1.02, 56)], 0.9)
    sketch.fill(box(-wide * 1.16, 58, wide * 1.16, 66, 2), frame)
    for x in (-wide * 1.08, wide * 1.08):
        sketch.line([(x, 67), (x, 74)], 5, WOOD if frame is WOOD else RUBBER)
    return sketch


def _stool(variant: str, rng: Random) -> Sketch:
    sketch = Sketch()
    high = rng.uniform(72, 92) if variant == "bar" else rng.uniform(38, 46)
    wood = rng.choice([WOOD, METAL, STEEL, Tone.PLAIN])
    spread = rng.uniform(4, 12)
    _legs(
        sketch,
        [((-13, 8), (-17 - spread * 0.4, high - 8)), ((13, 8), (17 + spread * 0.4, high - 8))],
        3.6,
        wood,
    )
    if variant == "bar":
        sketch.line(arc(0, high * 0.62, 25 + spread * 0.5, 6, 180, 360), 2.6, wood)
    _legs(sketch, [((-23, 8), (-27 - spread, high)), ((23, 8), (27 + spread, high))], 4.4, wood)
    if variant == "bar":
        sketch.line(arc(0, high * 0.62, 25 + spread * 0.5, 6, 0, 180), 2.6, wood)
    thick = rng.uniform(6, 14)
    sketch.fill([(-31, 0), *arc(0, 0, 31, 9, 180, 360), (31, thick), *arc(0, thick, 31, 9, 0, 180)])
    sketch.fill(ellipse(0, 0, 31, 9), Tone.LIGHT)
    sketch.line(arc(0, 0, 24, 6, 190, 260), 1.8, GLOSS)
    return sketch


def _mug(variant: str, rng: Random) -> Sketch:
    sketch = Sketch()
    if variant == "teacup":
        sketch.fill(ellipse(0, 34, 50, 10), Tone.DARK)
        sketch.fill(ellipse(0, 32, 50, 10), Tone.LIGHT)
        sketch.fill(ellipse(0, 31, 26, 5), Tone.DARK)
        sketch.line(smooth([(30, -10), (46, -14), (48, 2), (24, 14)], closed=False), 5)
        sketch.fill(smooth([(-36, -22), (-34, 0), (-20, 26), (0, 31), (20, 26), (34, 0), (36, -22)], closed=False))
        rim_y, rim, depth = -22.0, 36.0, 8.0
    else:
        half, high, taper = rng.uniform(27, 33), rng.uniform(58, 76), rng.uniform(0, 5)
        top, foot = -high / 2, high / 2
        reach = rng.uniform(18, 25)
        handle = smooth(
            [
                (half - 2, top + high * 0.2),
                (half + reach, top + high * 0.22),
                (half + reach, foot - high * 0.28),
                (half - 4, foot - high * 0.2),
            ],
            closed=False,
        )
        sketch.line(handle, rng.uniform(6.5, 9))
        sketch.fill([(-half, top), (half, top), *arc(0, foot - 3, half - taper, 8, 0, 180)])
        sketch.fill(
            [
                (-half * 0.78, top + 8),
                (-half * 0.5, top + 9),
                (-half * 0.5 + 1, foot - 6),
                (-half * 0.72, foot - 7),
            ],
            GLOSS,
        )
        sketch.fill(
            [(half * 0.62, top + 6), (half - 1, top + 4), (half - taper, foot - 2), (half * 0.6, foot + 3)],
            SHADOW,
        )
        rim_y, rim, depth = top, half, 8.0
    sketch.fill(ellipse(0, rim_y, rim, depth), Tone.LIGHT)
    inside = rng.choice([Tone.DARK, PAPER, (92, 58, 36)])
    sketch.fill(ellipse(0, rim_y + 0.8, rim - 3.2, depth - 2), inside)
    if variant == "mug" and rng.random() < 0.25:
        for x in (-8, 6):
            steam = smooth(
                [(x, rim_y - 12), (x + 4, rim_y - 19), (x - 3, rim_y - 26), (x + 2, rim_y - 34)], closed=False
            )
            sketch.line(steam, 2.2, (150, 150, 155, 90))
    return sketch


def _bottle(variant: str, rng: Random) -> Sketch:
    sketch = Sketch()
    half, high = rng.uniform(17, 21), rng.uniform(66, 84)
    if variant == "sport":
        sketch.fill(box(-6, -30, 6, -12, 3), STEEL)
        sketch.fill(box(-13, -16, 13, 0, 4), rng.choice([RUBBER, METAL]))
        sketch.line(arc(0, -14, 15, 13, 180, 360), 3, RUBBER)
        shoulder = smooth(
            [
                (half * 0.7, 0),
                (half * 0.95, 6),
                (half, 16),
                (half, high * 0.5),
                (half * 0.98, high - 6),
                (half * 0.84, high),
            ],
            closed=False,
        )
    else:
        neck, cap = rng.uniform(7, 8.5), rng.choice([WOOD, METAL, RUBBER, GOLD])
        sketch.fill(box(-neck - 1.5, -42, neck + 1.5, -28, 2), cap)
        shoulder = [
            (neck, -28),
            (neck, -14),
            *smooth(
                [(neck, -14), (half * 0.9, 2), (half, 14), (half, high - 6), (half * 0.84, high)],
                closed=False,
            ),
        ]
    sketch.fill(mirrored(shoulder))
    sketch.fill([(-half * 0.7, 12), (-half * 0.38, 10), (-half * 0.38, high - 8), (-half * 0.7, high - 9)], GLOSS)
    sketch.fill([(half * 0.6, 10), (half * 0.96, 16), (half * 0.96, high - 6), (half * 0.6, high - 2)], SHADOW)
    if rng.random() < 0.4:
        sketch.fill(box(-half * 0.62, high * 0.42, half * 0.62, high * 0.68, 2), CREAM)
        for row in (0.5, 0.58):
            sketch.line([(-half * 0.35, high * row), (half * 0.35, high * row)], 1.4, STEEL, outlined=False)
    return sketch


def _vase(variant: str, rng: Random) -> Sketch:
    sketch = Sketch()
    high = rng.uniform(70, 92)
    profiles = {
        "classic": ((13, 0), (10, 0.12), (19, 0.3), (28, 0.5), (24, 0.75), (13, 0.95), (14, 1.0)),
        "round": ((10, 0), (8, 0.14), (22, 0.3), (34, 0.58), (28, 0.84), (15, 1.0)),
        "tall": ((17, 0), (13, 0.25), (12, 0.5), (15, 0.78), (18, 0.95), (16, 1.0)),
    }
    stretch = rng.uniform(0.9, 1.15)
    profile = smooth([(x * stretch, y * high) for x, y in profiles[variant]], closed=False)
    mouth = profile[0][0]
    if rng.random() < 0.45:
        for _ in range(rng.randint(3, 5)):
            tip = (rng.uniform(-26, 26), -rng.uniform(26, 46))
            sketch.line(smooth([(0, 0), (tip[0] * 0.3, tip[1] * 0.6), tip], closed=False), 1.5, (96, 128, 80))
            for side in (-1, 1):
                x, y = tip[0] * 0.6, tip[1] * 0.75
                sketch.fill(
                    smooth([(x, y), (x + side * 7, y - 6), (x + side * 12, y - 5), (x + side * 7, y)]),
                    (124, 156, 100),
                )
            sketch.fill(ellipse(*tip, 5, 5), PAPER)
            sketch.fill(ellipse(*tip, 1.8, 1.8), GOLD, outlined=False)
    sketch.fill(mirrored(profile))
    sketch.fill(_band(profile, -0.72, -0.44, 0.22, 0.7), GLOSS)
    sketch.fill(_band(profile, 0.66, 0.99, 0.03, 0.97), SHADOW)
    sketch.fill(ellipse(0, 0, mouth, 4), Tone.LIGHT)
    sketch.fill(ellipse(0, 0.4, mouth - 2.4, 2.6), Tone.TRIM, outlined=False)
    return sketch


def _band(profile: list[Point], inner: float, outer: float, first: float, last: float) -> list[Point]:
    """A strip of a turned body: between two shares of its radius, and between two shares of its height."""
    count = len(profile) - 1
    part = profile[round(first * count) : round(last * count) + 1]
    return [*((x * inner, y) for x, y in part), *((x * outer, y) for x, y in reversed(part))]


def _kettle(variant: str, rng: Random) -> Sketch:
    sketch = Sketch()
    grip = rng.choice([RUBBER, WOOD])
    if variant == "electric":
        sketch.fill(box(-28, 36, 28, 43, 2), RUBBER)
        sketch.line(smooth([(20, -28), (44, -30), (46, 4), (27, 24)], closed=False), 7.5, grip)
        sketch.fill([(-16, -30), (-34, -26), (-38, -20), (-22, -6)])
        sketch.fill([(-18, -34), (18, -34), (28, 36), (-28, 36)])
        sketch.fill(box(-17, -40, 17, -33, 3), RUBBER)
        sketch.fill(ellipse(0, -42, 4.5, 3.5), grip)
        sketch.fill([(-13, -28), (-8, -28), (-12, 30), (-20, 30)], GLOSS)
        return sketch
    high = rng.uniform(28, 38)
    sketch.line(arc(0, -high + 8, rng.uniform(26, 31), rng.uniform(30, 36), 195, 345), 5.5, grip)
    sketch.fill(smooth([(26, 4), (42, -14), (50, -28), (57, -26), (52, -10), (38, 20), (26, 24)]))
    sketch.fill(
        smooth(
            [
                (-40, 26),
                (-40, 4),
                (-26, -high + 10),
                (0, -high),
                (26, -high + 10),
                (40, 4),
                (40, 26),
                (30, 36),
                (0, 38),
                (-30, 36),
            ]
        )
    )
    sketch.seam(arc(0, -high + 9, 19, 5, 10, 170))
    sketch.fill(ellipse(0, -high - 4, 5.5, 5), grip)
    sketch.fill(smooth([(-30, 2), (-20, -high + 18), (-13, -high + 16), (-21, 8), (-24, 20), (-30, 18)]), GLOSS)
    return sketch


def _clock(variant: str, rng: Random) -> Sketch:
    sketch = Sketch()
    rim = rng.uniform(0.68, 0.8)
    if variant == "alarm":
        for side in (-1, 1):
            sketch.line([(side * 24, 34), (side * 33, 48)], 6, Tone.DARK)
            sketch.line([(side * 20, -32), (side * 24, -40)], 3, STEEL)
            sketch.fill([(side * x, y) for x, y in smooth([(10, -42), (18, -54), (36, -50), (42, -34), (38, -30)])])
        sketch.line(arc(0, -48, 9, 11, 180, 360), 3, STEEL)
    sketch.fill(ellipse(0, 0, 43, 43))
    sketch.line(arc(0, 0, 40, 40, 195, 260), 2, GLOSS)
    coloured = rng.random() < 0.4
    sketch.fill(ellipse(0, 0, 43 * rim, 43 * rim), Tone.LIGHT if coloured else PAPER)
    mark = Tone.SEAM if coloured else INK
    for hour in range(12):
        angle = math.radians(30 * hour)
        outer = 43 * rim - 3
        inner = outer - (6 if hour % 3 == 0 else 3)
        tick = [(radius * math.cos(angle), radius * math.sin(angle)) for radius in (inner, outer)]
        sketch.line(tick, 2.4 if hour % 3 == 0 else 1.4, mark, outlined=False)
    for length, width, turn in ((0.5, 3.2, rng.uniform(0, 6.3)), (0.76, 2.2, rng.uniform(0, 6.3))):
        tip = (43 * rim * length * math.cos(turn), 43 * rim * length * math.sin(turn))
        sketch.line([(0, 0), tip], width, mark, outlined=False)
    sketch.fill(ellipse(0, 0, 2.8, 2.8), mark, outlined=False)
    return sketch


def _watch(variant: str, rng: Random) -> Sketch:
    sketch = Sketch()
    case = rng.choice([METAL, GOLD, STEEL])
    half = rng.uniform(13, 16)
    for side in (-1, 1):
        strap = [(-half, side * 14), (half, side * 14), (half * 0.8, side * 74), (-half * 0.8, side * 74)]
        sketch.fill(strap)
        for inset in (-0.78, 0.78):
            sketch.seam([(half * inset, side * 24), (half * inset * 0.84, side * 70)], 0.8)
    for y in (44, 52, 60):
        sketch.fill(ellipse(0, y, 1.6, 2), Tone.SEAM, outlined=False)
    sketch.line(box(-half * 0.95, -80, half * 0.95, -68, 2), 2.6, case)
    if variant == "smart":
        sketch.fill(box(-22, -25, 22, 25, 9), case)
        sketch.fill(box(-18, -21, 18, 21, 7), INK)
        sketch.line([(-8, -4), (8, -4)], 3.5, PAPER, outlined=False)
        sketch.line([(-8, 5), (3, 5)], 2, (120, 200, 140), outlined=False)
        sketch.line([(23.5, -7), (23.5, 2)], 3, case)
        return sketch
    sketch.fill(ellipse(0, 0, 25, 25), case)
    sketch.line([(26, -2), (28, -2)], 5, case)
    face = rng.choice([PAPER, PAPER, Tone.PLAIN, INK])
    mark: Rgba | Tone = PAPER if face == INK else Tone.SEAM if face is Tone.PLAIN else INK
    sketch.fill(ellipse(0, 0, 20, 20), face)
    for hour in range(12):
        angle = math.radians(30 * hour)
        tick = [(radius * math.cos(angle), radius * math.sin(angle)) for radius in (15, 17.5)]
        sketch.line(tick, 1.5, mark, outlined=False)
    sketch.line([(9, -6), (0, 0), (-7, -12)], 1.9, mark, outlined=False)
    return sketch


def _shoes(variant: str, rng: Random) -> Sketch:
    single = {"sneaker": _sneaker, "heel": _heel, "loafer": _loafer}[variant](rng)
    return _as_pair(single, rng)


def _as_pair(single: Sketch, rng: Random) -> Sketch:
    if rng.random() < 0.5:
        return single
    pair = Sketch()
    pair.add(single, dx=rng.uniform(10, 18), dy=-rng.uniform(10, 16), scale=0.94)
    pair.add(single)
    return pair


def _sneaker(rng: Random) -> Sketch:
    sketch = Sketch()
    ankle = rng.uniform(0, 14)
    upper = smooth(
        [
            (-47, 24),
            (-50, 2),
            (-46, -18 - ankle),
            (-34, -16 - ankle),
            (-20, -21 - ankle),
            (-8, -14),
            (14, -2),
            (38, 6),
            (50, 16),
            (50, 26),
        ],
        closed=False,
    )
    sketch.fill([*upper, (50, 27), (-47, 27)])
    sketch.fill(smooth([(32, 26), (34, 12), (42, 8), (51, 16), (52, 26)]), rng.choice([Tone.LIGHT, PAPER]))
    swoosh = smooth([(-38, 14), (-16, 18), (18, 6), (-8, 10), (-30, 4)])
    sketch.fill(swoosh, rng.choice([PAPER, Tone.DARK, Tone.LIGHT]))
    for x, y in ((-11, -11), (-3, -6), (5, -2), (13, 2)):
        sketch.line([(x - 5, y + 4), (x + 5, y - 5)], 2.6, PAPER)
    sketch.line(smooth([(-45, -16 - ankle), (-34, -13 - ankle), (-22, -18 - ankle)], closed=False), 3, Tone.DARK)
    sole: Rgba = rng.choice([PAPER, PAPER, CREAM, RUBBER])
    sketch.fill(smooth([(-51, 22), (-20, 25), (20, 24), (53, 22), (55, 32), (40, 36), (-40, 36), (-53, 33)]), sole)
    sketch.line(smooth([(-50, 30), (0, 32), (52, 29)], closed=False), 1.1, STEEL, outlined=False)
    return sketch


def _heel(rng: Random) -> Sketch:
    sketch = Sketch()
    high = rng.uniform(28, 40)
    sketch.fill(smooth([(-46, 34 - high), (-36, 32 - high), (-39, 10), (-40, 36), (-45, 36), (-46, 10)]), Tone.DARK)
    sketch.fill(
        smooth(
            [
                (-50, 30 - high),
                (-44, 8 - high),
                (-36, 10 - high),
                (-24, 34 - high * 0.82),
                (6, 22),
                (26, 20),
                (44, 28),
                (50, 35),
                (20, 36),
                (-2, 34),
                (-24, 44 - high * 0.62),
            ]
        )
    )
    sketch.line(
        smooth([(-48, 36 - high), (-24, 46 - high * 0.6), (0, 36), (48, 37)], closed=False),
        2,
        RUBBER,
        outlined=False,
    )
    sketch.line(smooth([(18, 24), (32, 24), (42, 29)], closed=False), 2, GLOSS)
    return sketch


def _loafer(rng: Random) -> Sketch:
    sketch = Sketch()
    lining: Rgba = rng.choice([(214, 180, 140), CREAM])
    sketch.fill(smooth([(-44, -4), (-30, -8), (-6, -3), (4, 2), (-10, 10), (-40, 10)]), lining)
    upper = [
        (-48, 26),
        (-50, 6),
        (-46, -7),
        (-36, 2),
        (-20, 7),
        (-4, 4),
        (4, -4),
        (18, -2),
        (40, 8),
        (52, 19),
        (51, 27),
    ]
    sketch.fill([*smooth(upper, closed=False), (-48, 27)])
    tongue = smooth([(-1, 2), (4, -5), (18, -3), (30, 3), (20, 9), (6, 10)])
    sketch.fill(tongue, Tone.LIGHT)
    sketch.fill([(8, -4), (17, -3), (12, 22), (-2, 24)], Tone.DARK)
    sketch.line([(5, 8), (11, 9)], 2.4, rng.choice([GOLD, INK, CREAM]), outlined=False)
    sketch.seam(smooth([(22, 10), (36, 13), (47, 21)], closed=False))
    sketch.seam(smooth([(-40, 2), (-36, 14), (-38, 26)], closed=False))
    sole: Rgba = rng.choice([RUBBER, (120, 84, 56)])
    sketch.fill(smooth([(-50, 25), (0, 27), (53, 25), (54, 31), (20, 33), (-24, 32), (-26, 38), (-49, 38)]), sole)
    return sketch


def _boot(variant: str, rng: Random) -> Sketch:
    sketch = Sketch()
    high = {"ankle": rng.uniform(30, 38), "tall": rng.uniform(60, 76)}[variant]
    lean = rng.uniform(0, 4)
    sketch.fill(
        smooth(
            [
                (-36 - lean, -high),
                (-22, -high - 2),
                (-6 + lean, -high),
                (-5, -high * 0.4),
                (-2, 2),
                (16, 12),
                (38, 18),
                (46, 30),
                (44, 38),
                (-34, 38),
                (-36, 10),
                (-35, -high * 0.4),
            ]
        )
    )
    sketch.line(
        smooth([(-35 - lean, -high + 3), (-21, -high + 1), (-7 + lean, -high + 3)], closed=False),
        4,
        Tone.DARK,
    )
    if rng.random() < 0.55:
        lace: Rgba = rng.choice([CREAM, INK])
        for step in range(5):
            y = -2 - step * high / 6
            sketch.line([(-14, y + 2), (-4, y - 2)], 2.2, lace, outlined=False)
    else:
        sketch.line([(-34, -high * 0.1), (-5, -high * 0.1 + 3)], 4.5, Tone.DARK)
        sketch.line(box(-16, -high * 0.1 - 4, -7, -high * 0.1 + 7, 1), 1.8, GOLD, outlined=False)
    sketch.seam(smooth([(22, 15), (24, 26), (20, 36)], closed=False))
    sketch.fill(smooth([(-28, -high + 10), (-22, -high + 10), (-24, 6), (-30, 8)]), GLOSS)
    heel = rng.uniform(10, 16)
    sketch.fill(
        [(-37, 36), (47, 36), (48, 42), (-8, 42), (-10, 36 + heel), (-36, 36 + heel)],
        rng.choice([RUBBER, (96, 66, 44)]),
    )
    return _as_pair(sketch, rng)


def _handbag(variant: str, rng: Random) -> Sketch:
    sketch = Sketch()
    wide, high, taper = rng.uniform(40, 50), rng.uniform(48, 60), rng.uniform(3, 9)
    metal = rng.choice([GOLD, METAL])
    reach = rng.uniform(24, 38)
    if variant == "tote":
        sketch.line(arc(0, 2, 19, reach, 180, 360), 4, Tone.DARK)
        sketch.fill([(-wide, 0), (wide, 0), (wide - taper, high * 1.15), (taper - wide, high * 1.15)])
        sketch.line(arc(0, 6, 21, reach - 4, 180, 360), 4)
        for x in (-21.0, 21.0):
            sketch.fill(ellipse(x, 8, 2.6, 2.6), metal)
        sketch.seam([(-wide + 2, 6), (wide - 2, 6)])
        return sketch
    sketch.line(arc(0, 2, wide * 0.55, reach, 180, 360), 4.5, Tone.DARK)
    sketch.fill(
        [
            (taper - wide, 0),
            *smooth(
                [
                    (taper - wide, 0),
                    (-wide, high - 8),
                    (-wide + 7, high),
                    (0, high + 1),
                    (wide - 7, high),
                    (wide, high - 8),
                    (wide - taper, 0),
                ],
                closed=False,
            ),
        ]
    )
    flap = rng.uniform(0.42, 0.62) * high
    sketch.fill(
        [
            (taper - wide - 1, -2),
            (wide - taper + 1, -2),
            *smooth(
                [
                    (wide - taper + 2, flap * 0.55),
                    (wide * 0.5, flap),
                    (0, flap + 3),
                    (-wide * 0.5, flap),
                    (taper - wide - 2, flap * 0.55),
                ],
                closed=False,
            ),
        ],
        Tone.LIGHT,
    )
    sketch.seam(
        smooth(
            [
                (wide - taper - 3, flap * 0.5),
                (wide * 0.46, flap - 3.5),
                (0, flap - 0.5),
                (-wide * 0.46, flap - 3.5),
                (taper - wide + 3, flap * 0.5),
            ],
            closed=False,
        ),
        0.9,
    )
    sketch.fill(box(-6, flap - 5, 6, flap + 7, 2), metal)
    for x in (-wide * 0.55, wide * 0.55):
        sketch.fill(ellipse(x, 1, 3.4, 3.4), metal)
    return sketch


def _backpack(variant: str, rng: Random) -> Sketch:
    del variant
    sketch = Sketch()
    wide, high = rng.uniform(31, 37), rng.uniform(46, 54)
    for side in (-1, 1):
        sketch.line(
            smooth(
                [
                    (side * wide * 0.6, -high * 0.8),
                    (side * (wide + 11), -4),
                    (side * wide * 0.9, high * 0.86),
                ],
                closed=False,
            ),
            6,
            Tone.DARK,
        )
    sketch.line(arc(0, -high + 2, 9, 12, 180, 360), 4, Tone.DARK)
    sketch.fill(
        smooth(
            [
                (-wide * 0.66, -high + 3),
                (0, -high - 2),
                (wide * 0.66, -high + 3),
                (wide, -high * 0.4),
                (wide, high - 10),
                (wide - 8, high),
                (8 - wide, high),
                (-wide, high - 10),
                (-wide, -high * 0.4),
            ]
        )
    )
    zip_y = -high * 0.52
    sketch.line(
        smooth(
            [
                (-wide * 0.84, zip_y + 12),
                (-wide * 0.6, zip_y - 6),
                (0, zip_y - 11),
                (wide * 0.6, zip_y - 6),
                (wide * 0.84, zip_y + 12),
            ],
            closed=False,
        ),
        1.8,
        Tone.SEAM,
        outlined=False,
    )
    top = rng.uniform(-4, 6)
    sketch.fill(box(-wide * 0.78, top, wide * 0.78, high - 5, 9), Tone.LIGHT)
    sketch.line([(-wide * 0.66, top + 9), (wide * 0.66, top + 9)], 1.8, Tone.SEAM, outlined=False)
    sketch.line([(wide * 0.5, top + 9), (wide * 0.5, top + 16)], 2.4, METAL)
    sketch.fill(box(-8, zip_y + 6, 8, zip_y + 15, 2), rng.choice([CREAM, WOOD, Tone.DARK]))
    return sketch


def _luggage(variant: str, rng: Random) -> Sketch:
    del variant
    sketch = Sketch()
    wide, high = rng.uniform(30, 37), rng.uniform(84, 100)
    reach = rng.uniform(14, 34)
    for x in (-13.0, 13.0):
        sketch.line([(x, 2), (x, -reach)], 3, METAL)
    sketch.line([(-14, -reach), (14, -reach)], 6, RUBBER)
    for x in (-wide + 8, wide - 8):
        sketch.fill(ellipse(x, high + 5, 6, 6), RUBBER)
    sketch.fill(box(-wide, 0, wide, high, 10))
    ribs = rng.choice([4, 5, 6])
    for rib in range(1, ribs):
        x = -wide + 2 * wide * rib / ribs
        sketch.seam([(x, 8), (x, high - 8)], 1.6)
        sketch.line([(x + 2, 9), (x + 2, high - 9)], 1.6, GLOSS)
    sketch.line([(-9, 7), (9, 7)], 4, RUBBER)
    for x, y in ((-wide, 0.0), (wide, 0.0), (-wide, high), (wide, high)) if rng.random() < 0.4 else ():
        corner = (x - math.copysign(4, x), y + (4 if y == 0 else -4))
        sketch.fill(ellipse(*corner, 5.5, 5.5), Tone.DARK)
    return sketch


def _hat(variant: str, rng: Random) -> Sketch:
    sketch = Sketch()
    if variant == "cap":
        sketch.fill(smooth([(-38, 18), (-36, -8), (-18, -28), (6, -30), (28, -16), (34, 14), (0, 20)]))
        sketch.fill(smooth([(20, 12), (36, 8), (58, 14), (70, 24), (50, 25), (24, 22), (-6, 23)]), Tone.DARK)
        sketch.seam(smooth([(-4, -29), (4, -6), (6, 18)], closed=False))
        sketch.seam(smooth([(-4, -29), (-20, -8), (-22, 18)], closed=False))
        sketch.fill(ellipse(-4, -30, 4, 2.8), Tone.DARK)
        return sketch
    if variant == "beanie":
        sketch.fill(smooth([(-35, 14), (-34, -16), (-18, -38), (0, -43), (18, -38), (34, -16), (35, 14)]))
        for x in (-20, -10, 0, 10, 20):
            sketch.seam(smooth([(x * 0.4, -38), (x * 1.1, -14), (x * 1.25, 10)], closed=False), 0.9)
        sketch.fill(box(-38, 8, 38, 28, 6), Tone.LIGHT)
        for x in range(-30, 36, 10):
            sketch.seam([(x, 11), (x, 25)], 0.9)
        if rng.random() < 0.65:
            sketch.fill(ellipse(0, -49, 12, 12), rng.choice([Tone.LIGHT, PAPER]))
        return sketch
    brim, crown = rng.uniform(58, 70), rng.uniform(32, 42)
    sketch.fill(ellipse(0, 18, brim, rng.uniform(13, 18)), Tone.DARK)
    sketch.fill(ellipse(0, 14, brim, rng.uniform(12, 16)))
    dent = rng.choice([0, 6])
    sketch.fill(
        [
            (-31, 14),
            *smooth(
                [
                    (-31, 14),
                    (-27, -crown + 8),
                    (-14, -crown),
                    (0, -crown + dent),
                    (14, -crown),
                    (27, -crown + 8),
                    (31, 14),
                ],
                closed=False,
            ),
            *arc(0, 14, 31, 6, 0, 180),
        ]
    )
    sketch.fill(
        [(-31, 2), *arc(0, 2, 30.5, 6, 180, 0), (31, 14), *arc(0, 14, 31, 6, 0, 180)],
        rng.choice([INK, CREAM, Tone.TRIM]),
    )
    sketch.fill(smooth([(-22, -crown + 12), (-12, -crown + 6), (-14, -6), (-23, -4)]), GLOSS)
    return sketch


def _shirt(variant: str, rng: Random) -> Sketch:
    sketch = Sketch()
    long_sleeves = variant == "button"
    wide, high = rng.uniform(28, 33), rng.uniform(74, 84)
    cuff = (wide + 27, 62.0) if long_sleeves else (wide + 21, 30.0)
    for side in (-1, 1):
        width = 8.5 if long_sleeves else 13
        sleeve = [
            (15, -2),
            (wide + 2, 5),
            (cuff[0], cuff[1] - 3),
            (cuff[0] - width * 1.5, cuff[1] + 5),
            (wide - 3, 30),
            (wide - 8, 16),
        ]
        sketch.fill([(side * x, y) for x, y in sleeve])
        edge = [(cuff[0] - 1, cuff[1] - 7), (cuff[0] - width * 1.5 - 1, cuff[1])]
        sketch.seam([(side * x, y) for x, y in edge])
    torso = [
        (14, -4),
        (wide, 4),
        (wide - 1, 24),
        (wide, high),
        (-wide, high),
        (1 - wide, 24),
        (-wide, 4),
        (-14, -4),
    ]
    sketch.fill([*torso, *arc(0, -4, 14, 11 if not long_sleeves else 6, 180, 0)])
    sketch.seam([(-wide + 1, high - 4), (wide - 1, high - 4)], 0.9)
    for side in (-1, 1):
        sketch.seam([(side * (wide - 1.5), 8), (side * (wide - 3), 28)])
    if variant == "tshirt":
        sketch.line(arc(0, -4, 14, 11, 180, 0), 3, Tone.DARK)
        return sketch
    sketch.fill(arc(0, -4, 13, 5, 0, 360), Tone.TRIM)
    foot = high if long_sleeves else high * 0.42
    sketch.fill(box(-3.6, 6, 3.6, foot, 0), Tone.LIGHT)
    for side in (-1, 1):
        sketch.fill([(side * x, y) for x, y in ((14, -6), (0, 6), (9, 15), (19, 1))], Tone.LIGHT)
    button: Rgba = rng.choice([CREAM, INK])
    for step in range(6 if long_sleeves else 3):
        sketch.fill(
            ellipse(0, 12 + step * (foot - 16) / (5.5 if long_sleeves else 2.6), 1.5, 1.5),
            button,
            outlined=False,
        )
    return sketch


def _dress(variant: str, rng: Random) -> Sketch:
    sketch = Sketch()
    hem, length, waist = rng.uniform(34, 46), rng.uniform(76, 100), rng.uniform(12, 14)
    if variant == "sleeved":
        for side in (-1, 1):
            sketch.fill([(side * x, y) for x, y in smooth([(13, -31), (22, -29), (32, -8), (21, -3), (15, -12)])])
    else:
        for side in (-1, 1):
            sketch.line([(side * 10, -24), (side * 8, -42)], 2.8, Tone.BODY)
    top = -32 if variant == "sleeved" else -26
    sketch.fill(
        [
            (-17, top),
            (-8, top - 1),
            *smooth([(-8, top - 1), (0, top + 9), (8, top - 1)], closed=False),
            (17, top),
            (16, -12),
            (waist, 8),
            (-waist, 8),
            (-16, -12),
        ]
    )
    waves = [(hem - step * hem / 4, length + (4 if step % 2 else -1)) for step in range(9)]
    sketch.fill(
        [
            (-waist, 8),
            (waist, 8),
            *smooth(
                [(waist, 8), (hem * 0.66, length * 0.5), *waves, (-hem * 0.66, length * 0.5), (-waist, 8)],
                closed=False,
            ),
        ]
    )
    for part in (-0.55, -0.2, 0.22, 0.58):
        sketch.seam(
            smooth(
                [(part * waist, 14), (part * hem * 0.7, length * 0.55), (part * hem, length - 4)],
                closed=False,
            ),
            0.9,
        )
    sketch.line([(-waist, 8), (waist, 8)], 4, rng.choice([Tone.TRIM, Tone.DARK]))
    return sketch


def _sunglasses(variant: str, rng: Random) -> Sketch:
    sketch = Sketch()
    thick = rng.uniform(6.5, 9)
    lens: Rgba = rng.choice([GLASS, GLASS, (70, 62, 58)])
    for side in (-1, 1):
        arm = [(side * x, y) for x, y in smooth([(54, -14), (66, -26), (70, -36)], closed=False)]
        sketch.line(arm, thick * 0.8, Tone.DARK)
    sketch.line(arc(0, -6, 12, 9, 200, 340), thick * 0.9)
    for side in (-1, 1):
        if variant == "round":
            points = ellipse(side * 33, 2, 23, 22)
        else:
            points = [
                (side * x, y)
                for x, y in smooth([(10, -16), (34, -20), (58, -17), (57, 2), (46, 19), (28, 20), (13, 6)])
            ]
        sketch.fill(points, lens)
        sketch.line([*points, points[0]], thick)
        shine = [(side * 33 - 14, 6), (side * 33 - 4, -11), (side * 33 + 3, -11), (side * 33 - 8, 9)]
        sketch.fill(shine, (255, 255, 255, 80))
    return sketch


def _headphones(variant: str, rng: Random) -> Sketch:
    del variant
    sketch = Sketch()
    wide, high = rng.uniform(38, 45), rng.uniform(46, 56)
    sketch.line(arc(0, 4, wide, high, 180, 360), rng.uniform(9, 12))
    sketch.line(arc(0, 4, wide - 5, high - 5.5, 215, 325), 4, RUBBER)
    for side in (-1, 1):
        sketch.line([(side * wide, 0), (side * wide, 16)], 5, METAL)
        inner, outer = sorted((side * (wide - 13), side * (wide - 3)))
        sketch.fill(box(inner, 2, outer, 44, 6), RUBBER)
        inner, outer = sorted((side * (wide - 5), side * (wide + 12)))
        sketch.fill(box(inner, 0, outer, 46, 9))
        sketch.fill(ellipse(side * (wide + 4), 23, 4, 11), Tone.LIGHT)
    return sketch


def _phone_case(variant: str, rng: Random) -> Sketch:
    del variant
    sketch = Sketch()
    wide, high = rng.uniform(27, 31), rng.uniform(57, 63)
    for y in (-22.0, -10.0):
        sketch.line([(-wide - 0.5, y), (-wide - 0.5, y + 7)], 2.5, Tone.DARK)
    sketch.fill(box(-wide, -high, wide, high, 9))
    sketch.line(box(-wide + 3, -high + 3, wide - 3, high - 3, 7), 1, Tone.SEAM, outlined=False)
    size = rng.uniform(21, 25)
    left, top = -wide + 6, -high + 6
    sketch.fill(box(left, top, left + size, top + size, 6), INK)
    for x, y in ((0.3, 0.3), (0.3, 0.72), (0.72, 0.5)):
        sketch.fill(ellipse(left + x * size, top + y * size, 4.6, 4.6), STEEL)
        sketch.fill(ellipse(left + x * size, top + y * size, 2.4, 2.4), (20, 24, 40), outlined=False)
    sketch.fill(
        [
            (wide * 0.2, -high + 2),
            (wide * 0.62, -high + 2),
            (-wide * 0.3, high - 2),
            (-wide * 0.72, high - 2),
        ],
        (255, 255, 255, 36),
    )
    return sketch


def _rug(variant: str, rng: Random) -> Sketch:
    sketch = Sketch()
    if variant == "round":
        for step in range(72):
            x, y = math.cos(math.radians(5 * step)), math.sin(math.radians(5 * step))
            sketch.line([(72 * x, 42 * y), (79 * x, 46.5 * y)], 1.5, CREAM)
        sketch.fill(ellipse(0, 0, 74, 43))
        rings = rng.choice(
            [
                ((0.88, Tone.LIGHT), (0.8, Tone.BODY)),
                ((0.82, CREAM), (0.7, Tone.BODY), (0.4, CREAM), (0.28, Tone.DARK)),
                ((0.78, Tone.DARK), (0.56, Tone.BODY), (0.34, Tone.DARK), (0.14, Tone.LIGHT)),
            ]
        )
        for part, paint in rings:
            sketch.fill(ellipse(0, 0, 74 * part, 43 * part), paint)
        return sketch
    wide, deep, lean = rng.uniform(62, 76), rng.uniform(34, 44), rng.uniform(8, 16)

    def on_rug(x: float, y: float) -> Point:
        return x * (wide + lean * y), deep * y

    for end in (-1, 1):
        for step in range(15):
            y = -1 + 2 * step / 14
            x0, y0 = on_rug(end, y)
            sketch.line([(x0, y0), (x0 + end * 8, y0 + 1.5)], 1.5, CREAM, outlined=True)
    corners = ((-1, -1), (1, -1), (1, 1), (-1, 1))
    for part, paint in ((1.0, Tone.BODY), (0.86, Tone.LIGHT), (0.78, Tone.BODY)):
        sketch.fill([on_rug(x * part, y * part) for x, y in corners], paint)
    diamonds = rng.choice([1, 3])
    for index in range(diamonds):
        middle = (index - (diamonds - 1) / 2) * 0.5
        for part, ink in ((0.5, Tone.DARK), (0.3, CREAM), (0.14, Tone.PLAIN)):
            half = part * (0.9 if diamonds == 1 else 0.42)
            sketch.fill(
                [
                    on_rug(middle, -part),
                    on_rug(middle + half, 0),
                    on_rug(middle, part),
                    on_rug(middle - half, 0),
                ],
                ink,
            )
    return sketch


def _umbrella(variant: str, rng: Random) -> Sketch:
    del variant
    sketch = Sketch()
    wide, high = rng.uniform(62, 72), rng.uniform(44, 54)
    foot = rng.uniform(56, 66)
    sketch.line([(0, -high - 8), (0, foot)], 3, rng.choice([STEEL, WOOD]))
    sketch.line(arc(8, foot, 8, 9, 180, 0), 5.5, rng.choice([WOOD, RUBBER]))
    scallops = [point for index in range(4) for point in arc(wide * (0.75 - 0.5 * index), 0, wide / 4, 8, 0, -180)]
    sketch.fill([*arc(0, 0, wide, high, 180, 360), *scallops])
    for part, paint in ((-0.5, Tone.DARK), (0.5, Tone.LIGHT)):
        left, right = sorted((0.0, part * wide))
        rib = smooth([(0, -high), (part * wide * 0.72, -high * 0.6), (part * wide, 0)], closed=False)
        edge = arc((left + right) / 2, 0, wide / 4, 8, 0, -180)
        sketch.fill([(0, -high), *rib, *(edge if part > 0 else reversed(edge))], paint)
    sketch.line([(0, -high - 9), (0, -high)], 3.5, STEEL)
    return sketch


def _pillow(variant: str, rng: Random) -> Sketch:
    sketch = Sketch()
    wide = 42.0 if variant == "square" else 58.0
    high, puff = 40.0, rng.uniform(2, 5)
    corners = ((-wide, -high), (wide, -high), (wide, high), (-wide, high))
    edge: list[Point] = []
    for (x0, y0), (x1, y1) in zip(corners, (*corners[1:], corners[0]), strict=True):
        for step in range(10):
            part = step / 10
            dent = 1 - puff / 40 * math.sin(math.pi * part) ** 0.8
            x, y = x0 + (x1 - x0) * part, y0 + (y1 - y0) * part
            edge.append((x, y * dent) if y0 == y1 else (x * dent, y))
    sketch.fill(edge)
    sketch.line([*edge, edge[0]], 1.8, Tone.TRIM, outlined=False)
    for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
        fold = [
            (x * (wide - 4), y * (high - 5)),
            (x * (wide - 12), y * (high - 10)),
            (x * (wide - 21), y * (high - 13)),
        ]
        sketch.seam(smooth(fold, closed=False))
    sketch.fill(ellipse(-wide * 0.18, -high * 0.24, wide * 0.55, high * 0.46), (255, 255, 255, 14))
    sketch.fill(ellipse(-wide * 0.2, -high * 0.28, wide * 0.34, high * 0.27), (255, 255, 255, 12))
    if rng.random() < 0.3:
        sketch.fill(ellipse(0, 0, 3.4, 3.4), Tone.DARK)
    return sketch


PRODUCTS: Mapping[str, Product] = {
    product.code: product
    for product in (
        Product(
            "CHAIR",
            _chair,
            ("chair",),
            {
                "office": ("office chair", "desk chair", "swivel chair"),
                "dining": ("dining chair", "kitchen chair"),
                "armchair": ("armchair", "accent chair"),
            },
            ("red", "black"),
            material=("leather", "upholstered"),
        ),
        Product(
            "SOFA",
            _sofa,
            ("sofa", "couch"),
            {"sofa": ("three seater sofa",), "loveseat": ("loveseat", "two seater sofa")},
            ("grey", "blue"),
            material=("leather", "velvet"),
        ),
        Product(
            "TABLE",
            _table,
            ("table",),
            {
                "dining": ("dining table", "kitchen table"),
                "coffee": ("coffee table",),
                "round": ("round table", "bistro table"),
                "desk": ("desk", "writing desk"),
            },
            ("brown", "white"),
            patterned=False,
            material=("wooden",),
        ),
        Product(
            "LAMP",
            _lamp,
            ("lamp", "light"),
            {
                "table": ("table lamp", "bedside lamp"),
                "floor": ("floor lamp", "standing lamp"),
                "desk": ("desk lamp", "reading lamp"),
            },
            ("yellow", "white"),
        ),
        Product(
            "BED",
            _bed,
            ("bed",),
            {"single": ("single bed", "twin bed"), "double": ("double bed", "queen bed")},
            ("blue", "grey"),
        ),
        Product(
            "STOOL_SEATING",
            _stool,
            ("stool",),
            {"bar": ("bar stool", "counter stool"), "low": ("low stool", "footstool")},
            ("red", "black"),
            material=("leather", "wooden"),
        ),
        Product(
            "DRINKING_CUP",
            _mug,
            ("cup",),
            {"mug": ("mug", "coffee mug"), "teacup": ("teacup", "tea cup and saucer")},
            ("blue", "white"),
            material=("ceramic", "porcelain"),
        ),
        Product(
            "BOTTLE",
            _bottle,
            ("bottle", "flask"),
            {"sport": ("water bottle", "sports bottle"), "glass": ("oil bottle", "glass bottle")},
            ("green", "black"),
        ),
        Product(
            "VASE",
            _vase,
            ("vase", "flower vase"),
            {"classic": (), "round": ("round vase",), "tall": ("tall vase",)},
            ("blue", "white"),
            material=("ceramic", "porcelain"),
        ),
        Product(
            "KETTLE",
            _kettle,
            ("kettle",),
            {"stovetop": ("tea kettle", "stovetop kettle", "teapot"), "electric": ("electric kettle",)},
            ("red", "black"),
            patterned=False,
            material=("enamel",),
        ),
        Product(
            "CLOCK",
            _clock,
            ("clock",),
            {"wall": ("wall clock",), "alarm": ("alarm clock", "bedside clock")},
            ("white", "red"),
            stands=False,
            patterned=False,
        ),
        Product(
            "WATCH",
            _watch,
            ("watch", "wristwatch"),
            {"classic": ("analog watch",), "smart": ("smartwatch", "smart watch")},
            ("black", "brown"),
            stands=False,
            tilt=16,
            material=("leather",),
        ),
        Product(
            "SHOES",
            _shoes,
            ("shoe",),
            {
                "sneaker": ("sneaker", "running shoe", "trainer"),
                "heel": ("high heel", "pump"),
                "loafer": ("loafer", "slip on shoe"),
            },
            ("red", "white"),
            pair=True,
            material=("leather", "suede"),
        ),
        Product(
            "BOOT",
            _boot,
            ("boot",),
            {"ankle": ("ankle boot", "hiking boot"), "tall": ("tall boot", "riding boot")},
            ("brown", "black"),
            pair=True,
            material=("leather", "suede"),
        ),
        Product(
            "HANDBAG",
            _handbag,
            ("handbag", "bag", "purse"),
            {"flap": ("shoulder bag",), "tote": ("tote bag", "shopping bag")},
            ("red", "brown"),
            material=("leather",),
        ),
        Product(
            "BACKPACK",
            _backpack,
            ("backpack", "rucksack", "school bag"),
            {"daypack": ()},
            ("green", "blue"),
            material=("canvas", "nylon"),
        ),
        Product(
            "LUGGAGE",
            _luggage,
            ("suitcase", "luggage", "travel case"),
            {"carryon": ()},
            ("purple", "black"),
            patterned=False,
            material=("hardshell",),
        ),
        Product(
            "HAT",
            _hat,
            ("hat",),
            {
                "sunhat": ("sun hat", "fedora"),
                "cap": ("cap", "baseball cap"),
                "beanie": ("beanie", "knitted hat"),
            },
            ("yellow", "black"),
            tilt=6,
            material=("cotton", "wool"),
        ),
        Product(
            "SHIRT",
            _shirt,
            ("shirt", "top"),
            {
                "tshirt": ("t-shirt", "tee"),
                "polo": ("polo shirt",),
                "button": ("button down shirt", "long sleeve shirt"),
            },
            ("blue", "white"),
            stands=False,
            tilt=5,
            material=("cotton", "linen"),
        ),
        Product(
            "DRESS",
            _dress,
            ("dress", "gown"),
            {"strap": ("sundress", "summer dress"), "sleeved": ("short sleeve dress",)},
            ("red", "pink"),
            stands=False,
            tilt=5,
            material=("cotton", "silk"),
        ),
        Product(
            "SUNGLASSES",
            _sunglasses,
            ("sunglasses", "shades"),
            {"wayfarer": (), "round": ("round sunglasses",)},
            ("black", "brown"),
            stands=False,
            tilt=10,
            patterned=False,
            pair=True,
        ),
        Product(
            "HEADPHONES",
            _headphones,
            ("headphones", "headset"),
            {"overear": ("over ear headphones",)},
            ("black", "pink"),
            stands=False,
            tilt=10,
            patterned=False,
            pair=True,
            material=("wireless",),
        ),
        Product(
            "CELLULAR_PHONE_CASE",
            _phone_case,
            ("phone case", "phone cover", "mobile case"),
            {"case": ()},
            ("pink", "black"),
            stands=False,
            tilt=18,
            material=("silicone", "leather"),
        ),
        Product(
            "RUG",
            _rug,
            ("rug", "carpet"),
            {"oblong": ("area rug",), "round": ("round rug",)},
            ("grey", "teal"),
            stands=False,
            tilt=3,
            material=("wool",),
        ),
        Product(
            "UMBRELLA",
            _umbrella,
            ("umbrella", "parasol"),
            {"stick": ()},
            ("yellow", "black"),
            stands=False,
            tilt=14,
        ),
        Product(
            "PILLOW",
            _pillow,
            ("pillow", "cushion"),
            {"square": ("throw pillow",), "oblong": ("lumbar pillow",)},
            ("orange", "teal"),
            stands=False,
            tilt=12,
            material=("velvet", "linen"),
        ),
    )
}
"""Every product type that can be drawn, by its code."""
