"""The published tokens of titok-l-32, where its weights and the authors' two pictures are at hand.

TITOKC_GOLDEN_PICTURES names the folder of ILSVRC2012_val_00010240.png and ILSVRC2012_val_00008636.png (the assets of
github.com/bytedance/1d-tokenizer), TITOKC_TITOK_L_32 the weights if they are neither installed nor in the hub's cache.
"""

import os
from pathlib import Path

import pytest

from titokc import weights
from titokc.errors import ModelNotFoundError

PICTURES = os.environ.get("TITOKC_GOLDEN_PICTURES", "")


@pytest.mark.skipif(not PICTURES, reason="TITOKC_GOLDEN_PICTURES is not set")
def test_titok_l_32_gives_the_published_tokens() -> None:
    from titokc.weights import verify

    try:
        tokenizer = weights.load(os.environ.get("TITOKC_TITOK_L_32", "titok-l-32"))
    except ModelNotFoundError as error:
        pytest.skip(str(error))
    results = verify.golden(tokenizer, Path(PICTURES))
    assert len(results) == 2
    assert [result.mismatches for result in results if not result.passed] == []
