"""Files from elsewhere: nothing in them runs, and what would is refused in one sentence."""

import json
import os
import shutil

import pytest
import small
import torch
from command_line import conr, few_photos, written
from safetensors.torch import save_file

from conr_hf import load_regressor
from conr_hf.cli.report.figures import Section
from conr_hf.cli.report.page import page
from conr_hf.cli.yaml_loader import read_yaml
from conr_hf.models.saved import load_saved, saved_unit
from conr_hf.plots.style import new_figure, save
from conr_hf.training.conr_state import load_state
from conr_hf.utils.run_folder import STATE


class Hostile:
    """Pickled, it makes a file when it is read."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.fixture
def trace(tmp_path):
    """What hostile files make if they are run; the test fails if it is there in the end."""
    path = tmp_path / "it-ran"
    yield path
    assert not path.exists()


@pytest.fixture
def hostile(trace, tmp_path):
    """A file of weights with code among them, proved to be one: unguarded, it runs."""
    path = tmp_path / "hostile.pth"
    torch.save({"weight": torch.ones(1), "extra": Hostile(trace)}, path)
    torch.load(path, weights_only=False)
    trace.rmdir()
    return path


@pytest.fixture(scope="module")
def saved_models(tmp_path_factory):
    folders = {}
    for name in ("vit", "timm-resnet"):
        model, processor = small.models[name]()
        folders[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(folders[name])
        processor.save_pretrained(folders[name])
    return folders


def changed(folder, destination, file="config.json", **entries):
    """A copy of a model's folder with other entries in one of its files."""
    shutil.copytree(folder, destination)
    content = json.loads((destination / file).read_text())
    (destination / file).write_text(json.dumps({**content, **entries}))
    return destination


# ---- Weights and code ----------------------------------------------------------------------------------------------


def test_a_file_of_weights_with_code_in_it_is_refused(hostile):
    with pytest.raises(
        ValueError, match=r'weights=".*hostile\.pth" cannot be read: its weights are pickled with more'
    ):
        load_regressor("timm/test_resnet", weights=str(hostile))


@pytest.mark.parametrize("name", ["junk.pth", "junk.safetensors"])
def test_a_file_that_holds_no_weights_is_refused(name, tmp_path):
    (tmp_path / name).write_bytes(b"junk")
    with pytest.raises(ValueError, match=rf'weights=".*{name}" cannot be read: .*Give safetensors'):
        load_regressor("timm/test_resnet", weights=str(tmp_path / name))


def test_pickled_weights_of_a_model_are_never_opened(saved_models, hostile, tmp_path):
    folder = shutil.copytree(saved_models["vit"], tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    shutil.copy(hostile, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r'pickled" is not a saved model: .*no file named model\.safetensors'):
        load_saved(str(folder))
    with pytest.raises(ValueError, match=r'pickled" could not be loaded: its weights are pickled with more'):
        load_regressor(str(folder))


@pytest.mark.parametrize("open_model", [load_saved, load_regressor])
@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
def test_a_model_that_needs_code_of_its_own_is_refused_without_a_question(
    open_model, file, saved_models, trace, tmp_path, monkeypatch
):
    """transformers would ask on the terminal, and wait."""
    monkeypatch.setattr("builtins.input", lambda *question: pytest.fail("it asked"))
    own = {
        "config.json": {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}},
        "preprocessor_config.json": {"image_processor_type": "Own", "auto_map": {"AutoImageProcessor": "own.Own"}},
    }
    folder = changed(saved_models["vit"], tmp_path / "own", file, **own[file])
    (folder / "own.py").write_text(f"import os\nos.mkdir({str(trace)!r})\nclass Own:\n    pass\n")
    with pytest.raises(ValueError, match="it needs code that comes with it, which is never run"):
        open_model(str(folder))


def test_code_that_a_model_does_not_need_is_left_alone(saved_models, trace, tmp_path):
    """Configurations go on naming code that transformers has since taken in."""
    folder = changed(saved_models["vit"], tmp_path / "left", auto_map={"AutoModelForImageClassification": "own.Own"})
    (folder / "own.py").write_text(f"import os\nos.mkdir({str(trace)!r})\nclass Own:\n    pass\n")
    assert type(load_saved(str(folder))[0]).__module__.startswith("transformers.")


def test_trusting_code_is_no_option(saved_models):
    with pytest.raises(ValueError, match="trust_remote_code is True"):
        load_regressor(str(saved_models["vit"]), trust_remote_code=True)


def test_a_configuration_cannot_have_timm_read_a_file(saved_models, hostile, tmp_path):
    folder = changed(saved_models["timm-resnet"], tmp_path / "args", model_args={"checkpoint_path": str(hostile)})
    with pytest.raises(ValueError, match=r"names a checkpoint_path among model_args"):
        load_saved(str(folder))


