"""Proxies of memorization, published scores, and forget sets that differ in entanglement."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import rumlib as rum
from rumlib.proxies import PROXIES, TRACED, curvature, symmetric_kl

make_model = partial(rum.models.mlp, shape=(1, 4, 4), classes=3, hidden=(64,))
recipe = rum.Recipe(epochs=30, lr=0.1, batch_size=16)


@pytest.fixture(scope="module")
def run():
    """One training run on three blobs with twelve wrong labels, watched in every way; a tenth is held out."""
    random = torch.Generator().manual_seed(0)
    y = torch.arange(135) % 3
    x = torch.zeros(135, 1, 4, 4)
    x[torch.arange(135), 0, y] = 0.8
    x = (x + 0.25 * torch.randn(x.shape, generator=random)).clamp(0, 1)
    wrong = torch.zeros(135, dtype=torch.bool)
    wrong[:108:9] = True
    everything = rum.Examples(x, torch.where(wrong, (y + 1) % 3, y))
    held_out, train = everything[123:], everything[:123]
    trace, probe = rum.proxies.Trace(train), rum.proxies.Curvature(train)
    model = rum.fit(make_model, train, recipe, seed=0, trace=trace, probe=probe)
    return SimpleNamespace(train=train, held_out=held_out, wrong=wrong[:123], trace=trace, probe=probe, model=model)


def score(name, run, **options):
    if name in TRACED:
        return rum.proxy(name, run.trace)
    if name == "loss_curvature":
        return rum.proxy(name, run.probe)
    return rum.proxy(name, run.model, run.train, holdout=run.held_out, **options)


@pytest.mark.parametrize("name", PROXIES)
def test_wrong_labels_score_high(name, run):
    found = score(name, run)
    assert found.name == name and torch.equal(found.index, run.train.index)
    right, wrong = found.values[~run.wrong], found.values[run.wrong]
    above = (wrong[:, None] > right).float().mean()          # area under the ROC curve
    assert above > (0.7 if name == "max_confidence" else 0.9)


def test_watching_a_run_does_not_change_it(run):
    plain = rum.fit(make_model, run.train, recipe, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), run.model.parameters(), strict=True))
    assert all(p.grad is None for p in run.model.parameters())


def test_a_trace_holds_the_means_over_epochs():
    """Against plain NumPy on logits given by hand, in uneven batches."""
    random = np.random.RandomState(0)
    n, epochs = 10, 4
    examples = rum.Examples(torch.zeros(n, 1, 1, 1), torch.tensor(random.randint(0, 3, n)))
    z = random.randn(epochs, n, 3)
    trace = rum.proxies.Trace(examples)
    for epoch in range(epochs):
        for rows in torch.randperm(n, generator=torch.Generator().manual_seed(epoch)).split(4):
            trace(rows, torch.tensor(z[epoch])[rows], examples.y[rows])
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    y = examples.y.numpy()
    expected = {"confidence": 1 - p[:, np.arange(n), y].mean(0), "max_confidence": 1 - p.max(-1).mean(0),
                "entropy": -(p * np.log(p)).sum(-1).mean(0), "binary_accuracy": 1 - (p.argmax(-1) == y).mean(0)}
    assert set(expected) == set(TRACED)
    for name, values in expected.items():
        np.testing.assert_allclose(rum.proxy(name, trace).values, values, rtol=1e-5, atol=1e-6)


def test_entropy_is_finite_where_probabilities_vanish():
    examples = rum.Examples(torch.zeros(1, 1, 1, 1), torch.tensor([0]))
    trace = rum.proxies.Trace(examples)
    trace(torch.tensor([0]), torch.tensor([[500.0, -500.0, 0.0]]), examples.y)
    assert rum.proxy("entropy", trace).values.item() == 0


def test_half_an_epoch_is_not_forgotten():
    examples = rum.Examples(torch.zeros(4, 1, 1, 1), torch.zeros(4, dtype=torch.long))
    trace = rum.proxies.Trace(examples)
    for rows in ([0, 1, 2], [3, 0], [1, 0]):
        trace(torch.tensor(rows), torch.zeros(len(rows), 3), examples.y[rows])
    rum.proxy("confidence", trace)
    assert trace.seen.tolist() == [3, 2, 1, 1]


def test_curvature_of_a_run_is_that_before_each_step(run):
    one_step = rum.Recipe(epochs=1, lr=0.1, batch_size=len(run.train))
    probe = rum.proxies.Curvature(run.train)
    rum.fit(run.model, run.train, one_step, probe=probe)
    expected = curvature(run.model, run.train.x, run.train.y)
    torch.testing.assert_close(rum.proxy("loss_curvature", probe).values, expected, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(rum.proxy("loss_curvature", run.model, run.train).values, expected, rtol=1e-3, atol=1e-6)


def test_curvature_is_that_of_single_examples_with_batch_norm_too(run):
    model = rum.fit(partial(rum.models.small_resnet, shape=(1, 4, 4), classes=3, widths=(4, 8)), run.train,
                    rum.Recipe(epochs=1, batch_size=30)).train()
    x, y = run.train.x[:9], run.train.y[:9]
    single = torch.cat([curvature(model, x[k:k + 1], y[k:k + 1]) for k in range(9)])
    torch.testing.assert_close(curvature(model, x, y), single, rtol=1e-2, atol=1e-5)
    assert model.training                                    # as it was


def test_holdout_retraining_is_the_change_by_fine_tuning(run):
    options = dict(recipe=rum.Recipe(epochs=2, lr=0.05, batch_size=5, schedule="constant"), seed=3)
    tuned = rum.fit(run.model, run.held_out, options["recipe"], seed=3)
    p, q = (rum.predict(model, run.train).softmax(1) for model in (run.model, tuned))
    torch.testing.assert_close(score("holdout_retraining", run, **options).values, symmetric_kl(p, q))


def test_a_holdout_set_that_was_trained_on_is_refused_unless_officially(run):
    test_set = rum.Examples(run.held_out.x, run.held_out.y)  # counts from 0, as the training set does
    with pytest.raises(ValueError, match=r"12 examples of the holdout set.*official"):
        rum.proxy("holdout_retraining", run.model, run.train, holdout=test_set)
    official = rum.proxy("holdout_retraining", run.model, run.train, holdout=test_set, compat="official")
    assert torch.equal(official.values, score("holdout_retraining", run).values)


@pytest.mark.parametrize("arguments, options, error, words", [
    (("forgetting",), {}, ValueError, "confidence, max_confidence"),
    (("entropy", "model"), {}, TypeError, "Trace; got a Sequential"),
    (("holdout_retraining", "trace"), {}, TypeError, "Module; got a Trace"),
    (("loss_curvature", "trace"), {}, TypeError, "Curvature or a Module"),
    (("loss_curvature", "model"), {}, ValueError, "examples to score"),
    (("holdout_retraining", "model", "train"), {}, ValueError, "holdout="),
    (("holdout_retraining", "model", "train"), {"holdout": "held_out", "compat": "old"}, ValueError, "official"),
], ids=str)
def test_a_wrong_call_is_refused(arguments, options, error, words, run):
    name, *sources = arguments
    sources = [getattr(run, s) for s in sources] or [run.trace]
    options = {key: getattr(run, value, value) for key, value in options.items()}
    with pytest.raises(error, match=words):
        rum.proxy(name, *sources, **options)


@pytest.mark.parametrize("kind, name", [(rum.proxies.Trace, "entropy"), (rum.proxies.Curvature, "loss_curvature")])
def test_what_has_not_been_watched_is_refused(kind, name, run):
    with pytest.raises(ValueError, match="has not seen 123 examples"):
        rum.proxy(name, kind(run.train))


class Clock:
    """A clock that moves on by one second whenever it is read."""

    now = 0.0

    def perf_counter(self):
        self.now += 1
        return self.now


def test_the_seconds_of_a_trace_and_of_a_probe_are_those_of_their_own_work(run, monkeypatch):
    monkeypatch.setattr("rumlib.proxies.time", Clock())
    trace, probe = rum.proxies.Trace(run.train), rum.proxies.Curvature(run.train)
    rum.fit(run.model, run.train, rum.Recipe(epochs=2, batch_size=50), trace=trace, probe=probe)
    assert trace.seconds == 2                                # once an epoch
    assert probe.seconds == 2 * (3 + 1)                      # of an epoch three batches, and one flush


def test_a_probe_waits_for_nothing_until_an_epoch_is_complete(run, monkeypatch):
    """To copy from a GPU is to wait for it; the sums are those of each batch by itself."""
    flushed = []
    flush = rum.proxies.Curvature.flush
    monkeypatch.setattr(rum.proxies.Curvature, "flush", lambda self: (flushed.append(len(self._waiting)), flush(self)))
    probe, one_by_one = rum.proxies.Curvature(run.train), torch.zeros(len(run.train))

    def both(model, x, y, rows):
        probe(model, x, y, rows)
        one_by_one.index_add_(0, rows, curvature(model, x, y))

    rum.fit(run.model, run.train, rum.Recipe(epochs=2, batch_size=50), probe=both)
    assert flushed == [3, 3] and torch.equal(probe.curvature, one_by_one) and (probe.seen == 2).all()


def test_the_named_proxies_are_what_proxy_gives(run):
    proxies = rum.proxies
    for name in TRACED:
        assert torch.equal(proxies.from_trace(name, run.trace).values, rum.proxy(name, run.trace).values)
    assert torch.equal(proxies.loss_curvature(run.model, run.train).values,
                       rum.proxy("loss_curvature", run.model, run.train).values)
    short = rum.Recipe(epochs=1, batch_size=5)
    assert torch.equal(proxies.holdout_retraining(run.model, run.train, run.held_out, recipe=short, seed=1).values,
                       rum.proxy("holdout_retraining", run.model, run.train, holdout=run.held_out, recipe=short,
                                 seed=1).values)


# -- In a study -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    smoke = rum.lab.profile("smoke")
    small = replace(smoke, name="tiny", options={**smoke.options, "n": 400, "n_test": 100}, set_size=40)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RUM_ENGINE", "serial")
        yield rum.lab.Study(small, quiet=True, home=tmp_path_factory.mktemp("home"))


@pytest.mark.parametrize("name", PROXIES)
def test_a_study_has_every_proxy_of_every_example(name, study):
    found = study.proxy(name)
    assert torch.equal(found.index, study.train.index)
    assert torch.corrcoef(torch.stack([ranks(found.values), ranks(study.score.values)]))[0, 1] > 0.25
    assert torch.equal(study.proxy(name).values, found.values)       # read back


def ranks(values):
    return values.argsort().argsort().float()


def test_matched_sets_of_a_study_share_their_memorization(study):
    sets = study.matched_sets().values()
    assert [s.name for s in sets] == ["matched low", "matched medium", "matched high"] == list(study.matched_sets())
    scores, means = ([s.facts[fact] for s in sets] for fact in ("entanglement", "memorization"))
    assert scores == sorted(scores) and max(means) - min(means) < 0.05
    for chosen in sets:
        measured = study.entanglement(chosen)
        assert measured["entanglement"] == pytest.approx(chosen.facts["entanglement"]) and measured["mmd"] > 0


# -- Published scores -------------------------------------------------------------------------------------------------


@pytest.fixture
def published(run, tmp_path):
    """Both kinds of file, of the whole data set."""
    values, y = np.random.RandomState(0).rand(123), run.train.y.numpy()
    np.savez(tmp_path / "scores.npz", memorization=values, labels=y, pair=values.reshape(41, 3))
    rows = [f"{value:.17g},{label}" for value, label in zip(values, y, strict=True)]
    (tmp_path / "scores.csv").write_text("\n".join(["memorization,labels", *rows]))
    return SimpleNamespace(folder=tmp_path, values=torch.tensor(values).float(), y=y)


@pytest.mark.parametrize("file", ["scores.npz", "scores.csv"])
def test_published_scores_line_up_with_the_examples(file, published, run):
    whole = rum.Score.read(published.folder / file, "memorization", run.train, labels="labels", middle=0.5)
    assert torch.equal(whole.values, published.values) and whole.middle == 0.5
    part = run.train[torch.tensor([100, 3, 57])]
    some = rum.Score.read(published.folder / file, "memorization", part, labels="labels")
    assert torch.equal(some.of(part), published.values[[100, 3, 57]])
    hashed = rum.Score.read(published.folder / file, "memorization", run.train, name="theirs",
                            labels_hash=rum.data.label_hash(run.train.y))
    assert torch.equal(hashed.values, whole.values) and hashed.name == "theirs"


def test_the_label_hash_is_a_plain_sha256():
    from hashlib import sha256

    y = np.array([3, 0, 255, 7])
    assert rum.data.label_hash(torch.tensor(y)) == sha256(y.astype("<i8").tobytes()).hexdigest()[:16]
    assert rum.data.label_hash(torch.tensor(y, dtype=torch.int32)) == rum.data.label_hash(torch.tensor(y))
    assert rum.data.label_hash(torch.tensor(y[::-1].copy())) != rum.data.label_hash(torch.tensor(y))


def test_scores_in_another_order_are_refused(published, run):
    file = published.folder / "scores.npz"
    order = torch.randperm(123, generator=torch.Generator().manual_seed(0))
    shuffled = rum.Examples(run.train.x[order], run.train.y[order])
    with pytest.raises(ValueError, match=r"another order.*labels of .* of 123 examples differ"):
        rum.Score.read(file, "memorization", shuffled, labels="labels")
    with pytest.raises(ValueError, match=r"another order.*hash to"):
        rum.Score.read(file, "memorization", shuffled, labels_hash=rum.data.label_hash(run.train.y))


@pytest.mark.parametrize("key, options, words", [
    ("memorization", {}, "nothing proves the order"),
    ("influence", {"labels": "labels"}, "no 'influence'; it has 'memorization', 'labels', 'pair'"),
    ("memorization", {"labels": "targets"}, "no 'targets'"),
    ("pair", {"labels": "labels"}, "one number per example.*41, 3"),
])
def test_a_file_without_what_is_asked_for_is_refused(key, options, words, published, run):
    with pytest.raises(ValueError, match=words):
        rum.Score.read(published.folder / "scores.npz", key, run.train, **options)


def test_other_files_are_refused(published, run, tmp_path):
    np.savez(tmp_path / "short.npz", memorization=np.zeros(5), labels=np.zeros(5, dtype=int))
    with pytest.raises(ValueError, match="5 values; examples go up to index 122"):
        rum.Score.read(tmp_path / "short.npz", "memorization", run.train, labels="labels")
    np.savez(tmp_path / "objects.npz", memorization=np.array([{}, None]), labels=np.zeros(2))
    with pytest.raises(ValueError, match="never unpickled"):
        rum.Score.read(tmp_path / "objects.npz", "memorization", run.train, labels="labels")
    (tmp_path / "scores.pkl").write_bytes(b"")
    with pytest.raises(ValueError, match=r"\.npz and \.csv"):
        rum.Score.read(tmp_path / "scores.pkl", "memorization", run.train, labels="labels")
    with pytest.raises(ValueError, match="labels_hash speaks of all 123"):
        rum.Score.read(published.folder / "scores.npz", "memorization", run.train[:50], labels_hash="0" * 16)
    with pytest.raises(FileNotFoundError):
        rum.Score.read(tmp_path / "none.npz", "memorization", run.train, labels="labels")


# -- Entanglement -----------------------------------------------------------------------------------------------------


@pytest.fixture
def clouds():
    random = torch.Generator().manual_seed(0)
    return torch.randn(80, 6, generator=random, dtype=torch.double), \
        torch.randn(30, 6, generator=random, dtype=torch.double) + 0.7


def rotation(d):
    return torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(1), dtype=torch.double))[0]


def test_entanglement_knows_no_place_direction_or_scale(clouds):
    r, s = clouds
    value = rum.entanglement(s, r)
    assert rum.entanglement(r, s) == value
    for change in (lambda x: x + 5, lambda x: x @ rotation(6), lambda x: 3 * x, lambda x: torch.cat([x, x])):
        assert rum.entanglement(change(s), change(r)) == pytest.approx(value)
    assert rum.entanglement(s + 10, r) < value


def test_mmd_is_a_distance(clouds):
    r, s = clouds
    value = rum.mmd(r, s, gamma=0.2)
    assert value > 0 and rum.mmd(s, r, gamma=0.2) == pytest.approx(value)
    assert rum.mmd(r, r.flip(0), gamma=0.2) == pytest.approx(0, abs=1e-12)
    for change in (lambda x: x + 5, lambda x: x @ rotation(6), lambda x: torch.cat([x, x])):
        assert rum.mmd(change(r), change(s), gamma=0.2) == pytest.approx(value)
    assert rum.mmd(2 * r, 2 * s, gamma=0.05) == pytest.approx(value)
    assert rum.mmd(r, s + 10, gamma=0.2) > value


def test_mmd_never_holds_the_whole_kernel(clouds, monkeypatch):
    sizes = []
    cdist = torch.cdist
    monkeypatch.setattr(torch, "cdist", lambda x, y: (sizes.append((len(x), len(y))), cdist(x, y))[1])
    rum.mmd(*clouds, block=16)
    assert max(max(size) for size in sizes) == 16


def test_the_median_width_of_mmd_is_that_of_all_pairs_and_knows_no_unit(clouds):
    points = torch.cat(clouds).double()
    distances = np.sort(np.linalg.norm(points[:, None].numpy() - points[None].numpy(), axis=2)[np.triu_indices(
        len(points), 1)])
    gamma = 1 / (2 * distances[(len(distances) - 1) // 2] ** 2)
    found = rum.mmd(*clouds, gamma="median")
    assert found == pytest.approx(rum.mmd(*clouds, gamma=gamma))
    assert found == pytest.approx(rum.mmd(*(1000 * cloud for cloud in clouds), gamma="median"))
    wide = (100 * torch.randn(30, 5, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    assert rum.mmd(*wide) == pytest.approx(2 / 30)           # a kernel that sees no two points as near says nothing
    with pytest.raises(ValueError, match="median distance is 0; give gamma"):
        rum.mmd(torch.zeros(5, 2), torch.zeros(4, 2), gamma="median")
    for wrong in (0, -1.0, "mean"):
        with pytest.raises(ValueError, match="gamma must be a number above 0"):
            rum.mmd(*clouds, gamma=wrong)


def test_neighbours_are_the_nearest(clouds):
    points, _ = clouds
    found = rum.scores.neighbours(points, 7, 5)
    distance = np.linalg.norm(points.numpy() - points[7].numpy(), axis=1)
    assert found.tolist() == sorted(np.argsort(distance)[:6].tolist()) and 7 in found
    twins = points[:1].repeat(10, 1)
    assert 8 in rum.scores.neighbours(twins, 8, 2)
    with pytest.raises(ValueError, match=r"k must be .*in \[1, 80\)"):
        rum.scores.neighbours(points, 0, 80)


def test_matched_sets_differ_in_entanglement_alone():
    random = torch.Generator().manual_seed(0)
    values, points = torch.rand(600, generator=random) ** 2, torch.randn(600, 5, generator=random)
    points[:, 0] *= 3
    sets = rum.scores.matched(values, points, 60)
    assert list(sets) == ["low", "medium", "high"]
    scores, means = [], []
    for rows in sets.values():
        assert len(rows.unique()) == 60 and (rows.diff() > 0).all()
        rest = torch.ones(600, dtype=torch.bool)
        rest[rows] = False
        scores.append(rum.entanglement(points[rows], points[rest]))
        means.append(values[rows].mean().item())
        quarters = torch.cat([values.sort().values[::150], torch.ones(1)])
        assert torch.histogram(values[rows], quarters).hist.tolist() == [15] * 4
    assert scores[0] < scores[1] / 2 < scores[2] / 4
    assert max(means) - min(means) < 0.02
    with pytest.raises(ValueError, match=r"bins\.\.300"):
        rum.scores.matched(values, points, 301)
