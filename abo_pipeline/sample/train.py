"""How the small CLIP was trained: `python -m abo_pipeline.sample.train --out FOLDER` does it again.

Here belong the training set (drawings and captions, from seeds of its own), the tokenizer, the architecture, the
training itself, the measurement and the saved folder. Using the model stays out: the pipeline loads the folder with
`SentenceTransformer`, as it loads the real CLIP. torch and transformers are imported inside functions, because
loading them takes seconds and this package must import at once.
"""

import argparse
import io
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image

from abo_pipeline.sample.captions import Caption, caption
from abo_pipeline.sample.drawing import COLORS, PATTERNS, Subject, draw_product, random_subject
from abo_pipeline.sample.products import PRODUCTS

IMAGE_SIDE = 60
PATCH_SIDE = 12
DIMENSION = 128
TEXT_LENGTH = 77

# The means and deviations of the real CLIP: a constant of its preprocessing, kept so that both are prepared alike.
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_DEVIATION = (0.26862954, 0.26130258, 0.27577711)
_START, _END = "<|startoftext|>", "<|endoftext|>"
_CAPTIONS_A_PICTURE = 6
_CHUNK = 250
_NAMING_SHARE = 0.3


@dataclass(frozen=True)
class Plan:
    """How much to train.

    Attributes:
        seed: Seeds drawings, captions and weights. Samples are drawn from other seeds, so none is trained on.
        pictures: How many drawings to train on.
        steps: How many batches to learn from.
        batch: How many drawings, with a caption each, are compared with one another in a step.
        rate: The highest learning rate.
    """

    seed: int = 20210
    pictures: int = 20_000
    steps: int = 1_500
    batch: int = 256
    rate: float = 1.5e-3


@dataclass(frozen=True)
class Precision:
    """Precision@10 of "a {color} {type}", averaged over all of them, and by product type and by color."""

    overall: float
    by_type: Mapping[str, float]
    by_color: Mapping[str, float]


def train(out: Path, plan: Plan | None = None, *, report: Callable[[str], None] = print) -> Path:
    """Draw a training set, train a small CLIP on it, and save it.

    Args:
        out: The folder to write; made if it is not there, its files replaced if it is.
        plan: How much to train; the plan that made `SMALL_CLIP` if None.
        report: Is given a line now and then on how far it is.

    Returns:
        `out`, which `SentenceTransformer(str(out))` loads.
    """
    import torch

    plan = plan or Plan()
    began = time.monotonic()
    torch.manual_seed(plan.seed)
    examples = _examples(plan, report)
    report(f"{plan.pictures} drawings after {time.monotonic() - began:.0f} s")
    texts = [text.text for captions in examples.captions for text in captions]
    tokenizer = _tokenizer(texts)
    model = _model(tokenizer)
    _learn(model, tokenizer, examples, plan, report)
    _save(model, tokenizer, out)
    report(f"saved after {(time.monotonic() - began) / 60:.1f} min")
    return out


def measure(folder: Path, *, seed: int = 7, each: int = 12, workers: int | None = None) -> Precision:
    """Precision@10 of "a {color} {type}" on drawings of a seed.

    Args:
        folder: A model that `SentenceTransformer` loads.
        seed: Of the drawings: to be another one than the model was trained on.
        each: How many drawings of every product type in every color; at least 10.
        workers: How many processes draw; all cores if None.

    Returns:
        The share of right pictures among the ten nearest to each phrase, on average.
    """
    import numpy as np
    from sentence_transformers import SentenceTransformer

    wanted = [(code, color) for code in PRODUCTS for color in COLORS]
    subjects = [pair for pair in wanted for _ in range(each)]
    model = SentenceTransformer(str(folder), device="cpu")
    encoded = _in_processes(partial(_draw_wanted, seed=seed, each=each), len(wanted), 12, workers)
    pictures = [Image.open(io.BytesIO(content)) for chunk in encoded for content in chunk]
    images = model.encode(pictures, batch_size=64, normalize_embeddings=True)
    phrases = [_phrase(code, color) for code, color in wanted]
    texts = model.encode(phrases, batch_size=64, normalize_embeddings=True)
    nearest = np.argsort(-(np.asarray(texts) @ np.asarray(images).T), axis=1)[:, :10]
    scores = {
        pair: sum(subjects[index] == pair for index in row) / 10 for pair, row in zip(wanted, nearest, strict=True)
    }
    return Precision(
        overall=_mean(list(scores.values())),
        by_type={code: _mean([scores[code, color] for color in COLORS]) for code in PRODUCTS},
        by_color={color: _mean([scores[code, color] for code in PRODUCTS]) for color in COLORS},
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _phrase(code: str, color: str) -> str:
    name = PRODUCTS[code].names[0]
    article = "an" if color[0] in "aeiou" else "a"
    return f"{color} {name}" if name.endswith("s") and name != "dress" else f"{article} {color} {name}"


def _draw_wanted(first: int, last: int, *, seed: int, each: int) -> list[bytes]:
    wanted = [(code, color) for code in PRODUCTS for color in COLORS][first:last]
    drawn = []
    for code, color in wanted:
        rng = Random(f"measure/{seed}/{code}/{color}")
        for _ in range(each):
            subject = random_subject(rng, product_type=code, color=color)
            drawn.append(_as_jpeg(draw_product(subject, rng), rng))
    return drawn


def _as_jpeg(picture: Image.Image, rng: Random) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=rng.randint(82, 92))
    return file.getvalue()


