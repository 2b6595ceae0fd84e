"""Our recurrent layers and networks against PyTorch, live."""

import pytest

pytest.importorskip("torch", reason="the extra 'peers' is not installed")

from tests.helpers import parity
from tests.helpers import parity_recurrent as shared
from tests.models.test_parity_recurrent import our_stack, ours
from tests.peers import torch_recurrent

pytestmark = pytest.mark.peers


@pytest.mark.parametrize("name", shared.STACKS)
def test_layers(name: str) -> None:
    """Ours ≡ `torch.nn.LSTM`, and that ≡ the fixture."""
    theirs = torch_recurrent.run_stack(shared.STACKS[name])
    parity.check(theirs, parity.load(name), tighter=20)
    parity.check(our_stack(shared.STACKS[name]), theirs)


@pytest.mark.parametrize("name", shared.MODELS)
def test_network(name: str) -> None:
    """Ours ≡ PyTorch, and PyTorch ≡ the fixture."""
    theirs, _ = torch_recurrent.run(shared.MODELS[name])
    parity.check(theirs, parity.load(name), tighter=20)
    parity.check(ours(shared.MODELS[name]), theirs)
