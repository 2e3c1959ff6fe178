"""One adversarial step: penalties, pairs, processes, and that it goes on where it was left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from micrographia.errors import UserError
from micrographia.synthesize.augment import AugmentConfig, augment
from micrographia.synthesize.gan import GAN, GanConfig
from micrographia.synthesize.images import TrainingSet, Window
from micrographia.synthesize.synthesizer import Synthesizer
from micrographia.training.loop import OutOfMemory, TrainingDiverged

SMALL = GanConfig(
    resolution=16, steps=12, batch=8, latent=8, width=8, widest=16, mapping_layers=2, r1_every=4, path_every=2,
    evaluate_every=6, path_length=2.0, mixing=0.5,
)  # fmt: skip

LEARNING = replace(
    SMALL,
    batch=16,
    learning_rate=0.004,
    critic_rate=0.33,
    average_images=300.0,
    evaluate_every=40,
    path_length=0.0,
    mixing=0.0,
)


def blobs(n: int = 64, size: int = 16, classes: int = 0, seed: int = 0) -> TrainingSet:
    """Round spots at random places, in class 1 darker than the ground."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    centre = rng.uniform(4, size - 4, (n, 2, 1, 1))
    spots = np.exp(-((x - centre[:, 0]) ** 2 + (y - centre[:, 1]) ** 2) / 8)
    labels = np.arange(n) % 2 if classes else None
    signs = 1 if labels is None else (1 - 2 * labels)[:, None, None]
    images = np.round(128 + 100 * signs * spots + rng.normal(0, 4, spots.shape)).clip(0, 255)
    names = tuple(f"{i}.png" for i in range(n))
    return TrainingSet(
        images.astype(np.uint8)[:, None], Window(0.0, 255.0, "uint8"), names, np.zeros((n, 2), int), labels=labels,
        classes=("bright", "dark") if classes else (),
    )  # fmt: skip


def step_values(config: GanConfig, steps: int) -> list[dict[str, float]]:
    model = GAN(config, 1, 0, (16, 16), 0)
    real = blobs().batch(slice(0, config.batch))
    labels = torch.zeros(len(real), dtype=torch.int64)
    return [
        {k: float(v) for k, v in model.training_step((real, labels), step, torch.Generator()).items()}
        for step in range(steps)
    ]


def test_penalties_come_when_they_are_due() -> None:
    values = step_values(SMALL, 5)
    assert [("r1" in v) for v in values] == [True, False, False, False, True]
    assert [("path_length" in v) for v in values] == [True, False, True, False, True]
    assert all(np.isfinite(x) for v in values for x in v.values())


def test_the_penalty_makes_up_for_the_steps_left_out() -> None:
    config = replace(SMALL, r1=8.0, r1_every=4)
    assert [config.penalty_at(step) for step in range(5)] == [32, 0, 0, 0, 32]
    assert replace(config, r1=0.0).penalty_at(0) == 0


def test_rates_hold_and_then_fall_in_a_line_to_zero_at_the_end() -> None:
    model = GAN(replace(SMALL, steps=10, hold=0.4, learning_rate=0.01, critic_rate=0.5), 1, 0, (16, 16), 0)
    rates = []
    for _ in range(10):
        rates.append([model.optimizers[name].param_groups[0]["lr"] for name in ("generator", "critic")])
        for optimizer, scheduler in zip(model.optimizers.values(), model.schedulers.values(), strict=True):
            optimizer.step()
            scheduler.step()
    shares = [1, 1, 1, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]
    np.testing.assert_allclose(rates, np.outer(shares, [0.01, 0.005]))
    assert model.optimizers["generator"].param_groups[0]["lr"] == 0


def test_the_gradient_penalty_flattens_the_critic() -> None:
    free, flat = (step_values(replace(SMALL, r1=r1, r1_every=1), 60) for r1 in (1e-9, 30.0))
    assert np.mean([v["r1"] for v in flat[-10:]]) < 0.3 * np.mean([v["r1"] for v in free[-10:]])


def test_relativistic_losses_start_at_their_balance() -> None:
    # Networks that cannot tell yet: softplus(0) = log 2 for the pair, whatever the critic's offset.
    config = replace(SMALL, loss="relativistic", r1_every=1, path_length=0.0)
    first = step_values(config, 1)[0]
    assert abs(first["critic"] - np.log(2)) < 0.5
    assert {"critic", "generator", "r1"} <= set(first)