def _in_processes(work: Callable[[int, int], Any], count: int, chunk: int, workers: int | None = None) -> Iterator[Any]:
    """Yield work(first, last) for consecutive chunks of range(count), done by several processes."""
    starts = range(0, count, chunk)
    ends = [min(start + chunk, count) for start in starts]
    # Forked children of a process that runs torch's threads may hang, so they are started afresh.
    with ProcessPoolExecutor(workers or os.cpu_count(), mp_context=get_context("spawn")) as pool:
        yield from pool.map(work, starts, ends)


@dataclass(frozen=True)
class _Examples:
    """Drawings as the image processor leaves them before normalising: (pictures, 3, side, side), 8 bits."""

    pixels: Any
    subjects: list[Subject]
    captions: list[list[Caption]]


def _examples(plan: Plan, report: Callable[[str], None]) -> _Examples:
    import numpy as np
    import torch

    pixels, subjects, captions = [], [], []
    for drawn in _in_processes(partial(_draw_examples, seed=plan.seed), plan.pictures, _CHUNK):
        pixels.append(drawn[0])
        subjects.extend(drawn[1])
        captions.extend(drawn[2])
        if len(subjects) % 4000 == 0:
            report(f"{len(subjects)} of {plan.pictures} drawings")
    return _Examples(torch.from_numpy(np.concatenate(pixels)), subjects, captions)


def _draw_examples(first: int, last: int, *, seed: int) -> tuple[Any, list[Subject], list[list[Caption]]]:
    import numpy as np

    prepare = _image_processor()
    pixels, subjects, captions = [], [], []
    for number in range(first, last):
        rng = Random(f"train/{seed}/{number}")
        subject = _evenly_patterned(random_subject(rng), rng)
        subjects.append(subject)
        captions.append([_in_company(caption(subject, rng), rng) for _ in range(_CAPTIONS_A_PICTURE)])
        picture = Image.open(io.BytesIO(_as_jpeg(draw_product(subject, rng), rng))).convert("RGB")
        seen = prepare(picture, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"][0]
        pixels.append(np.asarray(seen, dtype=np.uint8))
    return np.stack(pixels), subjects, captions


def _evenly_patterned(subject: Subject, rng: Random) -> Subject:
    """Show the rarer patterns often enough to be learnt: a third of all subjects get any pattern, each as often."""
    if not PRODUCTS[subject.product_type].patterned or rng.random() > 1 / 3:
        return subject
    return replace(subject, pattern=rng.choice(PATTERNS))


_NEUTRAL_WORDS = [
    "modern",
    "comfortable",
    "cozy",
    "large",
    "small",
    "new",
    "elegant",
    "vintage",
    "cheap",
    "best",
    "cute",
    "soft",
    "luxury",
    "simple",
    "classic",
    "nice",
    "great",
    "stylish",
    "beautiful",
    "lovely",
    "fancy",
    "casual",
    "everyday",
    "premium",
    "quality",
    "durable",
    "lightweight",
    "compact",
    "big",
    "little",
    "tall",
    "short",
    "home",
    "kitchen",
    "bedroom",
    "garden",
    "travel",
    "gift",
    "women",
    "men",
    "kids",
    "children",
    "ladies",
    "mens",
    "womens",
    "baby",
    "summer",
    "winter",
    "outdoor",
    "indoor",
    "the",
    "my",
    "your",
    "for",
    "with",
    "and",
    "in",
    "on",
    "some",
    "any",
    "one",
    "two",
    "set",
    "of",
    "picture",
    "photo",
    "show",
    "me",
    "find",
    "buy",
    "looking",
    "want",
    "background",
    "front",
    "view",
    "side",
    "design",
    "style",
    "pattern",
    "color",
    "colour",
    "print",
    "made",
    "from",
    "material",
    "brand",
    "basics",
    "essential",
]
"""Words that say nothing of a drawing. The model meets them, so that they do not lead it astray."""


def _in_company(said: Caption, rng: Random) -> Caption:
    """Now and then put a word that says nothing, or no word at all, among those of a caption."""
    if rng.random() > 0.3:
        return said
    words = said.text.split()
    for _ in range(rng.choice([1, 1, 2, 3])):
        letters = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=rng.randint(2, 8)))
        extra = rng.choice(_NEUTRAL_WORDS) if rng.random() < 0.75 else letters
        words.insert(rng.randint(0, len(words)), extra)
    return Caption(" ".join(words), said.product_type, said.variant, said.color, said.pattern)


