"""How a replay buffer writes what it keeps: latents or pictures as rows of bytes, all of one size, and back.

A row's place follows from its number, so a codec whose code varies in length (JPEG) writes the best that fits the row.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kdcdiff.data.image_folder import MOST_PIXELS
from kdcdiff.data.image_set import check_images
from kdcdiff.errors import UserError, check


class Codec(NamedTuple):
    """How latents (n, C, h, w) become rows of bytes, and float32 again; pictures (n, 3, H, W) are uint8 both ways."""

    size: Callable[[Sequence[int]], int]  # (C, h, w) -> bytes of a row
    encode: Callable[[Tensor], Tensor]  # latents -> rows (n, size) uint8
    decode: Callable[[Tensor, Sequence[int]], Tensor]  # rows, (C, h, w) -> latents


# --- latents in 255 steps ------------------------------------------------------------------------------------


def _quantise(latents: Tensor) -> Tensor:
    """Write each channel of each latent in 255 steps; its lowest value and the step go before, as float32."""
    x = latents.float()
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    step = ((high - low) / 255).clamp(min=1e-12)
    values = ((x - low) / step).round().to(torch.uint8).flatten(1)
    return torch.cat([torch.stack([low, step], -1).flatten(1).contiguous().view(torch.uint8), values], 1)


def _restore(rows: Tensor, shape: Sequence[int]) -> Tensor:
    """Undo `_quantise` but for its rounding: rows of bytes to latents (n, *shape) float32."""
    scales = rows[:, : 8 * shape[0]].contiguous().view(torch.float32).reshape(len(rows), shape[0], 1, 1, 2)
    values = rows[:, 8 * shape[0] :].reshape(len(rows), *shape).float()
    return values * scales[..., 1] + scales[..., 0]


# --- pictures as JPEG ----------------------------------------------------------------------------------------

QUALITIES = (*range(95, 0, -5), 1)  # Pillow's, the best first


def _jpeg_size(shape: Sequence[int]) -> int:
    """Count the bytes of a row: 1.5 bits a pixel, at which a photograph looks like itself, and 512 of tables."""
    return 512 + math.prod(shape) // 16


def _to_jpeg(pictures: Tensor) -> Tensor:
    """Write each picture (n, 3, H, W) uint8 at the best of `QUALITIES` that fits its row; zeros fill the rest.

    UserError: a picture that does not fit at any, or that is larger than what is ever decoded.
    """
    size, side = _jpeg_size(pictures.shape[1:]), pictures.shape[-2:]
    check(math.prod(side) <= MOST_PIXELS, "picture", tuple(side), f"at most {MOST_PIXELS:,} pixels are decoded")
    rows = np.zeros((len(pictures), size), np.uint8)
    for row, picture in zip(rows, check_images(pictures), strict=True):
        codes = (as_file(picture, "JPEG", quality=quality, optimize=True) for quality in QUALITIES)
        code = next((code for code in codes if len(code) <= size), b"")
        check(code != b"", "picture", tuple(picture.shape), f"does not fit {size:,} bytes as JPEG")
        row[: len(code)] = np.frombuffer(code, np.uint8)
    return torch.from_numpy(rows)


def as_file(picture: Tensor, kind: str, **options: Any) -> bytes:
    """Return a picture (3, H, W) uint8 as the bytes of a file of Pillow's `kind`, with its `options` for that kind."""
    stream = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(stream, kind, **options)
    return stream.getvalue()


def _from_jpeg(rows: Tensor, shape: Sequence[int]) -> Tensor:
    """Decode rows to pictures (n, *shape) uint8. UserError: a row that is no JPEG of that size, said by its header."""
    pictures = np.empty((len(rows), *shape[1:], 3), np.uint8)
    for place, row in zip(pictures, rows.numpy(), strict=True):
        try:
            with Image.open(io.BytesIO(row.tobytes()), formats=("JPEG",)) as file:
                wanted = (shape[2], shape[1])
                check(file.size == wanted, "row", file.size, f"must be a picture of {wanted}, as the buffer's others")
                place[:] = np.asarray(file.convert("RGB"))
        except (OSError, SyntaxError) as error:  # what Pillow raises on bytes that are none
            raise UserError(f"row: cannot be read as JPEG ({error})") from None
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()


CODECS = {
    "fp16": Codec(
        lambda shape: 2 * math.prod(shape),
        lambda x: x.to(torch.float16).flatten(1).contiguous().view(torch.uint8),
        lambda rows, shape: rows.contiguous().view(torch.float16).reshape(len(rows), *shape).float(),
    ),
    "uint8": Codec(lambda shape: math.prod(shape) + 8 * shape[0], _quantise, _restore),
    "raw": Codec(  # for pixels, which are bytes already
        math.prod,
        lambda x: x.to(torch.uint8).flatten(1),
        lambda rows, shape: rows.reshape(len(rows), *shape),
    ),
    "jpeg": Codec(_jpeg_size, _to_jpeg, _from_jpeg),
}