@pytest.mark.parametrize("network", ["stylegan2", "dcgan"])
@pytest.mark.parametrize("loss", ["logistic", "relativistic"])
def test_every_weight_learns(network: str, loss: str) -> None:
    config = replace(SMALL, network=network, loss=loss)
    model = GAN(config, 1, 2, (16, 16), 0)
    data = blobs(classes=2)
    before = {n: {k: v.clone() for k, v in net.named_parameters()} for n, net in model.networks.items()}
    assert data.labels is not None
    for step in range(4):
        model.training_step(
            (data.batch(slice(0, 8)), torch.from_numpy(data.labels[:8])), step, torch.Generator()
        )
    for name, network_ in model.networks.items():
        still = [k for k, v in network_.named_parameters() if torch.equal(v, before[name][k])]
        # Pairs are judged by their difference, in which a common offset has no part.
        assert still == (["judge.bias"] if loss == "relativistic" and still else [])


def test_parts_of_a_batch_give_the_same_gradients() -> None:
    one, four = (GAN(replace(SMALL, batch=16, accumulate=k), 1, 0, (16, 16), 0) for k in (1, 4))
    real, labels = blobs().batch(slice(0, 16)), torch.zeros(16, dtype=torch.int64)
    for model in (one, four):
        model.training_step((real, labels), 0, torch.Generator())
    for a, b in zip(one.networks["critic"].parameters(), four.networks["critic"].parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-6)


def test_samples_that_are_too_alike_are_penalised() -> None:
    real, labels = blobs().batch(slice(0, 8)), torch.zeros(8, dtype=torch.int64)

    def step(variety: float, spread: float) -> tuple[dict[str, float], torch.Tensor]:
        model = GAN(replace(SMALL, variety=variety), 1, 0, (16, 16), 0, spread=spread)
        values = model.training_step((real, labels), 1, torch.Generator())
        return {k: float(v) for k, v in values.items()}, model.networks["generator"].constant.grad

    free, gradient = step(0.0, 1.0)
    assert "alike" not in free
    assert step(10.0, 0.0)[0] == free  # nothing is known of the real images' spread
    reached, same = step(10.0, 1e-6)
    assert reached["alike"] == 0
    torch.testing.assert_close(same, gradient)
    missed, _ = step(10.0, 1e3)
    assert missed["alike"] == pytest.approx(1, abs=0.01)
    assert not torch.allclose(step(1e6, 1e3)[1], gradient, rtol=0.01)
    assert missed["generator"] == free["generator"]  # what is logged is the game alone


def test_few_steps_learn_spots(tmp_path: Path) -> None:
    data = blobs(256)
    model = Synthesizer(replace(LEARNING, steps=200))
    result = model.fit(data, tmp_path)
    course = result.history["frechet"].dropna().to_numpy()
    assert course.min() < 0.75 * course[0]
    assert result.best_score == course.min()
    samples = model.sample(range(32))
    assert samples.shape == (32, 1, 16, 16)
    assert abs(samples.mean() - data.batch(slice(None)).numpy().mean()) < 0.15


def lit_from_above(n: int) -> TrainingSet:
    """Images of 16 px, bright above an edge whose height varies."""
    rng = np.random.default_rng(0)
    y = np.arange(16)[:, None] + np.zeros(16)
    images = 128 + 80 * np.tanh((rng.uniform(5, 11, (n, 1, 1)) - y) / 1.5) + rng.normal(0, 4, (n, 16, 16))
    levels = images.round().clip(0, 255).astype(np.uint8)[:, None]
    return TrainingSet(levels, Window(0.0, 255.0, "uint8"), tuple(map(str, range(n))), np.zeros((n, 2), int))


def share_turned(images: np.ndarray) -> float:
    """Share of images that are brightest on another side than above."""
    upper, lower = images[:, 0, :8].mean(axis=(1, 2)), images[:, 0, 8:].mean(axis=(1, 2))
    left, right = images[:, 0, :, :8].mean(axis=(1, 2)), images[:, 0, :, 8:].mean(axis=(1, 2))
    return float((upper - lower < np.abs(left - right)).mean())


