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
from torch.nn import functional as F

from micrographia.errors import UserError
from micrographia.synthesize.augment import AugmentConfig, apply_transforms, augment, draw_transforms
from micrographia.synthesize.gan import GAN, GanConfig, _Draws
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


def as_the_papers_write_it(model: GAN, real: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Both losses of the next step of StyleGAN2's networks, each of the whole batch and from the same draws."""
    config, generator, critic = model.config, model.networks["generator"], model.networks["critic"]
    draw = _Draws(model.seed, step, len(real), real.device)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(len(real), *shape, generator=draw.generator)

    codes = normal(generator.latent)
    noise = [normal(1, *shape) for shape in generator.noise_shapes()]
    others = normal(generator.latent)
    change = torch.randint(generator.style_count - 1, (len(real),), generator=draw.generator) + 1
    mixed = torch.rand(len(real), generator=draw.generator) < config.mixing
    w, v = generator.mapping(codes, None), generator.mapping(others, None)
    styles = torch.stack(
        [torch.where((mixed & (change <= k))[:, None], v, w) for k in range(generator.style_count)], dim=1
    )
    fake = generator.synthesise(styles, noise)

    def transformation():
        p, shape = model.probability.p, tuple(real.shape[1:])
        drawn = draw_transforms(len(real), shape, p, config.augment, draw.generator) if p else None
        return lambda images: images if drawn is None else apply_transforms(images, drawn)

    pairs = config.loss == "relativistic"
    through = transformation()
    on_real = critic(transformation()(real)) if pairs else 0.0
    generators = F.softplus(on_real - critic(through(fake))).mean()
    if config.path_length:
        path = (fake * normal(*real.shape[1:])).sum(dim=(1, 2, 3)) / np.sqrt(real[0, 0].numel())
        (slopes,) = torch.autograd.grad(path.sum(), styles, create_graph=True)
        lengths = slopes[::2].square().sum(dim=2).mean(dim=1).sqrt()
        generators = (
            generators + config.path_length * config.path_every * ((lengths - model.path_length) ** 2).mean()
        )

    shown_real, shown_fake = transformation(), transformation()
    x, y = real.clone().requires_grad_(), fake.detach().requires_grad_()
    on_real, on_fake = critic(shown_real(x)), critic(shown_fake(y))
    if pairs:
        critics = F.softplus(on_fake - on_real).mean()
    else:
        critics = F.softplus(-on_real).mean() + F.softplus(on_fake).mean()
    for images, verdicts in [(x, on_real), (y, on_fake)][: 2 if pairs else 1]:
        (slopes,) = torch.autograd.grad(verdicts.sum(), images, create_graph=True)
        penalty = slopes.square().sum(dim=(1, 2, 3)).mean()
        critics = critics + config.r1_every * config.r1 / 2 * penalty
    return generators, critics


@pytest.mark.parametrize("p", [0.0, 0.9])
@pytest.mark.parametrize(
    "change", [{}, {"loss": "relativistic", "r1_every": 1, "path_length": 0.0}], ids=["stylegan2", "r3gan"]
)
def test_a_step_learns_from_the_losses_as_the_papers_write_them(change: dict, p: float) -> None:
    config = replace(SMALL, **change, r1=3.0, variety=0.0, mixing=0.7, augment=AugmentConfig(p=p, target=0.0))
    model = GAN(config, 1, 0, (16, 16), 3)
    model.path_length = torch.tensor(0.5)
    real = blobs().batch(slice(0, 8))
    model.networks["critic"].judge.weight.data *= 30  # a critic with an opinion
    expected = {}
    for name, loss in zip(("generator", "critic"), as_the_papers_write_it(model, real, 4), strict=True):
        own = model.networks[name].named_parameters()
        named = {k: v for k, v in own if not (k == "judge.bias" and config.loss == "relativistic")}
        gradients = torch.autograd.grad(loss, list(named.values()), retain_graph=True)
        expected[name] = dict(zip(named, gradients, strict=True))
    model.training_step((real, torch.zeros(8, dtype=torch.int64)), 4, torch.Generator())
    for name, gradients in expected.items():
        found = dict(model.networks[name].named_parameters())
        for key, gradient in gradients.items():
            scale = float(gradient.abs().max())
            assert scale > 0, key
            torch.testing.assert_close(
                found[key].grad, gradient, rtol=1e-3, atol=1e-3 * scale, msg=lambda m, key=key: f"{key}: {m}"
            )


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


@pytest.mark.parametrize("loss", ["logistic", "relativistic"])
def test_parts_of_a_batch_give_the_same_gradients(loss) -> None:
    config = replace(SMALL, batch=16, loss=loss)
    # Of a spread that samples do not have, so that they are told to vary; where images are drawn in parts, twice.
    one, four = (GAN(replace(config, accumulate=k), 1, 0, (16, 16), 0, spread=1e3) for k in (1, 4))
    real, labels = blobs().batch(slice(0, 16)), torch.zeros(16, dtype=torch.int64)
    for model in (one, four):
        told = model.training_step((real, labels), 0, torch.Generator())
        assert {"r1", "path_length", "alike"} <= set(told)
    for network in ("critic", "generator"):
        pairs = zip(one.networks[network].parameters(), four.networks[network].parameters(), strict=True)
        for a, b in pairs:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-6)
        assert any(a.grad.abs().max() > 1e-3 for a in one.networks[network].parameters())


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


