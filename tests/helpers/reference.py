"""The losses again, for the tests: loops over pairs in float64. Only the window's membership is the package's."""

import math

import torch
from torch import Tensor

from conr_hf.losses import within_window


def distance_between(a: Tensor, b: Tensor, distance: str = "mean_abs") -> Tensor:
    """Distance of two labels of shape `(T,)`."""
    if distance == "angular":
        return a.new_tensor(angle_between(a.tolist(), b.tolist()))
    return (a - b).square().sum().sqrt() if distance == "euclidean" else (a - b).abs().mean()


def angle_between(a, b):
    """Angle between two directions (pitch, yaw), from the cross and dot product of unit vectors, in radians."""
    (x, y, z), (u, v, w) = (
        (math.cos(pitch) * math.sin(yaw), math.sin(pitch), math.cos(pitch) * math.cos(yaw)) for pitch, yaw in (a, b)
    )
    across = math.hypot(y * w - z * v, z * u - x * w, x * v - y * u)
    return math.atan2(across, x * u + y * v + z * w)


def find_partners(labels, predictions, window, distance="mean_abs"):
    """Two lists with one list a row: the indices of its positives, and of its negatives."""
    all_labels, all_predictions = labels.detach(), predictions.detach()
    labels, predictions = (x.reshape(len(x), -1).double() for x in (all_labels, all_predictions))
    positives, negatives = [], []
    for i in range(len(labels)):
        positives.append([])
        negatives.append([])
        for j in range(len(labels)):
            similar = within_window(distance_between(labels[i], labels[j], distance), window, all_labels)
            confused = within_window(
                distance_between(predictions[i], predictions[j], distance), window, all_predictions
            )
            if similar and i != j:
                positives[i].append(j)
            if confused and not similar:
                negatives[i].append(j)
    return positives, negatives


def conr_loss(
    features,
    labels,
    predictions,
    weights=None,
    *,
    window,
    push_scale,
    temperature=0.07,
    push="exponential",
    formulation="exact",
    reduction="mean",
    distance="mean_abs",
    anchors=None,
):
    """The loss as it is defined, differentiable by autograd. One row of `features` a view."""
    rows = len(features)
    units = [f / f.norm() if f.norm() > 0 else f for f in features.double()]
    positives, negatives = find_partners(labels, predictions, window, distance)
    labels = labels.reshape(rows, -1).double()
    eta = [1.0] * rows if weights is None else weights.double().tolist()
    anchor_rows = [i for i in range(rows) if positives[i] and negatives[i]]

    total = features.double().sum() * 0
    for i in range(rows)[anchors or slice(None)]:
        if i not in anchor_rows:
            continue
        score = {j: units[i] @ units[j] / temperature for j in positives[i] + negatives[i]}
        inside = sum(score[j].exp() for j in positives[i])
        for j in negatives[i]:
            far = push_scale * distance_between(labels[i], labels[j], distance).item()
            inside = inside + eta[i] * (math.exp(far) if push == "exponential" else far) * score[j].exp()
        count = len(positives[i])
        if formulation == "reference":
            inside = inside + (rows - count)
        row = inside.log() - sum(score[j] for j in positives[i]) / count
        if formulation == "reference":
            row = row * (eta[i] if push == "exponential" else count / (count + 1))
        total = total + row
    return total / (rows if reduction == "mean" else max(len(anchor_rows), 1))


