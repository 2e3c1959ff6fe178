"""The training loop: resume, kill, interrupt, divergence, several processes."""

import csv
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from micrographia.errors import UserError
from micrographia.nets.weights import load_tree
from micrographia.training import distributed, progress
from micrographia.training.device import autocast, choose_device, set_threads, to_device, usable_cores
from micrographia.training.distributed import optimizer_step, shard
from micrographia.training.loop import TrainConfig, TrainingDiverged, train
from micrographia.training.supervised import Supervised

STEPS = 40
CONFIG = TrainConfig(
    steps=STEPS, log_every=7, checkpoint_every=10, evaluate_every=8, ema_decay=0.9, device="cpu", seed=3
)


class TinyGAN:
    """Two networks in turn, with everything that could spoil a resume: dropout, noise, a pool, a schedule."""

    ema_networks = ("generator",)

    def __init__(self):
        torch.manual_seed(0)
        generator = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 4))
        critic = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
        self.networks = {"generator": generator, "critic": critic}
        self.optimizers = {n: torch.optim.Adam(m.parameters(), lr=0.01) for n, m in self.networks.items()}
        self.schedulers = {
            "generator": torch.optim.lr_scheduler.LambdaLR(
                self.optimizers["generator"], lambda step: 1 - step / 100
            )
        }
        self.pool = torch.zeros(6, 4)
        self.at_step = {}

    def training_step(self, batch, step, generator):
        real, source = batch
        noise = torch.randn(source.shape, generator=generator, device=generator.device)
        fake = self.networks["generator"](source + 0.1 * noise)
        loss_g = (self.networks["critic"](fake) - 1).square().mean()
        self.optimizers["generator"].zero_grad()
        loss_g.backward()
        optimizer_step(self.optimizers["generator"])
        self.pool = torch.cat([fake.detach(), self.pool])[:6]
        self.optimizers["critic"].zero_grad()
        loss_d = self.networks["critic"](self.pool).square().mean()
        loss_d = loss_d + (self.networks["critic"](real) - 1).square().mean()
        loss_d.backward()
        optimizer_step(self.optimizers["critic"])
        if step in self.at_step:
            self.at_step.pop(step)()
        return {"generator": loss_g, "critic": loss_d} | ({"rare": 1.0 * step} if step % 5 == 0 else {})

    def state(self):
        return {"pool": self.pool}

    def load_state(self, state):
        self.pool = state["pool"]

    def weights(self):
        tensors = [t for n in (*self.networks.values(), *self.ema.values()) for t in n.state_dict().values()]
        return torch.cat([t.reshape(-1).double() for t in (*tensors, self.pool)])


def batches(step):
    rng = np.random.default_rng([1, step])
    return rng.normal(size=(4, 4)).astype(np.float32), rng.normal(size=(4, 4)).astype(np.float32)


def run(folder, model=None, config=CONFIG, **options):
    """Train a tiny GAN whose evaluation spoils the global random state and the training mode on purpose."""
    model = model or TinyGAN()

    def evaluate(step):
        torch.manual_seed(99)
        for network in model.networks.values():
            network.eval()
        return {"score": float(model.ema["generator"](torch.ones(1, 4)).square().sum())}

    return model, train(model, batches, config, folder, evaluate=evaluate, label="tiny", **options)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return run(tmp_path_factory.mktemp("undisturbed"))


def assert_same(folder, model, result, undisturbed):
    """The weights are those of the undisturbed run bit for bit, and no row is missing or there twice."""
    expected_model, expected = undisturbed
    assert result.stopped == "done"
    assert torch.equal(model.weights(), expected_model.weights())
    columns = ["step", "generator", "critic", "rare", "score"]
    assert result.history[columns].equals(expected.history[columns])
    with (Path(folder) / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == expected.history["step"].tolist()
    assert [float(row["score"]) for row in rows if row["score"]] == expected.history[
        "score"
    ].dropna().tolist()


def test_rows_are_means_over_the_steps_since_the_row_before(undisturbed):
    history = undisturbed[1].history.set_index("step")
    assert sorted(history.index) == [7, 8, 14, 16, 21, 24, 28, 32, 35, 40]
    assert history.loc[14, "rare"] == 10  # reported by step 10 alone (the eleventh)
    assert history.loc[7, "rare"] == 2.5  # steps 0 and 5
    assert np.isnan(history.loc[8, "generator"])
    assert history.loc[40, ["generator", "score"]].notna().all()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [0, 22, 29])
def test_an_interrupted_run_resumes_bit_for_bit(tmp_path, undisturbed, number, step):
    model = TinyGAN()
    model.at_step[step] = lambda: os.kill(os.getpid(), number)
    handler = signal.getsignal(number)
    result = run(tmp_path, model)[1]
    assert (result.stopped, result.steps) == ("interrupted", step + 1)
    assert signal.getsignal(number) is handler
    torch.manual_seed(step)  # whatever the state of the new process
    assert_same(tmp_path, *run(tmp_path), undisturbed)


