"""A sample to run the pipeline on without the real archive and without the real model.

Here belong drawn product pictures packed like Amazon Berkeley Objects (`draw_sample`), and a small CLIP trained on such
drawings (`SMALL_CLIP`, a folder that `SentenceTransformer` loads). The pipeline itself stays out, and knows nothing of
this package: it is given the sample's files and the model's folder as it is given the real ones.

    sketch      shapes and strokes, in a product's own coordinates
    products    what each product type looks like, and what it is called
    drawing     colours, patterns, backgrounds; a subject becomes a picture
    captions    a subject becomes a phrase or a title
    foreign     German, French and Spanish words for listings
    archive     pictures and listings become the two tars, awkward cases included
    train       how `small_clip` was trained, to be run again
"""

from pathlib import Path

from abo_pipeline.sample.archive import Sample, draw_sample

__all__ = ["SMALL_CLIP", "Sample", "draw_sample"]

SMALL_CLIP: Path = Path(__file__).parent / "small_clip"
"""The small CLIP's folder, to be given to `SentenceTransformer`."""