def random_batch(seed: int) -> dict:
    """Arguments of `conr_loss` in float64; ties, zero features, empty windows and all settings come up among seeds."""
    generator = torch.Generator().manual_seed(seed)

    def pick(*options):
        return options[int(torch.randint(len(options), (), generator=generator))]

    rows, label_dims = pick(1, 6, 12, 12, 12, 12), pick(None, None, 1, 2)
    shape = (rows,) if label_dims is None else (rows, label_dims)
    whole = torch.randint(20, pick(23, 25, 26, 60), shape, generator=generator).double()
    unit = pick(1.0, 1.0, 0.1)
    labels = unit * pick(whole, whole, torch.rand(shape, generator=generator).double() * 4)
    noise = unit * torch.randn(shape, generator=generator).double()
    predictions = pick(labels + noise, labels.roll(1, 0), labels.mean(0) + 0 * noise, labels.mean(0) + noise)
    features = torch.randn(rows, pick(2, 3, 8), generator=generator).double() + pick(0.0, 2.0)
    features = features * (torch.rand(rows, 1, generator=generator) > pick(0.0, 0.3))
    weights = torch.rand(rows, generator=generator).double() * 2 * (torch.rand(rows, generator=generator) > 0.1)
    first = int(torch.randint(rows, (), generator=generator))
    return {
        "features": features,
        "labels": labels,
        "predictions": predictions,
        "weights": pick(None, weights),
        "window": unit * pick(0.0, 1.0, 1.0, 1.0, 2.0, 100.0),
        "push_scale": pick(0.0, 0.01, 0.2, 1.0),
        "temperature": pick(0.05, 0.07, 0.2, 1.0),
        "push": pick("exponential", "linear"),
        "formulation": pick("exact", "reference"),
        "reduction": pick("mean", "anchors"),
        "distance": pick("mean_abs", "mean_abs", "euclidean"),
        "anchors": pick(None, None, slice(first, None), slice(first, first + 3)),
    }


