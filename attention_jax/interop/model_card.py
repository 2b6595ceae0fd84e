"""The files beside exported weights: `config.json` and a card in Markdown, with everything that a run knows about itself."""

import importlib.metadata
import json
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from attention_jax import __version__, tree
from attention_jax.config.plugins import strip_origin
from attention_jax.data.fingerprint import DATA
from attention_jax.interop.layout import Layout, match_names
from attention_jax.load import Run
from attention_jax.models.registry import FACTS
from attention_jax.train.initial import INIT

WEIGHTS, CONFIG, CARD, RUN_CONFIG = "model.safetensors", "config.json", "README.md", "run_config.json"


class Export(NamedTuple):
    """A network in another library: its name there, further arguments of the library's function, and the layout."""

    architecture: str
    arguments: dict[str, Any]
    layout: Layout


def simplify_field(value: Any) -> Any:
    """Returns a field of a network as JSON has it: a list for a tuple, a plain dict for a mapping."""
    if isinstance(value, Mapping):
        return {key: simplify_field(part) for key, part in value.items()}
    return [simplify_field(part) for part in value] if isinstance(value, (tuple, list)) else value


def find_crop_share(side: int, shorter: int) -> float:
    """Returns a share such that floor(side / share) = `shorter`, the side to which images are resized before the crop."""
    share = side / shorter
    while math.floor(side / share) < shorter:  # 384 / (384 / 450) is a little less than 450
        share = math.nextafter(share, 0)
    return share


def describe_export(run: Run, export: Export, average: int, licence: str | None) -> dict[str, Any]:
    """Returns the content of config.json: for timm in timm's form, with the run's facts under "attention_jax"."""
    data, model = run.config.data, run.config.model.to_dict()
    height, width, channels = data.image_shape
    colours = dict(interpolation=data.interpolation, mean=list(data.mean), std=list(data.std))
    number = int(getattr(run.model, "num_classes", model.get("num_classes")))
    classes = json.loads(run.assets.get("labels.json", b"null"))
    places = match_names(export.layout, run.model, list(tree.flatten_by_path(run.variables)))
    first, head = (
        list({place.name.rpartition(".")[0]: None for path, place in places.items() if place and re.search(end, path)})
        for end in (export.layout.stem, export.layout.head)
    )
    began = json.loads(run.assets.get(INIT, b"{}"))
    timm = {
        "input_size": [channels, height, width],
        "fixed_input_size": "img_size" in export.arguments or hasattr(run.model, "image_size"),
        "crop_pct": find_crop_share(min(height, width), data.eval_resize or min(height, width)),
        **colours,
        "num_classes": number,
        "first_conv": next(iter(first), None),
        "classifier": head[0] if len(head) == 1 else head,
        "license": licence,
    }
    own = {
        "version": __version__,
        "layout": export.layout.name,
        "model": strip_origin(model["name"]),
        "fields": {key: simplify_field(value) for key, value in _list_fields(model).items()},
        "preprocessing": {"image_shape": [height, width, channels], "eval_resize": data.eval_resize, **colours},
        "weights": run.weights,
        "average": average,
        "step": run.step,
        "metrics": _find_metrics(run),
        "data": json.loads(run.assets.get(DATA, b"null")),
        "init_from": {key: began[key] for key in ("init_from", "sha256") if key in began} or None,
        "license": licence,
    }
    about: dict[str, Any] = {"architecture": export.architecture, "num_classes": number}
    about |= {"label_names": classes} if classes else {}
    about |= {"model_args": export.arguments} if export.arguments else {}
    about |= {"pretrained_cfg": timm} if export.layout.name == "timm" else {}
    return {**about, "attention_jax": own}


def _list_fields(model: Mapping[str, Any]) -> dict[str, Any]:
    """Lists the fields of a config's section `model`, without the name, the facts of the data, and fields without effect."""
    given = {key: strip_origin(value) for key, value in sorted(model.items()) if key not in ("name", *FACTS)}
    return {key: value for key, value in given.items() if value is not None and value != {}}


