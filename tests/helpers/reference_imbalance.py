"""Density weights and feature distribution smoothing again, for the tests: loops over labels, bins and dimensions."""

import math

import numpy as np


def bin_of(label, edges):
    """The bin of a label that lies near no edge, and `None` outside all bins."""
    return next((b for b in range(len(edges) - 1) if edges[b] <= label < edges[b + 1]), None)


def density_weights(labels, edges, method, kernel=(1.0,)):
    """Weights of training labels of shape `(N, T)`, with mean 1; `edges` of each dimension."""
    half, relative = len(kernel) // 2, []
    all_counts = [[0] * (len(e) - 1) for e in edges]
    for row in labels:
        for t, label in enumerate(row):
            all_counts[t][bin_of(label, edges[t])] += 1
    for row in labels:
        of_dimensions = []
        for t, label in enumerate(row):
            bins = len(edges[t]) - 1
            if method == "none":
                of_dimensions.append(1.0)
                continue
            values = [math.sqrt(n) if method == "sqrt_inverse" else min(max(n, 5), 1000) for n in all_counts[t]]
            smoothed = 0.0
            for offset in range(-half, half + 1):
                neighbour = bin_of(label, edges[t]) + offset
                if 0 <= neighbour < bins:
                    smoothed += kernel[half + offset] * values[neighbour]
            of_dimensions.append(1 / smoothed)
        relative.append(max(of_dimensions))
    return [weight * len(relative) / sum(relative) for weight in relative]


class FeatureSmoothing:
    """Keeps all features of an epoch and goes through them bin by bin and dimension by dimension, in float64."""

    def __init__(self, edges, kernel, momentum, clip):
        self.edges, self.kernel, self.momentum, self.clip = edges, kernel, momentum, clip
        self.running = {}  # bin -> [mean, variance] of each dimension
        self.smoothed = {}
        self.rows = []

    def add(self, features, labels):
        self.rows += zip(np.asarray(features, dtype=np.float64), np.asarray(labels, dtype=np.float64), strict=True)

    def end_epoch(self):
        for b in range(len(self.edges) - 1):
            of_bin = [features for features, label in self.rows if bin_of(label, self.edges) == b]
            if not of_bin:
                continue
            new = [_mean_and_variance([row[d] for row in of_bin]) for d in range(len(of_bin[0]))]
            if b in self.running:
                new = [
                    [self.momentum * old + (1 - self.momentum) * now for old, now in zip(*pair, strict=True)]
                    for pair in zip(self.running[b], new, strict=True)
                ]
            self.running[b] = new
        self.rows = []
        self.smoothed = {b: self._over_neighbours(b) for b in self.running}

    def smooth(self, features, labels):
        """Of each feature, `(N, D)` of floats; also the factor that its gradient has."""
        values, factors = np.array(features, dtype=np.float64), np.ones(np.shape(features))
        for i, label in enumerate(np.asarray(labels, dtype=np.float64)):
            b = bin_of(label, self.edges)
            if b not in self.running:
                continue
            for d, (mean, variance) in enumerate(self.running[b]):
                if variance > 0:
                    smoothed_mean, smoothed_variance = self.smoothed[b][d]
                    ratio = min(max(smoothed_variance / variance, 1 / self.clip), self.clip)
                    factors[i, d] = math.sqrt(ratio)
                    values[i, d] = (values[i, d] - mean) * math.sqrt(ratio) + smoothed_mean
        return values, factors

    def _over_neighbours(self, b):
        bins, half = len(self.edges) - 1, len(self.kernel) // 2
        share, sums = 0.0, [[0.0, 0.0] for _ in self.running[b]]
        for offset in range(-half, half + 1):
            neighbour = b + offset
            if half >= bins:
                neighbour = min(max(neighbour, 0), bins - 1)
            elif neighbour < 0:
                neighbour = -neighbour
            elif neighbour >= bins:
                neighbour = 2 * (bins - 1) - neighbour
            if neighbour in self.running:
                share += self.kernel[half + offset]
                for total, statistics in zip(sums, self.running[neighbour], strict=True):
                    total[0] += self.kernel[half + offset] * statistics[0]
                    total[1] += self.kernel[half + offset] * statistics[1]
        return [[mean / share, variance / share] for mean, variance in sums]


def _mean_and_variance(values):
    mean = sum(values) / len(values)
    return [mean, 0.0 if len(values) == 1 else sum((value - mean) ** 2 for value in values) / (len(values) - 1)]
