"""Ways to train that change speed, memory or who builds the model, and every setting of ConR."""

import importlib.util
import math
import shutil

import pytest
import torch
from small import build, images, models, vit_config
from transformers import TrainerCallback, ViTForImageClassification

import conr_hf.training.objective.loss_meter
import conr_hf.training.objective.objective
from conr_hf import load_regressor
from conr_hf.losses import conr_loss, rank_n_contrast

ROWS, EPOCHS = 21, 3  # a last batch of five
STEPS = 3 * EPOCHS
CONR_FIGURES = ("conr_loss", "conr_anchors", "conr_positives", "conr_negatives")


def fresh(name="vit", target="label"):
    torch.manual_seed(0)
    return models[name](target)


def trainer(folder, model=None, rows=ROWS, evaluation=True, name="vit", **changed):
    """A short run that learns; of the same model each time, unless one is given."""
    made, processor = fresh(name, changed.get("label_columns", "label"))
    dimensions = len(changed.get("label_columns", ["label"]))
    settings = {
        "num_train_epochs": EPOCHS,
        "learning_rate": 3e-3,
        "conr_weight": 0.3,
        "conr_window": 3.0,
        "save_strategy": "no",
        "load_best_model_at_end": False,
        **changed,
    }
    model = None if "model_init" in changed else made if model is None else model
    held_out = images(16, seed=1, dimensions=dimensions) if evaluation else None
    return build(model, processor, folder, images(rows, dimensions=dimensions), held_out, **settings)


def maes(run):
    return [entry["eval_mae"] for entry in run.state.log_history if "eval_mae" in entry]


def steps(run):
    return [entry for entry in run.state.log_history if "loss" in entry]


