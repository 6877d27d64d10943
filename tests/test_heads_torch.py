"""Heads against PyTorch: the same weights and batches, its own modules, loss and optimizer."""

import numpy as np
import pytest

import flowsim as fs
from flowsim.heads import learner, pools

torch = pytest.importorskip("torch")


class Peer(torch.nn.Module):
    """Two heads without biases, and ν."""

    def __init__(self, weights, raw):
        super().__init__()
        image_hidden, image, text_hidden, text = weights
        self.image, self.text = (
            torch.nn.Sequential(*_layers(hidden, last)) for hidden, last in ((image_hidden, image), (text_hidden, text))
        )
        self.raw = torch.nn.Parameter(torch.tensor(float(raw), dtype=torch.float64))

    def forward(self, image, text):
        x, y = (
            torch.nn.functional.normalize(head(rows), dim=1) for head, rows in ((self.image, image), (self.text, text))
        )
        logits = self.raw.exp() * x @ y.T
        labels = torch.arange(len(x))
        cross = torch.nn.functional.cross_entropy
        return (cross(logits, labels) + cross(logits.T, labels)) / 2, x, y


def _layers(hidden, last):
    if hidden is not None:
        yield _linear(hidden)
        yield torch.nn.GELU()
    yield _linear(last)


def _linear(weights):
    layer = torch.nn.Linear(*weights.shape, bias=False, dtype=torch.float64)
    layer.weight.data = torch.from_numpy(weights.T.copy())
    return layer


@pytest.mark.parametrize("hidden", [None, 24])
def test_200_steps_of_adamw(hidden):
    settings = fs.heads.Training(
        hidden=hidden, dim=16, batch_size=128, steps=200, precision="float64", clip=0.5, lr=3e-3, clamp=None, seed=3
    )
    pool = pools.Pools.of(settings)
    plan = settings.plan(pool.training.pairs)
    with learner.jax.enable_x64(True):
        flow = learner.flow_of(settings, fs.schedules.get("Baseline"))
        made = learner.Learner(settings, [flow], [3], pool.training, plan)
        peer = Peer(fs.initial.from_features(pool.training, 16, hidden).weights(3), np.log(1 / 0.07))
        decayed = [*peer.image.parameters(), *peer.text.parameters()]
        groups = [{"params": decayed, "weight_decay": 0.1}, {"params": [peer.raw], "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-6)
        order, counts = fs.data.Order(pool.training.pairs, 128, 3), np.full(pool.training.pairs, 2)
        for begin in range(0, 200, 50):
            noted = made.advance(begin, begin + 50)[0]
            for k in range(begin, begin + 50):
                pairs = order.indices(k)
                texts = order.captions(k, counts[pairs])
                loss, x, y = peer(
                    torch.from_numpy(pool.training.image_rows(pairs, np.float64)),
                    torch.from_numpy(pool.training.text_rows(pairs, texts, np.float64)),
                )
                gap = torch.linalg.vector_norm((x - y).mean(0)).item()
                np.testing.assert_allclose(noted[k - begin], [loss.item(), gap, peer.raw.item()], rtol=1e-6)
                for group in optimizer.param_groups:
                    group["lr"] = plan.rates[k]
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(peer.parameters(), 0.5)
                optimizer.step()
        ended = made.weights(0)
    for ours, theirs in (
        (ended.position.image_weights, peer.image[-1].weight), (ended.position.text_weights, peer.text[-1].weight),
    ):  # fmt: skip
        difference = np.abs(ours - theirs.detach().numpy().T).max() / np.abs(ours).max()
        print(f"hidden {hidden}: largest relative difference of weights after 200 steps {difference:.1e}")
        assert difference < 1e-6
    assert abs(float(ended.raw_temperature) - peer.raw.item()) < 1e-6
