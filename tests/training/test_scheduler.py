"""The learning rate that drops at epochs, resumed or not, and the recipes that use it."""

import json
import math

import datasets
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from resumed import Stop, assert_same_run
from small import build, images, models
from transformers import AutoConfig

from conr_hf import ConRConfig
from conr_hf.cli.recipe import packaged, read_recipe
from conr_hf.cli.recipe_data import load_data
from conr_hf.cli.train import train
from conr_hf.training.scheduler import multistep_schedule

ROWS = 21


def run(folder, stop=None, weights=0, **changed):
    model, processor = models["vit"]()
    torch.manual_seed(weights)
    settings = {
        "per_device_train_batch_size": 4,
        "num_train_epochs": 4,
        "learning_rate": 1e-3,
        "lr_drop_epochs": [1, 3],
        "save_strategy": "steps",
        "save_steps": 2,
        "callbacks": [Stop(stop)] if stop is not None else [],
        **changed,
    }
    return build(model, processor, folder, images(ROWS), **settings)


def rates(trainer):
    return [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("drop_last", [False, True])
def test_the_rate_drops_when_the_epoch_begins(tmp_path, accumulation, drop_last):
    """The published code sets a tenth from the first step of (0-based) epoch 60 on."""
    trainer = run(tmp_path, gradient_accumulation_steps=accumulation, dataloader_drop_last=drop_last)
    trainer.train()
    steps = trainer.state.global_step // 4
    assert trainer.loaders.steps_per_epoch() == steps == math.ceil((5 if drop_last else 6) / accumulation)
    factors = [1.0] * steps + [0.1] * (2 * steps) + [0.01] * steps
    assert rates(trainer) == pytest.approx([1e-3 * factor for factor in factors])
    # The head's group, whose rate is scaled, drops with the others.
    last = [group["lr"] for group in trainer.optimizer.param_groups]
    first = [group["initial_lr"] for group in trainer.optimizer.param_groups]
    assert last == pytest.approx([0.01 * rate for rate in first])
    assert len(set(first)) > 1


def test_epochs_are_counted_where_steps_are_given(tmp_path):
    trainer = run(tmp_path, max_steps=8)
    trainer.train()
    assert rates(trainer) == pytest.approx([1e-3] * 6 + [1e-4] * 2)


def test_the_rise_comes_before_the_drops():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    schedule, found = multistep_schedule(optimizer, [4], warmup_steps=2), []
    for _ in range(6):
        found.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert found == pytest.approx([0, 1, 2, 2, 0.2, 0.2])


@pytest.mark.parametrize("stop", [5, 9])
def test_resumed_equals_uninterrupted_across_a_drop(tmp_path, stop):
    """Before and after the first drop."""
    whole = run(tmp_path / "whole")
    whole.train()
    run(tmp_path / "stopped", stop=stop).train()
    late = run(tmp_path / "stopped", weights=1)
    late.train(resume_from_checkpoint=True)
    assert_same_run(late, whole)


def test_two_schedules_are_refused():
    with pytest.raises(ValueError, match=r"^lr_drop_epochs is \[60, 80\] and lr_scheduler_type cosine, .*Leave one"):
        ConRConfig("out", lr_drop_epochs=[60, 80], lr_scheduler_type="cosine")
    assert ConRConfig("out", lr_drop_epochs=[60, 80], lr_scheduler_type="linear").lr_drop_epochs == [60, 80]


# ---- The recipes that use it ----------------------------------------------------------------------------------------

FILES = {"agedb-dir": ("agedb.csv", "AgeDB"), "imdb-wiki-dir": ("imdb_wiki.csv", "imdb_crop/07")}


def published(folder, name):
    """A folder of the form in which the benchmark is published."""
    table, images_in = FILES[name]
    random, lines = np.random.default_rng(0), ["age,path,split"]
    (folder / images_in).mkdir(parents=True)
    for index in range(20):
        age, split = int(random.integers(1, 90)), ("train", "train", "train", "val", "test")[index % 5]
        pixels = random.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / images_in / f"{index}_{age}.png")
        lines.append(f"{age},{images_in}/{index}_{age}.png,{split}")
    (folder / table).write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize("name", FILES)
