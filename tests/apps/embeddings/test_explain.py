"""Shares of tokens sum to the cosine; the plane is that of the largest variance."""

from __future__ import annotations

import numpy as np
import pytest

from apps.embeddings.explain import contributions, latent_usage, plane
from core.errors import UnsupportedError
from tests.apps.embeddings.test_embedding_model import TEXTS, pipeline


@pytest.mark.parametrize("pooling", ["latent", "mean"])
def test_shares_sum_to_the_cosine(pooling):
    embed = pipeline(pooling)
    shares = contributions(embed, TEXTS[0], TEXTS[1])
    assert sum(s.value for s in shares) == pytest.approx(float(embed.similarity(TEXTS[0], TEXTS[1])[0, 0]), abs=1e-5)
    covered = "".join(TEXTS[0][s.start : s.end] for s in shares)
    assert covered.replace(" ", "") == TEXTS[0].replace(" ", "")
    assert len({round(s.value, 6) for s in shares}) > 1


def test_one_token_has_no_shares():
    with pytest.raises(UnsupportedError, match="one token"):
        contributions(pipeline("last"), "a", "b")


def test_usage_only_where_there_are_latents():
    usage = latent_usage(pipeline("latent"), TEXTS)
    assert usage is not None and usage.shape == (3, 6)
    np.testing.assert_allclose(usage.sum(1), 1, rtol=1e-4)
    assert latent_usage(pipeline("mean"), TEXTS) is None


def test_the_plane_holds_the_largest_variance():
    random = np.random.default_rng(0)
    vectors = random.normal(size=(400, 5)) * [9, 2, 0.1, 0.1, 0.1]
    places, share = plane(vectors)
    assert share > 0.99 and abs(np.corrcoef(places[:, 0], vectors[:, 0])[0, 1]) > 0.995
    assert plane(np.ones((4, 3)))[1] == 0.0
