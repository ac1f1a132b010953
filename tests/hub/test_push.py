"""Runs sent through the Hub's own client to a server on this machine: what arrives, and what happens if it fails."""

import csv
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import huggingface_hub.constants
import pytest
from command_line import ROOT, TEST_LABELS, TRAIN_LABELS, conr, photos, written
from hub_server import READER, TOKEN, Failure, Repo, running_hub
from huggingface_hub import CommitInfo, HfApi
from safetensors.torch import load_file
from small import build, images, models
from transformers import TrainerCallback

import conr_hf.hub.api

MODEL = ["config.json", "model.safetensors", "preprocessor_config.json"]
RESUME = ["conr_state.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json"]
TOP = sorted([*MODEL, "conr_state.safetensors"])
CHECKPOINT = sorted([*MODEL, *RESUME])


@pytest.fixture
def hub(monkeypatch):
    """A Hub that this process's client speaks to, without Xet and without waiting."""
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(seconds / 1000))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", os.devnull)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with running_hub() as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        monkeypatch.setattr(conr_hf.hub.api, "HUB", HfApi(endpoint=server.url))
        yield server


def trainer_of(folder, **changed):
    """A trainer for two epochs of two steps, that pushes."""
    pushes = {"push_to_hub": True, "hub_token": TOKEN, "num_train_epochs": 2}
    return build(*models["vit"](), folder / "run", images(16), images(8, seed=1), **{**pushes, **changed})


def files_of(hub, name="ada/run", branch="main"):
    return hub.repos[name].files[branch]


def commits_of(hub, name="ada/run"):
    return [(commit.message, commit.names) for commit in hub.repos[name].commits]


def assert_nothing_private(hub, *secrets):
    """That no body received, and no file in it, holds a secret."""
    everything = [*hub.bodies, *(data for repo in hub.repos.values() for data in repo.files["main"].values())]
    assert len(everything) > 5
    for secret in (TOKEN, "training_args", *map(str, secrets)):
        assert not [data[:200] for data in everything if secret.encode() in data], secret


# ---- Strategies -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "places"),
    [
        ("end", None),
        ("every_save", []),
        ("checkpoint", ["last-checkpoint", "last-checkpoint"]),
        ("all_checkpoints", ["checkpoint-2", "checkpoint-4"]),
    ],
)
def test_each_strategy_sends_its_files_and_no_others(hub, tmp_path, strategy, places):
    trainer = trainer_of(tmp_path, hub_strategy=strategy, hub_always_push=True)
    trainer.train()
    shutil.copytree(tmp_path / "run" / "checkpoint-4", tmp_path / "run" / "stage-one")
    (tmp_path / "run" / "photo.png").write_bytes(b"of somebody")
    commit = trainer.push_to_hub()
    assert commit.repo_url.repo_id == "ada/run"
    assert set(files_of(hub)) == {*TOP, "README.md", *(f"{p}/{name}" for p in places or [] for name in CHECKPOINT)}
    messages = [message for message, _ in commits_of(hub)]
    during = [] if places is None else ["Training in progress, epoch 1", "Training in progress, epoch 2"]
    after_each = ["", ", checkpoint"] if places else [""]
    assert messages == [*(f"{message}{part}" for message in during for part in after_each), "End of training"]
    assert_nothing_private(hub, tmp_path)
    best = load_file(tmp_path / "run" / "model.safetensors")
    (tmp_path / "received.safetensors").write_bytes(files_of(hub)["model.safetensors"])
    received = load_file(tmp_path / "received.safetensors")
    assert all((received[name] == tensor).all() for name, tensor in best.items())
    assert not list((tmp_path / "run").glob(".push*"))


def test_training_goes_on_from_a_checkpoint_of_the_hub_bit_for_bit(hub, tmp_path):
    trainer_of(tmp_path / "a", hub_strategy="all_checkpoints", hub_always_push=True).train()
    for name, content in files_of(hub).items():
        (tmp_path / "from-hub" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "from-hub" / name).write_bytes(content)
    shutil.rmtree(tmp_path / "a" / "run" / "checkpoint-2")
    resumed = trainer_of(tmp_path / "b", push_to_hub=False)
    resumed.train(resume_from_checkpoint=str(tmp_path / "from-hub" / "checkpoint-2"))
    first, second = (load_file(tmp_path / part / "run/checkpoint-4/model.safetensors") for part in ("a", "b"))
    assert all((first[name] == tensor).all() for name, tensor in second.items())