def weights(run):
    return torch.cat([value.detach().flatten() for value in run.model.state_dict().values()])


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The run that each mode is compared with."""
    run = trainer(tmp_path_factory.mktemp("plain"))
    run.train()
    assert len(steps(run)) == STEPS
    assert max(entry["conr_anchors"] for entry in steps(run)) > 0
    assert maes(run)[-1] < 0.9 * maes(run)[0], "nothing was learned, so nothing is compared"
    return {"maes": maes(run), "steps": steps(run), "weights": weights(run)}


def assert_close(run, plain, tolerance):
    assert len(steps(run)) == STEPS
    for mae, expected in zip(maes(run), plain["maes"], strict=True):
        assert mae == pytest.approx(expected, rel=tolerance)
    for entry, expected in zip(steps(run), plain["steps"], strict=True):
        assert entry.keys() == expected.keys()
        assert entry["loss"] == pytest.approx(expected["loss"], rel=tolerance)


def assert_same(run, plain):
    assert_close(run, plain, tolerance=0)
    assert torch.equal(weights(run), plain["weights"])


# ---- Precision, compilation, memory ---------------------------------------------------------------------------------


def test_bf16_trains_to_the_same_error(tmp_path, plain):
    """Half the memory on a GPU would cost accuracy."""
    run = trainer(tmp_path, bf16=True)
    inner = next(module for module in run.model.vit.modules() if isinstance(module, torch.nn.Linear))
    dtypes = {"head": set(), "inner": set()}
    run.head.register_forward_hook(lambda _module, _inputs, output: dtypes["head"].add(output.dtype))
    inner.register_forward_hook(lambda _module, _inputs, output: dtypes["inner"].add(output.dtype))
    run.train()
    assert run.accelerator.mixed_precision == "bf16"
    assert dtypes["inner"] == {torch.bfloat16}, "the mode was not on"
    assert dtypes["head"] == {torch.float32}, "predictions would come in steps of 0.5 above 64"
    assert all(parameter.dtype == torch.float32 for parameter in run.model.parameters())
    assert_close(run, plain, tolerance=0.05)
    assert not torch.equal(weights(run), plain["weights"]), "the mode was not on"
    predictions = run.predict(run.eval_dataset).predictions
    assert predictions.dtype == "float32"
    assert not torch.equal(torch.tensor(predictions), torch.tensor(predictions).bfloat16().float())


def compiled(folder, backend, **changed):
    counters = torch._dynamo.utils.counters
    torch._dynamo.reset()
    counters.clear()
    run = trainer(folder, torch_compile=True, torch_compile_backend=backend, **changed)
    run.train()
    assert isinstance(run.model_wrapped, torch._dynamo.eval_frame.OptimizedModule)
    assert counters["stats"]["unique_graphs"] > 0, "the mode was not on"
    assert not counters["graph_break"], "the head or its gradient breaks the graph"
    torch._dynamo.reset()
    return run


def test_compiled_equals_eager(tmp_path, plain):
    """`torch_compile: true` would break on the head, or train another model: here without generating code."""
    assert_close(compiled(tmp_path, "aot_eager"), plain, tolerance=1e-3)


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor compiles for CPU with g++, which is not here")
def test_compiled_to_code_equals_eager(tmp_path):
    """The same with the code that inductor generates, for one layer and one shape of batch: it takes a while."""

    def short():
        torch.manual_seed(0)
        model, _ = load_regressor(vit_config(num_hidden_layers=1), image_size=32)
        return {"model": model, "rows": 16, "num_train_epochs": 2, "evaluation": False}

    run, eager = compiled(tmp_path, "inductor", **short()), trainer(tmp_path, **short())
    eager.train()
    for entry, expected in zip(steps(run), steps(eager), strict=True):
        assert entry["loss"] == pytest.approx(expected["loss"], rel=1e-3)
    torch.testing.assert_close(weights(run), weights(eager), rtol=1e-3, atol=1e-3)
    assert len(steps(run)) == 4


def test_gradient_checkpointing_changes_nothing(tmp_path, plain):
    """Saving memory would change the result, or the recomputed forward the remembered features."""
    run = trainer(tmp_path, gradient_checkpointing=True)
    forwards = []
    inner = next(module for module in run.model.vit.modules() if isinstance(module, torch.nn.Linear))
    inner.register_forward_pre_hook(lambda module, _inputs: forwards.append(module.training))
    run.train()
    assert run.model.is_gradient_checkpointing
    assert sum(forwards) == 2 * STEPS, "the mode was not on"
    assert_close(run, plain, tolerance=1e-6)
    torch.testing.assert_close(weights(run), plain["weights"], rtol=0, atol=1e-6)


# ---- Who builds the model, and when ---------------------------------------------------------------------------------


def test_model_init_equals_a_model(tmp_path, plain):
    """The head of a model that is built in `train()` would not be adopted."""
    calls = []

    def model_init():
        calls.append(None)
        return fresh()[0]

    run = trainer(tmp_path, model_init=model_init)
    run.train()
    assert len(calls) > 1, "train() was to build a model of its own"
    assert_same(run, plain)


def test_model_init_begins_anew_at_each_training(tmp_path, plain):
    """A second `train()` would go on where the first ended, or with the head of the first."""
    run = trainer(tmp_path, model_init=lambda: fresh()[0])
    run.train()
    run.train()
    assert_same(run, plain)


def test_evaluation_before_training_changes_nothing(tmp_path, plain):
    """A look at the untrained error would change the run."""
    run = trainer(tmp_path)
    before = run.evaluate()
    assert math.isfinite(before["eval_mae"])
    run.predict(images(5, seed=2))
    run.train()
    run.state.log_history = [entry for entry in run.state.log_history if entry["step"] > 0]
    assert_same(run, plain)


def test_evaluate_on_start_changes_nothing(tmp_path, plain):
    """The first evaluation is of the head as it starts, before any step."""
    run = trainer(tmp_path, eval_on_start=True)
    run.train()
    started = next(entry for entry in run.state.log_history if "eval_mae" in entry)
    assert started["step"] == 0
    assert started["eval_mae"] < 2 * plain["maes"][0]
    run.state.log_history = [entry for entry in run.state.log_history if entry["step"] > 0]
    assert_same(run, plain)


class Factors(TrainerCallback):
    def __init__(self, head):
        self.head, self.seen = head, []

    def on_step_end(self, args, state, control, **kwargs):
        self.seen.append(self.head.gradient_factor)


def test_a_second_training_is_independent_of_the_unit_too(tmp_path):
    """In a second `train()`, which keeps its optimizer, the head would learn s times slower than in the first."""

    class InMinutes(torch.utils.data.Dataset):
        def __init__(self, data):
            self.data = data

        def __len__(self):
            return len(self.data)

        def __getitem__(self, index):
            row = self.data[index]
            return {"image": row["image"], "label": 60 * row["label"] + 5}

    runs = []
    for change in (lambda data: data, InMinutes):
        settings = {"optim": "sgd", "learning_rate": 0.05, "num_train_epochs": 1, "conr_window": None}
        # Bins of a width that nobody gave are round in their unit, so weights by density would differ a little.
        run = trainer(tmp_path, conr_reweight="none", **settings)
        run.train_dataset, run.eval_dataset = change(run.train_dataset), change(run.eval_dataset)
        run.train()
        run.add_callback(factors := Factors(run.head))
        run.train()
        assert set(factors.seen) == {run.resolved.label_scale}
        runs.append(run)
    assert runs[1].evaluate()["eval_mae"] == pytest.approx(60 * runs[0].evaluate()["eval_mae"], rel=1e-3)


# ---- Hyperparameter search ------------------------------------------------------------------------------------------

needs_optuna = pytest.mark.skipif(
    importlib.util.find_spec("optuna") is None, reason='optuna is not installed; pip install "conr-hf[dev]"'
)


class Trials(TrainerCallback):
    """What each trial trained with, and its evaluations."""

    def __init__(self):
        self.seen = []

    def on_train_begin(self, args, state, control, **kwargs):
        resolved = self.trainer.resolved
        self.seen.append(
            {"lr": args.learning_rate, "weight": resolved.weight, "scale": resolved.label_scale, "maes": []}
        )

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        self.seen[-1]["maes"].append(metrics["eval_mae"])
        self.seen[-1]["metrics"] = metrics


def search(folder, space, **changed):
    """Tries each value of the one setting in `space`."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    trials = Trials()
    run = trainer(folder, model_init=lambda: fresh()[0], callbacks=[trials], **changed)
    trials.trainer = run
    ((name, values),) = space.items()
    best = run.hyperparameter_search(
        hp_space=lambda trial: {name: trial.suggest_categorical(name, values)},
        n_trials=len(values),
        backend="optuna",
        sampler=optuna.samplers.GridSampler(space, seed=0),
    )
    return best, trials.seen


