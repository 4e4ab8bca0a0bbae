"""Images from files to rows: the stored rows are the model's for the pixels of the image, patch by patch."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from PIL import Image
from small_job import digests

from pipeline.collection.prepare import prepare, table_url
from pipeline.collection.spot_check import spot_check
from pipeline.collection.unit import UnitCollector, collect_units
from pipeline.planning.jobs import plan
from pipeline.store.reader import Store
from pipeline.tokens.table import build_table
from schemas.collect import CollectSpec
from schemas.errors import CorpusError, HookPointError, MismatchError, MissingError, SpecError
from schemas.plan import PlanAssumptions

SIZE, PATCH, WIDTH, NUM_IMAGES = 24, 8, 16, 7
_SAME: dict[str, Any] = {
    "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "image_size": SIZE, "patch_size": PATCH,
}  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, Any], int]] = {
    "vit": ("ViT", _SAME, 1),
    "clip": ("CLIPVision", _SAME, 1),
    "dinov2": ("Dinov2", {**_SAME, "mlp_ratio": 2}, 1),
    "registers": ("Dinov2WithRegisters", {**_SAME, "mlp_ratio": 2, "num_register_tokens": 2}, 3),
    "siglip": ("SiglipVision", _SAME, 0),
    "dinov3": ("DINOv3ViT", {**_SAME, "num_register_tokens": 2}, 3),
}
PROCESSOR = {"do_resize": True, "size": {"height": SIZE, "width": SIZE}, "resample": 2,
             "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}  # fmt: skip


def save_model(kind: str, folder: Path, **processor: Any) -> Any:
    name, settings, _ = MODELS[kind]
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({**PROCESSOR, **processor}))
    return model.eval()


def picture(index: int, size: tuple[int, int] = (SIZE, SIZE)) -> Image.Image:
    values = np.random.default_rng(index).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


def encoded(image: Image.Image) -> bytes:
    sink = io.BytesIO()
    image.save(sink, "PNG")
    return sink.getvalue()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for index in range(NUM_IMAGES):
        (folder / f"{index}.png").write_bytes(encoded(picture(index)))
    return folder


def spec_of(folder: Path, photos: Path, output: Path, /, **changes: Any) -> CollectSpec:
    corpus = {"format": "images", "urls": [f"{photos}/*.png"], **changes.pop("corpus", {})}
    return CollectSpec.model_validate(
        {
            "model": {"path": str(folder), "kind": "vision", "dtype": "float32", "device": "cpu"},
            "tokens": {"corpus": corpus, "held_out_fraction": 0.3, "part_size": "4KiB"},
            "hook_points": ["blocks.0.hook_resid_post", "blocks.1.mlp.hook_post"],
            "batch_tokens": 25,
            "storage": {"dtype": "float32", "chunk_rows": 4, "shard_rows": 16},
            "output": str(output),
        }
        | changes
    )


def collected(spec: CollectSpec) -> Store:
    table = build_table(spec.tokens, spec.model, url=table_url(spec), shard_rows=spec.storage.shard_rows)
    for one in prepare(spec, table):
        collector = UnitCollector.open(one.of)
        for _ in collect_units(collector, one.units):
            pass
        collector.writer.finish()
    return Store.open(spec.output)


def normalised(image: Image.Image) -> torch.Tensor:
    values = np.asarray(image, dtype=np.float64) / 255
    values = (values - PROCESSOR["image_mean"]) / np.array(PROCESSOR["image_std"])
    return torch.from_numpy(values.transpose(2, 0, 1)).float()


@pytest.mark.parametrize("kind", MODELS)
def test_every_row_is_what_the_model_computes_for_its_patch(kind: str, photos: Path, tmp_path: Path) -> None:
    model, num_specials = save_model(kind, tmp_path / "model"), MODELS[kind][2]
    spec = spec_of(tmp_path / "model", photos, tmp_path / "store")
    store = collected(spec)
    per_image = num_specials + (SIZE // PATCH) ** 2
    assert store.num_rows == NUM_IMAGES * per_image
    tokens = store.tokens()
    np.testing.assert_array_equal(tokens.position, np.tile(np.arange(per_image), NUM_IMAGES))
    np.testing.assert_array_equal(tokens.token_id, tokens.position)
    assert sorted(store.record.specials.values()) == list(range(num_specials))
    table = build_table(spec.tokens, spec.model, url=table_url(spec), shard_rows=16)
    got = store.read_values("blocks.0.hook_resid_post", 0, store.num_rows)
    for document_id in range(NUM_IMAGES):
        index = int(str(table.document(document_id)["name"]).removesuffix(".png"))
        with torch.no_grad():
            states = model(normalised(picture(index))[None], output_hidden_states=True).hidden_states[1][0]
        np.testing.assert_allclose(got[tokens.document_id == document_id], states.numpy(), rtol=1e-4, atol=1e-4)


def test_parquet_rows_give_the_rows_of_files_and_a_retry_the_same_bytes(photos: Path, tmp_path: Path) -> None:
    save_model("vit", tmp_path / "model")
    names = sorted(photos.glob("*.png"))
    (tmp_path / "data").mkdir()
    column = pa.array([{"bytes": one.read_bytes(), "path": one.name} for one in names])
    pq.write_table(pa.table({"image": column}), tmp_path / "data" / "a.parquet", row_group_size=3)
    in_order = {"held_out_fraction": 0.3, "file_order": "sorted"}
    whole = spec_of(tmp_path / "model", photos, tmp_path / "a" / "store")
    whole = whole.model_copy(update={"tokens": whole.tokens.model_copy(update=in_order)})
    rows = spec_of(tmp_path / "model", photos, tmp_path / "b" / "store",
                   corpus={"urls": [f"{tmp_path}/data/*.parquet"], "image_field": "image"})  # fmt: skip
    first, second = collected(whole), collected(rows)
    for hook in whole.hook_points:
        np.testing.assert_array_equal(
            first.read_values(hook, 0, first.num_rows), second.read_values(hook, 0, second.num_rows)
        )
    np.testing.assert_array_equal(first.tokens().held_out, second.tokens().held_out)
    collected(rows.model_copy(update={"output": str(tmp_path / "c" / "store")}))
    assert digests(tmp_path / "b" / "store") == digests(tmp_path / "c" / "store")
    assert [one.is_low_bits for one in spot_check(rows.output, 2)] == [True] * 4


def test_images_are_fitted_as_the_model_or_the_spec_says(tmp_path: Path) -> None:
    """The shorter side is resized and the middle kept, by Pillow's own filter."""
    model = save_model("vit", tmp_path / "model", size={"shortest_edge": 30}, do_center_crop=True, resample=3)
    (tmp_path / "photos").mkdir()
    image = picture(3, (80, 40))
    (tmp_path / "photos" / "wide.png").write_bytes(encoded(image))
    cropped = image.resize((60, 30), Image.Resampling.BICUBIC).crop((18, 3, 18 + SIZE, 3 + SIZE))
    stretched = image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    for name, corpus, seen in (
        ("a", {}, cropped), ("b", {"fit": "stretch", "resample": "lanczos"}, stretched),
    ):  # fmt: skip
        store = collected(spec_of(tmp_path / "model", tmp_path / "photos", tmp_path / name / "store", corpus=corpus))
        with torch.no_grad():
            states = model(normalised(seen)[None], output_hidden_states=True).hidden_states[1][0].numpy()
        got = store.read_values("blocks.0.hook_resid_post", 0, store.num_rows)
        np.testing.assert_allclose(got, states, rtol=1e-4, atol=1e-4)


