"""What of a run's folder is for others, and what of its JSON is not."""

import json

import pytest

from conr_hf.cli.recipe import read_recipe
from conr_hf.hub.provenance import strip_paths
from conr_hf.hub.upload_files import checkpoint_upload_files, upload_files

SECRET = "hf_" + "NobodyMayEverReadThis0123456789012"


def folder_of(path, *names, **contents):
    """A folder with files of that name, and JSON files with that content."""
    path.mkdir(parents=True, exist_ok=True)
    for name in names:
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text("{}" if name.endswith(".json") else name)
    for name, content in contents.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("/home/ada/my faces", "my faces"),
        ("/home/ada/faces/", "faces"),
        ("~/faces/age", "age"),
        (r"C:\Users\ada\faces.csv", "faces.csv"),
        ("C:/Users/ada/faces.csv", "faces.csv"),
        (r"\\server\ada\faces", "faces"),
        ("file:///home/ada/faces", "faces"),
        ("--data=/srv/ada/faces --unit years", "--data=faces --unit years"),
        ("{weights: '/srv/ada/w.pt', reweight: none}", "{weights: 'w.pt', reweight: none}"),
        ("root=/srv/ada/agedb, csv=/srv/ada/agedb.csv", "root=agedb, csv=agedb.csv"),
        ("https://hf.co/ada/faces/tree/main", "https://hf.co/ada/faces/tree/main"),
        ("hf://datasets/ada/faces", "hf://datasets/ada/faces"),
        ("runs/first/checkpoint-3", "runs/first/checkpoint-3"),
        ("../data/faces", "../data/faces"),
        ("timm/resnet10t", "timm/resnet10t"),
        ("people /km2", "people /km2"),
        ("km/h, m/s", "km/h, m/s"),
        ("12/05/2026", "12/05/2026"),
    ],
)
def test_an_absolute_path_is_cut_to_its_last_part_and_nothing_else_is(text, cut):
    assert strip_paths({"a": [text, 1.5, None]}) == {"a": [cut, 1.5, None]}


def test_what_goes_up_is_named_and_all_else_stays(tmp_path):
    public = [
        *("config.json", "preprocessor_config.json", "model.safetensors", "README.md", "density.png"),
        *("intervals.json", "results.json", "conr_state.safetensors"),
    ]
    private = [
        *(
            "training_args.bin",
            "trainer_state.json",
            "predictions.csv",
            "recipe.yaml",
            "optimizer.pt",
            "rng_state.pth",
        ),
        *("notes.txt", "worst.png", "photo.jpg", ".env", "report/index.md", "checkpoint-3/model.safetensors"),
        "stage-one/config.json",
    ]
    assert set(upload_files(folder_of(tmp_path, *public, *private))) == set(public)


def test_shards_go_up_as_the_index_has_them(tmp_path):
    index = {
        "metadata": {},
        "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"},
    }
    shards = sorted(index["weight_map"].values())
    folder = folder_of(tmp_path, "config.json", *shards, "model-00001-of-00003.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert set(upload_files(folder)) == {"config.json", "model.safetensors.index.json", *shards}


def test_an_adapter_goes_up_without_the_place_of_its_base(tmp_path):
    folder = folder_of(
        tmp_path, "adapter_model.safetensors", adapter_config={"base_model_name_or_path": "/home/ada/vit"}
    )
    files = upload_files(folder)
    assert set(files) == {"adapter_config.json", "adapter_model.safetensors"}
    assert json.loads(files["adapter_config.json"]) == {"base_model_name_or_path": "vit"}


def test_a_checkpoint_goes_up_with_what_a_resume_needs(tmp_path):
    state = [
        "optimizer.pt",
        "scheduler.pt",
        "scaler.pt",
        "rng_state_0.pth",
        "rng_state_1.pth",
        "conr_state.safetensors",
    ]
    model = ["config.json", "model.safetensors"]
    folder = folder_of(tmp_path, *model, *state, "training_args.bin", "rng_state_x.pth", trainer_state={"epoch": 1.0})
    assert set(checkpoint_upload_files(folder)) == {*model, *state, "trainer_state.json"}


def test_results_go_up_without_paths_and_tokens_and_stay_as_they_are(tmp_path):
    results = {
        "command": f"conr-hf train '/home/ada/my recipes/age.yaml' '--output_dir=/home/ada/my runs' --note {SECRET}",
        "recipe": {"data": "/home/ada/faces", "output_dir": "/home/ada/my runs/age", "hub_token": SECRET, "seed": 3},
        "unit": "people /km2",
    }
    folder = folder_of(tmp_path, "model.safetensors", results=results, config={"label_names": ["age"]})
    before = (folder / "results.json").read_bytes()
    files = upload_files(folder)
    assert json.loads(files["results.json"]) == {
        "command": "conr-hf train age.yaml '--output_dir=my runs' --note ...",
        "recipe": {"data": "faces", "output_dir": "age", "seed": 3},
        "unit": "people /km2",
    }
    assert (folder / "results.json").read_bytes() == before
    assert files["config.json"] == folder / "config.json"  # with nothing to hide, the file itself


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["config.json"], "it has no model.safetensors"),
        (None, "there is no such folder"),
        (["config.json", "model.safetensors.index.json"], "it has no model.safetensors"),
    ],
)
def test_a_folder_without_a_model_is_refused(tmp_path, names, said):
    folder = tmp_path / "run" if names is None else folder_of(tmp_path / "run", *names)
    with pytest.raises(ValueError, match=said):
        upload_files(folder)


def test_a_model_without_one_of_its_shards_is_refused(tmp_path):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    folder = folder_of(tmp_path, "config.json", "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"it has no model-00002-of-00002\.safetensors"):
        upload_files(folder)


def test_a_recipe_is_kept_without_its_token(tmp_path):
    given = ["--model", "timm/test_resnet", "--benchmark", "earth-elevation", "--output_dir", str(tmp_path)]
    _, args, options = read_recipe([*given, "--hub_token", SECRET, "--hub_model_id", "ada/age"])
    assert args.hub_token == SECRET
    assert options["hub_model_id"] == "ada/age"
    assert "hub_token" not in options
