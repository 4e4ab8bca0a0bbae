"""Runs where the other libraries are: loads what was exported with their own loaders and says what they compute.

``python peers.py FOLDER``: FOLDER/cases.json is a list of ``[name, format, points]``, FOLDER/NAME the export,
FOLDER/acts.safetensors the raw activations. Writes FOLDER/answers.safetensors with ``NAME/codes`` and ``NAME/POINT``.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

warnings.simplefilter("ignore")


def saelens(folder, x):
    from sae_lens import SAE

    found = SAE.load_from_disk(str(folder), device="cpu")
    return found.encode(x[0]), [found(x[0])]


def sparsify(folder, x):
    from sparsify import SparseCoder

    found = SparseCoder.load_from_disk(folder, device="cpu")
    values, indices, _ = found.encode(x[0])
    codes = torch.zeros(len(x[0]), found.num_latents).scatter_(1, indices, values)
    return codes, [found(x[0]).sae_out]


def dictionary_learning(folder, x):
    from dictionary_learning.utils import load_dictionary

    found, _ = load_dictionary(str(folder), "cpu")
    return found.encode(x[0]), [found(x[0])]


def circuit_tracer(folder, x):
    import yaml

    config = yaml.safe_load((folder / "config.yaml").read_text())
    hooks = {name: config[name] for name in ("feature_input_hook", "feature_output_hook", "scan")}
    if config["model_kind"] == "cross_layer_transcoder":
        from circuit_tracer.transcoder.cross_layer_transcoder import load_clt

        found = load_clt(str(folder), **hooks, device=torch.device("cpu"), dtype=torch.float32)
        codes, values = found.encode(torch.stack(x)), found(torch.stack(x))
    else:
        from circuit_tracer.transcoder.single_layer_transcoder import load_transcoder_set

        paths = {layer: str(folder / f"layer_{layer}.safetensors") for layer in range(len(x))}
        found = load_transcoder_set(paths, **hooks, device=torch.device("cpu"), dtype=torch.float32)
        codes = found.encode(torch.stack(x))
        values = found.decode(codes, torch.stack(x))
    return torch.cat(list(codes), dim=1), list(values)


def main(folder):
    acts = load_file(folder / "acts.safetensors")
    answers = {}
    for name, format_name, sources, targets in json.loads((folder / "cases.json").read_text()):
        with torch.no_grad():
            codes, values = globals()[format_name](folder / name, [acts[point] for point in sources])
        answers[f"{name}/codes"] = codes.float().contiguous()
        answers |= {f"{name}/{point}": value.contiguous() for point, value in zip(targets, values, strict=True)}
    save_file(answers, folder / "answers.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
