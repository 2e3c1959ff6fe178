import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from micrographia.errors import UserError
from micrographia.training.loop import TrainConfig, train
from micrographia.translate.cyclegan import CycleGAN, ImagePool, TranslateConfig, _low_pass

TINY = TranslateConfig(steps=10, batch=2, patch_px=32, width=8, blocks=1, pool=4, hold=0.5)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _batch(step: int = 0, n: int = 2) -> tuple[Tensor, Tensor]:
    x, y = torch.randn(2, n, 1, 32, 32, generator=_generator(step))
    return x, 0.5 * y + 0.3


def _model(config: TranslateConfig = TINY, seed: int = 0) -> CycleGAN:
    return CycleGAN(config, _batch(90, 16)[0], _batch(91, 16)[1], seed)


# ------------------------------------------------------------------------------------------------------------- pool


def _numbered(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1, 1)


def test_a_pool_that_fills_passes_images_on():
    pool = ImagePool(4)
    for new in (_numbered(1, 2), _numbered(3, 4)):
        assert torch.equal(pool.mix(new, _generator()), new)
    assert pool.images.flatten().tolist() == [1, 2, 3, 4]


def test_a_full_pool_exchanges_half_and_loses_nothing():
    pool, generator = ImagePool(6), _generator()
    pool.mix(_numbered(*range(6)), generator)
    exchanged = 0
    for step in range(1, 200):
        new = _numbered(10.0 * step, 10.0 * step + 1)
        before = [*pool.images.flatten().tolist(), *new.flatten().tolist()]
        out = pool.mix(new, generator)
        after = [*pool.images.flatten().tolist(), *out.flatten().tolist()]
        assert sorted(before) == sorted(after)  # each image is shown or kept, once
        exchanged += int((out != new).sum())
    assert exchanged / 398 == pytest.approx(0.5, abs=0.08)


def test_the_pool_is_a_function_of_the_generator():
    def run() -> list[float]:
        pool, generator, seen = ImagePool(3), _generator(5), []
        for step in range(20):
            seen += pool.mix(_numbered(step, step + 0.5), generator).flatten().tolist()
        return seen

    assert run() == run()


def test_a_pool_smaller_than_a_batch_and_no_pool_work():
    pool = ImagePool(1)
    for step in range(5):
        assert pool.mix(_numbered(step, step + 0.1, step + 0.2), _generator(step)).shape == (3, 1, 1, 1)
    assert len(pool.images) == 1
    new = _numbered(1, 2)
    assert ImagePool(0).mix(new, _generator()) is new


def test_the_pool_keeps_copies():
    pool, new = ImagePool(2), _numbered(1, 2)
    pool.mix(new, _generator())
    new.zero_()
    assert pool.images.flatten().tolist() == [1, 2]


# ------------------------------------------------------------------------------------------------------------- step


def test_one_step_changes_all_networks_and_reports_finite_losses():
    model = _model()
    before = {name: copy.deepcopy(n.state_dict()) for name, n in model.networks.items()}
    losses = model.training_step(_batch(), 0, _generator())
    assert set(losses) == {
        "adversarial", "cycle", "identity", "critic_image_experiment", "critic_fourier_experiment",
        "critic_image_simulation", "critic_fourier_simulation",
    }  # fmt: skip
    assert all(torch.isfinite(v) for v in losses.values())
    for name, network in model.networks.items():
        changed = [not torch.equal(p, before[name][k]) for k, p in network.named_parameters()]
        assert any(changed), name
        assert torch.isfinite(torch.cat([p.flatten() for p in network.parameters()])).all()


def test_generators_do_not_learn_from_the_critics_loss():
    model = _model()
    model.training_step(_batch(), 0, _generator())
    frozen = {name: copy.deepcopy(model.networks[name].state_dict()) for name in model.ema_networks}
    model.optimizers["critics"].zero_grad()
    model._critics_step({"experiment": _batch(3)})
    for name, state in frozen.items():
        assert all(torch.equal(v, state[k]) for k, v in model.networks[name].state_dict().items())


def test_without_a_fourier_weight_its_critics_rest():
    model = _model(replace(TINY, fourier=0.0))
    before = copy.deepcopy(model.networks["fourier_experiment"].state_dict())
    losses = model.training_step(_batch(), 0, _generator())
    assert not any("fourier" in name for name in losses)
    after = model.networks["fourier_experiment"].state_dict()
    assert all(torch.equal(v, before[k]) for k, v in after.items() if "weight" in k or "bias" in k)