@pytest.mark.parametrize("always", [True, False])
def test_a_push_that_takes_long_sends_what_was_saved_when_it_began(hub, tmp_path, always):
    """Checkpoints that training deletes meanwhile among it; later saves wait or are left out, as was asked for."""
    slow = threading.Event()

    class End(TrainerCallback):
        def on_train_end(self, *args, **kwargs):
            slow.set()

    options = {"hub_strategy": "all_checkpoints", "hub_always_push": always, "load_best_model_at_end": False}
    trainer = trainer_of(tmp_path, save_total_limit=1, callbacks=[End()], **options)
    conr_hf.hub.api.HUB.run_as_future(slow.wait)
    trainer.train()
    assert not (tmp_path / "run" / "checkpoint-2").exists()
    places = ["checkpoint-2", *(["checkpoint-4"] if always else [])]
    assert set(files_of(hub)) == {*TOP, *(f"{place}/{name}" for place in places for name in CHECKPOINT)}
    state = json.loads(files_of(hub)["checkpoint-2/trainer_state.json"])
    assert state["global_step"] == 2


# ---- As in Trainer --------------------------------------------------------------------------------------------------


def test_settings_of_a_push_are_those_of_the_trainer(hub, tmp_path):
    begun = []

    class Begin(TrainerCallback):
        def on_push_begin(self, *args, **kwargs):
            begun.append(1)

    trainer = trainer_of(tmp_path, push_to_hub=False, hub_token=None, max_steps=1, callbacks=[Begin()])
    trainer.model.add_model_tags("regression")
    assert not hub.repos
    first = trainer.push_to_hub("By hand", False, TOKEN, private=True, tags="elevation", model_name="Heights")
    assert isinstance(first.result(), CommitInfo)
    repo = hub.repos["ada/run"]
    assert repo.private
    assert repo.commits[0].message == "By hand"
    card = repo.files["main"]["README.md"].decode()
    assert "- elevation" in card
    assert "- regression" in card
    assert "# Heights" in card
    repo.files["dev"] = {}
    second = trainer.push_to_hub(token=TOKEN, revision="dev", blocking=True)
    assert isinstance(second, CommitInfo)
    assert set(repo.files["dev"]) == set(repo.files["main"])
    assert len(begun) == 2


def test_model_id_branch_and_privacy_are_those_of_the_arguments(hub, tmp_path):
    hub.repos["ada/heights"] = Repo(False, files={"main": {}, "dev": {}})
    trainer = trainer_of(tmp_path, hub_model_id="ada/heights", hub_revision="dev", max_steps=1)
    trainer.train()
    trainer.push_to_hub()
    assert {commit.branch for commit in hub.repos["ada/heights"].commits} == {"dev"}
    assert set(hub.repos) == {"ada/heights"}
    trainer_of(tmp_path, hub_private_repo=True)
    assert hub.repos["ada/run"].private


# ---- Failures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "failure",
    [
        Failure("PUT /lfs/", times=1),
        Failure("PUT /lfs/", times=1, skip=1),
        Failure("PUT /lfs/", status=500, times=2),
        Failure("/commit/", times=1),
        Failure("/commit/", status=503, times=2),
        Failure("/preupload/", status=502, times=1, skip=1),
        Failure("/info/lfs", times=1),
        Failure("/validate-yaml", times=1),
    ],
    ids=lambda failure: f"{failure.part} {failure.status} {failure.skip}",
)
def test_what_fails_for_a_moment_is_sent_again(hub, tmp_path, failure):
    hub.failures = [failure]
    trainer = trainer_of(tmp_path, push_to_hub=False)
    trainer.push_to_hub(token=TOKEN)
    assert failure.met > failure.skip
    assert commits_of(hub) == [("End of training", sorted([*MODEL, "README.md", "conr_state.safetensors"]))]
    uploads = 2 + (failure.times if failure.part == "PUT /lfs/" else 0)
    assert hub.count("PUT /lfs/") == uploads  # what had arrived was not sent again


@pytest.mark.parametrize("part", ["PUT /lfs/", "/commit/"])
def test_a_push_that_fails_in_the_end_leaves_the_run_whole_and_says_how_to_repeat_it(hub, tmp_path, part):
    hub.failures = [Failure(part)]
    trainer = trainer_of(tmp_path, hub_strategy="end", max_steps=1)
    trainer.train()
    with pytest.raises(ConnectionError, match=r"did not reach the Hub: .*send it again with conr-hf push") as raised:
        trainer.push_to_hub()
    assert str(raised.value).endswith(f"conr-hf push {tmp_path / 'run'} ada/run")
    assert "\n" not in str(raised.value)
    assert TOKEN not in str(raised.value)
    assert load_file(tmp_path / "run" / "model.safetensors")
    assert commits_of(hub) == []


