"""Distances against cases that can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from mfrl.study.distances import mmd, mode_coverage, nearest_mode, off_mode, out_of_bounds, wasserstein2

SQUARE = np.array([(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])


def cloud(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 2))


def test_the_distance_of_a_cloud_moved_as_a_whole_is_the_way_it_moved() -> None:
    # By Jensen no matching costs less than the move of the mean, and moving every point by the same attains it.
    x = cloud(60, 0)
    assert wasserstein2(x, x + np.array([3.0, -4.0])) == pytest.approx(5.0)


def test_the_order_of_the_points_does_not_matter() -> None:
    x, y = cloud(60, 0), cloud(60, 1)
    shuffled = np.random.default_rng(2).permutation(y)
    assert wasserstein2(x, y[::-1]) == pytest.approx(wasserstein2(x, shuffled)) == pytest.approx(wasserstein2(y, x))
    assert wasserstein2(x, x[::-1]) == 0.0


def test_the_best_matching_is_found_where_the_nearest_point_is_not_it() -> None:
    # The points at 1 lie on each other, but matching them leaves 0 with 9.
    x, y = np.array([[0.0], [1.0]]), np.array([[1.0], [9.0]])
    assert wasserstein2(x, y) == pytest.approx(np.sqrt((1.0 + 64.0) / 2))  # and not sqrt((0 + 81) / 2)


def test_in_one_dimension_the_best_matching_is_the_sorted_one() -> None:
    x, y = cloud(200, 3)[:, :1], 2.0 * cloud(200, 4)[:, :1] + 1.0
    assert wasserstein2(x, y) == pytest.approx(np.sqrt(np.mean((np.sort(x, 0) - np.sort(y, 0)) ** 2)))


def test_a_cloud_that_is_one_point_is_as_far_as_its_points_are_on_average() -> None:
    y = cloud(50, 5)
    assert wasserstein2(np.full_like(y, 0.3), y) == pytest.approx(np.sqrt(np.mean(((y - 0.3) ** 2).sum(1))))


def test_clouds_of_different_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="as many points"):
        wasserstein2(cloud(3, 0), cloud(4, 0))


def test_the_discrepancy_of_two_points_is_that_of_the_kernel() -> None:
    # MMD^2 = k(x, x) + k(y, y) - 2 k(x, y) = 2 - 2 exp(-d^2 / 2 h^2)
    x, y = np.array([[0.0, 0.0]]), np.array([[0.3, 0.4]])
    assert mmd(x, y, [0.5]) == pytest.approx(np.sqrt(2.0 - 2.0 * np.exp(-0.5)))
    both = 2.0 - np.exp(-0.5) - np.exp(-0.125)
    assert mmd(x, y, [0.5, 1.0]) == pytest.approx(np.sqrt(both))


def test_the_discrepancy_weighs_every_pair() -> None:
    # x = {0, 0}, y = {0, 1}: MMD^2 = 1 + (1 + k) / 2 - 2 (1 + k) / 2 = (1 - k) / 2
    x, y = np.zeros((2, 1)), np.array([[0.0], [1.0]])
    assert mmd(x, y, [1.0]) == pytest.approx(np.sqrt((1.0 - np.exp(-0.5)) / 2))


def test_equal_clouds_have_no_discrepancy_and_draws_of_one_distribution_little() -> None:
    x, y = 0.3 * cloud(300, 6), 0.3 * cloud(300, 7)
    assert mmd(x, x[::-1]) == pytest.approx(0.0, abs=1e-7)
    same, other = mmd(x, y), mmd(x, y + np.array([0.3, 0.0]))
    assert 0.0 < same < 0.5 * other


def test_points_belong_to_the_nearest_mode_within_reach() -> None:
    x = np.array([(0.1, 0.0), (0.9, 0.15), (0.5, 0.5), (1.0, 0.75), (0.15, 0.15)])
    assert nearest_mode(x, SQUARE, radius=0.2).tolist() == [0, 1, -1, -1, -1]
    assert nearest_mode(x, SQUARE, radius=0.3).tolist() == [0, 1, -1, 3, 0]
    # A square reaches farther into its corners than a disc.
    assert nearest_mode(x, SQUARE, radius=0.2, order=np.inf).tolist() == [0, 1, -1, -1, 0]


def test_a_mode_is_covered_from_half_the_samples_it_should_receive() -> None:
    modes = np.repeat([0, 1, 2, -1], [10, 5, 4, 21])  # of 40 samples, each of 4 modes should receive 10
    assert mode_coverage(modes, 4) == 0.5
    assert mode_coverage(modes, 4, share=0.4) == 0.75
    assert mode_coverage(modes, 4, share=0.6) == 0.25
    assert off_mode(modes) == pytest.approx(21 / 40)


def test_a_point_is_out_of_bounds_with_one_coordinate() -> None:
    assert out_of_bounds(np.array([(1.0, -1.0), (1.01, 0.0), (0.0, -2.0), (0.5, 0.5)])) == 0.5
