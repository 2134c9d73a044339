"""A folder of generated images against a folder of real ones: what ``kdcdiff evaluate`` does.

    made, real = evaluation.ImageFolder("out"), evaluation.ImageFolder("photos/test")
    figures = evaluation.evaluate(made, real, extractors.features(judge))
    figures.estimates["kid"], figures.left_out      # {"fid": "generated=40: must be more than 128 ..."}

Images are read in threads, batch by batch, in the order of their names, as bytes and at their own size; no
more than a few batches are held, so memory does not grow with the folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kdcdiff.data.image_set import IMAGE_SUFFIXES, Images
from kdcdiff.errors import UserError, check
from kdcdiff.metrics import fid_kid, similarity
from kdcdiff.metrics.accuracy import class_accuracy
from kdcdiff.metrics.estimate import Estimate
from kdcdiff.metrics.extractors import Clip, Extractor
from kdcdiff.sampling.folder import read_metadata


def _read(path: Path) -> np.ndarray:
    """(H, W, 3) uint8; UserError names a file that cannot be read."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"image={str(path)!r}: cannot be read ({str(error).splitlines()[0][:80]})") from error


class ImageFolder:
    """The images below a folder, sorted by name; iterates as batches (n, 3, H, W) uint8, any number of times.

    UserError: no folder or no images in it, an unreadable image, images of several sizes.
    """

    def __init__(self, folder: str | Path, batch_size: int = 256, workers: int = 4) -> None:
        self.folder, self.batch_size, self.workers = Path(folder).expanduser(), batch_size, workers
        check(self.folder.is_dir(), "folder", str(folder), "must be a folder of images")
        self.files = sorted(
            f for f in self.folder.rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES and not f.name.startswith(".")
        )
        check(bool(self.files), "folder", str(folder), f"must hold images ({', '.join(sorted(IMAGE_SUFFIXES))})")

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[Tensor]:
        size: tuple[int, ...] | None = None
        with ThreadPoolExecutor(self.workers) as pool:
            parts = [self.files[i : i + self.batch_size] for i in range(0, len(self.files), self.batch_size)]
            coming = [pool.submit(_read, path) for path in parts[0]]
            for number, part in enumerate(parts):
                ready, coming = (
                    coming,
                    [pool.submit(_read, path) for path in (parts[number + 1] if number + 1 < len(parts) else [])],
                )
                batch: np.ndarray | None = None
                for i, (path, future) in enumerate(zip(part, ready, strict=True)):
                    image = future.result()
                    size = size or image.shape[:2]
                    check(
                        image.shape[:2] == size,
                        "image",
                        str(path),
                        f"is {image.shape[1]}x{image.shape[0]}; the first one is {size[1]}x{size[0]}, "
                        "and all must have one size",
                    )
                    batch = np.empty((len(part), 3, *size), np.uint8) if batch is None else batch
                    batch[i] = image.transpose(2, 0, 1)
                yield torch.from_numpy(batch)

    def _column(self, *names: str) -> list[str] | None:
        """One column of ``metadata.csv``, in the images' order; None where the folder has none."""
        rows = {row["file_name"]: row for row in read_metadata(self.folder)}
        name = next((n for n in names if rows and all(n in row for row in rows.values())), None)
        if name is None:
            return None
        missing = [f for f in self.files if f.relative_to(self.folder).as_posix() not in rows]
        check(
            not missing,
            "metadata.csv",
            str(self.folder),
            f"has {len(rows)} rows for {len(self.files)} images; {missing[0].name if missing else ''} has no prompt",
        )
        return [rows[f.relative_to(self.folder).as_posix()][name] for f in self.files]

    def prompts(self) -> list[str] | None:
        return self._column("text", "caption")

    def classes(self) -> list[str] | None:
        """Each image's class: from ``metadata.csv``, or the name of its folder; None where there is
        neither.
        """
        named = self._column("class")
        if named and all(named):
            return named
        parents = [f.parent.name for f in self.files]
        return parents if all(f.parent != self.folder for f in self.files) else None


@dataclass
class Scores:
    """Estimates by metric; `left_out` says of each metric that could not be worked out why."""

    estimates: dict[str, Estimate] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, work: object) -> None:
        try:
            self.estimates[name] = work()  # type: ignore[operator]
        except UserError as error:
            self.left_out[name] = str(error)

    def table(self) -> str:
        rows = [f"{name:<20} {estimate}" for name, estimate in self.estimates.items()]
        return "\n".join(rows + [f"{name:<20} left out: {reason}" for name, reason in self.left_out.items()])


def evaluate(
    generated: Images,
    real: Images,
    extractor: Extractor,
    *,
    prompts: Sequence[str] | None = None,
    clip: Clip | None = None,
    labels: Tensor | None = None,
    judge: torch.nn.Module | None = None,
    progress: bool = False,
) -> Scores:
    """KID, FID and FID at infinity of two sets; with prompts and a CLIP the CLIP score, with labels and a
    judge the accuracy.

    A metric for which the images are too few is left out and says so; wrong input (a corrupt image, fewer
    prompts than images) raises UserError.
    """
    seen = fid_kid.extract(generated, extractor, progress=progress)
    known = fid_kid.extract(real, extractor, progress=progress)
    figures = Scores()
    figures.add("kid", lambda: fid_kid.kid(seen, known))
    figures.add("fid", lambda: fid_kid.fid(seen, known))
    figures.add("fid_infinity", lambda: fid_kid.fid_infinity(seen, known))
    if prompts is not None and clip is not None:
        figures.estimates["clip_score"] = similarity.clip_score(generated, prompts, clip)
    if labels is not None and judge is not None:
        figures.estimates["class_accuracy"] = class_accuracy(generated, labels, judge)
    return figures
