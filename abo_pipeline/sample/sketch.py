"""A sketch: the shapes of one product, recorded in its own coordinates before anything is painted.

Here belong the geometry and the record of strokes, so that `drawing` can measure a sketch, pose it and fit it to
any picture. What the products look like is in `products`; colours, patterns and pixels are in `drawing`.
x grows to the right and y grows downwards, in units of which a product is about a hundred tall or wide.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

Point = tuple[float, float]
Rgba = tuple[int, int, int] | tuple[int, int, int, int]


class Tone(Enum):
    """A paint that follows the product's own colour; the first three carry its pattern."""

    BODY = "body"
    LIGHT = "light"
    DARK = "dark"
    PLAIN = "plain"
    TRIM = "trim"
    SEAM = "seam"


Paint = Tone | Rgba

WOOD: Rgba = (181, 133, 88)
METAL: Rgba = (186, 190, 197)
STEEL: Rgba = (112, 117, 125)
RUBBER: Rgba = (46, 46, 50)
GOLD: Rgba = (212, 172, 84)
CREAM: Rgba = (250, 246, 236)
PAPER: Rgba = (252, 252, 252)
INK: Rgba = (40, 42, 48)
GLASS: Rgba = (52, 56, 66)
GLOSS: Rgba = (255, 255, 255, 70)
SHADOW: Rgba = (0, 0, 0, 46)


@dataclass(frozen=True)
class Stroke:
    """A filled shape, or a line of some width, with the paint it is given."""

    points: Sequence[Point]
    paint: Paint
    width: float | None
    outlined: bool


@dataclass
class Sketch:
    """Strokes in the order in which they are painted."""

    strokes: list[Stroke] = field(default_factory=list)

    def fill(self, points: Sequence[Point], paint: Paint = Tone.BODY, *, outlined: bool = True) -> None:
        """Add a closed shape. A translucent paint is never outlined."""
        self.strokes.append(Stroke(points, paint, None, outlined and len(_components(paint)) < 4))

    def line(self, points: Sequence[Point], width: float, paint: Paint = Tone.BODY, *, outlined: bool = True) -> None:
        """Add an open line with round ends, `width` units thick."""
        self.strokes.append(Stroke(points, paint, width, outlined and len(_components(paint)) < 4))

    def seam(self, points: Sequence[Point], width: float = 1.1) -> None:
        """Add a thin line that stands out from the product's colour: a stitch, a fold, an edge."""
        self.line(points, width, Tone.SEAM, outlined=False)

    def add(self, other: "Sketch", *, dx: float = 0.0, dy: float = 0.0, scale: float = 1.0) -> None:
        """Add all strokes of another sketch, scaled about the origin and then moved."""
        for stroke in other.strokes:
            moved = [(x * scale + dx, y * scale + dy) for x, y in stroke.points]
            width = None if stroke.width is None else stroke.width * scale
            self.strokes.append(Stroke(moved, stroke.paint, width, stroke.outlined))


def _components(paint: Paint) -> tuple[int, ...]:
    return () if isinstance(paint, Tone) else paint


def ellipse(cx: float, cy: float, rx: float, ry: float) -> list[Point]:
    """Points around an ellipse."""
    return arc(cx, cy, rx, ry, 0, 360)


def arc(cx: float, cy: float, rx: float, ry: float, start: float, end: float) -> list[Point]:
    """Points along part of an ellipse, from `start` to `end` degrees; 0 points right and 90 down."""
    steps = max(6, round(abs(end - start) / 9))
    angles = (math.radians(start + (end - start) * step / steps) for step in range(steps + 1))
    return [(cx + rx * math.cos(angle), cy + ry * math.sin(angle)) for angle in angles]


def box(x0: float, y0: float, x1: float, y1: float, radius: float = 0.0) -> list[Point]:
    """Points around a rectangle whose corners are rounded by `radius`."""
    radius = min(radius, (x1 - x0) / 2, (y1 - y0) / 2)
    if radius <= 0:
        return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    corners = [(x1, y0, -90), (x1, y1, 0), (x0, y1, 90), (x0, y0, 180)]
    return [
        point
        for x, y, start in corners
        for point in arc(
            x - math.copysign(radius, x - x0 - radius),
            y - math.copysign(radius, y - y0 - radius),
            radius,
            radius,
            start,
            start + 90,
        )
    ]


def smooth(points: Sequence[Point], *, closed: bool = True) -> list[Point]:
    """Points along a Catmull-Rom curve through the given ones."""
    count = len(points)
    curve: list[Point] = []
    for index in range(count if closed else count - 1):
        if closed:
            p0, p1, p2, p3 = (points[(index + shift) % count] for shift in (-1, 0, 1, 2))
        else:
            p0, p1, p2, p3 = (points[min(max(index + shift, 0), count - 1)] for shift in (-1, 0, 1, 2))
        for weights in _CURVE_WEIGHTS:
            a, b, c, d = weights
            curve.append(
                (
                    a * p0[0] + b * p1[0] + c * p2[0] + d * p3[0],
                    a * p0[1] + b * p1[1] + c * p2[1] + d * p3[1],
                )
            )
    if not closed:
        curve.append(points[-1])
    return curve


def mirrored(points: Sequence[Point]) -> list[Point]:
    """A right-hand profile, from top to bottom, completed by its reflection in the line x = 0."""
    return [*points, *((-x, y) for x, y in reversed(points))]


def _curve_weights(steps: int) -> list[tuple[float, float, float, float]]:
    weights = []
    for step in range(steps):
        t = step / steps
        weights.append(
            (
                (-t + 2 * t**2 - t**3) / 2,
                (2 - 5 * t**2 + 3 * t**3) / 2,
                (t + 4 * t**2 - 3 * t**3) / 2,
                (-(t**2) + t**3) / 2,
            )
        )
    return weights


_CURVE_WEIGHTS = _curve_weights(6)
