"""Small archives in the official layout, made for one test each."""

import csv
import gzip
import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from abo_pipeline.catalog import CSV_MEMBER, IMAGE_FOLDER

Row = tuple[str, int | str, int | str, str]


def jpeg(colour: str | tuple[int, int, int] = "red", size: tuple[int, int] = (32, 32)) -> bytes:
    """A picture of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def catalogue_csv(rows: Sequence[Row]) -> bytes:
    """images.csv.gz of (image_id, height, width, path) rows."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(("image_id", "height", "width", "path"))
    writer.writerows(rows)
    return gzip.compress(text.getvalue().encode())


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    """An uncompressed tar."""
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def write_images(path: Path, files: Mapping[str, bytes], *, side: int = 1200) -> Path:
    """An ABO image archive whose files all have large originals; an image's id is its file's stem."""
    rows: list[Row] = [(Path(name).stem, side, side, name) for name in files]
    members = {CSV_MEMBER: catalogue_csv(rows)} | {IMAGE_FOLDER + name: data for name, data in files.items()}
    return write_tar(path, members)
