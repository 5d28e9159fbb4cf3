"""Product pictures: a subject, posed, coloured, patterned and set before a background, as a Pillow image.

Here belong colours, patterns, backgrounds and the painting of a sketch. What each product looks like is in `products`;
words about the pictures are in `captions`; files and archives are in `archive`. The same subject and the same state of
the random generator always give the same pixels.
"""

import colorsys
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from random import Random

from PIL import Image, ImageChops, ImageDraw, ImageFilter

from abo_pipeline.sample.products import PRODUCTS
from abo_pipeline.sample.sketch import Paint, Point, Sketch, Stroke, Tone

LONGEST_SIDE = 256

COLORS: Mapping[str, tuple[int, int, int]] = {
    "red": (206, 38, 42),
    "orange": (242, 128, 28),
    "yellow": (248, 208, 48),
    "green": (62, 148, 66),
    "teal": (22, 142, 146),
    "blue": (40, 92, 196),
    "purple": (118, 62, 164),
    "pink": (244, 142, 178),
    "brown": (122, 76, 46),
    "black": (40, 40, 45),
    "white": (247, 247, 246),
    "grey": (140, 144, 150),
}
"""The colours products come in, and the middle of each one's shades."""

PATTERNS: tuple[str, ...] = ("plain", "striped", "dotted", "checked", "zigzag", "floral")
"""What may cover a product; the first is no pattern at all."""

_PATTERN_WEIGHTS = (62, 12, 8, 8, 5, 5)
_BACKGROUNDS = ("studio", "gradient", "tinted", "room")
_BACKGROUND_WEIGHTS = (55, 17, 14, 14)
_SUPERSAMPLE = 2
_NEUTRAL = frozenset({"black", "white", "grey"})

Rgb = tuple[int, int, int]


@dataclass(frozen=True)
class Subject:
    """What a picture shows: a product type (its code), a variant of it, a colour and a pattern."""

    product_type: str
    variant: str
    color: str
    pattern: str = "plain"


def random_subject(
    rng: Random, *, product_type: str | None = None, color: str | None = None, pattern: str | None = None
) -> Subject:
    """Choose a subject at random, but for what is given.

    Args:
        rng: Source of the choices.
        product_type: A key of `PRODUCTS`, or None to choose one.
        color: A key of `COLORS`, or None to choose one.
        pattern: One of `PATTERNS`, or None to choose one that suits the product.

    Returns:
        The subject.
    """
    chosen = PRODUCTS[product_type or rng.choice(list(PRODUCTS))]
    variant = rng.choice(list(chosen.variants))
    hue = color or rng.choice(list(COLORS))
    cover = rng.choices(PATTERNS, _PATTERN_WEIGHTS)[0] if chosen.patterned else "plain"
    return Subject(chosen.code, variant, hue, pattern or cover)


def draw_product(subject: Subject, rng: Random, *, size: tuple[int, int] | None = None) -> Image.Image:
    """Draw one product photograph.

    Args:
        subject: What to show.
        rng: Source of proportions, pose, shade and background; its state decides every pixel.
        size: Width and height in pixels. None chooses an aspect ratio as product photographs have them: half are
            square, the others follow the product, and the longest side is `LONGEST_SIDE`.

    Returns:
        An RGB image.

    Raises:
        KeyError: The subject names an unknown product type or color.
    """
    sketch = PRODUCTS[subject.product_type].draw(subject.variant, rng)
    pose = _Pose.random(subject, rng)
    points = [pose.turn(stroke.points) for stroke in sketch.strokes]
    bounds = _bounds(sketch, points)
    width, height = size or _picture_size(bounds, rng)
    canvas = _background(width * _SUPERSAMPLE, height * _SUPERSAMPLE, rng)
    scale, dx, dy = _fit(bounds, canvas.size, rng)
    placed = [
        _Placed(stroke, [(x * scale + dx, y * scale + dy) for x, y in moved], (stroke.width or 0) * scale)
        for stroke, moved in zip(sketch.strokes, points, strict=True)
    ]
    _cast_shadow(canvas, placed, stands=PRODUCTS[subject.product_type].stands, strength=rng.uniform(0.6, 1.0))
    _Painter(canvas, _Look.of(subject, rng, canvas.size)).paint(placed)
    return canvas.reduce(_SUPERSAMPLE)