@cache
def _image_processor() -> Any:
    """The real CLIP's preparation of a picture, at this model's size: resize, cut out the middle, normalise."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    return CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIDE},
        crop_size={"height": IMAGE_SIDE, "width": IMAGE_SIDE},
        image_mean=list(_MEAN),
        image_std=list(_DEVIATION),
    )


def _tokenizer(texts: Sequence[str]) -> Any:
    """A CLIP tokenizer whose merges make one token of every word in `texts`, and bytes of whatever else it meets."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    words = sorted({word for text in texts for word in text.lower().split() if word.isalpha()})
    meaningful = set(_NEUTRAL_WORDS) | _caption_words()
    common = [word for word in words if word in meaningful]
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(vocab_size=20_000, min_frequency=1, end_of_word_suffix="</w>", show_progress=False)
    learner.train_from_iterator(common, trainer)
    merges: Any = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges)]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys([*tokens, _START, _END]))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TEXT_LENGTH)


def _caption_words() -> set[str]:
    rng = Random("vocabulary")
    subjects = [
        Subject(product.code, variant, color, pattern)
        for product in PRODUCTS.values()
        for variant in product.variants
        for color in COLORS
        for pattern in PATTERNS
    ]
    texts = (caption(subject, rng).text for subject in subjects for _ in range(8))
    return {word for text in texts for word in text.lower().split()}


def _model(tokenizer: Any) -> Any:
    from transformers import CLIPConfig, CLIPModel

    config = CLIPConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": TEXT_LENGTH,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "projection_dim": DIMENSION,
        },
        vision_config={
            "image_size": IMAGE_SIDE,
            "patch_size": PATCH_SIDE,
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 5,
            "num_attention_heads": 4,
            "projection_dim": DIMENSION,
        },
        projection_dim=DIMENSION,
    )
    model = CLIPModel(config)
    # With heads as small as these, the fused attention spends half of a step in its backward pass.
    model.set_attn_implementation("eager")
    return model


def _learn(model: Any, tokenizer: Any, examples: _Examples, plan: Plan, report: Callable[[str], None]) -> None:
    """Bring every picture's vector near those of the captions that fit it, and away from the others."""
    import torch

    tokens = _tokens(tokenizer, examples.captions)
    truths = _claims([[_as_caption(subject)] for subject in examples.subjects]).squeeze(1)
    claims = _claims(examples.captions)
    labels = int(max(truths.max(), claims.max())) + 1
    namer = torch.nn.Linear(DIMENSION, truths.shape[1] * labels)
    weights = [*_with_decay(model), *_with_decay(namer)]
    optimizer = torch.optim.AdamW(weights, lr=plan.rate, betas=(0.9, 0.98), eps=1e-6)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_rate_share, steps=plan.steps))
    random = torch.Generator().manual_seed(plan.seed)
    model.train()
    for step, chosen in enumerate(_batches(len(examples.subjects), plan, random), start=1):
        which = torch.randint(_CAPTIONS_A_PICTURE, (len(chosen),), generator=random)
        pictures = _normalised(_jittered(examples.pixels[chosen], random))
        with torch.autocast("cpu", torch.bfloat16):
            result = model(pixel_values=pictures, **_trimmed(tokens, chosen, which, tokenizer.eos_token_id))
        fits = _fitting(claims[chosen, which], truths[chosen])
        contrast = _contrast(result.logits_per_image.float(), fits)
        named = _misnaming(namer, result.image_embeds, truths[chosen])
        named = named + _misnaming(namer, result.text_embeds, claims[chosen, which])
        optimizer.zero_grad()
        (contrast + _NAMING_SHARE * named).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        if step % 50 == 0 or step == plan.steps:
            report(f"step {step} of {plan.steps}: contrast {contrast.item():.3f}, naming {named.item():.3f}")
    model.eval()