@needs_optuna
@pytest.mark.parametrize(
    ("name", "seen_as", "values"), [("learning_rate", "lr", [3e-5, 3e-3]), ("conr_weight", "weight", [0.0, 0.3])]
)
def test_search_chooses_by_the_error(tmp_path, plain, name, seen_as, values):
    """The best run would be chosen by the sum of all metrics, or every trial would train with the first's settings."""
    best, trials = search(tmp_path, {name: values})
    assert sorted(trial[seen_as] for trial in trials) == values
    chosen = trials[int(best.run_id)]
    assert best.objective == chosen["maes"][-1]
    assert best.objective == min(trial["maes"][-1] for trial in trials)
    assert best.hyperparameters == {name: chosen[seen_as]}
    assert len({trial["maes"][-1] for trial in trials}) == 2, "the setting did nothing"
    as_plain = next(trial for trial in trials if trial[seen_as] == values[1])
    assert as_plain["maes"] == plain["maes"], "a trial is not the run of its settings"


@needs_optuna
def test_search_reads_settings_that_are_derived_anew(tmp_path):
    """A trial would train with what was derived for the one before."""
    _, trials = search(tmp_path, {"label_scale": [1.0, 20.0]}, num_train_epochs=1)
    assert sorted(trial["scale"] for trial in trials) == [1.0, 20.0]


@needs_optuna
def test_search_maximises_a_metric_of_which_more_is_better(tmp_path):
    """The worst run would be called the best."""
    changed = {"metric_for_best_model": "eval_pearson", "num_train_epochs": 1}
    best, trials = search(tmp_path, {"learning_rate": [3e-5, 3e-3]}, **changed)
    assert best.objective == max(trial["metrics"]["eval_pearson"] for trial in trials)


# ---- Batches and settings at the edge -------------------------------------------------------------------------------


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_last_batch_of_one_sample(tmp_path, name, views):
    """A data set of 8 k + 1 rows would end each epoch in a division by zero or a NaN."""
    run = trainer(tmp_path, rows=17, name=name, num_views=views)
    run.train()
    assert len(steps(run)) == STEPS
    for entry in steps(run):
        assert math.isfinite(entry["loss"])
        assert math.isfinite(entry["grad_norm"])
        assert entry["grad_norm"] > 0
    alone = [entry for entry in steps(run) if entry["step"] % 3 == 0]
    # A single sample has no negative, so no anchor: only the base loss is left.
    assert all(entry["conr_anchors"] == entry["conr_loss"] == 0 for entry in alone)
    assert all(entry["loss"] == pytest.approx(entry["base_loss"], rel=1e-6) for entry in alone)
    assert all(math.isfinite(mae) for mae in maes(run))