def test_a_push_that_fails_during_training_is_told_at_its_end_and_the_last_one_is_sent(hub, tmp_path, caplog):
    hub.failures = [Failure("/commit/", status=500, times=3)]  # of the first push, every attempt
    trainer = trainer_of(tmp_path, hub_always_push=True)
    trainer.train()
    told = [record.getMessage() for record in caplog.records if "pushes" in record.getMessage()]
    assert len(told) == 1
    assert told[0].startswith('1 of 2 pushes during training failed, the last one "Training in progress, epoch 1": ')
    assert '"ada/run" did not reach the Hub' in told[0]
    trainer.push_to_hub()
    assert [message for message, _ in commits_of(hub)] == ["Training in progress, epoch 2", "End of training"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"hub_token": None}, "needs a token.*hf auth login"),
        ({"hub_token": "hf_" + "NobodyKnowsThisOne"}, "does not know the token"),
        ({"hub_model_id": "ada/more/heights"}, '"ada/more/heights" cannot be the id of a model'),
        ({"hub_model_id": "a--b"}, '"a--b" cannot be the id of a model'),
        ({"hub_model_id": "grace/heights"}, 'may not write to "grace/heights"'),
        ({"hub_token": READER}, 'may not write to "ada/heights"'),
        ({"hub_revision": "dev"}, '"ada/heights" has no branch "dev"'),
    ],
)
def test_what_cannot_be_pushed_to_is_refused_before_training(hub, tmp_path, changed, said):
    hub.repos["ada/heights"] = Repo(False, files={"main": {}})
    with pytest.raises(ValueError, match=said) as raised:
        trainer_of(tmp_path, **{"hub_model_id": "ada/heights", **changed})
    assert "\n" not in str(raised.value)
    assert set(hub.repos) == {"ada/heights"}
    assert not hub.repos["ada/heights"].commits