def _rate_share(step: int, *, steps: int) -> float:
    warm = max(1, steps // 15)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _with_decay(model: Any) -> list[dict[str, Any]]:
    """Weight decay for matrices alone: biases, norms and the temperature are to be free."""
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    others = [weight for weight in model.parameters() if weight.ndim <= 1]
    return [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]


def _batches(count: int, plan: Plan, random: Any) -> Iterator[Any]:
    """Yield `plan.steps` batches of picture numbers, each picture once before any comes again."""
    import torch

    size = min(plan.batch, count)
    order = torch.empty(0, dtype=torch.long)
    for _ in range(plan.steps):
        if len(order) < size:
            order = torch.randperm(count, generator=random)
        yield order[:size]
        order = order[size:]


def _tokens(tokenizer: Any, captions: list[list[Caption]]) -> Any:
    texts = [said.text for row in captions for said in row]
    padded = tokenizer(texts, padding=True, truncation=True, max_length=TEXT_LENGTH, return_tensors="pt")
    return padded["input_ids"].view(len(captions), _CAPTIONS_A_PICTURE, -1)


def _trimmed(tokens: Any, chosen: Any, which: Any, end: int) -> dict[str, Any]:
    """The chosen captions' tokens, without the padding that all of them share."""
    import torch

    rows = tokens[chosen, which]
    length = int((rows == end).int().argmax(dim=1).max()) + 1
    rows = rows[:, :length]
    after_end = (rows == end).int().cumsum(dim=1) - (rows == end).int()
    return {"input_ids": rows, "attention_mask": (after_end == 0).to(torch.long)}


def _as_caption(subject: Subject) -> Caption:
    return Caption("", subject.product_type, subject.variant, subject.color, subject.pattern)


def _claims(captions: list[list[Caption]]) -> Any:
    """What each caption claims, as numbers, -1 for nothing: (pictures, captions a picture, 4)."""
    import torch

    codes: dict[str | None, int] = {None: -1}
    for name in (*PRODUCTS, *COLORS, *PATTERNS, *(v for p in PRODUCTS.values() for v in p.variants)):
        codes.setdefault(name, len(codes))
    rows = [
        [[codes[said.product_type], codes[said.variant], codes[said.color], codes[said.pattern]] for said in row]
        for row in captions
    ]
    return torch.tensor(rows)


def _fitting(claims: Any, truths: Any) -> Any:
    """Which captions fit which pictures: (pictures, captions), true or false."""
    claimed = claims.unsqueeze(0)
    return ((claimed == -1) | (claimed == truths.unsqueeze(1))).all(dim=2)


def _contrast(logits: Any, fits: Any) -> Any:
    """Contrastive loss both ways, in which everything that fits is right, not only what was drawn together."""
    import torch

    wanted = fits.float()
    to_texts = wanted / wanted.sum(dim=1, keepdim=True)
    to_images = (wanted / wanted.sum(dim=0, keepdim=True)).t()
    cross_entropy = torch.nn.functional.cross_entropy
    return (cross_entropy(logits, to_texts) + cross_entropy(logits.t(), to_images)) / 2


def _misnaming(namer: Any, vectors: Any, claims: Any) -> Any:
    """How badly type, variant, color and pattern can be named from vectors; where nothing is claimed is skipped.

    One namer serves pictures and texts, so this too draws the vectors of both together. It is what makes so small a
    model learn in minutes: the contrast alone says little as long as both sides are noise. It is not saved.
    """
    import torch

    scaled = 10 * torch.nn.functional.normalize(vectors.float(), dim=1)
    guesses = namer(scaled).view(len(vectors), claims.shape[1], -1)
    total = torch.zeros(())
    for part in range(claims.shape[1]):
        if (claims[:, part] >= 0).any():
            total = total + torch.nn.functional.cross_entropy(guesses[:, part], claims[:, part], ignore_index=-1)
    return total


def _jittered(pixels: Any, random: Any) -> Any:
    """Pictures moved by up to four pixels and, half of them, mirrored."""
    import torch

    pictures = pixels.float()
    flipped = torch.rand(len(pictures), generator=random) < 0.5
    pictures[flipped] = pictures[flipped].flip(3)
    padded = torch.nn.functional.pad(pictures, (4, 4, 4, 4), mode="replicate")
    left, top = (int(shift) for shift in torch.randint(0, 9, (2,), generator=random))
    return padded[:, :, top : top + IMAGE_SIDE, left : left + IMAGE_SIDE]


def _normalised(pictures: Any) -> Any:
    import torch

    mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in (_MEAN, _DEVIATION))
    return (pictures / 255 - mean) / deviation