VARIANTS = {
    "reference formulation": {"conr_formulation": "reference"},
    "reference formulation, linear": {"conr_formulation": "reference", "conr_push": "linear"},
    "linear push": {"conr_push": "linear"},
    "no push scale": {"conr_push_scale": 0.0},
    "anchors reduction": {"conr_reduction": "anchors"},
    "inverse density": {"conr_reweight": "inverse", "reweight": "inverse"},
    "no density": {"conr_reweight": "none", "reweight": "none"},
    "window 0": {"conr_window": 0.0},
    "window over all": {"conr_window": 1000.0},
    "paper's units": {"label_scale": 1.0, "conr_weight": 4.0, "conr_push_scale": 0.01, "conr_window": 1.0},
    "mse": {"base_loss": "mse"},
    "huber": {"base_loss": "huber", "huber_delta": 2.0},
    "two labels": {"label_columns": ["label0", "label1"]},
    "two labels, euclidean": {"label_columns": ["label0", "label1"], "conr_distance": "euclidean"},
    "two labels, reference": {"label_columns": ["label0", "label1"], "conr_formulation": "reference"},
    "one view": {"num_views": 1},
    "three views": {"num_views": 3},
    "wide bins": {"bin_width": 5.0},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_setting_trains(tmp_path, variant):
    """A setting of the table would stop the run, or log nothing of what it does."""
    run = trainer(tmp_path, max_steps=1, **VARIANTS[variant])
    before = weights(run)
    run.train()
    (entry,) = steps(run)
    assert {"base_loss", *CONR_FIGURES} <= entry.keys()
    assert all(math.isfinite(value) for value in entry.values())
    assert entry["grad_norm"] > 0
    assert not torch.equal(weights(run), before)
    expected = entry["base_loss"] + run.resolved.weight * entry["conr_loss"]
    assert entry["loss"] == pytest.approx(expected, rel=1e-5)
    if variant in ("window 0", "window over all"):  # nobody is confused with anybody, or nobody is dissimilar
        assert entry["conr_anchors"] == 0
    else:
        assert 0 < entry["conr_anchors"] <= 1
        assert entry["conr_negatives"] > 0
    assert len(run.predict(run.eval_dataset).predictions) == 16


def test_settings_of_conr_are_not_mutated(tmp_path):
    """What was derived from one data set would be taken for the user's wish on the next."""
    run = trainer(tmp_path, max_steps=1, conr_window=None)
    run.train()
    assert run.args.conr_window is None
    assert run.args.conr_push_scale is None
    assert run.args.label_scale is None
    assert run.resolved.window > 0


@pytest.mark.parametrize("views", [1, 2, 3])
def test_views_are_the_rows_of_conr(tmp_path, monkeypatch, views):
    """More views would be paid for and not used, or count as more samples."""
    seen = []
    plain_loss = conr_hf.training.objective.objective.conr_loss

    def spied(features, labels, *rest, **settings):
        seen.append((len(features), labels))
        return plain_loss(features, labels, *rest, **settings)

    monkeypatch.setattr(conr_hf.training.objective.objective, "conr_loss", spied)
    run = trainer(tmp_path, num_views=views, num_train_epochs=1, evaluation=False)
    run.train()
    assert [count for count, _ in seen] == [8 * views, 8 * views, 5 * views]
    for count, labels in seen:
        groups = labels.reshape(count // views, views)
        assert torch.equal(groups, groups[:, :1].expand_as(groups)), "views of a sample lie beside each other"
    assert run.state.global_step == 3


def test_views_of_an_image_differ(tmp_path):
    """ConR would compare an image with itself."""
    run = trainer(tmp_path, num_views=3)
    run.data.check()
    batch = next(iter(run.get_train_dataloader()))
    assert batch["pixel_values"].shape == (8, 3, 3, 32, 32)
    assert not torch.equal(batch["pixel_values"][:, 0], batch["pixel_values"][:, 1])
    assert not torch.equal(batch["pixel_values"][:, 1], batch["pixel_values"][:, 2])


def test_weight_0_computes_no_conr(tmp_path, monkeypatch):
    """A baseline would pay for ConR, or log figures of what it does not use."""

    def refuse(*args, **kwargs):
        raise AssertionError("ConR was computed")

    monkeypatch.setattr(conr_hf.training.objective.objective, "conr_loss", refuse)
    monkeypatch.setattr(conr_hf.training.objective.objective, "gather_rows", refuse)
    run = trainer(tmp_path, conr_weight=0.0)
    run.train()
    for entry in steps(run):
        assert not set(CONR_FIGURES) & entry.keys()
        assert entry["loss"] == pytest.approx(entry["base_loss"], rel=1e-6)
    batch = next(iter(run.get_train_dataloader()))
    assert batch["pixel_values"].shape[1] == 2, "a baseline sees the same views"
    with pytest.raises(AssertionError, match="ConR was computed"):
        trainer(tmp_path).train()


# ---- ConR's gradient beside the base loss's -------------------------------------------------------------------------


def first_gradients(tmp_path, weight, dimensions=1):
    """The first step's logged figures, and both gradients at the features as autograd has them."""
    names = ["label"] if dimensions == 1 else ["label0", "label1"]
    changed = {"conr_weight": weight, "conr_window": 3.0, "rnc_weight": 0.5, "label_columns": names, "max_steps": 1}
    torch.manual_seed(0)
    trainer = build(*models["vit"](names), tmp_path, images(8, dimensions=dimensions), **changed)
    trainer.train()
    figures = trainer.state.log_history[0]
    torch.manual_seed(0)
    fresh = build(*models["vit"](names), tmp_path, images(8, dimensions=dimensions), **changed, learning_rate=0.0)
    fresh.train()  # sets the head and learns nothing
    batch = next(iter(fresh.get_train_dataloader()))
    seen = []
    hook = fresh.head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    fresh.model.train()
    predictions = fresh.model(batch["pixel_values"].flatten(0, 1)).logits.squeeze(-1)
    hook.remove()
    rows = batch["labels"].repeat_interleave(2, 0)
    settings = fresh.resolved
    base = ((predictions - rows).abs() / settings.label_scale).mean()
    weights = fresh.training_objective.conr_density.weights(rows)
    conr = conr_loss(
        seen[0].float(),
        rows,
        predictions.detach(),
        weights,
        window=settings.window,
        push_scale=settings.push_scale,
        temperature=settings.temperature,
    )
    rnc = rank_n_contrast(seen[0].float(), rows)
    (of_base,) = torch.autograd.grad(base, seen[0], retain_graph=True)
    others = {}
    for name, loss in {"conr": weight * conr, "rnc": 0.5 * rnc}.items():
        (gradient,) = torch.autograd.grad(loss, seen[0], retain_graph=True)
        cosine = torch.cosine_similarity(of_base.flatten(), gradient.flatten(), 0)
        others |= {f"{name}_gradient": (gradient.norm() / of_base.norm()).item(), f"{name}_cosine": cosine.item()}
    return figures, others


@pytest.mark.parametrize("dimensions", [1, 2])
def test_the_logged_gradient_is_that_at_the_features(tmp_path, dimensions):
    """A user would set the weight by a figure that means something else."""
    figures, expected = first_gradients(tmp_path, 0.05, dimensions)
    for name in ("conr", "rnc"):
        assert expected[f"{name}_gradient"] > 0
        assert figures[f"{name}_gradient"] == pytest.approx(expected[f"{name}_gradient"], rel=1e-4)
        assert figures[f"{name}_cosine"] == pytest.approx(expected[f"{name}_cosine"], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(("weight", "warned"), [(0.001, False), (10.0, True)])
def test_a_gradient_that_dominates_is_said_once(tmp_path, monkeypatch, weight, warned):
    """The base loss would hardly be learned, and only the test set would tell."""
    said = []
    monkeypatch.setattr(conr_hf.training.objective.loss_meter.logger, "warning", said.append)
    build(*models["vit"](), tmp_path, images(24), conr_weight=weight, conr_window=3.0).train()
    said = [sentence for sentence in said if "gradient at the features is" in sentence]
    assert len(said) == warned
    assert all("lower conr_weight (10)" in sentence for sentence in said)


class TakesPixelsAlone(ViTForImageClassification):
    def forward(self, pixel_values):
        return super().forward(pixel_values=pixel_values)


def test_a_model_that_takes_no_labels_is_evaluated(tmp_path):
    """`Trainer` asks the model's signature for the names of labels, and would measure nothing."""
    model, processor = models["vit"]()
    own = TakesPixelsAlone(model.config)
    own.load_state_dict(model.state_dict())
    errors = []
    for one, name in ((model, "stock"), (own, "own")):
        trainer = build(
            one, processor, tmp_path / name, images(8), images(6, seed=1), max_steps=2, eval_strategy="steps"
        )
        trainer.train()
        errors.append(trainer.predict(images(6, seed=1)).metrics["test_mae"])
        assert "eval_mae" in trainer.evaluate()
    assert errors[0] == errors[1]