@pytest.mark.slow
def test_augmentation_does_not_leak_into_the_samples(tmp_path: Path) -> None:
    """The critic sees a third of the images turned; a generator that is trained on such images draws them so."""
    data = lit_from_above(2048)
    seen = augment(data.batch(slice(None)), 0.3, AugmentConfig(), torch.Generator().manual_seed(0))
    turned = replace(data, images=(127.5 * (seen.clamp(-1, 1) + 1)).round().byte().numpy())
    assert share_turned(seen.numpy()) > 0.3
    drawn = {}
    for name, images, p in (("augmented", data, 0.3), ("trained on turned images", turned, 0.0)):
        config = replace(LEARNING, steps=300, evaluate_every=100, augment=AugmentConfig(p=p, target=0.0))
        model = Synthesizer(config)
        model.fit(images, tmp_path / name)
        drawn[name] = share_turned(model.sample(range(400)))
    assert drawn["augmented"] < 0.02
    assert drawn["trained on turned images"] > 0.2


def test_samples_are_functions_of_their_seeds_and_survive_saving(tmp_path: Path) -> None:
    model = Synthesizer(replace(SMALL, steps=4))
    model.fit(blobs(), tmp_path / "training")
    np.testing.assert_allclose(model.sample([5]), model.sample(range(4, 8))[1:2], atol=1e-5)
    model.save(tmp_path / "model.safetensors")
    again = Synthesizer.load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(model.sample([5, 9]), again.sample([5, 9]))
    assert again.window == model.window
    mean = again.draw_styles(again.styles([1, 2]), truncation=0.0)
    np.testing.assert_allclose(mean[0], mean[1], atol=1e-5)
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="damaged or not a model"):
        Synthesizer.load(tmp_path / "broken.safetensors")


def test_classes_are_drawn_when_asked_for(tmp_path: Path) -> None:
    model = Synthesizer(replace(LEARNING, steps=120))
    model.fit(blobs(256, classes=2), tmp_path)
    bright, dark = (model.sample(range(16), label=name).mean() for name in ("bright", "dark"))
    assert bright > dark + 0.05
    with pytest.raises(UserError, match="one of bright, dark"):
        model.sample([0])
    with pytest.raises(UserError, match="one of bright, dark"):
        model.sample([0], label="grey")


def test_a_killed_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    script = f"""
        import os, signal, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from dataclasses import replace
        from test_gan import SMALL, blobs
        from micrographia.synthesize import gan
        from micrographia.synthesize.augment import AugmentConfig
        from micrographia.synthesize.synthesizer import Synthesizer
        folder, kill = sys.argv[1], int(sys.argv[2])
        usual = gan.GAN.training_step
        def step(self, batch, number, generator):
            if number == kill:
                os.kill(os.getpid(), signal.SIGKILL)
            return usual(self, batch, number, generator)
        gan.GAN.training_step = step
        Synthesizer(replace(SMALL, augment=AugmentConfig(adapt_images=200.0))).fit(blobs(), folder)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    subprocess.run([*command, str(tmp_path / "whole"), "-1"], check=True, timeout=120)
    killed = subprocess.run([*command, str(tmp_path / "killed"), "9"], timeout=120)
    assert killed.returncode == -signal.SIGKILL
    subprocess.run([*command, str(tmp_path / "killed"), "-1"], check=True, timeout=120)
    from safetensors.torch import load_file

    whole, resumed = (load_file(tmp_path / name / "last.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)


def test_two_processes_train_as_one_with_their_joint_batch(tmp_path: Path) -> None:
    script = f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from dataclasses import replace
        from test_gan import SMALL, blobs
        from micrographia.synthesize.augment import AugmentConfig
        from micrographia.synthesize.synthesizer import Synthesizer
        config = replace(SMALL, batch=16, steps=8, network=sys.argv[2], augment=AugmentConfig(p=0.5))
        Synthesizer(config).fit(blobs(), sys.argv[1])
    """
    path = tmp_path / "train.py"
    path.write_text(textwrap.dedent(script))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, str(path), str(tmp_path / "one"), "stylegan2"],
        check=True,
        timeout=120,
        env=environment,
    )
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(path),
    ]

    def in_two(name: str, network: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*launch, str(tmp_path / name), network],
            capture_output=True,
            text=True,
            timeout=180,
            env=environment,
        )

    done = in_two("two", "stylegan2")
    assert done.returncode == 0, done.stderr
    one, two = (pd.read_csv(tmp_path / name / "metrics.csv") for name in ("one", "two"))
    for name in ("critic", "generator", "alike", "r1", "path_length", "real_signs", "frechet"):
        np.testing.assert_allclose(two[name], one[name], rtol=2e-3, atol=1e-4, err_msg=name)
    assert one["augment_p"].min() > 0.4
    # Statistics of each process's own images would be other ones.
    assert "batch normalisation needs the whole batch" in in_two("three", "dcgan").stderr


