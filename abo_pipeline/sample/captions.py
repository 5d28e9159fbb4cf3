"""Words for pictures: what a person would type to find a subject, and what a listing would call it.

Here belong captions and titles, with what each of them claims. Pixels are in `drawing`; the JSON of listings is in
`archive`. Words about a product type (its names, variants and materials) stand with it in `products`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

from abo_pipeline.sample.drawing import Subject
from abo_pipeline.sample.products import PRODUCTS, Product

COLOR_WORDS: Mapping[str, tuple[str, ...]] = {
    "red": ("red", "red", "red", "crimson"),
    "orange": ("orange",),
    "yellow": ("yellow",),
    "green": ("green",),
    "teal": ("teal", "teal", "turquoise"),
    "blue": ("blue", "blue", "blue", "royal blue"),
    "purple": ("purple", "purple", "violet"),
    "pink": ("pink",),
    "brown": ("brown", "brown", "brown", "chocolate brown"),
    "black": ("black",),
    "white": ("white",),
    "grey": ("grey", "gray"),
}
"""What each colour is called; a word that stands twice is used twice as often."""

PATTERN_WORDS: Mapping[str, tuple[str, ...]] = {
    "plain": ("plain", "solid"),
    "striped": ("striped", "striped", "stripy"),
    "dotted": ("dotted", "polka dot", "spotted"),
    "checked": ("checked", "plaid", "gingham"),
    "zigzag": ("zigzag", "chevron"),
    "floral": ("floral", "flowered", "flower print"),
}
"""What each pattern is called."""

_ALWAYS_PLURAL = frozenset({"sunglasses", "round sunglasses", "shades", "headphones", "over ear headphones"})
_UNCOUNTED = frozenset({"luggage"})
_FRAMES = ("a photo of {}", "a picture of {}", "product photo of {}", "an image of {}", "{} for sale")
_SENTENCES = ("{a}", "{a}", "{bare}", "{bare}", "{plural}", "{framed}")


@dataclass(frozen=True)
class Caption:
    """A text, and what it claims of a picture; None where it claims nothing."""

    text: str
    product_type: str | None = None
    variant: str | None = None
    color: str | None = None
    pattern: str | None = None

    def fits(self, subject: Subject) -> bool:
        """Whether everything that the caption claims is true of the subject."""
        claims = (
            (self.product_type, subject.product_type),
            (self.variant, subject.variant),
            (self.color, subject.color),
            (self.pattern, subject.pattern),
        )
        return all(claim is None or claim == truth for claim, truth in claims)


def caption(subject: Subject, rng: Random) -> Caption:
    """Describe a subject as a person searching for it might.

    Args:
        subject: What the picture shows.
        rng: Chooses the words, and how much is said: the type is nearly always named, the colour mostly, the
            pattern mostly when there is one, the variant now and then.

    Returns:
        A caption that fits the subject.
    """
    if rng.random() < 0.05:
        return _color_only(subject, rng)
    product = PRODUCTS[subject.product_type]
    variants = product.variants[subject.variant]
    variant = subject.variant if variants and rng.random() < 0.45 else None
    noun = rng.choice(variants) if variant else _usual(product.names, rng)
    color = subject.color if rng.random() < 0.86 else None
    pattern = subject.pattern if rng.random() < (0.12 if subject.pattern == "plain" else 0.6) else None
    words = _adjectives(product, color, pattern, plain=subject.pattern == "plain", rng=rng)
    return Caption(_sentence(words, noun, product, rng), product.code, variant, color, pattern)


def title(subject: Subject, brand: str, rng: Random) -> str:
    """Name a product as a listing does, e.g. "Fernhill Striped Coffee Mug, Blue".

    Args:
        subject: What the product is.
        brand: The name that the title begins with.
        rng: Chooses the words.

    Returns:
        The title, in title case.
    """
    product = PRODUCTS[subject.product_type]
    noun = rng.choice(product.variants[subject.variant] or product.names)
    words = _adjectives(product, None, subject.pattern, plain=subject.pattern == "plain", rng=rng)
    what = " ".join(word for word in (*words, noun) if word not in ("plain", "solid"))
    return f"{brand} {what}, {rng.choice(COLOR_WORDS[subject.color])}".title()


def _color_only(subject: Subject, rng: Random) -> Caption:
    word = rng.choice(COLOR_WORDS[subject.color])
    frame = rng.choice(["{}", "something {}", "a {} product", "a {} thing"])
    return Caption(_with_article(frame.format(word)), color=subject.color)


def _usual(names: tuple[str, ...], rng: Random) -> str:
    return names[0] if rng.random() < 0.6 else rng.choice(names)


def _adjectives(product: Product, color: str | None, pattern: str | None, *, plain: bool, rng: Random) -> list[str]:
    words = []
    if color:
        words.append(rng.choice(COLOR_WORDS[color]))
    if pattern:
        words.insert(rng.randint(0, len(words)), rng.choice(PATTERN_WORDS[pattern]))
    if plain and product.material and rng.random() < 0.22:
        words.append(rng.choice(product.material))
    return words


def _sentence(words: list[str], noun: str, product: Product, rng: Random) -> str:
    singular = " ".join([*words, noun])
    many = " ".join([*words, _plural(noun)])
    takes_no_article = noun in _ALWAYS_PLURAL or noun in _UNCOUNTED
    single = singular if takes_no_article else _with_article(f"a {singular}")
    if product.pair and noun not in _UNCOUNTED and rng.random() < 0.4:
        single = f"a pair of {many}"
    form = rng.choice(_SENTENCES)
    framed = rng.choice(_FRAMES).format(single)
    return form.format(a=single, bare=singular, plural=many, framed=framed)


def _plural(noun: str) -> str:
    if noun in _ALWAYS_PLURAL or noun in _UNCOUNTED or " and " in noun:
        return noun
    return f"{noun}es" if noun.endswith(("s", "ch", "sh")) else f"{noun}s"


def _with_article(text: str) -> str:
    return f"an{text[1:]}" if text.startswith(("a o", "a a", "a e", "a u", "a i")) else text
