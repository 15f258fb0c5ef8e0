"""Edits on disk: JSON, with their tensors beside it."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from interp.interventions.edits import Edit, Site
from interp.loading.files import open_safetensors, read_json, replacing

_FORMAT = "interp edits"


def save(edits: Sequence[Edit], path: str | os.PathLike[str]) -> None:
    """Write edits to a .json file; their tensors lie beside it, in a .safetensors file of the same name."""
    file, tensors = Path(path), {}
    if file.suffix != ".json":
        raise ValueError(f"{file}: edits are saved to a file that ends in .json")
    text = json.dumps({"format": _FORMAT, "edits": [_to_json(edit, tensors) for edit in edits]}, indent=1)
    beside = file.with_suffix(".safetensors")
    if tensors and beside.exists() and not _is_ours(file):
        raise FileExistsError(
            f"{beside} is there and is not of edits: to save to {file} would replace it; choose another name"
        )
    if tensors:
        with replacing(beside) as unfinished:
            save_file(tensors, unfinished)
    with replacing(file) as unfinished:
        unfinished.write_text(text)


def load(path: str | os.PathLike[str]) -> list[Edit]:
    """The edits that `save` wrote."""
    file = Path(path)
    content, beside = read_json(file), file.with_suffix(".safetensors")
    if content.get("format") != _FORMAT or not isinstance(content.get("edits"), list):
        raise ValueError(f"{file} holds no edits: it has {list(content)[:8]}")
    try:
        edits = [_from_json(each, beside) for each in content["edits"]]
    except (AttributeError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise ValueError(f"{file} cannot be read: {error!r}; its tensors are in {beside}") from None
    if wrong := [each for each in edits if not (isinstance(each, Edit) and isinstance(each.site, Site))]:
        raise ValueError(f"{file} cannot be read: {wrong[0]!r} is no edit at a site")
    return edits


def _is_ours(file: Path) -> bool:
    return file.exists() and read_json(file).get("format") == _FORMAT


def _to_json(thing: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(thing, Tensor):
        tensor = thing.detach().cpu().clone().contiguous()
        digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
        name = digest.hexdigest()[:16]  # so that a file beside another's tensors is found out
        tensors[name] = tensor
        return {"tensor": name}
    if isinstance(thing, slice):
        return {"slice": [thing.start, thing.stop, thing.step]}
    if isinstance(thing, Site | Edit):
        content = {each.name: _to_json(getattr(thing, each.name), tensors) for each in fields(thing)}
        kind = {"edit": type(thing).__name__} if isinstance(thing, Edit) else {}
        return kind | {k: v for k, v in content.items() if v is not None}
    return list(thing) if isinstance(thing, Sequence) and not isinstance(thing, str) else thing


def _from_json(thing: Any, beside: Path) -> Any:
    if not isinstance(thing, dict):
        return thing
    if "tensor" in thing:
        return open_safetensors(beside).get_tensor(thing["tensor"])
    if "slice" in thing:
        return slice(*thing["slice"])
    content = {k: _from_json(v, beside) for k, v in thing.items() if k != "edit"}
    if "edit" not in thing:
        return Site(**content)
    if thing["edit"] not in Edit.kinds:
        raise ValueError(f"no kind of edit: {thing['edit']!r}; there are {list(Edit.kinds)}")
    return Edit.kinds[thing["edit"]](**content)