@pytest.mark.parametrize(
    ("file", "content", "why"),
    [
        ("model.safetensors", "junk", "its safetensors file is damaged"),
        ("config.json", "[]", "holds no settings by name"),
        ("config.json", "{", "not a valid JSON"),
    ],
)
def test_a_damaged_model_is_one_sentence(file, content, why, saved_models, tmp_path):
    folder = shutil.copytree(saved_models["vit"], tmp_path / "damaged")
    (folder / file).write_text(content)
    with pytest.raises(ValueError, match=rf"is not a saved model: .*{why}"):
        load_saved(str(folder))


def test_a_damaged_state_beside_a_model_is_one_sentence(tmp_path):
    (tmp_path / STATE).write_bytes(b"junk")
    with pytest.raises(ValueError, match="is damaged or no file of conr_hf's"):
        load_state(str(tmp_path))
    save_file({"bins.edges.0": torch.ones(2)}, tmp_path / STATE)
    with pytest.raises(ValueError, match="is damaged or no file of conr_hf's"):
        load_state(str(tmp_path))


def test_a_checkpoint_with_code_in_it_is_not_resumed(trace, tmp_path):
    data = small.images(16)
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    small.build(*small.models["vit"](), tmp_path / "run", data, **options).train()
    foreign = shutil.copytree(tmp_path / "run" / "checkpoint-1", tmp_path / "checkpoint-1")
    for name in ("optimizer.pt", "rng_state.pth", "training_args.bin"):
        torch.save({"state": Hostile(trace)}, foreign / name)
    trainer = small.build(*small.models["vit"](), tmp_path / "other", data, **options)
    with pytest.raises(ValueError, match=r'checkpoint-1" cannot be read: its weights are pickled with more'):
        trainer.train(resume_from_checkpoint=str(foreign))


# ---- Options -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("model: x\ndata: !!python/object/apply:os.mkdir [it-ran]", "line 2: could not determine a constructor"),
        ("a: &a [1, 1]\nb: &b [*a, *a]\nc: [*b, *b]", r"line 2: aliases \(\*name\) are not read"),
        ("[" * 50_000, "this is not YAML"),
        ("model: x\n---\nmodel: y", "line 2: .*Write plain values"),
        ("day: 2024-99-99", "this is not YAML"),
        ("model: \0", "this is not YAML"),
    ],
)
def test_hostile_yaml_is_one_sentence(text, why, tmp_path, trace, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(text)
    for command in ("train", "compare"):
        ended = conr(command, tmp_path / "r.yaml")
        assert ended.code == 2
        assert len(ended.err.strip().splitlines()) == 1
    with pytest.raises(ValueError, match=rf"r\.yaml.*{why}"):
        read_yaml(tmp_path / "r.yaml")


def test_a_file_of_many_megabytes_is_not_read_for_options(tmp_path):
    (tmp_path / "r.yaml").write_text("model: x\n" * 1_200_000)
    ended = conr("train", tmp_path / "r.yaml")
    assert (ended.code, ended.err.count("10.8 MB")) == (2, 1)


def test_a_first_stage_is_held_to_the_same_rules(tmp_path):
    data = few_photos(tmp_path / "photos")
    bomb = "{a: &a [1], b: *a}"
    ended = conr("train", written(tmp_path / "r.yaml", data=str(data), output_dir=str(tmp_path / "o"), stage_one=bomb))
    assert ended.code == 2
    assert "must name options" in ended.err


# ---- Results -------------------------------------------------------------------------------------------------------


def test_names_and_units_are_shown_and_nothing_else():
    """A run's folder may come from anyone; its page may be opened anywhere."""
    script, link = "<script>alert(1)</script>", "[x](javascript:alert(1))"
    section = Section(f"run {script}", [("density", f"Errors of {link}")], [f"Left out: {script}"], {})
    rows = [["test", f"{script}|"], [f"MAE ({script})", "1"]]
    for together in (None, section):
        text = page(together, [(section, f"{script} (1)/")], rows, [f"`{link}"], "test", script)
        assert "<" not in text
        assert "\\[x\\](javascript" in text
        assert "[x](" not in text
        assert "(%3Cscript%3Ealert%281%29%3C/script%3E%20%281%29/density.png)" in text
        assert "&lt;script&gt;alert(1)&lt;/script&gt;\\|" in text


def test_dollars_in_names_and_units_are_no_mathematics(tmp_path):
    figure = new_figure(2, 2)
    panel = figure.add_subplot()
    panel.set_ylabel(r"price ($\nosuch$)")
    save(figure, tmp_path / "price.svg")
    assert r"price ($\nosuch$)" in (tmp_path / "price.svg").read_text()


def test_results_that_are_no_results_have_no_unit(tmp_path):
    (tmp_path / "results.json").write_text("[]")
    assert saved_unit(str(tmp_path)) == ""
