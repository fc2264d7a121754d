"""Square Attack: never worse with more queries, the worst image of a linear network, and each query by hand."""

import pytest
import torch
from linear_victims import LinearVictim, can_fall_linf, found_by, images, wrong

from kernels.batch import Output
from kernels.square_windows import bumps
from lightning_modules.attacks.base import Draw
from lightning_modules.attacks.square import Square
from lightning_modules.attacks.until_fallen import Standing
from lightning_modules.attacks.victim import attacked


def margin(network, image, label):
    logits = network(image).logits.detach()
    right = logits.gather(1, label[:, None])[:, 0]
    return right - logits.scatter(1, label[:, None], -torch.inf).max(1).values


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_more_queries_are_never_worse(norm):
    network = LinearVictim(5, size=6)
    batch, before = network.right(images(20, size=6)), None
    eps = 0.01 if norm == "linf" else 0.1
    for queries in (0, 3, 30, 200):
        found, victim = found_by(Square(eps=eps, norm=norm, queries=queries), network, batch)
        lowest = margin(network, found, batch.label)
        assert victim.forwards <= 20 * (2 + queries) and victim.backwards == 0
        standing = ~wrong(network, found, batch.label)
        assert before is None or ((lowest <= before) | ~standing).all()
        assert before is None or (lowest < before).any()
        before = lowest


def test_it_finds_the_worst_image_of_a_linear_network():
    """Every number at its end of the ball: for two classes no other image has a lower margin."""
    network, eps = LinearVictim(2), 0.01
    batch = network.right(images(20))
    found, _ = found_by(Square(eps=eps, queries=1500), network, batch)
    limit = can_fall_linf(network, batch, eps)
    fallen = wrong(network, found, batch.label)
    assert torch.equal(fallen, limit > 0) and 0 < fallen.sum() < 20
    torch.testing.assert_close(-margin(network, found, batch.label)[~fallen], limit[~fallen])


def state_of(image, eps):
    rows = torch.arange(len(image))
    return Standing(
        rows, image, (image - eps).clamp(0, 1), (image + eps).clamp(0, 1), rows * 0, rows * 0, image,
        rows - torch.inf, rows < 0, Draw(0, 3, rows),
    )  # fmt: skip


def test_an_linf_query_sets_one_square_of_each_colour_to_an_end():
    image = images(50, size=7, low=0.2, high=0.8)
    attack, state = Square(eps=0.05), state_of(image, 0.05)
    stripes = attack._stripes(state)
    change = stripes - image
    torch.testing.assert_close(change.abs(), torch.full_like(change, 0.05))
    assert torch.equal(change.sign(), change.sign()[:, :, :1].expand_as(change)), "a column has one sign for a colour"
    state.best = stripes
    tops, lefts = set(), set()
    for step in range(3):
        moved = attack._square(state, 3, step)
        for row in range(50):
            changed = (moved - stripes)[row].abs() > 1e-9
            new = (moved - image)[row]
            inside = changed.any(0)
            if inside.any():
                rows, columns = inside.any(1).nonzero().flatten(), inside.any(0).nonzero().flatten()
                assert rows.max() - rows.min() <= 2 and columns.max() - columns.min() <= 2
                tops.add(rows.min().item())
                lefts.add(columns.min().item())
            torch.testing.assert_close(new.abs(), torch.full_like(new, 0.05))
    assert {0, 4} <= tops and {0, 4} <= lefts, "squares reach both borders"


def test_l2_starts_with_tiles_of_norm_eps():
    image = images(9, size=11, low=0.4, high=0.6)
    change = Square(norm="l2", eps=0.3)._tiles(state_of(image, 0.3)) - image
    torch.testing.assert_close(change.flatten(1).norm(dim=1), torch.full((9,), 0.3, dtype=torch.float64))
    assert not change[:, :, 10].any() and not change[:, :, :, 10].any(), "five tiles of two pixels, and one is left"
    tile = change[:, :, 2:4, 4:6] * 5 * 3**0.5 / 0.3
    kinds = [sign * turned for sign in (1, -1) for turned in (bumps(2), bumps(2).T)]
    for one in tile.flatten(0, 1):
        assert any(torch.allclose(one, kind) for kind in kinds)
    assert len({tuple(one.flatten().sign().tolist()) for one in tile.flatten(0, 1)}) == 4