def picture_size(subject: Subject, rng: Random) -> tuple[int, int]:
    """Choose an aspect ratio as product photographs have them.

    Args:
        subject: What the picture will show.
        rng: Source of the choice. In the state that `draw_product` will be given, it sees the very pose that will be
            drawn.

    Returns:
        Width and height in pixels: square for half of all pictures, else about the product's own ratio, but never
        longer than 5:3; the longest side is `LONGEST_SIDE`.
    """
    sketch = PRODUCTS[subject.product_type].draw(subject.variant, rng)
    pose = _Pose.random(subject, rng)
    return _picture_size(_bounds(sketch, [pose.turn(stroke.points) for stroke in sketch.strokes]), rng)


@dataclass(frozen=True)
class _Pose:
    """A turn by some degrees, after a reflection or not."""

    degrees: float
    mirror: bool

    @classmethod
    def random(cls, subject: Subject, rng: Random) -> "_Pose":
        tilt = PRODUCTS[subject.product_type].tilt
        return cls(rng.uniform(-tilt, tilt), rng.random() < 0.5)

    def turn(self, points: Sequence[Point]) -> list[Point]:
        cosine, sine = math.cos(math.radians(self.degrees)), math.sin(math.radians(self.degrees))
        flip = -1 if self.mirror else 1
        return [(flip * x * cosine - y * sine, flip * x * sine + y * cosine) for x, y in points]


@dataclass(frozen=True)
class _Placed:
    """A stroke where it will be painted, in canvas pixels."""

    stroke: Stroke
    points: list[Point]
    width: float


Bounds = tuple[float, float, float, float]


def _bounds(sketch: Sketch, points: Sequence[Sequence[Point]]) -> Bounds:
    margins = [(stroke.width or 0) / 2 for stroke in sketch.strokes]
    pairs = list(zip(points, margins, strict=True))
    return (
        min(x - margin for line, margin in pairs for x, _ in line),
        min(y - margin for line, margin in pairs for _, y in line),
        max(x + margin for line, margin in pairs for x, _ in line),
        max(y + margin for line, margin in pairs for _, y in line),
    )


def _picture_size(bounds: Bounds, rng: Random) -> tuple[int, int]:
    if rng.random() < 0.5:
        return LONGEST_SIDE, LONGEST_SIDE
    natural = (bounds[2] - bounds[0]) / (bounds[3] - bounds[1])
    aspect = min(max(natural * rng.uniform(0.85, 1.2), 0.6), 1.67)
    if aspect >= 1:
        return LONGEST_SIDE, round(LONGEST_SIDE / aspect)
    return round(LONGEST_SIDE * aspect), LONGEST_SIDE


def _fit(bounds: Bounds, size: tuple[int, int], rng: Random) -> tuple[float, float, float]:
    """Scale and shift that place `bounds` inside a picture, somewhere near its middle."""
    wide, high = bounds[2] - bounds[0], bounds[3] - bounds[1]
    fill = rng.uniform(0.72, 0.93)
    scale = min(size[0] * fill / wide, size[1] * fill / high)
    slack_x, slack_y = size[0] - wide * scale, size[1] - high * scale
    left = slack_x * rng.uniform(0.4, 0.6)
    top = slack_y * rng.uniform(0.38, 0.6)
    return scale, left - bounds[0] * scale, top - bounds[1] * scale


def _mix(color: Rgb, other: Rgb, part: float) -> Rgb:
    red, green, blue = (round(a + (b - a) * part) for a, b in zip(color, other, strict=True))
    return red, green, blue


def _luminance(color: Sequence[int]) -> float:
    return 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]


def _outline(color: Sequence[int]) -> Rgb:
    base = (color[0], color[1], color[2])
    if _luminance(base) > 225:
        return _mix(base, (96, 100, 110), 0.62)
    return _mix(base, (0, 0, 0), 0.48)


