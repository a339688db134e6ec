"""Who is compared: our models through the public API, and the baselines by their names.

A new baseline is a class in this folder and an entry in BASELINES.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from titokc.bench.contenders.av1 import AV1
from titokc.bench.contenders.formats import AVIF, JPEG, JPEG2000, JPEGXL, ProgressiveJPEG, WebP
from titokc.bench.contenders.interface import Contender
from titokc.bench.contenders.placeholders import BlurHash, ThumbHash
from titokc.errors import UsageError

BASELINES: dict[str, type[Contender]] = {
    kind.name: kind for kind in (JPEG, ProgressiveJPEG, WebP, AVIF, AV1, JPEG2000, JPEGXL, ThumbHash, BlurHash)
}


def open_contender(spec: str, device: str = "auto", **encoding: Any) -> Contender:
    """A baseline by its name, else one of our models: MODEL or LABEL=MODEL, a name or a path.

    MODEL:FORM:LOOK is a form of its files, bare or base64, and a look; either can be left out. MODEL:natural:tuned is
    encoded for that look. encoding: tiles and effort of `EncodeOptions`, for models.
    UsageError if a baseline cannot run here.
    """
    if spec in BASELINES:
        if why := BASELINES[spec].missing():
            raise UsageError(f"{spec}: {why}")
        return BASELINES[spec]()
    from titokc.bench.contenders.model import Model
    from titokc.codec import Codec

    label, _, model = spec.rpartition("=")
    parts = re.fullmatch(r"(.+?)(?::(bare|base64))?(?::([a-z]+?))?(:tuned)?", model)
    path, form, look, tuned = parts.groups("") if parts else (model, "", "", "")
    name = label or ":".join(filter(None, (Path(path).name, form, look))) + tuned
    if name in BASELINES or name == "original" or not re.fullmatch(r"\w[\w.+-]*(:[a-z0-9]+)*", name):
        raise UsageError(f"{spec}: {name!r} cannot be the name of a model here; give it one (LABEL={model})")
    encoding |= {"tune": look} if tuned else {}
    return Model(name, Codec(path, device=device, engine="torch" if tuned else "auto"), form or "tok", look, **encoding)