def test_a_second_interrupt_acts_at_once(tmp_path):
    model = TinyGAN()

    def twice():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    model.at_step[25] = twice
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, model)
    assert load_tree(tmp_path / "last.safetensors", "tiny")["course"]["step"] == 20


@pytest.mark.parametrize("when", ["in a step", "in a checkpoint"])
def test_a_killed_run_resumes_bit_for_bit(tmp_path, undisturbed, when):
    script = f"""
        import os, signal, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_training import TinyGAN, run
        die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        model = TinyGAN()
        if {when!r} == "in a step":
            model.at_step[27] = die
        else:
            model.at_step[29] = lambda: setattr(os, "replace", die)
        run(sys.argv[1], model)
    """
    process = subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(tmp_path)], timeout=120)
    assert process.returncode == -signal.SIGKILL
    assert load_tree(tmp_path / "last.safetensors", "tiny")["course"]["step"] == 20
    assert_same(tmp_path, *run(tmp_path), undisturbed)


def test_a_failed_checkpoint_leaves_the_one_before(tmp_path, undisturbed, monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    model = TinyGAN()
    model.at_step[19] = lambda: monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UserError, match="No space left"):
        run(tmp_path, model)
    monkeypatch.undo()
    assert load_tree(tmp_path / "last.safetensors", "tiny")["course"]["step"] == 10
    assert_same(tmp_path, *run(tmp_path), undisturbed)


def test_a_finished_run_can_be_prolonged(tmp_path, undisturbed):
    first = TrainConfig(**{**vars(CONFIG), "steps": 35, "evaluate_every": 7})
    run(tmp_path, config=first)
    model, result = run(tmp_path)
    assert result.steps == STEPS
    assert torch.equal(model.weights(), undisturbed[0].weights())


def test_starting_over_forgets_the_folder(tmp_path, undisturbed):
    model = TinyGAN()
    nn.init.zeros_(model.networks["generator"][0].weight)
    run(tmp_path, model)
    assert_same(tmp_path, *run(tmp_path, resume=False), undisturbed)


def test_the_folder_of_another_training_is_refused(tmp_path):
    run(tmp_path)
    other = TinyGAN()
    other.networks["generator"] = nn.Linear(4, 5)
    with pytest.raises(UserError, match="another layout"):
        run(tmp_path, other)
    with pytest.raises(UserError, match="holds a 'tiny'"):
        train(TinyGAN(), batches, CONFIG, tmp_path, label="fcn")


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be used"):
        run(tmp_path / "file")


# ---- one network


def regression(seed=0, **options):
    """A linear map to learn, and its batches."""
    torch.manual_seed(seed)
    network = nn.Linear(3, 1)

    def sample(step):
        x = np.random.default_rng([seed, step]).normal(size=(12, 3)).astype(np.float32)
        return x, x @ np.array([[1.0], [-2.0], [0.5]], np.float32)

    optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
    return Supervised(network, nn.functional.mse_loss, optimizer, **options), sample


def quick(**changes):
    return TrainConfig(**{"steps": 60, "checkpoint_every": 20, "device": "cpu", **changes})


def test_a_known_map_is_learnt(tmp_path):
    model, sample = regression()
    result = train(model, sample, quick(steps=400), tmp_path)
    assert result.history["loss"].iloc[-1] < 1e-4
    assert torch.allclose(model.network.weight, torch.tensor([[1.0, -2.0, 0.5]]), atol=0.02)


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path):
    weights = []
    for parts in (1, 5, 12, 50):  # 12 samples in 5 parts: unequal ones
        model, sample = regression(accumulate=parts)
        train(model, sample, quick(), tmp_path / str(parts))
        weights.append(model.network.weight.detach())
    for other in weights[1:]:
        assert torch.allclose(weights[0], other, atol=1e-5)


def test_gradients_are_clipped():
    model, _ = regression()
    model.optimizer = torch.optim.SGD(model.network.parameters(), lr=1.0)
    model.max_gradient_norm = 0.01
    before = nn.utils.parameters_to_vector(model.network.parameters()).detach().clone()
    model.training_step((torch.randn(4, 3), 100 * torch.ones(4, 1)), 0, torch.Generator())
    after = nn.utils.parameters_to_vector(model.network.parameters()).detach()
    assert float((after - before).norm()) == pytest.approx(0.01, rel=1e-3)


