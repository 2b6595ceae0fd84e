"""Our Transformer against `torch.nn.Transformer` and Hugging Face's Marian, live."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra 'peers' is not installed")

from tests.helpers import parity
from tests.helpers import parity_translation as shared
from tests.models.test_parity_translation import Marian, ours
from tests.peers import torch_transformer

pytestmark = pytest.mark.peers


@pytest.mark.parametrize("name", shared.CASES)
def test_transformer(name: str) -> None:
    """Ours ≡ PyTorch, and PyTorch ≡ the fixture."""
    theirs, _, _ = torch_transformer.run(shared.CASES[name])
    parity.check(theirs, parity.load(name), tighter=20)
    parity.check(ours(shared.CASES[name]), theirs)


@pytest.mark.parametrize("name", shared.MARIANS)
def test_marian(name: str) -> None:
    """Ours ≡ Hugging Face, and that ≡ the fixture."""
    pytest.importorskip("transformers")
    theirs, frozen = torch_transformer.run_marian(name), parity.load(name)
    assert parity.difference(theirs["logits"][""], frozen["logits"][""]) < parity.LOGITS / 20
    for way, tokens in theirs["tokens"].items():
        np.testing.assert_array_equal(tokens, frozen["tokens"][way])
    Marian(name).check(theirs)
