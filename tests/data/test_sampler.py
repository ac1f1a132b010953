"""Which row comes when, on which process, and what its views hang on."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from small import build, images, models
from torch.utils.data import BatchSampler, DataLoader

from conr_hf.data.augmentation import Augmentation
from conr_hf.data.collator import ImageCollator
from conr_hf.data.dataset import SampledDataset
from conr_hf.data.sampler import SampledIndex, TrainingSampler
from conr_hf.training import dataloaders
from conr_hf.training.dataloaders import DataLoaders
from conr_hf.training.trainer import ConRTrainer


def drawn(rows, seed=0, shuffle=True, multiple=1, epoch=0):
    """The draws of one epoch."""
    sampler = TrainingSampler(range(rows), seed, shuffle, multiple)
    sampler.epoch = epoch
    return list(sampler)


@pytest.mark.parametrize("multiple", [1, 2, 3, 8, 12])
@pytest.mark.parametrize("rows", [1, 2, 5, 12, 13, 24])
def test_every_row_once_an_epoch_and_repeats_last(rows, multiple):
    """A user would train on some images twice and on others never, or count a repeat as a sample."""
    draws = drawn(rows, multiple=multiple)
    assert len(draws) == len(TrainingSampler(range(rows), 0, True, multiple))
    assert len(draws) % multiple == 0
    assert len(draws) - rows < multiple
    assert [draw.position for draw in draws] == list(range(len(draws)))
    assert sorted(draw.row for draw in draws[:rows]) == list(range(rows))
    order = [draw.row for draw in draws[:rows]]
    assert [draw.row for draw in draws[rows:]] == [order[position % rows] for position in range(rows, len(draws))]


def test_order_hangs_on_seed_and_epoch_alone():
    """A resumed run, or one on other processes, would see its rows in another order."""
    first = drawn(50, seed=3, epoch=2)
    torch.manual_seed(99)
    np.random.seed(99)
    assert drawn(50, seed=3, epoch=2) == first
    assert drawn(50, seed=3, epoch=2, multiple=8)[:50] == first
    assert [draw.row for draw in drawn(50, seed=3, epoch=1)] != [draw.row for draw in first]
    assert [draw.row for draw in drawn(50, seed=4, epoch=2)] != [draw.row for draw in first]
    assert [draw.row for draw in drawn(50, shuffle=False, epoch=5)] == list(range(50))


def test_one_sampler_gives_an_epoch_again():
    """Each new loader iterates the same sampler: a state left behind would change the order of the next epoch."""
    sampler = TrainingSampler(range(20), 0, True, 1)
    assert list(sampler) == list(sampler)


# ---- Rows drawn by weight -------------------------------------------------------------------------------------------


def weighted(weights, epoch=0, **changed):
    settings = {"seed": 0, "shuffle": True, "multiple": 1, **changed}
    sampler = TrainingSampler(range(len(weights)), weights=np.array(weights), **settings)
    sampler.epoch = epoch
    return list(sampler)


def test_rows_are_drawn_in_proportion_to_their_weights():
    weights = np.array([1.0, 0.0, 3.0, 6.0] * 5)
    draws = [draw.row for epoch in range(400) for draw in weighted(weights, epoch)]
    counts, expected = np.bincount(draws, minlength=20), weights / weights.sum() * len(draws)
    assert not counts[weights == 0].any()
    assert (np.abs(counts - expected) <= 5 * np.sqrt(expected)).all()


@pytest.mark.parametrize("multiple", [1, 8])
def test_a_weighted_epoch_has_as_many_draws_and_repeats_the_first(multiple):
    """The steps of an epoch, and the samples that count, would be others than without weights."""
    draws = weighted(np.arange(13.0), multiple=multiple)
    assert len(draws) == len(drawn(13, multiple=multiple))
    assert [draw.position for draw in draws] == list(range(len(draws)))
    assert [draw.row for draw in draws[13:]] == [draw.row for draw in draws[: len(draws) - 13]]
    assert draws[:13] == weighted(np.arange(13.0))


def test_weighted_draws_hang_on_seed_and_epoch_alone():
    weights = np.random.default_rng(0).exponential(size=60)
    first = weighted(weights, epoch=2)
    np.random.seed(9)
    assert weighted(weights, epoch=2) == first
    assert weighted(1000 * weights, epoch=2) == first
    assert [draw.row for draw in weighted(weights, epoch=1)] != [draw.row for draw in first]
    assert [draw.row for draw in weighted(weights, epoch=2, seed=1)] != [draw.row for draw in first]
    assert [draw.row for draw in weighted(weights.astype(np.float32))] == [draw.row for draw in weighted(weights)]


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ([1.0, 2.0], r"weights has shape \(2,\) and there are 3 rows"),
        ([[1.0, 2.0, 3.0]], r"weights has shape \(1, 3\)"),
        ([1.0, -2.0, 3.0], r"weights\[1\] is -2\.0; it must be finite and at least 0"),
        ([1.0, 2.0, np.nan], r"weights\[2\] is nan"),
        ([np.inf, 2.0, 3.0], r"weights\[0\] is inf"),
        ([0.0, 0.0, 0.0], "All weights are 0"),
    ],
)
def test_weights_that_nothing_can_be_drawn_by_are_refused(weights, said):
    with pytest.raises(ValueError, match=said):
        TrainingSampler(range(3), 0, True, 1, weights=np.array(weights))


# ---- Processes ------------------------------------------------------------------------------------------------------


def loaders_on(processes, rows, batch, split_batches=False, drop_last=False, seed=0, data_seed=None):
    """What a trainer makes its sampler by, and counts its samples, without a model."""
    args = SimpleNamespace(
        world_size=processes,
        dataloader_drop_last=drop_last,
        seed=seed,
        data_seed=data_seed,
        train_sampling_strategy="random",
        cmixup_alpha=0,
    )
    accelerator = SimpleNamespace(split_batches=split_batches)
    trainer = SimpleNamespace(args=args, accelerator=accelerator, _train_batch_size=batch)
    data = SimpleNamespace(resolved=SimpleNamespace(resample="none"))
    loaders = DataLoaders(args, data, None, lambda: ConRTrainer.global_batch(trainer))
    loaders.train_sampler(range(rows))
    return loaders


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("split_batches", [False, True])
@pytest.mark.parametrize("processes", [2, 3])
def test_each_process_gets_the_rows_that_are_counted_for_it(monkeypatch, processes, split_batches, drop_last):
    """The loss would be divided by a wrong number of samples, and a repeat would be an anchor and a candidate."""
    monkeypatch.setattr(dataloaders, "world_size", lambda: processes)
    for batch in (processes, 2 * processes):
        for rows in range(1, 6 * processes + 2):
            loaders = loaders_on(processes, rows, batch, split_batches, drop_last)
            shards = [
                list(
                    BatchSamplerShard(BatchSampler(loaders.order, batch, drop_last), processes, process, split_batches)
                )
                for process in range(processes)
            ]
            assert len({len(shard) for shard in shards}) == 1, "a process would wait for ever for the others"
            counted = []
            for step in zip(*shards, strict=True):
                assert len({len(part) for part in step}) == 1
                real = [sum(draw.position < rows for draw in part) for part in step]
                for process, part in enumerate(step):
                    monkeypatch.setattr(dataloaders, "rank", lambda process=process: process)
                    collated = {"labels": torch.zeros(len(part)), "position": part[0].position}
                    assert loaders.sample_counts(collated) == real
                    # The samples that count come first, in one piece: the loss takes them as a slice.
                    positions = [draw.position for draw in part]
                    assert positions == list(range(positions[0], positions[0] + len(part)))
                    counted += [draw.row for draw in part[: real[process]]]
            assert len(set(counted)) == len(counted)
            if not drop_last:
                assert sorted(counted) == list(range(rows))
            else:
                full = batch if split_batches else batch * processes
                assert len(counted) == rows // full * full


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 16])
def test_one_process_counts_every_row(rows):
    """A short last batch would be filled up, or counted as a full one."""
    loaders = loaders_on(1, rows, 8)
    batches = list(BatchSampler(loaders.order, 8, drop_last=False))
    counts = [
        loaders.sample_counts({"labels": torch.zeros(len(batch)), "position": batch[0].position}) for batch in batches
    ]
    assert counts == [[len(batch)] for batch in batches]
    assert sum(count for (count,) in counts) == rows


def test_two_processes_see_the_global_batches_of_one():
    """The contrast of a step would be between other images than on one process."""
    one = list(BatchSampler(loaders_on(1, 29, 8).order, 8, drop_last=False))
    sampler = loaders_on(2, 29, 4).order
    shards = [list(BatchSamplerShard(BatchSampler(sampler, 4, False), 2, process)) for process in range(2)]
    both = [[*first, *second] for first, second in zip(*shards, strict=True)]
    assert [batch[: len(alone)] for batch, alone in zip(both, one, strict=True)] == one
    assert all(draw.position >= 29 for batch, alone in zip(both, one, strict=True) for draw in batch[len(alone) :])


def test_data_seed_orders_the_rows_where_it_is_given():
    """`data_seed`, as in `TrainingArguments`, would do nothing."""
    assert list(loaders_on(1, 20, 4, seed=1, data_seed=5).order) == drawn(20, seed=5)
    assert list(loaders_on(1, 20, 4, seed=1).order) == drawn(20, seed=1)


# ---- Views ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vit_processor():
    return models["vit"]()[1]


def collator(processor, seed=0, num_views=2, crop_padding=0.2):
    return ImageCollator(processor, "image", ["label"], num_views, Augmentation(crop_padding, True), seed)


def test_views_hang_on_seed_epoch_position_and_view_alone(vit_processor):
    """A resumed run would see other crops than the one that was stopped."""
    rows = SampledDataset(images(3), "train_dataset")
    collate = collator(vit_processor)

    def view(row=0, epoch=0, position=0, which=0, collate=collate, others=()):
        return collate([rows[SampledIndex(row, epoch, position)], *others])["pixel_values"][0, which]

    first = view()
    torch.manual_seed(7)
    np.random.seed(7)
    companions = [rows[SampledIndex(1, 0, 1)], rows[SampledIndex(2, 0, 2)]]
    assert torch.equal(view(others=companions), first)
    assert torch.equal(view(collate=collator(vit_processor)), first)
    more = collator(vit_processor, num_views=3)
    assert torch.equal(view(collate=more), first), "a third view would change the first two"

    def differs(**changed):
        """Of 20 draws, most are other ones (a shift and a flip can coincide)."""
        same = 0
        for position in range(20):
            kept = {"position": position, **changed}
            if "position" in changed:
                kept["position"] = position + changed["position"]
            same += torch.equal(view(**kept), view(position=position))
        return same < 5

    assert differs(epoch=1)
    assert differs(position=20)
    assert differs(which=1)
    assert differs(collate=collator(vit_processor, seed=1))


def test_views_are_drawn_by_position_and_not_by_row(vit_processor):
    """A row that is drawn twice an epoch, as by a weighted sampler, would give two equal views."""
    rows = SampledDataset(images(3), "train_dataset")
    batch = collator(vit_processor)([rows[SampledIndex(1, 0, position)] for position in range(8)])["pixel_values"]
    assert len({view.numpy().tobytes() for view in batch.flatten(0, 1)}) > 8


def test_views_leave_global_generators_alone(vit_processor):
    """Augmentation would shift the dropout of a run, and so its result, with the number of loader workers."""
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    rows = SampledDataset(images(4), "train_dataset")
    collator(vit_processor)([rows[draw] for draw in drawn(4)])
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


def test_loader_workers_change_nothing(vit_processor):
    """A run with two loader workers would not be the run without."""
    rows = SampledDataset(images(13), "train_dataset")

    def epoch(workers):
        torch.manual_seed(workers)
        sampler = TrainingSampler(rows, 0, True, 1)
        sampler.epoch = 3
        batches = DataLoader(rows, 4, sampler=sampler, collate_fn=collator(vit_processor), num_workers=workers)
        return list(batches)

    for alone, with_workers in zip(epoch(0), epoch(2), strict=True):
        assert alone["position"] == with_workers["position"]
        for name in ("pixel_values", "labels"):
            assert torch.equal(alone[name], with_workers[name])


def test_each_epoch_has_its_own_order_and_views(tmp_path):
    """A run of ten epochs would see ten times the same crops in the same batches."""
    trainer = build(*models["vit"](), tmp_path, images(12), num_train_epochs=3, save_strategy="no")
    fetched, stock = [], trainer.get_batch_samples

    def remembered(*args):
        batches, count = stock(*args)
        fetched.append(batches[0])
        return batches, count

    trainer.get_batch_samples = remembered
    trainer.train()
    orders = [torch.cat([batch["labels"] for batch in fetched[first : first + 2]]) for first in (0, 2, 4)]
    assert [batch["position"] for batch in fetched] == [0, 8] * 3
    assert len({tuple(order.tolist()) for order in orders}) == 3
    assert len({tuple(sorted(order.tolist())) for order in orders}) == 1
    label = orders[0][0]
    views = []
    for order, first in zip(orders, (0, 2, 4), strict=True):
        place = int((order == label).nonzero()[0])
        views.append(torch.cat([batch["pixel_values"] for batch in fetched[first : first + 2]])[place])
    assert not torch.equal(views[0], views[1])
    assert not torch.equal(views[1], views[2])


def test_one_process_reading_for_all_is_refused(tmp_path):
    with pytest.raises(ValueError, match="dispatch_batches is true; leave it unset"):
        build(*models["vit"](), tmp_path, images(4), accelerator_config={"dispatch_batches": True})
