"""The table of preprocessing against timm's and torchvision's own."""

import pytest

pytest.importorskip("timm", reason="the extra 'peers' is not installed")

import timm
from torchvision.models import get_model_weights
from torchvision.models import list_models as list_torchvision

import attention_jax as aj
from attention_jax.data.images.preprocessing import Preprocessing
from attention_jax.errors import UserError

pytestmark = pytest.mark.peers

OTHER_NAMES = {
    **{f"swin_{size[0]}": f"swin_{size}_patch4_window7_224" for size in ("tiny", "small", "base")},
    **{f"vit_{size[0]}_{patch}": f"vit_{size}_patch{patch}_224" for size in ("base", "large") for patch in (16, 32)},
}


def has(name: str, source: str) -> Preprocessing | None:
    try:
        return aj.preprocessing(name, source)
    except UserError:
        return None


def test_timm() -> None:
    names = [name for name in aj.list_models() if name in set(timm.list_models())]
    assert len(names) > 100
    for name in names:
        ours, theirs = aj.preprocessing(name), timm.get_pretrained_cfg(name)
        assert theirs is not None and ours.source == "timm", name
        assert ours.train_size == theirs.input_size[-1], name
        assert ours.test_size == (theirs.test_input_size or theirs.input_size)[-1], name
        shares = float(ours.train_crop_share), float(ours.test_crop_share)
        assert shares == (theirs.crop_pct, theirs.test_crop_pct or theirs.crop_pct), name
        assert (ours.interpolation, ours.mean, ours.std) == (theirs.interpolation, theirs.mean, theirs.std), name
        # It is squeezed to a square there, which is a crop here: images of that share have nothing left to crop.
        assert theirs.crop_mode == ("squash" if name == "efficientnet_b5" else "center"), name
    assert not any(has(name, "timm") for name in aj.list_models() if name not in names)


def test_torchvision() -> None:
    seen = set()
    for theirs_name in list_torchvision():
        name = OTHER_NAMES.get(theirs_name, theirs_name)
        if name not in aj.list_models():
            continue
        weights = get_model_weights(theirs_name)
        for each in weights:
            if "SWAG" in each.name:
                continue
            theirs = each.transforms()
            ours = aj.preprocessing(name, "torchvision" if each is weights.DEFAULT else "torchvision_v1")
            fields = ours.to_fields(test=True)
            assert fields["image_shape"][0] == theirs.crop_size[0], name
            assert fields["eval_resize"] == theirs.resize_size[0], name
            assert fields["interpolation"] == theirs.interpolation.value, name
            assert (list(ours.mean), list(ours.std)) == (list(theirs.mean), list(theirs.std)), name
            seen.add((name, ours.source))
    assert len({name for name, _ in seen}) > 25
    for name in aj.list_models():
        for source in ("torchvision", "torchvision_v1"):
            assert bool(has(name, source)) == ((name, source) in seen), (name, source)