def test_a_hub_that_cannot_be_reached_is_told_before_training(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(conr_hf.hub.api, "HUB", HfApi(endpoint="http://127.0.0.1:9"))
    with pytest.raises(ConnectionError, match='"run" did not reach the Hub'):
        trainer_of(tmp_path)


def test_an_offline_client_is_refused_before_training(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set"):
        trainer_of(tmp_path)


def test_checkpoints_in_parts_are_refused(hub, tmp_path):
    trainer = trainer_of(tmp_path, push_to_hub=False, hub_strategy="checkpoint")
    trainer.is_fsdp_enabled = True
    with pytest.raises(ValueError, match="hub_strategy is checkpoint, but under FSDP and DeepSpeed"):
        trainer.init_hf_repo(TOKEN)
    assert not hub.requests


# ---- The command line -----------------------------------------------------------------------------------------------

RUN = sorted([*TOP, "README.md", "density.png", "results.json"])
# `conr-hf` in a process of its own, where waiting for the next attempt takes no time.
COMMAND = """
import time
from pathlib import Path
sleep = time.sleep
time.sleep = lambda seconds: sleep(seconds / 1000)
from conr_hf.cli import main
main()
"""
PLAIN = """
import json, sys
sys.modules["conr_hf"] = None  # cannot be imported
from pathlib import Path
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification
processor = AutoImageProcessor.from_pretrained(sys.argv[1])
model = AutoModelForImageClassification.from_pretrained(sys.argv[1]).eval()
photos = [Image.open(path) for path in sorted(Path(sys.argv[2]).glob("*.png"))]
with torch.no_grad():
    logits = model(**processor(photos, return_tensors="pt")).logits
print(json.dumps(logits.squeeze(-1).tolist()))
"""


def process(code, hub, home, *arguments):
    """Python code in a process that speaks to this Hub."""
    environment = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_HOME": str(home), "HF_HUB_CACHE": str(Path(home) / "hub")}
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        check=False,
    )


@pytest.fixture
def vit(tmp_path):
    """A folder with a small model, such as a user's own."""
    model, processor = models["vit"]()
    model.save_pretrained(tmp_path / "own" / "vit")
    processor.save_pretrained(tmp_path / "own" / "vit")
    return tmp_path / "own" / "vit"


@pytest.fixture
def data(tmp_path):
    return photos(tmp_path / "my photos", train=TRAIN_LABELS[:12], validation=TEST_LABELS, test=TEST_LABELS)


def test_a_run_without_connection_is_whole_and_pushed_later_and_anyone_loads_it(tmp_path, vit, data):
    pytest.importorskip("matplotlib")
    file = written(tmp_path / "age.yaml", model=str(vit), pretrained=True, data=str(data), unit="years")
    options = ["--push_to_hub", "true", "--hub_model_id", "ada/age", "--output_dir", tmp_path / "out"]
    with running_hub() as hub:
        hub.failures = [Failure("PUT /lfs/")]
        ended = process(COMMAND, hub, tmp_path / "home", "train", file, *options, "--hub_token", TOKEN)
        assert ended.returncode == 1, ended.stderr
        assert "Traceback" not in ended.stderr
        sentence = ended.stderr.splitlines()[-1]
        assert sentence.startswith('conr-hf: "ada/age" did not reach the Hub: ')
        assert sentence.endswith(
            f"The run is whole on disk; send it again with conr-hf push {tmp_path / 'out'} ada/age"
        )
        assert {*RUN, "predictions.csv", "recipe.yaml"} <= {path.name for path in (tmp_path / "out").iterdir()}
        assert all(TOKEN.encode() not in path.read_bytes() for path in (tmp_path / "out").glob("*.[jy]*"))
        assert commits_of(hub, "ada/age") == []

        hub.failures = [Failure("PUT /lfs/", times=1)]
        ended = process(COMMAND, hub, tmp_path / "home", "push", tmp_path / "out", "ada/age")
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.splitlines()[-1] == f"Pushed to {hub.url}/ada/age"
        assert commits_of(hub, "ada/age") == [("End of training", RUN)]
        assert_nothing_private(hub, tmp_path)
        on_disk, sent = (tmp_path / "out" / "results.json").read_text(), files_of(hub, "ada/age")["results.json"]
        assert str(data) in on_disk
        assert json.loads(sent)["recipe"]["data"] == "my photos"
        changed = {"command": "", "recipe": {}}
        assert json.loads(sent) | changed == json.loads(on_disk) | changed

        ended = process(PLAIN, hub, tmp_path / "other-home", "ada/age", data / "test")
        assert ended.returncode == 0, ended.stderr
    with open(tmp_path / "out" / "predictions.csv", newline="") as lines:
        expected = [float(line["prediction"]) for line in csv.DictReader(lines) if line["split"] == "test"]
    assert json.loads(ended.stdout) == pytest.approx(expected, abs=1e-4)


def test_train_pushes_the_finished_run_and_not_its_first_stage(hub, tmp_path, vit, data, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    file = written(tmp_path / "age.yaml", model=str(vit), pretrained=True, data=str(data), hub_token=TOKEN)
    options = ["--push_to_hub", "true", "--hub_strategy", "end", "--stage_one", "{reweight: inverse}"]
    ended = conr("train", file, *options, "--output_dir", tmp_path / "age")
    assert ended.code == 0, ended.err
    assert f"Pushed to {hub.url}/ada/age" in ended.out
    assert {name: commits_of(hub, name) for name in hub.repos} == {"ada/age": [("End of training", RUN)]}
    assert_nothing_private(hub, tmp_path)


def test_the_card_of_a_run_that_is_pushed_later_names_its_place(hub, tmp_path, vit, data, monkeypatch):
    """Unless its owner wrote into it."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    file = written(tmp_path / "age.yaml", model=str(vit), pretrained=True, data=str(data))
    assert conr("train", file, "--output_dir", tmp_path / "age").code == 0
    assert 'from_pretrained("you/age")' in (tmp_path / "age" / "README.md").read_text()
    assert conr("push", tmp_path / "age", "ada/faces").code == 0
    sent = files_of(hub, "ada/faces")["README.md"].decode()
    assert 'from_pretrained("ada/faces")' in sent
    assert "you/age" not in sent
    mine = "# My own words on you/age\n"
    (tmp_path / "age" / "README.md").write_text(mine)
    assert conr("push", tmp_path / "age", "ada/faces").code == 0
    assert files_of(hub, "ada/faces")["README.md"].decode() == mine


def test_push_takes_a_name_from_the_folder_and_refuses_what_is_no_run(hub, tmp_path, vit, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    ended = conr("push", vit, "--private")
    assert ended.code == 0, ended.err
    assert hub.repos["ada/vit"].private
    assert commits_of(hub, "ada/vit") == [("End of training", MODEL)]
    requests = len(hub.requests)
    ended = conr("push", tmp_path / "nothing", "ada/nothing")
    assert ended.code == 2
    assert ended.err.startswith(f'conr-hf: "{tmp_path}/nothing" is not a run: there is no such folder.')
    assert len(hub.requests) == requests


def test_push_refuses_what_the_hub_refuses(hub, vit, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    ended = conr("push", vit, "grace/vit")
    assert ended.code == 2
    assert ended.err.startswith('conr-hf: The token may not write to "grace/vit" on the Hub.')