def random_gazes(seed: int) -> dict:
    """[`random_batch`] with directions for labels: around straight ahead, anywhere, tiny angles, pitch of any size."""
    generator = torch.Generator().manual_seed(seed)
    batch = random_batch(seed)
    shape = (len(batch["features"]), 2)
    spread = (0.4, 3.0, 1e-3, 20.0)[seed % 4]
    labels = spread * torch.randint(-3, 4, shape, generator=generator).double() / 3
    noise = spread * torch.randn(shape, generator=generator).double()
    if seed % 3 == 0:
        labels = labels + 0.3 * noise
    predictions = (labels + 0.3 * noise, labels.roll(1, 0), labels.mean(0) + 0.2 * noise)[seed % 5 % 3]
    # No angle on the grid is on the border of a window, where roundings would decide.
    window = (0.0, 0.3147, 0.5123, 0.9871)[seed // 4 % 4] * min(spread, 1.0)
    own = {"labels": labels, "predictions": predictions, "window": window, "distance": "angular"}
    return {**batch, **own, "temperature": max(batch["temperature"], 0.2)}


def plain_conr_loss(features, labels, predictions, weights=None, *, window, push_scale, temperature=0.07):
    """
    The loss in the plain dense form that contrastive losses are written in: M x M tensors, masks and autograd.

    What tests/benchmarks/bench_loss.py compares with. It gives 0 to rows that are no anchors, as the loss does; masks
    become numbers once, since multiplying by a boolean mask costs several times as much.
    """
    units = torch.nn.functional.normalize(features, dim=1)
    scores = units @ units.T / temperature
    with torch.no_grad():
        distances = (labels[:, None] - labels).abs()
        similar = within_window(distances, window, labels)
        confused = within_window((predictions[:, None] - predictions).abs(), window, predictions)
        negatives = (confused & ~similar).to(scores.dtype)
        positives = similar.fill_diagonal_(False).to(scores.dtype)
        push = (push_scale * distances).exp()
        if weights is not None:
            push = weights[:, None] * push
        inside = torch.addcmul(positives, push, negatives)
        counts = positives.sum(1)
        anchors = (counts > 0) & (negatives.sum(1) > 0)
        shares = positives / counts.clamp(min=1)[:, None]
    scores = scores - scores.detach().amax(1, keepdim=True)
    rows = (scores.exp() * inside).sum(1).clamp(min=1e-30).log() - (scores * shares).sum(1)
    return torch.where(anchors, rows, 0).sum() / len(features)


# ---- the companion losses ----------------------------------------------------------------------------------------


def focal(residuals, beta, gamma, power):
    """Focal-R of each row, `power` 1 for the absolute and 2 for the squared error."""
    rows = []
    for row in residuals.reshape(len(residuals), -1):
        rows.append(sum(abs(r) ** power * (2 / (1 + (-beta * abs(r)).exp()) - 1) ** gamma for r in row) / len(row))
    return torch.stack(rows)


def log_gaussian(point, mean, covariance):
    """Logarithm of a normal density without its power of 2 pi."""
    offset = point - mean
    return -(torch.logdet(covariance) + offset @ torch.linalg.solve(covariance, offset)) / 2


def balanced_mse(predictions, labels, noise, density):
    """Balanced MSE of each row; `density(p, variance)` is how likely a label with noise is p, in any unit."""
    predictions, labels = (x.reshape(len(x), -1) for x in (predictions, labels))
    variance = noise**2
    rows = []
    for p, y in zip(predictions, labels, strict=True):
        rows.append(2 * variance.detach() * ((p - y).square().sum() / (2 * variance) + density(p, variance).log()))
    return torch.stack(rows)


def bmc(predictions, labels, candidates, noise):
    candidates = candidates.reshape(len(candidates), -1)
    return balanced_mse(
        predictions, labels, noise, lambda p, v: sum((-(p - c).square().sum() / (2 * v)).exp() for c in candidates)
    )


def gai(predictions, labels, weights, means, covariances, noise):
    eye = torch.eye(means.shape[1], dtype=torch.float64)

    def density(p, variance):
        parts = zip(weights, means, covariances, strict=True)
        found = sum(w * log_gaussian(p, m, c + variance * eye).exp() for w, m, c in parts)
        return found * variance ** (means.shape[1] / 2)

    return balanced_mse(predictions, labels, noise, density)


def bni(predictions, labels, centres, frequencies, noise):
    centres = centres.reshape(len(centres), -1)

    def density(p, variance):
        bins = zip(centres, frequencies, strict=True)
        return sum(f * (-(p - c).square().sum() / (2 * variance)).exp() for c, f in bins)

    return balanced_mse(predictions, labels, noise, density)


def rank_n_contrast(features, labels, *, temperature=2.0, distance="mean_abs", anchors=None, tolerance=1e-6):
    """`distance` is a name or a function of two labels of shape `(T,)`."""
    rows = len(features)
    labels = labels.reshape(rows, -1).double()
    between = distance if callable(distance) else lambda a, b: distance_between(a, b, distance)
    total = features.double().sum() * 0
    for i in range(rows)[anchors or slice(None)]:
        others = [j for j in range(rows) if j != i]
        far = {j: between(labels[i], labels[j]).item() for j in others}
        score = {}
        for j in others:
            offset = features[i].double() - features[j].double()
            score[j] = -offset.norm() / temperature if offset.any() else offset.sum() * 0
        for j in others:
            inside = torch.stack([score[k] for k in others if far[k] >= far[j] - tolerance])
            total = total + inside.logsumexp(0) - score[j]
    return total / max(rows * (rows - 1), 1)


def normalised_ranks(values):
    """Of a list of numbers: 1 / n for the largest, the earlier first among equals."""
    return [
        (1 + sum(w > v or (w == v and k < j) for k, w in enumerate(values))) / len(values)
        for j, v in enumerate(values)
    ]


def ranksim(features, labels, *, interpolation=2.0):
    """The loss, and its gradient in the features."""
    rows = len(features)
    labels = labels.reshape(rows, -1)
    first = [i for i in range(rows) if not any(torch.equal(labels[i], labels[j]) for j in range(i))]
    count = len(first)
    leaf = features.detach().double().requires_grad_()
    units = [leaf[i] / leaf[i].norm() if leaf[i].norm() > 0 else leaf[i] for i in first]
    loss, follow = 0.0, leaf.sum() * 0
    if count < 2:
        return torch.tensor(0.0, dtype=torch.float64), torch.zeros_like(leaf)
    for i in range(count):
        cosines = [units[i] @ units[j] for j in range(count)]
        nearness = [-distance_between(labels[first[i]].double(), labels[j].double()).item() for j in first]
        # Whole tolerances: labels that are equally far but for rounding.
        wanted = normalised_ranks([round(d / 1e-6) for d in nearness])
        found = normalised_ranks([c.item() for c in cosines])
        loss += sum((f - w) ** 2 for f, w in zip(found, wanted, strict=True)) / count
        arrives = [2 * (f - w) / count for f, w in zip(found, wanted, strict=True)]
        moved = normalised_ranks([c.item() + interpolation * g for c, g in zip(cosines, arrives, strict=True)])
        for c, f, m in zip(cosines, found, moved, strict=True):
            follow = follow - c * (f - m) / interpolation
    follow.backward()
    return torch.tensor(loss, dtype=torch.float64), leaf.grad
