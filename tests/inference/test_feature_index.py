"""The feature index beside a model: what is read is what was written."""

import numpy as np
import small

from conr_hf.inference import feature_index


def test_arrays_keep_their_places_whatever_their_order_in_memory(tmp_path, monkeypatch):
    """safetensors takes the memory of an array as it lies, and would mix up columns and rows."""
    model, processor = small.models["timm-resnet"]()
    model.save_pretrained(tmp_path)
    random = np.random.default_rng(0)
    features = np.asfortranarray(random.normal(size=(6, 4)).astype(np.float32))
    labels = np.asfortranarray(random.normal(size=(6, 2)))
    monkeypatch.setattr(feature_index, "embed", lambda *_, **__: (features, np.arange(6)))
    args = small.settings(tmp_path)
    feature_index.write_index(args, processor, None, np.arange(6), labels)
    found = feature_index.load_index(str(tmp_path))
    assert np.array_equal(found.features, features.astype(np.float16))
    assert np.array_equal(found.labels, labels)