def test_the_papers_recipes_run(tmp_path, name, monkeypatch, capsys):
    """With their own model, optimizer, losses and schedule, on small images."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    small = {
        "benchmark_source": published(tmp_path / "faces", name),
        "image_size": 32,
        "per_device_train_batch_size": 6,
        "max_steps": 4,
        "lr_drop_epochs": 1,
        "dataloader_num_workers": 0,
        "logging_steps": 1,
        "report_to": "none",
        "output_dir": tmp_path / "out",
    }
    given = [f"recipes/paper/{name}.yaml", *(f"--{key}={value}" for key, value in small.items())]
    train(*read_recipe(given), "conr-hf train")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["unit"], results["steps"]) == ("years", 4)
    assert results["recipe"]["benchmark_source"] == str(tmp_path / "faces")
    resolved = results["conr"]
    found = [resolved[key] for key in ("label_scale", "weight", "window", "push_scale", "temperature", "num_views")]
    assert found == [1, 4, 1, 0.01, 0.07, 2]
    (edges,) = results["bins"]["edges"]
    assert np.allclose(np.diff(edges), 1)
    assert results["test"]["all"]["n"] == 4
    assert AutoConfig.from_pretrained(tmp_path / "out").id2label == {0: "age"}
    steps = [line for line in capsys.readouterr().out.splitlines() if "learning rate" in line]
    assert ["2.5e-04" in line for line in steps] == [True, True, False, False]
    assert all("2.5e-05" in line for line in steps[2:])


def test_a_plateau_of_a_metric_that_should_grow_is_waited_for_in_its_direction(tmp_path):
    """As a minimum, every epoch that got better would count as a bad one."""
    data, given = images(8), {"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"patience": 0}}
    trainer = build(*models["resnet"](), tmp_path, data, data, metric_for_best_model="eval_pearson", **given)
    trainer.train()
    assert (trainer.lr_scheduler.mode, trainer.lr_scheduler.patience) == ("max", 0)
    start = trainer.lr_scheduler.best
    for better in (0.1, 0.2):
        trainer.lr_scheduler.step(start + better)
    assert trainer.lr_scheduler.num_bad_epochs == 0


@pytest.mark.parametrize("name", FILES)
def test_the_papers_recipes_have_the_papers_settings(name):
    options = yaml.safe_load(packaged(f"paper/{name}").read_text())
    args = ConRConfig("out", optim=options["optim"], weight_decay=options["weight_decay"])
    assert (args.optim, args.adam_beta1, args.adam_beta2, args.adam_epsilon) == ("adamw_torch", 0.9, 0.999, 1e-8)
    expected = {"learning_rate": 2.5e-4, "weight_decay": 0, "lr_drop_epochs": [60, 80], "pretrained": False}
    assert {key: options[key] for key in expected} == expected
    assert options["num_train_epochs"] == {"agedb-dir": 120, "imdb-wiki-dir": 90}[name]
    assert round(224 * options["crop_padding"]) == 16


def test_adamw_without_decay_is_adam():
    """As the recipes say."""
    weights = [torch.ones(3, requires_grad=True) for _ in range(2)]
    both = torch.optim.AdamW([weights[0]], lr=0.1, weight_decay=0), torch.optim.Adam([weights[1]], lr=0.1)
    for step in range(5):
        for weight, optimizer in zip(weights, both, strict=True):
            optimizer.zero_grad()
            ((weight - step) ** 3).sum().backward()
            optimizer.step()
    assert torch.equal(*weights)


def test_a_recipe_of_a_benchmark_that_is_not_there():
    recipe, args, _ = read_recipe(["recipes/paper/agedb-dir.yaml"])
    with pytest.raises(ValueError, match=r"does not come with the package\. .*ibug.*--benchmark_source FOLDER\."):
        load_data(recipe, args)