def test_the_running_mean_follows_its_recurrence(tmp_path):
    model, sample = regression()
    seen = []
    step = model.training_step
    model.training_step = lambda *a: (step(*a), seen.append(model.network.weight.detach().clone()))[0]
    train(model, sample, quick(ema_decay=0.5), tmp_path)
    mean = seen[0]
    for count, weight in enumerate(seen[1:], 1):
        decay = min(0.5, (1 + count) / (10 + count))
        mean = decay * mean + (1 - decay) * weight
    assert torch.allclose(model.ema["network"].weight, mean, atol=1e-6)
    assert not model.ema["network"].training


def test_the_best_state_ends_in_the_networks_and_patience_ends_the_run(tmp_path):
    model, sample = regression()
    seen = {}

    def evaluate(step):
        model.network.eval()
        seen[step] = model.network.weight.detach().clone()
        return {"distance": abs(step - 30) if step != 40 else float("nan")}

    config = quick(steps=500, evaluate_every=10, patience=4)
    for _ in range(2):  # the second call finds a run that has ended and changes nothing
        result = train(model, sample, config, tmp_path, evaluate=evaluate, score="distance")
        assert (result.stopped, result.steps, result.best_step, result.best_score) == ("early", 70, 30, 0)
        assert torch.equal(model.network.weight, seen[30])
    assert model.network.training
    assert load_tree(tmp_path / "last.safetensors", "training")["course"]["step"] == 70


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    for value in (float("nan"), float("inf")):
        folder = tmp_path / str(value)
        model, sample = regression()
        model.loss = lambda p, t, bad=value: nn.functional.mse_loss(p, t) * (bad if t[0, 0] == 77 else 1)

        def poisoned(step, sample=sample):
            x, y = sample(step)
            return x, (np.full_like(y, 77) if step == 46 else y)

        with pytest.raises(TrainingDiverged) as caught:
            train(model, poisoned, quick(), folder)
        message = str(caught.value)
        assert f"'loss' became {value} in step 47" in message
        assert str(folder) in message
        assert "lower learning rate" in message
        tree = load_tree(folder / "last.safetensors", "training")
        assert tree["course"]["step"] == 40
        assert torch.isfinite(tree["networks"]["network"]["weight"]).all()


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    model, sample = regression()
    step = model.training_step

    def spoil(batch, number, generator):
        values = step(batch, number, generator)
        if number == 39:
            model.network.weight.data[0, 0] = float("inf")
        return values

    model.training_step = spoil
    with pytest.raises(TrainingDiverged, match="'network' became NaN or infinite by step 40"):
        train(model, sample, quick(), tmp_path)
    assert load_tree(tmp_path / "last.safetensors", "training")["course"]["step"] == 20


def test_lack_of_memory_is_explained(tmp_path):
    model, sample = regression()
    model.loss = lambda prediction, target: torch.empty(1 << 50).sum()
    with pytest.raises(UserError, match="Out of memory in step 1: use a smaller batch"):
        train(model, sample, quick(), tmp_path)

    def convolve(prediction, target):  # where oneDNN finds no memory it says only this
        raise RuntimeError("could not create a primitive")

    model.loss = convolve
    with pytest.raises(UserError, match="Out of memory in step 1: use a smaller batch"):
        train(model, sample, quick(), tmp_path)


def test_our_own_defects_are_not_disguised(tmp_path):
    model, sample = regression()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        train(model, lambda step: (sample(step)[0][:, :2], sample(step)[1]), quick(), tmp_path / "a")
    with pytest.raises(ValueError, match="both report"):
        train(model, sample, quick(), tmp_path / "b", evaluate=lambda step: {"loss": 0.0})
    with pytest.raises(ValueError, match="needs an evaluate"):
        train(model, sample, quick(), tmp_path / "c", score="loss")


def test_a_folder_is_not_resumed_with_other_data(tmp_path):
    model, sample = regression()
    train(model, sample, quick(), tmp_path)
    saved = (tmp_path / "last.safetensors").read_bytes()
    with pytest.raises(UserError, match=r"other data.*choose another folder"):
        train(model, lambda step: sample(step + 1), quick(), tmp_path)
    assert (tmp_path / "last.safetensors").read_bytes() == saved
    train(model, lambda step: sample(step + 1), quick(), tmp_path, resume=False)


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"log_every": 0}, {"patience": -1}, {"seed": -1}, {"ema_decay": 1.0}]
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        TrainConfig(**wrong)


# ---- what is seen


def test_log_lines_without_a_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, "LOG_INTERVAL_S", 0.0)
    model, sample = regression()
    train(model, sample, quick(steps=20), tmp_path, label="fcn")
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == ""
    assert len(lines) == 20
    assert lines[-1].startswith("fcn: step 20/20, ")
    assert "steps/s, 0:00:00 left; loss " in lines[-1]


def test_a_bar_on_a_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    model, sample = regression()
    train(model, sample, quick(steps=20), tmp_path, label="fcn")
    assert "20/20" in capsys.readouterr().err