def test_of_a_model_of_text_and_images_the_part_that_sees_is_run(photos: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    text = {**_SAME, "vocab_size": 40, "max_position_embeddings": 9, "eos_token_id": 2}
    config = transformers.CLIPConfig(text_config=text, vision_config=_SAME)
    model = transformers.CLIPModel(config).eval()
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    store = collected(spec_of(tmp_path / "model", photos, tmp_path / "store"))
    name = "2.png"
    spec = spec_of(tmp_path / "model", photos, tmp_path / "store")
    table = build_table(spec.tokens, spec.model, url=table_url(spec), shard_rows=16)
    names = table.documents().column("name").to_pylist()
    with torch.no_grad():
        seen = model.vision_model(normalised(picture(2))[None], output_hidden_states=True).hidden_states[1][0]
    got = store.read_values("blocks.0.hook_resid_post", 0, store.num_rows)
    np.testing.assert_allclose(got[store.tokens().document_id == names.index(name)], seen.numpy(), rtol=1e-4, atol=1e-4)


def test_a_patterns_rows_are_those_of_the_patches(photos: Path, tmp_path: Path) -> None:
    save_model("vit", tmp_path / "model")
    spec = spec_of(tmp_path / "model", photos, tmp_path / "store", hook_points=["blocks.1.attn.hook_pattern"])
    spec = spec.model_copy(update={"model": spec.model.model_copy(update={"attention": "eager"})})
    got = collected(spec).read_values("blocks.1.attn.hook_pattern", 0, 70)
    np.testing.assert_allclose(got.reshape(70, 2, 10).sum(axis=2), 1, rtol=1e-5)


def test_a_module_of_the_user_sees_images_too(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Built as timm's ViT is, blocks in a sequence; what its files do not say, the spec does."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setenv("HEADWORKS_ALLOWED_IMPORTS", "timm_like")
    corpus = {"size": SIZE, "patch_size": PATCH, "special_tokens": ["cls"], "resample": "bilinear",
              "fit": "stretch", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}  # fmt: skip
    spec = spec_of(tmp_path, photos, tmp_path / "store", corpus=corpus,
                   hook_points=["blocks.0.hook_resid_mid", "blocks.1.attn.hook_z", "blocks.1.hook_resid_post"],
                   model={"path": "python:timm_like.build", "kind": "vision", "dtype": "float32"})  # fmt: skip
    store = collected(spec)
    from timm_like import build

    network, tokens = build(), store.tokens()
    table = build_table(spec.tokens, spec.model, url=table_url(spec), shard_rows=16)
    index = int(str(table.document(2)["name"]).removesuffix(".png"))
    with torch.no_grad():
        expected = network(normalised(picture(index))[None])[0].numpy()
    got = store.read_values("blocks.1.hook_resid_post", 0, store.num_rows)[tokens.document_id == 2]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_a_plan_counts_the_patches(photos: Path, tmp_path: Path) -> None:
    save_model("vit", tmp_path / "model")
    spec = spec_of(tmp_path / "model", photos, tmp_path / "store")
    (job,) = plan(spec, PlanAssumptions(), measured=True).jobs
    assert job.store is not None
    assert (job.store.rows.value, job.store.rows.standard_error) == (NUM_IMAGES * 10, 0)
    assert job.store.hook_points == {"blocks.0.hook_resid_post": WIDTH, "blocks.1.mlp.hook_post": 24}
    assert job.store.flop > 0
    assert job.time is not None


def test_another_image_under_the_same_name_is_refused(photos: Path, tmp_path: Path) -> None:
    save_model("vit", tmp_path / "model")
    shutil.copytree(photos, tmp_path / "photos")
    spec = spec_of(tmp_path / "model", tmp_path / "photos", tmp_path / "store")
    table = build_table(spec.tokens, spec.model, url=table_url(spec), shard_rows=16)
    (one,) = prepare(spec, table)
    collector = UnitCollector.open(one.of)
    name = str(table.document(0)["name"])
    (tmp_path / "photos" / name).write_bytes(encoded(picture(99)))
    with pytest.raises(MismatchError, match=f"image {name} at .* is not the one"):
        collector.collect(0)
    (tmp_path / "photos" / name).unlink()
    with pytest.raises(MissingError, match=f"image {name} of the token table"):
        UnitCollector.open(one.of).collect(0)


def test_mistakes_are_named(photos: Path, tmp_path: Path) -> None:
    save_model("vit", tmp_path / "model")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"no image at all")
    with pytest.raises(CorpusError, match=r"a\.png.*cannot be read"):
        collected(spec_of(tmp_path / "model", tmp_path / "bad", tmp_path / "a" / "store"))
    wrong = spec_of(tmp_path / "model", photos, tmp_path / "b" / "store", corpus={"special_tokens": ["cls", "two"]})
    with pytest.raises(HookPointError, match="gives 10 rows for an image, the token table has 11"):
        collected(wrong)
    (tmp_path / "model" / "preprocessor_config.json").unlink()
    with pytest.raises(SpecError, match=r"tokens\.corpus\.\w+: the model's files do not say it"):
        collected(spec_of(tmp_path / "model", photos, tmp_path / "c" / "store"))
    facts = wrong.model_dump()
    with pytest.raises(ValueError, match="go together"):
        CollectSpec.model_validate({**facts, "model": {"path": "x", "kind": "causal_lm"}})
    facts["tokens"]["packing"]["context_length"] = 9
    with pytest.raises(ValueError, match="leave both out"):
        CollectSpec.model_validate(facts)