def test_the_critics_learn_to_tell_the_domains_apart():
    model = _model(replace(TINY, learning_rate=2e-3))
    history = [model.training_step(_batch(i), i, _generator(i)) for i in range(25)]
    first, last = (
        np.mean([float(h["critic_image_experiment"]) for h in part]) for part in (history[:3], history[-3:])
    )
    assert last < first


def test_the_same_seed_is_the_same_training_and_another_seed_another():
    def weights(seed: int) -> Tensor:
        model = _model(seed=seed)
        for step in range(2):
            model.training_step(_batch(step), step, _generator(step))
        return torch.cat([p.flatten() for p in model.networks["to_experiment"].parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


def test_the_learning_rate_holds_and_then_falls_to_zero():
    model = _model()
    rates = []
    for _ in range(TINY.steps + 1):
        rates.append(model.optimizers["generators"].param_groups[0]["lr"] / TINY.learning_rate)
        for optimizer, scheduler in zip(model.optimizers.values(), model.schedulers.values(), strict=True):
            optimizer.step()
            scheduler.step()
    assert rates[:5] == [1] * 5
    assert rates[5:] == pytest.approx([1, 0.8, 0.6, 0.4, 0.2, 0])


def test_a_resumed_training_equals_one_that_was_not_interrupted(tmp_path):
    def run(folder, *lengths: int) -> CycleGAN:
        for steps in lengths:
            model = _model()
            config = TrainConfig(steps=steps, device="cpu", log_every=1, checkpoint_every=3, ema_decay=0.9)
            train(model, _batch, config, folder, label="cyclegan")
        return model

    straight, resumed = run(tmp_path / "a", 9), run(tmp_path / "b", 5, 9)
    assert all(len(images) == TINY.pool for images in straight.state().values())
    for name, images in straight.state().items():
        assert torch.equal(images, resumed.state()[name])
    for name, network in straight.networks.items():
        for key, value in network.state_dict().items():
            assert torch.equal(value, resumed.networks[name].state_dict()[key]), (name, key)


def test_state_restores_the_pools():
    one, two = _model(), _model()
    for step in range(3):
        one.training_step(_batch(step), step, _generator(step))
    two.load_state({k: v.clone() for k, v in one.state().items()})
    new = torch.randn(2, 1, 32, 32)
    assert torch.equal(
        one.pools["experiment"].mix(new, _generator(9)), two.pools["experiment"].mix(new, _generator(9))
    )


# ------------------------------------------------------------------------------------------------------------ parts


def test_the_low_pass_keeps_constants_and_takes_white_noise_down():
    assert torch.allclose(_low_pass(torch.full((1, 1, 9, 9), 3.0)), torch.full((1, 1, 9, 9), 3.0))
    noise = torch.randn(4, 1, 64, 64, generator=_generator())
    assert _low_pass(noise).std() == pytest.approx(70 / 256, rel=0.05)  # sum of the squared binomial weights


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"steps": 0}, "translate.steps"),
        ({"batch": 0}, "translate.batch"),
        ({"patch_px": 100}, "multiples of 8"),
        ({"width": 12}, "multiples of 8"),
        ({"layout": "khan2023", "patch_px": 128}, "multiple of 256"),
        ({"hold": 1.5}, "translate.hold"),
        ({"learning_rate": -1.0}, "translate.learning_rate"),
        ({"learning_rate": float("nan")}, "translate.learning_rate"),
        ({"beta1": 1.0}, "translate.beta1"),
        ({"cycle": -1.0}, "translate.cycle"),
        ({"identity": -1.0}, "translate.identity"),
        ({"fourier": float("nan")}, "translate.fourier"),
        ({"backward_noise": -0.1}, "translate.backward_noise"),
        ({"pool": -1}, "translate.pool"),
        ({"ema_decay": 1.0}, "translate.ema_decay"),
        ({"patience": -1}, "translate.patience"),
    ],
)
def test_impossible_settings_are_refused_by_name(change, named):
    with pytest.raises(UserError, match=named):
        replace(TINY, **change)
