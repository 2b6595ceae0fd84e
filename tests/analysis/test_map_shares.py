"""Maps that anybody's block sows are found, and plotted side by side with the right box."""

from types import SimpleNamespace

import flax.linen as nn
import numpy as np

from attention_jax.analysis.pointing import measure_maps, plot_maps_side_by_side
from attention_jax.analysis.saliency import choose_map

CENTRE = (0.5, 0.5)


def test_the_map_among_what_was_sown():
    rng = np.random.default_rng(0)
    maps, channels, volume, weights = (rng.random((2, *shape)) for shape in ((4, 6), (8,), (4, 6, 3), (4, 6, 4, 6)))
    for sown, expected in (
        ({"where": maps, "scale": channels}, maps),
        ({"where": maps, "gate": volume}, volume.mean(-1)),
        ({"spatial": maps, "gate": volume}, maps),  # a known name first
        ({"channel": channels, "map": volume, "spatial": maps}, volume.mean(-1)),  # BAM
        ({"map": maps}, maps),
        ({"weights": maps}, maps),  # the global context block
        ({"weights": weights}, weights[:, 2, 3]),
        ({"weights": weights[..., 0]}, None),  # [N, heads, T, T]
        ({"scale": channels[:, None, None]}, None),  # a 1x1 map says nothing of places
        ({"scale": channels}, None),
        ({}, None),
    ):
        found = choose_map(sown, 2, CENTRE)
        np.testing.assert_allclose(found.maps if found else np.zeros(0), np.zeros(0) if expected is None else expected)


def test_rows_with_maps_stand_below_the_images_with_the_box():
    images, boxes = np.zeros((2, 8, 12, 3), np.uint8), np.array([[0, 0, 8, 8], [0, 4, 8, 12]])
    none = {"images": images, "boxes": boxes}
    figure = plot_maps_side_by_side({"none": [none], "mine": [{**none, "maps": np.ones((2, 4, 6))}]})
    assert len(figure.axes) == 4 and [axes.get_ylabel() for axes in figure.axes[::2]] == ["images", "mine"]
    assert [patch.get_x() for axes in figure.axes for patch in axes.patches] == [0, 4, 0, 4]
    assert plot_maps_side_by_side({"none": [none]}) is None


class FirstChannel(nn.Module):
    """Sows the first channel of its images."""

    def __call__(self, images):
        self.sow("attention", "map", images[..., 0])
        return images


def test_maps_are_of_images_that_are_cropped_once():
    images = np.random.default_rng(0).integers(0, 255, (3, 8, 8, 3)).astype(np.uint8)
    source = [{"image": image} for image in images]
    loader = SimpleNamespace(
        source=source,
        transform=lambda example, rng: {"image": example["image"][1:5, 1:5]},
        collate=lambda batch: {**batch, "image": batch["image"].astype(np.float32) / 255},
    )
    task = SimpleNamespace(source=lambda config, split: source, evaluation_loader=lambda config, share, assets: loader)
    untrained = SimpleNamespace(variables=dict)
    program = SimpleNamespace(task=task, model=FirstChannel(), init=lambda seed: untrained)
    crop_again = lambda images: images[:, 1:3, 1:3] / np.float32(255)  # noqa: E731  what predict would do
    config = SimpleNamespace(data=SimpleNamespace(eval_split="test"), seed=0)
    run = SimpleNamespace(config=config, assets={}, variables={}, preprocess=crop_again)
    np.testing.assert_allclose(measure_maps(program, run)["maps"], images[:, 1:5, 1:5, 0] / 255, rtol=1e-6)