def test_an_l2_query_by_hand():
    """Algorithm 3 with loops, for the windows that it drew."""
    image, eps, size, step = images(12, size=9, low=0.4, high=0.6), 0.3, 3, 4
    attack, state = Square(norm="l2", eps=eps), state_of(image, eps)
    state.best = image + 0.9 * (attack._tiles(state) - image)  # some of the norm is unused
    moved = attack._exchange(state, size, step)
    drawn = state.draw.again(step).uniform(torch.empty(12, 8, dtype=torch.float64), "square.query")
    for row in range(12):
        t1, l1, t2, l2 = (int(u * (9 - size + 1)) for u in drawn[row, :4].tolist())
        nu = (state.best - image)[row]
        bump = bumps(size) if drawn[row, 4] < 0.5 else bumps(size).T
        unused = eps**2 - nu.square().sum()
        union = torch.zeros(9, 9, dtype=torch.bool)
        union[t1 : t1 + size, l1 : l1 + size] = union[t2 : t2 + size, l2 : l2 + size] = True
        available = [(nu[c][union].square().sum() + unused / 3).sqrt() for c in range(3)]
        windows = []
        for c in range(3):
            old = nu[c, t1 : t1 + size, l1 : l1 + size]
            mixed = (-1 if drawn[row, 5 + c] < 0.5 else 1) * bump + old / max(old.norm().item(), 1e-12)
            windows.append(mixed / mixed.norm() * available[c])
        nu = nu.clone()
        nu[:, t2 : t2 + size, l2 : l2 + size] = 0
        nu[:, t1 : t1 + size, l1 : l1 + size] = torch.stack(windows)
        assert nu.norm().item() == pytest.approx(eps)
        torch.testing.assert_close(moved[row], image[row] + nu, rtol=0, atol=1e-9)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (4, 9), (12, 5)])
def test_images_of_any_shape(norm, height, width):
    class Mean(torch.nn.Module):
        def forward(self, image):
            mean = image.mean((2, 3))
            return Output(logits=mean[:, :2] * 5)

    image = torch.rand(6, 3, height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    network, label = Mean(), torch.zeros(6, dtype=torch.int64)
    with attacked(network) as victim:
        found = Square(norm=norm, eps=0.05, queries=30).search(victim, image, label, Draw(0, 0, torch.arange(6))).image
    assert found.isfinite().all() and (found - image).abs().max() <= 0.05 + 1e-12
    assert (margin(network, found, label) <= margin(network, image, label)).all()


@pytest.mark.parametrize(("rescale", "sides"), [(False, [5, 5, 5, 4]), (True, [5, 2, 1, 1])])
def test_the_schedule_is_stretched_to_the_queries_where_asked(rescale, sides):
    """20 queries are 10,000 in steps of 500 where the schedule is stretched."""
    seen = []

    class Watched(Square):
        def _square(self, state, size, step):
            seen.append(size)
            return super()._square(state, size, step)

    network = LinearVictim(3, size=6)
    batch = network.right(images(2, size=6))
    found_by(Watched(eps=1e-9, queries=20, rescale=rescale), network, batch)
    assert [seen[i] for i in (0, 1, 5, 11)] == sides


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"p_init": 0.0}, r"p_init=0.0 is out of range; allowed: 0 < p_init <= 1"),
        ({"queries": -1}, r"queries=-1 is out of range; allowed: queries >= 0"),
        ({"eps": "x"}, "eps=x is no size"),
    ],
)
def test_values_that_cannot_be(keys, message):
    with pytest.raises(ValueError, match=message):
        Square(**keys)