def test_another_seed_draws_other_numbers() -> None:
    # The CPU's generator takes 32 bits of its seed: whatever is composed of seed and step must be hashed first.
    from micrographia.synthesize.gan import _Draws

    device = torch.device("cpu")
    one, other, again = (_Draws(seed, 3, 4, device).normal(8) for seed in (0, 1, 0))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert not torch.equal(one, _Draws(0, 4, 4, device).normal(8))
    _Draws(2**40, 3, 4, device)  # any seed is possible


def test_the_relativistic_critic_is_asked_for_differences() -> None:
    # It may add any number to its verdicts; how sure it is of real images shows in the difference alone.
    config = replace(SMALL, loss="relativistic", r1_every=1, path_length=0.0)
    found = []
    for offset in (-5.0, 5.0):
        model = GAN(config, 1, 0, (16, 16), 0)
        model.networks["critic"].judge.bias.data += offset
        real = blobs().batch(slice(0, 8))
        values = model.training_step((real, torch.zeros(8, dtype=torch.int64)), 0, torch.Generator())
        found.append(float(values["real_signs"]))
    assert found[0] == found[1]


def test_divergence_keeps_the_last_good_state(tmp_path: Path) -> None:
    with pytest.raises(TrainingDiverged, match="diverged"):
        Synthesizer(replace(SMALL, learning_rate=1e18, steps=40)).fit(blobs(), tmp_path)
    assert (tmp_path / "last.safetensors").exists()


def test_the_best_state_of_a_diverged_training_can_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = GAN.training_step

    def step(self, batch, number, generator):
        values = usual(self, batch, number, generator)
        return values if number < 8 else values | {"critic": float("nan")}

    monkeypatch.setattr(GAN, "training_step", step)
    model = Synthesizer(SMALL)
    with pytest.raises(TrainingDiverged):
        model.fit(blobs(), tmp_path)
    assert model.sample([0]).shape == (1, 1, 16, 16)
    model.save(tmp_path / "model.safetensors")


def test_out_of_memory_says_which_batch_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = GAN.training_step

    def step(self, batch, number, generator):
        if len(batch[0]) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return usual(self, batch, number, generator)

    monkeypatch.setattr(GAN, "training_step", step)
    with pytest.raises(OutOfMemory, match=r"batch of 32 .*gan.batch = 8, which fits"):
        Synthesizer(replace(SMALL, batch=32)).fit(blobs(), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resolution": 48}, "power of two"),
        ({"batch": 6}, "multiple of 4"),
        ({"steps": 0}, "at least 1"),
        ({"r1": -1.0}, "at least 0"),
        ({"mixing": 1.5}, "0 to 1"),
        ({"beta1": 1.0}, "below 1"),
        ({"variety": float("nan")}, "at least 0"),
        ({"learning_rate": 0.0}, "greater than 0"),
        ({"critic_rate": 0.0}, "greater than 0"),
        ({"network": "dcgan", "accumulate": 2}, "batch normalisation"),
    ],
)
def test_impossible_settings(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(SMALL, **change)


def test_too_few_or_other_images(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="4 images are fewer than a batch of 8"):
        Synthesizer(SMALL).fit(blobs(4), tmp_path)
    with pytest.raises(UserError, match="32 px, the networks 16"):
        Synthesizer(SMALL).fit(blobs(16, 32), tmp_path)
    with pytest.raises(UserError, match="not trained"):
        Synthesizer(SMALL).sample([0])
    model = Synthesizer(replace(SMALL, network="dcgan", steps=2))
    model.fit(blobs(), tmp_path / "dcgan")
    with pytest.raises(UserError, match="style space"):
        model.styles([0])


def test_augmentation_is_remembered_by_the_state() -> None:
    model = GAN(replace(SMALL, augment=AugmentConfig()), 1, 0, (16, 16), 0)
    model.probability.p = 0.3
    again = GAN(SMALL, 1, 0, (16, 16), 0)
    again.load_state(model.state())
    assert again.probability.p == pytest.approx(0.3)
