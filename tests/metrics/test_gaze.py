"""Angles of gaze against rotations by known angles."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from conr_hf.metrics import angular_error


def pitch_and_yaw(vectors):
    x, y, z = vectors.T
    return np.stack([np.arcsin(-y), np.arctan2(-x, -z)], axis=1)


@pytest.mark.parametrize("degrees", [1e-6, 0.1, 30.0, 90.0, 150.0, 179.999999])
def test_a_rotated_gaze_is_off_by_the_angle_it_was_rotated_by(degrees):
    rng = np.random.default_rng(0)
    label = rng.normal(size=(50, 3))
    label /= np.linalg.norm(label, axis=1, keepdims=True)
    axis = np.cross(label, rng.normal(size=(50, 3)))  # at right angles to the gaze
    axis /= np.linalg.norm(axis, axis=1, keepdims=True)
    turned = Rotation.from_rotvec(np.radians(degrees) * axis).apply(label)
    # In pitch and yaw, a direction close to a pole loses digits.
    found = angular_error(pitch_and_yaw(turned), pitch_and_yaw(label))
    assert found == pytest.approx(np.full(50, degrees), abs=1e-12 + 1e-8 * min(degrees, 180 - degrees))


def test_worked_by_hand():
    """(0, 0) looks along -z, a pitch of a right angle along -y, a yaw of one along -x."""
    right = np.pi / 2
    found = angular_error([[0, 0], [right, 0], [0, right], [right, 0], [0.2, 0.3]], [[0, 0]] * 3 + [[0, right]] * 2)
    expected = np.degrees(np.arccos(np.cos(0.2) * np.sin(0.3)))
    assert found == pytest.approx([0, 90, 90, 90, expected])


def test_small_angles_keep_their_digits():
    """The arc cosine of the dot product would say 0."""
    tiny = 1e-10
    assert angular_error([[tiny, 0.0], [0.0, tiny]], [[0.0, 0.0]] * 2) == pytest.approx(np.degrees(tiny), rel=1e-9)
    assert angular_error([[0.0, np.pi - tiny]], [[0.0, 0.0]])[0] < 180


def test_same_and_opposite():
    rng = np.random.default_rng(1)
    gaze = rng.uniform(-1.5, 1.5, (200, 2))
    opposite = np.stack([-gaze[:, 0], gaze[:, 1] + np.pi], axis=1)
    assert np.abs(angular_error(gaze, gaze)).max() < 1e-7
    assert angular_error(opposite, gaze) == pytest.approx(np.full(200, 180))
    assert angular_error(gaze + 2 * np.pi, gaze) == pytest.approx(np.zeros(200), abs=1e-12)


def test_tensors():
    rng = np.random.default_rng(2)
    p, y = rng.uniform(-1, 1, (2, 20, 2))
    found = angular_error(torch.tensor(p).requires_grad_(), torch.tensor(y))
    assert found.tolist() == angular_error(p, y).tolist()
    assert found.dtype == np.float64


@pytest.mark.parametrize(
    ("predictions", "labels", "message"),
    [
        ([[0.1, np.nan]], [[0.1, 0.2]], r"^predictions\[0, 1\] is nan. The model may have diverged"),
        ([[0.1]], [[0.1]], r"^labels have shape \(1, 1\). Gaze is pitch and yaw: pass shape \(N, 2\)"),
        ([0.1, 0.2], [0.1, 0.2], r"^labels have shape \(2,\). Gaze is pitch and yaw"),
        ([[0.1, 0.2, 0.3]], [[0.1, 0.2]], r"^predictions have shape \(1, 3\) and labels \(1, 2\)"),
        ([[0.1, 0.2]] * 2, [[0.1, 0.2], [5.0, -12.0]], r"^labels\[1, 1\] is -12.0, more than a turn. Pass radians"),
    ],
)
def test_refusals_say_what_to_do(predictions, labels, message):
    with pytest.raises(ValueError, match=message):
        angular_error(predictions, labels)
