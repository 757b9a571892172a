"""ClusCa: groups, what is drawn from them, and whole runs against a transcription."""

import pytest
import torch

from accel.caching import ClusCa
from accel.caching.clusca import ClusterTokens
from accel.caching.clusters import assign, one_of_each
from accel.caching.policies import Interval, schedule
from tests.caching.transcribed import Counted, taylorseer
from tests.tiny_pipelines import call, make


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_separate_groups_are_found_and_kept():
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    truth = torch.arange(3).repeat(20)
    tokens = (centres[truth] + 0.1 * torch.randn(60, 2))[None]
    start = tokens[:, :3] + 1
    labels, centroids = assign(tokens, 3, start, seeded())
    assert torch.equal(labels[0], truth)
    torch.testing.assert_close(centroids[0], centres, rtol=0, atol=0.2)
    for group in range(3):
        torch.testing.assert_close(centroids[0, group], tokens[0, truth == group].mean(0))


def test_distances_are_of_absolute_values_and_empty_groups_stay():
    tokens = torch.tensor([[[3.0, 3.0], [0.0, 5.0]]])
    centroids = torch.tensor([[[0.0, 0.0], [100.0, 100.0]]])
    labels, moved = assign(tokens, 2, centroids, seeded())
    assert labels.tolist() == [[0, 0]] and moved[0].tolist() == [[1.5, 4.0], [100.0, 100.0]]
    near = torch.tensor([[[0.0, 1.0], [2.0, 4.5]]])  # (3, 3): 5 and 2.5; (0, 5): 4 and 2.5
    assert assign(tokens, 2, near, seeded())[0][0, 0] == 1


def test_the_first_groups_are_drawn_the_same_for_every_sample():
    tokens = torch.randn(2, 30, 4)
    both = assign(tokens, 5, None, seeded())
    for i in range(2):
        alone = assign(tokens[i : i + 1], 5, None, seeded())
        assert torch.equal(alone[0], both[0][i : i + 1])
        torch.testing.assert_close(alone[1], both[1][i : i + 1])


def test_one_token_of_each_group_is_drawn_and_all_have_a_chance():
    labels = torch.tensor([[0, 1, 1, 2, 2, 2], [2, 2, 1, 0, 0, 0]])
    generator, seen = seeded(), [set(), set()]
    for _ in range(200):
        chosen = one_of_each(labels, 3, generator)
        assert torch.equal(labels.gather(1, chosen), torch.tensor([[0, 1, 2]] * 2))
        for row in range(2):
            seen[row] |= set(chosen[row].tolist())
    assert seen == [set(range(6))] * 2
    assert torch.equal(one_of_each(labels, 3, seeded(3)), one_of_each(labels, 3, seeded(3)))


def test_of_an_empty_group_a_token_of_another_is_taken_once_more():
    chosen = one_of_each(torch.tensor([[0, 2, 0, 2]]), 4, seeded())[0].tolist()
    assert chosen[1] == chosen[3] and chosen[1] in (chosen[0], chosen[2])


@pytest.fixture
def drawn(monkeypatch):
    """(labels, chosen) of every call, in the order of the calls."""
    found, choose = [], ClusterTokens.choose

    def watched(self, state, place, tokens):
        chosen = choose(self, state, place, tokens)
        found.append((state.extra[f"{place.part}:labels"].clone(), chosen))
        return chosen

    monkeypatch.setattr(ClusterTokens, "choose", watched)
    return found


def released(counted, feeds, full, draws, spread, warmup):
    """Factors of feed-forwards, the first one changed by the computed tokens of every skip."""
    kept, last, draws = {}, {}, iter(draws)

    def hook(module, args, output):
        step, key = counted.step, (id(module), counted.branch)
        if step in full:
            old, new = kept.get(key, []), [output.clone()]
            if old and step > warmup - 2:
                new.append((output - old[0]) / (step - last[key]))
            kept[key], last[key] = new, step
            return None
        labels, chosen = next(draws)
        first = kept[key][0]
        for row in range(len(output)):
            before = first[row].clone()
            for token in chosen[row].tolist():
                before[token] = output[row, token]
            if spread:
                for token, group in enumerate(labels[row].tolist()):
                    value = output[row, chosen[row, group]]
                    before[token] = spread * value + (1 - spread) * before[token]
            first[row] = before
        total = first.clone()
        if len(kept[key]) > 1:
            total = total + kept[key][1] * (step - last[key])
        return total

    counted.hooks += [feed.register_forward_hook(hook) for feed in feeds]


@pytest.mark.parametrize("spread", [0.0, 0.2])
@pytest.mark.parametrize("name", ["wan", "cogvideox"])
def test_latents_are_those_of_the_transcription(name, spread, drawn):
    pipe = make(name)
    pipe.enable_acceleration(ClusCa(interval=3, clusters=5, spread=spread, warmup=2))
    latents = call(pipe, name, steps=9)

    plain = make(name)
    counted = Counted(plain, branches=1 if name == "cogvideox" else 2)
    model = plain.transformer
    blocks = list(model.blocks if name == "wan" else model.transformer_blocks)
    attention, feed = (("attn1", "attn2"), "ffn") if name == "wan" else (("attn1",), "ff")
    held = [b.get_submodule(part) for b in blocks for part in attention]
    taylorseer(counted, held, 1, interval=3, warmup=2)
    full = set(schedule(Interval(3, 2), 9))
    feeds = [b.get_submodule(feed) for b in blocks]
    released(counted, feeds, full, drawn, spread, warmup=2)
    expected = counted.run(plain, name, steps=9)
    scale = expected.std()
    torch.testing.assert_close(latents / scale, expected / scale, rtol=1e-4, atol=1e-4)
    for labels, chosen in drawn:
        found = labels.gather(1, chosen)
        for row in range(len(labels)):
            for group in set(labels[row].tolist()):
                assert found[row, group] == group


def test_both_branches_share_the_draw_and_the_seed_decides(drawn):
    latents = []
    for seed in (0, 0, 1):
        pipe = make("wan")
        pipe.enable_acceleration(ClusCa(interval=3, clusters=4, spread=0.2, warmup=2, seed=seed))
        latents.append(call(pipe, "wan", steps=4))
    assert torch.equal(latents[0], latents[1]) and not torch.equal(latents[0], latents[2])


def test_without_spread_only_drawn_tokens_change(drawn, monkeypatch):
    """Order 0: what is not drawn is what the last full step gave."""
    given, expanded = {}, ClusterTokens._expanded

    def watched(self, state, place, index):
        value = expanded(self, state, place, index)
        given.setdefault(place.path, []).append(value[0].clone())
        return value

    monkeypatch.setattr(ClusterTokens, "_expanded", watched)
    pipe = make("wan")
    pipe.enable_acceleration(ClusCa(interval=4, clusters=4, spread=0, order=0, warmup=1))
    call(pipe, "wan", steps=3, guidance=1.0)
    first, second = given["blocks.1.ffn"]
    tokens = drawn[len(pipe.transformer.blocks) + 1][1][0].tolist()
    changed = (first != second).any(-1).nonzero().flatten().tolist()
    assert len(changed) > 0 and set(changed) <= set(tokens)


@pytest.mark.parametrize(
    ("field", "value"), [("clusters", 0), ("spread", 2.0), ("order", 7), ("seed", -1)]
)
def test_bad_settings_are_named(field, value):
    with pytest.raises(ValueError, match=f"ClusCa.{field} must be"):
        ClusCa(**{field: value})