def _find_metrics(run: Run) -> dict[str, float]:
    """Returns the newest evaluation of these weights in the log, with its step."""
    prefix = "eval_ema/" if run.weights == "ema" else "eval/"
    lines = [line for line in run.metrics if any(key.startswith(prefix) for key in line)]
    return {key: value for key, value in lines[-1].items() if key == "step" or key.startswith(prefix)} if lines else {}


def render_card(run: Run, export: Export, about: Mapping[str, Any]) -> str:
    """Returns README.md: a table of the run's facts, how to load the weights, and how to train the network again."""
    own, data, layout = about["attention_jax"], run.config.data, export.layout.name
    name, fields, channels = own["model"], own["fields"], own["preprocessing"]["image_shape"][2]
    parameters = sum(int(leaf.size) for leaf in tree.flatten_by_path(run.variables["params"]).values())
    classes = [str(label) for label in about.get("label_names", ())]
    more = f", and {len(classes) - 10} more" if len(classes) > 10 else ""
    measured = [f"{key.partition('/')[2]} {value:.4g}" for key, value in own["metrics"].items() if key != "step"]
    height, width, _ = own["preprocessing"]["image_shape"]
    resized = (
        f"shorter side resized to {data.eval_resize} ({data.interpolation}), centre crop" if data.eval_resize else "as it is"
    )
    prints = [
        f"{split}: " + (known.get("fingerprint") or f"{known.get('length')} examples, hash {known.get('contents')}")
        for split, known in (own["data"] or {}).items()
    ]
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in ("jax", "flax"))
    kind = "average" if run.weights == "ema" else "last weights"
    mean = f", the mean of the newest {own['average']} checkpoints" if own["average"] > 1 else ""
    trained = {
        "metrics": f"{', '.join(measured)} at step {own['metrics']['step']}" if measured else "none",
        "data": f"`{data.source}`; evaluated on the split {data.eval_split!r}",
        "fingerprint": "; ".join(prints) or "not known",
        "began with": ", sha256 ".join(own["init_from"].values()) if own["init_from"] else "random weights",
    }
    rows = {
        "network": f"`{name}`, {parameters:,} parameters" + (f", `{json.dumps(fields)}`" if fields else ""),
        "classes": f"{about['num_classes']}" + (f": {', '.join(classes[:10])}{more}" if classes else ""),
        "weights": f"{kind} (`{run.weights}`) of step {run.step}{mean}" if run.step else "as they were given, not trained here",
        "input": f"{height}x{width}x{channels}, {resized}, (x / 255 − {list(data.mean)}) / {list(data.std)}",
        **(trained if run.step else {}),
        "exported by": f"attention_jax {__version__}, {versions}",
        "licence": own["license"] or "not stated",
    }
    keywords = {"in_channels": channels} if channels != 3 else {}
    arguments = "".join(f", {key}={value!r}" for key, value in {**keywords, **_list_fields(run.config.model.to_dict())}.items())
    load = [
        "import attention_jax as aj",
        f'model, variables = aj.load_pretrained("{name}", "{WEIGHTS}"{arguments})',
    ]
    if layout == "timm":
        load += ["", "import timm", 'net = timm.create_model("local-dir:.", pretrained=True)  # this folder']
    if layout == "torchvision":
        given = "".join(f", {key}={value!r}" for key, value in export.arguments.items())
        load += ["", "import safetensors.torch, torchvision"]
        load += [f"net = torchvision.models.{export.architecture}(num_classes={about['num_classes']}{given})"]
        load += [f'net.load_state_dict(safetensors.torch.load_file("{WEIGHTS}"))']
    table = "".join(f"| {key} | {str(value).replace('|', '¦')} |\n" for key, value in rows.items())
    code = "\n".join(load)
    again = f"./launch.sh train --config={RUN_CONFIG} --workdir=runs/again"
    last = f"\n## Train it again\n\n```bash\n{again}\n```\n" if run.step else ""  # given weights have no data
    return f"# {name}\n\n| | |\n| --- | --- |\n{table}\n## Load it\n\n```python\n{code}\n```\n{last}"