def test_tensorboard_gets_the_rows_too(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model, sample = regression()
    train(model, sample, quick(), tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [10, 20, 30, 40, 50, 60]


# ---- devices


def test_devices(monkeypatch):
    assert choose_device("cpu").type == "cpu"
    with pytest.raises(UserError, match=r"no device called 'gpu'.*Valid: auto, cpu, cuda, mps"):
        choose_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("auto").type == "cpu"
    with pytest.raises(UserError, match="'cuda' was asked for, but PyTorch"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device("auto") == torch.device("cuda", 1)
    with pytest.raises(UserError, match="GPU 4 was asked for"):
        choose_device("cuda:4")


def test_bfloat16_is_refused_where_it_is_slow():
    with pytest.raises(UserError, match="use 'auto' or 'fp32'"):
        autocast(torch.device("cpu"), "bf16")
    with autocast(torch.device("cpu"), "auto"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_batches_of_any_nesting_reach_the_device():
    moved = to_device({"x": (np.ones((2, 3))[:, ::-1], torch.ones(1)), "name": "a"}, torch.device("cpu"))
    assert isinstance(moved["x"], tuple)
    assert moved["x"][0].shape == (2, 3)
    assert moved["name"] == "a"


def test_threads_are_chosen_deliberately(monkeypatch):
    before = torch.get_num_threads()
    try:
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        assert set_threads() == torch.get_num_threads() == 1
        monkeypatch.delenv("OMP_NUM_THREADS")
        assert set_threads() == usable_cores()
        assert 1 <= usable_cores() <= os.cpu_count()
    finally:
        torch.set_num_threads(before)


# ---- two processes


def test_a_share_of_a_batch(monkeypatch):
    monkeypatch.setattr(distributed, "rank_and_world", lambda: (1, 2))
    assert shard({"x": np.arange(6)})["x"].tolist() == [3, 4, 5]
    with pytest.raises(UserError, match="multiple of 2"):
        shard((torch.zeros(5),))


def in_two_processes(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a script in two processes, as torchrun does; its argument is the folder."""
    (folder / "script.py").write_text(textwrap.dedent(script))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.run(
        [*command, folder / "script.py", folder],
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="reads the names of threads from /proc")
def test_no_thread_outlives_the_group_of_processes(tmp_path):
    # It would die with the interpreter, and the process with it: "terminate called without an active exception".
    done = in_two_processes(
        """
        import atexit, sys
        from pathlib import Path
        from micrographia.training.distributed import join
        join()
        import torch
        threads = lambda: [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
        rank = torch.distributed.get_rank()
        assert any("gloo" in name for name in threads())
        torch.optim.Adam([torch.zeros(1, requires_grad=True)])
        torch.distributed.destroy_process_group()
        atexit.unregister(torch.distributed.destroy_process_group)
        Path(sys.argv[1], f"threads-{rank}").write_text(" ".join(threads()))
        """,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        assert "gloo" not in (tmp_path / f"threads-{rank}").read_text()


def test_two_processes_train_as_one(tmp_path):
    script = f"""
        import os, signal, sys
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_training import quick, regression
        from micrographia.training.distributed import rank_and_world, shard
        from micrographia.training.loop import train
        rank, world = rank_and_world()
        folder = Path(sys.argv[1])
        model, sample = regression()
        if rank == 1:  # the first process's weights must win
            model.network.weight.data += 1
        asked = []
        evaluate = lambda step: asked.append(step) or {{"rank": float(rank)}}
        result = train(model, lambda step: shard(sample(step)), quick(), folder / "whole",
                       evaluate=evaluate, score="rank")
        assert world == 2 and bool(asked) == (rank == 0)
        model, sample = regression()
        step = model.training_step
        def interrupted(batch, number, generator):
            if rank == 1 and number == 12:
                os.kill(os.getpid(), signal.SIGINT)
            return step(batch, number, generator)
        model.training_step = interrupted
        result = train(model, lambda step: shard(sample(step)), quick(), folder / "broken")
        assert (result.stopped, result.steps) == ("interrupted", 13), result
        (folder / f"fine-{{rank}}").touch()
    """
    done = in_two_processes(script, tmp_path)
    assert done.returncode == 0, done.stderr
    assert {"fine-0", "fine-1"} <= set(os.listdir(tmp_path))

    model, sample = regression()
    alone = train(model, sample, quick(), tmp_path / "alone")
    together = load_tree(tmp_path / "whole" / "last.safetensors", "training")
    losses = [row["loss"] for row in together["course"]["rows"]]
    assert np.allclose(losses, alone.history["loss"], rtol=1e-5)
    assert torch.allclose(together["networks"]["network"]["weight"], model.network.weight, atol=1e-5)
    assert {row["rank"] for row in together["course"]["rows"] if "rank" in row} == {0.0}