def _save(model: Any, tokenizer: Any, out: Path) -> None:
    """Write the folder in the layout of clip-ViT-B-32, weights in 16 bits, to be loaded as 32."""
    import torch

    inner = out / "0_CLIPModel"
    inner.mkdir(parents=True, exist_ok=True)
    model.to(torch.float16).save_pretrained(inner)
    model.to(torch.float32)
    tokenizer.save_pretrained(inner)
    _image_processor().save_pretrained(inner)
    _edit_json(inner / "config.json", _as_float32)
    _edit_json(inner / "preprocessor_config.json", _as_pillow)
    module = {"idx": 0, "name": "0", "path": inner.name, "type": "sentence_transformers.models.CLIPModel"}
    (out / "modules.json").write_text(json.dumps([module], indent=2) + "\n", encoding="utf-8")
    versions = {name: version(name) for name in ("sentence_transformers", "transformers", "torch")}
    settings = {"__version__": versions, "similarity_fn_name": "cosine"}
    (out / "config_sentence_transformers.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _edit_json(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    edit(content)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _as_float32(config: dict[str, Any]) -> None:
    """Half precision is for the disk alone: on a CPU it computes slowly."""
    for part in (config, config["text_config"], config["vision_config"]):
        part["dtype"] = "float32"


def _as_pillow(config: dict[str, Any]) -> None:
    """Left to choose, transformers prepares pictures otherwise wherever torchvision happens to be installed."""
    config["image_processor_type"] = "CLIPImageProcessorPil"


def _card(plan: Plan, precision: Precision, minutes: float, seed: int, each: int) -> str:
    """The model card, with what was asked for and what came of it."""
    rank = sorted(precision.by_type.items(), key=lambda item: item[1])
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "pillow"))
    options = " ".join(f"--{name} {value}" for name, value in vars(plan).items())
    return f"""# Small CLIP

A CLIP of {IMAGE_SIDE} x {IMAGE_SIDE} pixels and {DIMENSION} dimensions that knows one small world: the drawings of
`abo_pipeline.sample` and the words for them. It stands in for clip-ViT-B-32 in tests and in the demo, where it is
loaded in the same way:

    SentenceTransformer("small_clip").encode(["a red chair"])
    SentenceTransformer("small_clip").encode([Image.open("chair.jpg")])

Of photographs it knows nothing, and of words only those of `captions`; any other text is read byte by byte.

| | |
|---|---|
| command | `python -m abo_pipeline.sample.train --out FOLDER` |
| plan | `{options}` |
| took | {minutes:.1f} minutes, drawing and measuring included, on {os.cpu_count()} {platform.machine()} cores |
| data | {plan.pictures:,} drawings with {_CAPTIONS_A_PICTURE} captions each, {plan.steps:,} steps of {plan.batch} |
| versions | Python {platform.python_version()}, {versions} |
| vision | patches of {PATCH_SIDE} pixels; prepared as for the real CLIP, at {IMAGE_SIDE} pixels |
| text | up to {TEXT_LENGTH} tokens; every word of the captions is one |
| weights | stored in 16 bits, computed with in 32 |
| licence | CC BY 4.0, as the drawings |

## Measured

Precision@10 of "a {{color}} {{type}}" over all {len(PRODUCTS)} types in all {len(COLORS)} colors, on {each} new
drawings of each (seed {seed}, which is not the training's): **{precision.overall:.3f}**.

{_table("type", rank)}
{_table("color", sorted(precision.by_color.items(), key=lambda item: item[1]))}"""


def _table(what: str, rows: Sequence[tuple[str, float]]) -> str:
    lines = [f"| {name} | {share:.2f} |" for name, share in rows]
    return "\n".join([f"| {what} | precision@10 |", "|---|---|", *lines, ""])


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, measure, write the model card, and say how it went."""
    parser = argparse.ArgumentParser(prog="python -m abo_pipeline.sample.train", description=train.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    for name, value in vars(Plan()).items():
        parser.add_argument(f"--{name}", type=type(value), default=value, help=f"default: {value}")
    parser.add_argument("--measure-seed", type=int, default=7, help="seed of the drawings measured on")
    options = vars(parser.parse_args(arguments))
    out, measured = options.pop("out"), options.pop("measure_seed")
    plan = Plan(**options)
    began = time.monotonic()
    train(out, plan, report=_say)
    minutes = (time.monotonic() - began) / 60
    precision = measure(out, seed=measured)
    (out / "README.md").write_text(_card(plan, precision, minutes, measured, 12), encoding="utf-8")
    _say(f"precision@10 {precision.overall:.3f}")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