def _shade(color: str, rng: Random) -> Rgb:
    """One of the shades that a colour's name covers."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(part / 255 for part in COLORS[color]))
    if color not in _NEUTRAL:
        hue = (hue + rng.uniform(-0.012, 0.012)) % 1
        saturation = min(1, saturation * rng.uniform(0.9, 1.08))
    value = min(1, value * rng.uniform(0.93, 1.03 if color == "white" else 1.09))
    red, green, blue = (round(part * 255) for part in colorsys.hsv_to_rgb(hue, saturation, value))
    return red, green, blue


@dataclass(frozen=True)
class _Look:
    """Everything that a product's colour and pattern decide: its textures and its lines."""

    base: Rgb
    textures: Mapping[Tone, Image.Image]
    seam: Rgb
    trim: Rgb

    @classmethod
    def of(cls, subject: Subject, rng: Random, size: tuple[int, int]) -> "_Look":
        base = _shade(subject.color, rng)
        dark = _luminance(base) < 70
        light = _luminance(base) > 225
        ramp = _light(size, 222 if light else 188)
        plain = Image.merge("RGB", [ramp.point([part * level // 255 for level in range(256)]) for part in base])
        body = plain
        if subject.pattern != "plain":
            cloth = _pattern(subject.pattern, base, _second_color(subject.color, base, rng), rng, size)
            body = ImageChops.multiply(cloth, ramp.convert("RGB"))
        return cls(
            base=base,
            textures={
                Tone.BODY: body,
                Tone.LIGHT: _blended(body, (235, 238, 245) if dark else (255, 255, 255), 0.13),
                Tone.DARK: _blended(body, (0, 0, 0), 0.16 if light else 0.31),
                Tone.PLAIN: plain,
            },
            seam=_mix(base, (255, 255, 255), 0.3) if dark else _mix(base, (60, 62, 70), 0.34 if light else 0.5),
            trim=_mix(base, (255, 255, 255), 0.18) if dark else _mix(base, (30, 30, 36), 0.24 if light else 0.4),
        )

    def line_color(self, paint: Paint) -> Rgb:
        if not isinstance(paint, Tone):
            return _outline(paint)
        # Black on black would lose every inner edge, so black products are drawn with lighter lines.
        return _mix(self.base, (255, 255, 255), 0.2) if _luminance(self.base) < 70 else _outline(self.base)

    def inked(self, paint: Paint) -> tuple[int, ...] | Image.Image:
        if paint is Tone.SEAM:
            return self.seam
        if paint is Tone.TRIM:
            return self.trim
        return self.textures[paint] if isinstance(paint, Tone) else paint


def _second_color(color: str, base: Rgb, rng: Random) -> Rgb:
    """What a pattern adds: near enough to neutral, or to the colour itself, never to name another colour."""
    if color == "white":
        return _mix(base, (90, 94, 104), rng.uniform(0.3, 0.5))
    if color == "black":
        return _mix(base, (255, 255, 255), rng.uniform(0.55, 0.75))
    if color == "grey":
        return rng.choice([(236, 237, 240), (82, 85, 92)])
    return rng.choice([(252, 250, 244), _mix(base, (0, 0, 0), 0.45), _mix(base, (255, 255, 255), 0.62)])


def _pattern(name: str, base: Rgb, second: Rgb, rng: Random, size: tuple[int, int]) -> Image.Image:
    cloth = Image.new("RGB", size, base)
    pen = ImageDraw.Draw(cloth)
    pitch = max(size) / rng.uniform(11, 17)
    {
        "striped": _stripes,
        "dotted": _dots,
        "checked": _checks,
        "zigzag": _zigzags,
        "floral": _flowers,
    }[name](pen, size, pitch, base, second, rng)
    return cloth


def _stripes(
    pen: ImageDraw.ImageDraw, size: tuple[int, int], pitch: float, base: Rgb, second: Rgb, rng: Random
) -> None:
    del base
    reach = sum(size)
    slope = rng.choice([0.0, 0.0, 90.0, rng.uniform(20, 70), -rng.uniform(20, 70)])
    along = (math.cos(math.radians(slope)) * reach, math.sin(math.radians(slope)) * reach)
    across = (-along[1] / reach, along[0] / reach)
    middle = (size[0] / 2, size[1] / 2)
    for step in range(-round(reach / pitch), round(reach / pitch)):
        x, y = middle[0] + across[0] * step * pitch, middle[1] + across[1] * step * pitch
        ends = [(x - along[0], y - along[1]), (x + along[0], y + along[1])]
        pen.line(ends, second, max(2, round(pitch * 0.4)))


def _grid(size: tuple[int, int], pitch: float) -> list[tuple[int, int, float, float]]:
    return [
        (column, row, column * pitch, row * pitch)
        for row in range(int(size[1] / pitch) + 2)
        for column in range(int(size[0] / pitch) + 2)
    ]


def _dots(pen: ImageDraw.ImageDraw, size: tuple[int, int], pitch: float, base: Rgb, second: Rgb, rng: Random) -> None:
    del base
    radius = pitch * rng.uniform(0.24, 0.32)
    for _, row, x, y in _grid(size, pitch):
        shifted = x + (pitch / 2 if row % 2 else 0)
        pen.ellipse((shifted - radius, y - radius, shifted + radius, y + radius), second)


def _checks(pen: ImageDraw.ImageDraw, size: tuple[int, int], pitch: float, base: Rgb, second: Rgb, rng: Random) -> None:
    del rng
    between = _mix(base, second, 0.45)
    pitch *= 1.1
    for column, row, x, y in _grid(size, pitch):
        if column % 2 and row % 2:
            pen.rectangle((x, y, x + pitch, y + pitch), second)
        elif column % 2 or row % 2:
            pen.rectangle((x, y, x + pitch, y + pitch), between)


def _zigzags(
    pen: ImageDraw.ImageDraw, size: tuple[int, int], pitch: float, base: Rgb, second: Rgb, rng: Random
) -> None:
    del base, rng
    for row in range(-1, int(size[1] / (pitch * 1.2)) + 2):
        y = row * pitch * 1.2
        points = [
            (column * pitch * 0.7, y + (pitch * 0.55 if column % 2 else 0))
            for column in range(int(size[0] / (pitch * 0.7)) + 2)
        ]
        pen.line(points, second, max(2, round(pitch * 0.3)))


def _flowers(
    pen: ImageDraw.ImageDraw, size: tuple[int, int], pitch: float, base: Rgb, second: Rgb, rng: Random
) -> None:
    pitch *= 1.5
    for _, row, x, y in _grid(size, pitch):
        cx = x + (pitch / 2 if row % 2 else 0) + rng.uniform(-0.1, 0.1) * pitch
        cy = y + rng.uniform(-0.1, 0.1) * pitch
        turn, petal = rng.uniform(0, 1.3), pitch * 0.17
        for step in range(5):
            px = cx + math.cos(turn + step * 1.257) * petal * 1.2
            py = cy + math.sin(turn + step * 1.257) * petal * 1.2
            pen.ellipse((px - petal, py - petal, px + petal, py + petal), second)
        pen.ellipse((cx - petal * 0.7, cy - petal * 0.7, cx + petal * 0.7, cy + petal * 0.7), base)


@cache
def _ramp(low: int, high: int) -> Image.Image:
    """A diagonal ramp of greys, `high` at the upper left and `low` at the lower right."""
    down = Image.linear_gradient("L")
    diagonal = Image.blend(down, down.transpose(Image.Transpose.ROTATE_90), 0.5)
    return diagonal.point([high + (low - high) * level / 255 for level in range(256)])


@lru_cache(maxsize=8)
def _light(size: tuple[int, int], low: int) -> Image.Image:
    """Light from the upper left, for a canvas of this size."""
    return _ramp(low, 255).resize(size)


def _blended(texture: Image.Image, color: Rgb, part: float) -> Image.Image:
    """A texture with some of one colour in it; by table, which is several times as quick as Image.blend."""
    return texture.point([round(level + (goal - level) * part) for goal in color for level in range(256)])


@cache
def _glow() -> Image.Image:
    """A round spot, 255 in the middle and 0 from its rim on, soft throughout."""
    # Pillow measures to the corners: the middle of an edge is at 181.
    levels = [max(0.0, 1 - level / 181) for level in range(256)]
    return Image.radial_gradient("L").point([round(255 * part * part * (3 - 2 * part)) for part in levels])


def _background(width: int, height: int, rng: Random) -> Image.Image:
    kind = rng.choices(_BACKGROUNDS, _BACKGROUND_WEIGHTS)[0]
    if kind == "studio":
        return Image.new("RGB", (width, height), (255, 255, 255))
    if kind == "gradient":
        top = rng.randint(222, 246)
        low = top - rng.randint(14, 40)
        column = Image.linear_gradient("L").point([top + (low - top) * level / 255 for level in range(256)])
        return column.resize((width, height)).convert("RGB")
    if kind == "tinted":
        return _tinted(width, height, rng)
    return _room(width, height, rng)


def _pale(rng: Random, saturation: tuple[float, float], value: tuple[float, float]) -> Rgb:
    parts = colorsys.hsv_to_rgb(rng.random(), rng.uniform(*saturation), rng.uniform(*value))
    red, green, blue = (round(part * 255) for part in parts)
    return red, green, blue


def _tinted(width: int, height: int, rng: Random) -> Image.Image:
    edge = _pale(rng, (0.05, 0.13), (0.9, 0.95))
    ground = Image.new("RGB", (width, height), edge)
    ground.paste(_mix(edge, (255, 255, 255), 0.65), (0, 0), _glow().resize((width, height)))
    return ground


def _room(width: int, height: int, rng: Random) -> Image.Image:
    wall = _pale(rng, (0.02, 0.09), (0.88, 0.95))
    floor = rng.choice([(222, 200, 172), (206, 188, 168), (214, 214, 216), (232, 224, 212)])
    picture = Image.new("RGB", (width, height), wall)
    pen = ImageDraw.Draw(picture)
    level = round(height * rng.uniform(0.64, 0.78))
    pen.rectangle((0, level, width, height), floor)
    pen.rectangle((0, level - height // 40, width, level), _mix(wall, (255, 255, 255), 0.6))
    line = _mix(floor, (90, 80, 70), 0.18)
    pen.line([(0, level), (width, level)], line, 3)
    shift = rng.uniform(0, 0.2)
    for step in range(-4, 10):
        x = width * (step / 5 + shift)
        pen.line([(width / 2 + (x - width / 2) * 0.6, level), (width / 2 + (x - width / 2) * 1.3, height)], line, 2)
    return picture


def _cast_shadow(canvas: Image.Image, placed: Sequence[_Placed], *, stands: bool, strength: float) -> None:
    across = [x for part in placed for x, _ in part.points]
    left, right, bottom = min(across), max(across), max(y for part in placed for _, y in part.points)
    if stands:
        wide, deep = (right - left) * 1.16, max((right - left) * 0.16, 14)
        spot = _glow().resize((max(1, round(wide)), max(1, round(deep))))
        at = (round((left + right - wide) / 2), round(bottom - deep * 0.52))
        canvas.paste((40, 42, 52), at, spot.point([level * 0.62 * strength for level in range(256)]))
        return
    # Blurring an eighth of the size and enlarging it is as soft, and far quicker.
    small = Image.new("L", (canvas.width // 8, canvas.height // 8))
    pen = ImageDraw.Draw(small)
    for part in placed:
        outline = [(x / 8 + 1, y / 8 + 1.6) for x, y in part.points]
        if part.stroke.width is None:
            pen.polygon(outline, 255)
        else:
            pen.line(outline, 255, max(1, round(part.width / 8)))
    soft = small.filter(ImageFilter.GaussianBlur(1.7)).resize(canvas.size, Image.Resampling.BILINEAR)
    canvas.paste((40, 42, 52), (0, 0), soft.point([level * 0.34 * strength for level in range(256)]))


class _Painter:
    """Paints placed strokes on a canvas in one look."""

    def __init__(self, canvas: Image.Image, look: _Look) -> None:
        self._canvas = canvas
        self._look = look
        self._pen = ImageDraw.Draw(canvas)
        self._glaze = ImageDraw.Draw(canvas, "RGBA")
        self._edge = max(2, round(max(canvas.size) / 220))

    def paint(self, placed: Sequence[_Placed]) -> None:
        for part in placed:
            if part.stroke.width is None:
                self._fill(part)
            else:
                self._line(part)

    def _fill(self, part: _Placed) -> None:
        paint = part.stroke.paint
        color = self._look.inked(paint)
        if isinstance(color, Image.Image):
            self._textured(part, color)
        elif len(color) == 4:
            self._glaze.polygon(part.points, color)
        else:
            self._pen.polygon(part.points, color)
        if part.stroke.outlined:
            closed = [*part.points, part.points[0], part.points[1]]
            self._pen.line(closed, self._look.line_color(paint), self._edge, joint="curve")

    def _line(self, part: _Placed) -> None:
        paint = part.stroke.paint
        color = self._look.inked(paint)
        width = max(2, round(part.width))
        if part.stroke.outlined:
            self._round_line(self._pen, part.points, self._look.line_color(paint), width + 2 * self._edge)
        if isinstance(color, Image.Image):
            self._textured(part, color)
        elif len(color) == 4:
            self._glaze.line(part.points, color, width, joint="curve")
        else:
            self._round_line(self._pen, part.points, color, width)

    def _textured(self, part: _Placed, texture: Image.Image) -> None:
        """Lay a texture through the shape; only the part of the canvas that it touches is handled."""
        margin = part.width / 2 + 2
        left = max(0, math.floor(min(x for x, _ in part.points) - margin))
        top = max(0, math.floor(min(y for _, y in part.points) - margin))
        right = min(self._canvas.width, math.ceil(max(x for x, _ in part.points) + margin))
        bottom = min(self._canvas.height, math.ceil(max(y for _, y in part.points) + margin))
        if right <= left or bottom <= top:
            return
        mask = Image.new("L", (right - left, bottom - top))
        pen = ImageDraw.Draw(mask)
        shifted = [(x - left, y - top) for x, y in part.points]
        if part.stroke.width is None:
            pen.polygon(shifted, 255)
        else:
            self._round_line(pen, shifted, 255, max(2, round(part.width)))
        area = (left, top, right, bottom)
        self._canvas.paste(texture.crop(area), area, mask)

    @staticmethod
    def _round_line(
        pen: ImageDraw.ImageDraw, points: Sequence[Point], color: Rgb | tuple[int, ...] | int, width: int
    ) -> None:
        pen.line(list(points), color, width, joint="curve")
        radius = width / 2
        for x, y in (points[0], points[-1]):
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), color)