def noise_of_columns(images: np.ndarray) -> np.ndarray:
    """Noise of each image, of which nothing else differs from column to column."""
    return np.diff(images[:, 0], axis=2).std(axis=(1, 2)) / np.sqrt(2)


def share_noisy(images: np.ndarray) -> float:
    """Share of images with over twice the noise of the population."""
    return float((noise_of_columns(images) > 2 * 4 / 127.5).mean())


def share_filtered(images: np.ndarray) -> float:
    """Share of images with another contrast of top and bottom than all images of the population have."""
    contrast = images[:, 0, :3].mean(axis=(1, 2)) - images[:, 0, -3:].mean(axis=(1, 2))
    return float((np.abs(contrast - 1.2) > 0.3).mean())


def share_cut(images: np.ndarray) -> float:
    """Share of images with more grey than an edge between bright and dark has."""
    return float(((np.abs(images[:, 0]) < 0.15).sum(axis=(1, 2)) > 28).mean())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kinds", "p", "shows", "steps"),
    [
        (("blit", "geom"), 0.3, share_turned, 300),
        (("blit", "geom"), 0.7, share_turned, 300),
        (("color",), 0.5, share_turned, 300),  # inverted
        # After 300 steps, generators that were never shown such images draw some, too.
        (("noise",), 0.5, share_noisy, 1200),
        (("filter",), 0.5, share_filtered, 1200),
        (("cutout",), 0.5, share_cut, 1200),
    ],
)
def test_augmentation_does_not_leak_into_the_samples(
    kinds: tuple[str, ...], p: float, shows, steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The critic sees many images transformed; a generator that is trained on such images draws them so."""
    data = lit_from_above(2048)
    config = AugmentConfig(
        **dict.fromkeys(("blit", "geom"), False) | dict.fromkeys(kinds, True), p=p, target=0.0
    )
    transformed = augment(data.batch(slice(None)), p, config, torch.Generator().manual_seed(0))
    on_these = replace(data, images=(127.5 * (transformed.clamp(-1, 1) + 1)).round().byte().numpy())
    usual = GAN._judge
    seen: list[np.ndarray] = []

    def judge(self, images, classes, sets):
        seen.append(images.detach().numpy())
        return usual(self, images, classes, sets)

    monkeypatch.setattr(GAN, "_judge", judge)
    shown, drawn = {}, {}
    augmented, control = "augmented", "trained on transformed images"
    for name, images, own in ((augmented, data, p), (control, on_these, 0.0)):
        seen.clear()
        model = Synthesizer(
            replace(LEARNING, steps=steps, evaluate_every=100, augment=replace(config, p=own))
        )
        model.fit(images, tmp_path / name)
        shown[name] = shows(np.concatenate(seen[-60:]))
        drawn[name] = shows(model.sample(range(400)))
    told = f"real {shows(data.batch(slice(None)).numpy()):.3f}, shown {shown}, drawn {drawn}"
    print(told)
    assert min(shown.values()) > 0.15, f"both critics saw such images: {told}"
    assert drawn[augmented] < 0.02, told
    assert drawn[control] > 0.1, told


def test_samples_are_functions_of_their_seeds_and_survive_saving(tmp_path: Path) -> None:
    model = Synthesizer(replace(SMALL, steps=4))
    model.fit(blobs(), tmp_path / "training")
    np.testing.assert_allclose(model.sample([5]), model.sample(range(4, 8))[1:2], atol=1e-5)
    model.save(tmp_path / "model.safetensors")
    again = Synthesizer.load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(model.sample([5, 9]), again.sample([5, 9]))
    assert again.window == model.window
    styles = again.styles(range(4096))
    torch.testing.assert_close(again.generator.mean_style, styles.mean(dim=0), atol=1e-5, rtol=0)
    mean = again.draw_styles(styles[:2], truncation=0.0)
    np.testing.assert_allclose(mean[0], mean[1], atol=1e-5)
    # A truncated sample is the same noise on the way to the mean style.
    half = again.generator.mean_style + 0.5 * (styles[5:6] - again.generator.mean_style)
    np.testing.assert_allclose(again.sample([5], 0.5), again.draw_styles(half, noise_seed=5), atol=1e-5)
    assert np.abs(again.sample([5], 0.5) - again.sample([5])).max() > 1e-3
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="damaged or not a model"):
        Synthesizer.load(tmp_path / "broken.safetensors")


def test_classes_are_drawn_when_asked_for(tmp_path: Path) -> None:
    model = Synthesizer(replace(LEARNING, steps=120))
    model.fit(blobs(256, classes=2), tmp_path)
    bright, dark = (model.sample(range(16), label=name).mean() for name in ("bright", "dark"))
    assert bright > dark + 0.05
    for k, name in enumerate(model.classes):  # which truncation keeps
        mean = model.styles(range(4096), name).mean(dim=0)[None]
        torch.testing.assert_close(model.generator.mean_style[k][None], mean, atol=0.05, rtol=0)
        of_class = model.draw_styles(model.generator.mean_style[k][None], 1)
        np.testing.assert_allclose(model.sample([1], 0.0, name), of_class, atol=1e-5)
        path = model.interpolate(1, 2, 2, "w", truncation=0.0, label=name)
        np.testing.assert_allclose(path, np.concatenate([of_class] * 2), atol=1e-5)
    with pytest.raises(UserError, match="one of bright, dark"):
        model.sample([0])
    with pytest.raises(UserError, match="one of bright, dark"):
        model.sample([0], label="grey")


@pytest.mark.parametrize("unseen", [0, 8])
def test_a_killed_training_goes_on_bit_for_bit(tmp_path: Path, unseen: int) -> None:
    """Augmentation adapts every fourth step, or every sixteenth to unseen images; the state left is from in between."""
    script = f"""
        import os, signal, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from dataclasses import replace
        from test_gan import SMALL, blobs
        from micrographia.synthesize import gan
        from micrographia.synthesize.augment import AugmentConfig
        from micrographia.synthesize.synthesizer import Synthesizer
        folder, kill, n = sys.argv[1], int(sys.argv[2]), {unseen}
        usual = gan.GAN.training_step
        def step(self, batch, number, generator):
            if number == kill:
                os.kill(os.getpid(), signal.SIGKILL)
            return usual(self, batch, number, generator)
        gan.GAN.training_step = step
        augment = AugmentConfig(adapt_images=200.0, p=0.5)
        config = replace(SMALL, steps=36, evaluate_every=6, augment=augment)
        Synthesizer(config).fit(blobs(), folder, unseen=blobs(n, seed=1) if n else None)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    subprocess.run([*command, str(tmp_path / "whole"), "-1"], check=True, timeout=120)
    killed = subprocess.run([*command, str(tmp_path / "killed"), "23"], timeout=120)
    assert killed.returncode == -signal.SIGKILL
    subprocess.run([*command, str(tmp_path / "killed"), "-1"], check=True, timeout=120)
    from safetensors.torch import load_file

    whole, resumed = (load_file(tmp_path / name / "last.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)
    tables = [
        pd.read_csv(tmp_path / name / "metrics.csv").drop(columns="seconds") for name in ("whole", "killed")
    ]
    pd.testing.assert_frame_equal(*tables)
    assert tables[0]["augment_p"].nunique() > 1
    assert ("overfit" in tables[0]) == bool(unseen)


def test_two_processes_train_as_one_with_their_joint_batch(tmp_path: Path) -> None:
    script = f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from dataclasses import replace
        from test_gan import SMALL, blobs
        from micrographia.synthesize.augment import AugmentConfig
        from micrographia.synthesize.synthesizer import Synthesizer
        augment = AugmentConfig(p=0.5, adapt_images=2000.0)
        config = replace(SMALL, batch=16, steps=20, network=sys.argv[2], augment=augment)
        Synthesizer(config).fit(blobs(), sys.argv[1], unseen=blobs(12, seed=1))
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
    names = (
        "critic", "generator", "alike", "r1", "path_length", "real_signs", "real_logit", "generated_logit", "augment_p",
        "frechet",
    )  # fmt: skip
    for name in names:
        np.testing.assert_allclose(two[name], one[name], rtol=2e-3, atol=1e-4, err_msg=name)
    np.testing.assert_allclose(two["overfit"], one["overfit"], atol=0.02)  # of small differences
    assert one["augment_p"].iloc[-1] not in (0, 0.5)
    # Statistics of each process's own images would be other ones.
    assert "batch normalisation needs the whole batch" in in_two("three", "dcgan").stderr


def test_another_seed_draws_other_numbers() -> None:
    # The CPU's generator takes 32 bits of its seed: whatever is composed of seed and step must be hashed first.
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


def test_what_fits_is_tried_with_augmentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = GAN.training_step
    tried = []

    def step(self, batch, number, generator):
        tried.append((len(batch[0]), self.probability.p))
        if len(batch[0]) * (1 + self.probability.p) > 10:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return usual(self, batch, number, generator)

    monkeypatch.setattr(GAN, "training_step", step)
    with pytest.raises(OutOfMemory, match=r"gan\.batch = 4, which fits"):
        Synthesizer(replace(SMALL, batch=16, augment=AugmentConfig())).fit(blobs(), tmp_path)
    assert tried == [(16, 0.0), (8, 0.8), (4, 0.8)]


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


def test_unseen_images_tell_what_the_critic_knows_by_heart() -> None:
    """Real and generated images are the same white noise: nothing can be learnt, but a few images by heart."""
    config = replace(SMALL, width=16, widest=32, r1=0.01, critic_rate=1.0, augment=AugmentConfig())
    config = replace(config, learning_rate=0.003)
    labels = torch.zeros(8, dtype=torch.int64)
    unseen = torch.randn(64, 1, 16, 16, generator=torch.Generator().manual_seed(1))

    def course(n: int) -> np.ndarray:
        torch.manual_seed(0)
        model, images, told = GAN(config, 1, 0, (16, 16), 0), torch.randn(n, 1, 16, 16), []
        for step in range(128):
            draw = _Draws(0, step, 8, torch.device("cpu"))
            real, others = images[torch.randperm(n)[:8]], unseen[torch.randperm(64)[:8]]
            values = model._critic_step(real, torch.randn(8, 1, 16, 16), None, (others, labels), step, draw)
            told += [float(values["overfit"])] if "overfit" in values else []
        return np.array(told)

    few, many = course(16), course(2048)
    assert len(few) == 8
    assert few[-4:].mean() > 0.75  # 0.87 and more of six seeds
    assert many[1:].mean() < 0.5  # -0.2 to 0.3


def test_unseen_images_are_asked_about_and_not_learnt_from() -> None:
    real, labels = blobs().batch(slice(0, 8)), torch.zeros(8, dtype=torch.int64)
    config = replace(SMALL, augment=AugmentConfig(adapt_images=1e4))
    with_, without = (GAN(config, 1, 0, (16, 16), 0) for _ in range(2))
    for step in range(4):
        on_unseen = with_._on_unseen((real, labels), step, _Draws(0, step, 8, torch.device("cpu")), 8)
        values = with_.training_step((real, labels, real, labels), step, torch.Generator())
        without.training_step((real, labels), step, torch.Generator())
        assert (on_unseen is not None) == (step == 0)
        if on_unseen is not None:  # on training images it judges like on training images
            assert float(on_unseen) == pytest.approx(float(values["real_logit"]), abs=1e-5)
    for a, b in zip(
        with_.networks["critic"].parameters(), without.networks["critic"].parameters(), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_overfitting_compares_unseen_with_training_and_generated_images(monkeypatch) -> None:
    """A critic whose verdict is the brightness of an image."""
    model = GAN(replace(SMALL, augment=AugmentConfig(target=0.2, adapt_images=1000.0)), 1, 0, (16, 16), 0)
    weight = next(model.networks["critic"].parameters())
    brightness = lambda images, classes, sets: images.mean(dim=(1, 2, 3)) + 0 * weight.sum()  # noqa: E731
    monkeypatch.setattr(model, "_judge", brightness)
    real, unseen, fake = (torch.full((8, 1, 16, 16), level) for level in (3.0, 2.0, -1.0))
    told = []
    for step in range(32):
        draw = _Draws(0, step, 8, torch.device("cpu"))
        values = model._critic_step(real, fake, None, (unseen, torch.zeros(8)), step, draw)
        told.append(values.get("overfit"))
    assert [k for k, value in enumerate(told) if value is not None] == [12, 28]
    assert [told[12], told[28]] == pytest.approx([0.25, 0.25], abs=1e-4)
    assert model.probability.p == pytest.approx(2 * 4 * 4 * 8 / 1000)


def test_augmentation_is_remembered_by_the_state() -> None:
    model = GAN(replace(SMALL, augment=AugmentConfig()), 1, 0, (16, 16), 0)
    model.probability.p = 0.3
    again = GAN(SMALL, 1, 0, (16, 16), 0)
    again.load_state(model.state())
    assert again.probability.p == pytest.approx(0.3)
