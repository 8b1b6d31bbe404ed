"""The plan of a reproduction: which runs there are, what they are called, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
from reproduction_runs import plan_of
from task_files import write_task

from gpt1.commands import reproduce
from gpt1.datasets import TASKS
from gpt1.datasets.story_cloze import TEST_CSV
from gpt1.reproduction.found import data_digest, fingerprint
from gpt1.reproduction.outcomes import Place
from gpt1.reproduction.plan import PlannedRun
from gpt1.reproduction.running import command_of
from gpt1.runtime.errors import InputError
from gpt1.settings.reproduction import PRESETS, REPRODUCE, ReproductionSettings
from gpt1.settings.training import Settings, from_keywords, parse


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with folders of RTE, CoLA and MNLI, and a model of two layers."""
    monkeypatch.chdir(tmp_path)
    for name in ("rte", "cola", "mnli"):
        write_task(tmp_path / "sets" / name, name)
    tiny.write_tiny(tmp_path / "tiny")
    return tmp_path


def plan(**settings: Any) -> list[PlannedRun]:
    given = {"data_dir": "sets", "model_dir": "tiny/model", **settings}
    return list(plan_of(**given).runs)


def short(runs: list[PlannedRun]) -> list[str]:
    """Return the names of runs without their digests."""
    return [run.name.rpartition("-")[0] for run in runs]


def test_every_experiment_of_every_data_set_that_is_there(place: Path) -> None:
    """Seed by seed; the last point of the layers is full fine-tuning."""
    runs = plan(seeds=2, first_seed=7)
    expected = [
        f"{task}-{what}-seed{seed}"
        for seed in (7, 8)
        for task in ("cola", "mnli", "rte")
        for what in ("full", "no_pretraining", "no_lm")
    ]
    layers = [f"mnli-layers{n}-seed{seed}" for seed in (7, 8) for n in (0, 1)]
    assert short(runs) == expected + layers
    of = {name: run.flags for name, run in zip(short(runs), runs, strict=True)}
    shared = {"data_dir": "sets", "model_dir": "tiny/model"}
    assert of["rte-full-seed7"] == {**shared, "seed": 7}
    assert of["rte-no_pretraining-seed7"] == {**shared, "seed": 7, "n_transfer": -1}
    assert of["rte-no_lm-seed8"] == {**shared, "seed": 8, "lm_coef": 0.0}
    assert of["mnli-layers1-seed8"] == {**shared, "seed": 8, "n_transfer": 1}
    assert len({run.name for run in runs}) == len(runs)


def test_layers_need_full_fine_tuning_of_the_same_data_set_alone(place: Path) -> None:
    runs = plan(seeds=1, what="layers,no_lm", layers_of="rte", tasks="cola,rte")
    expected = ["cola-no_lm", "rte-full", "rte-no_lm", "rte-layers0", "rte-layers1"]
    assert short(runs) == [f"{name}-seed1" for name in expected]
    runs = plan(seeds=1, what="layers", layers_of="rte", n_layer=1)
    assert short(runs) == ["rte-full-seed1", "rte-layers0-seed1"]


def test_a_part_of_a_data_set_is_left_out_and_named(place: Path) -> None:
    (place / "sets/rte/test.tsv").unlink()
    found = plan_of(data_dir="sets", model_dir="tiny/model", what="full")
    assert {run.dataset for run in found.runs} == {"cola", "mnli"}
    assert found.notes == ("rte is left out: sets/rte/ has no test.tsv",)


def test_both_levels_of_race_are_one_data_set(place: Path) -> None:
    write_task(place / "sets/RACE", "race")
    assert {run.dataset for run in plan(what="full")} == {"cola", "mnli", "rte", "race"}
    assert {run.dataset for run in plan(what="full", tasks="race-high")} == {"race-high"}
    shutil.rmtree(place / "sets/RACE/dev/high")
    assert {run.dataset for run in plan(what="full")} == {"cola", "mnli", "rte", "race-middle"}


def test_names_depend_on_what_changes_the_results_and_on_nothing_else(place: Path) -> None:
    def name(**settings: Any) -> str:
        return plan(**{"tasks": "rte", "what": "full", "seeds": 1, **settings})[0].name

    first = name()
    assert name(n_iter=3, n_gpu=4) == first, "the defaults"
    assert name(device="cpu", save_every=5, cache_dir="none") == first
    shutil.copytree("tiny/model", "moved/model")
    shutil.copytree("sets", "moved/sets")
    assert name(model_dir="moved/model", data_dir="moved/sets") == first
    assert name(data_dir="moved/sets/rte") == first
    changed = [name(n_iter=2), name(precision="bf16"), name(n_layer=1), name(n_ctx=64)]
    shards = sorted(Path("moved/model").glob("params_*.npy"))
    shards[4].write_bytes(shards[4].read_bytes()[:-4] + b"abcd")
    changed.append(name(model_dir="moved/model"))
    with open("moved/sets/rte/dev.tsv", "a") as file:
        file.write("2\tAnn ran.\tBen ran.\tnot_entailment\n")
    changed.append(name(data_dir="moved/sets"))
    assert len({first, *changed}) == 7


def test_weights_that_differ_at_their_ends_are_told_apart(tmp_path: Path) -> None:
    path, digests = tmp_path / "params_0.npy", set()
    for content in (bytes(200_000), b"x" + bytes(199_999), bytes(199_999) + b"x", bytes(200_001)):
        path.write_bytes(content)
        digests.add(fingerprint([path]))
    assert len(digests) == 4


def test_data_count_whole(tmp_path: Path) -> None:
    """A change amid a large file counts, and so does one in a file of a directory."""
    rte, race, digests = TASKS["rte"], TASKS["race"], set()
    write_task(tmp_path / "rte", "rte")
    for content in (bytes(300_000), bytes(150_000) + b"x" + bytes(149_999)):
        (tmp_path / "rte/train.tsv").write_bytes(content)
        digests.add(data_digest(rte, tmp_path / "rte"))
    write_task(tmp_path / "race", "race")
    digests.add(data_digest(race, tmp_path / "race"))
    passage = next(path for path in (tmp_path / "race/dev/high").iterdir() if path.is_file())
    passage.write_bytes(passage.read_bytes().swapcase())
    digests.add(data_digest(race, tmp_path / "race"))
    assert len(digests) == 4


def test_files_beside_folders_count_if_they_cannot_be_mistaken(place: Path) -> None:
    for path in (place / "tiny/data").iterdir():
        shutil.copy(path, place / "sets")
    for path in (place / "sets/rte").iterdir():
        shutil.copy(path, place / "sets")
    found = plan_of(data_dir="sets", model_dir="tiny/model", what="full", seeds=1)
    assert {run.dataset for run in found.runs} == {"cola", "mnli", "rte", "rocstories"}
    (text,) = found.notes
    assert text.startswith("files directly in sets/ are left out: they may be those of sst2, mrpc")


def test_a_model_with_too_few_positions_is_refused_once(place: Path) -> None:
    """The data decide: sequences that fit need no flag."""
    assert plan(what="full", n_ctx=64)
    write_task(place / "sets/rte", "rte")
    with open("sets/rte/train.tsv", "a") as file:
        file.write(f"9\t{'Ann ran. ' * 99}\tBen ran.\tentailment\n")
    with open("sets/cola/train.tsv", "a") as file:
        file.write(f"x\t1\t\t{'Ann ran. ' * 99}\n")
    with pytest.raises(InputError) as error:
        plan(what="full,no_pretraining")
    message = "--n_ctx 512: the model in tiny/model has 64 position rows; give --n_ctx 64"
    assert str(error.value) == f"{message}, and longer texts are cut"
    assert plan(what="full", n_ctx=64)
    assert plan(what="no_pretraining"), "nothing is taken from the model"


def test_the_defaults_of_the_demo_are_its_own(place: Path) -> None:
    """In data/ there is nothing, so the demo runs; it has 15 epochs if none are given."""
    names = [
        plan_of(what="full", seeds=1, **settings).runs[0].name
        for settings in ({}, {"n_iter": 15}, {"n_iter": 3})
    ]
    assert names[0].startswith("rocstories-full-seed1-")
    assert names[0] == names[1] != names[2]


def test_the_command_of_a_run_is_the_call_of_fine_tune(place: Path) -> None:
    (run,) = plan(tasks="rte", what="no_lm", seeds=1, n_ctx=64, share_prefix=True, lr=1e-3)
    words = command_of(run, Place(Path("a place"))).split()
    assert words[:2] == ["gpt1", "train"]
    command = command_of(run, Place(Path("place")))
    read = parse(command.split()[2:])
    flags = {**run.flags, **Place(Path("place")).output_flags(run.name)}
    called = from_keywords({**flags, "dataset": "rte", "submit": True})
    assert read == called
    assert (read.lm_coef, read.n_ctx, read.share_prefix, read.submit) == (0.0, 64, True, True)
    assert read.lr == 1e-3 != Settings().lr


def kept(directory: Path, *numbers: int) -> None:
    """Make the directory of a run of pretraining that kept models."""
    for number in numbers:
        shutil.copytree("tiny/model", directory / f"model-{number:08d}")
    (directory / "checkpoint-00000020.safetensors").touch()


def test_zeroshot_takes_every_kept_model(place: Path) -> None:
    kept(place / "save/books", 200, 10)
    found = plan_of(
        data_dir="sets", what="zeroshot", tasks="cola,rte", checkpoints="save/books", device="cpu"
    )
    assert short(list(found.runs)) == ["cola-zeroshot-00000010", "cola-zeroshot-00000200"]
    assert [run.n_updates for run in found.runs] == [10, 200]
    model = "save/books/model-00000010"
    flags = {"data_dir": "sets", "device": "cpu", "labelled_only": True, "model_dir": model}
    assert found.runs[0].series.startswith("books-")
    assert found.runs[0].flags == flags
    assert "rte" in found.notes[0]
    command = command_of(found.runs[0], Place(Path("place")))
    assert command == (
        "gpt1 zeroshot --dataset cola --device cpu --data_dir sets --labelled_only "
        f"--model_dir {model}"
    )


def test_zeroshot_settings_are_passed_on_and_count(place: Path) -> None:
    """The precision and the word rules change the numbers, the batch and the cache do not."""

    def first(**settings: Any) -> PlannedRun:
        given = {"what": "zeroshot", "tasks": "cola", "checkpoints": "save/books", **settings}
        return plan(**given)[0]

    kept(place / "save/books", 10)
    plain = first()
    assert first(n_batch=2, cache_dir="none").name == plain.name
    for given in ({"precision": "bf16"}, {"spacy_rules": "installed"}):
        run = first(**given)
        assert run.name != plain.name
        assert run.series != plain.series
        assert run.settings == given
        assert {**run.flags, **given} == run.flags
    assert first(n_batch=2, cache_dir="none").flags["n_batch"] == 2


def test_runs_of_pretraining_with_one_name_are_told_apart(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first(directory: str) -> PlannedRun:
        return plan(what="zeroshot", tasks="cola", checkpoints=directory)[0]

    for parent in ("one", "other"):
        kept(place / parent / "books", 10)
    shard = place / "other/books/model-00000010/params_4.npy"
    shard.write_bytes(shard.read_bytes()[:-4] + b"abcd")
    one, other = first("one/books"), first("other/books")
    assert one.series != other.series
    assert one.series.startswith("books-")
    assert one.name != other.name
    shutil.copytree("sets", "one/books/sets")
    monkeypatch.chdir(place / "one/books")
    assert first(".").series == one.series


def test_a_kept_model_that_is_being_written_is_left_out(place: Path) -> None:
    kept(place / "save/books", 10, 20)
    (place / "save/books/model-00000020/params_shapes.json").unlink()
    found = plan_of(data_dir="sets", what="zeroshot", tasks="cola", checkpoints="save/books")
    assert [run.n_updates for run in found.runs] == [10]
    assert found.notes[0].startswith("save/books/model-00000020 is left out")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"what": "full,half"}, "what='full,half': there is no 'half'; give some of full,"),
        ({"tasks": "rte,sst"}, "tasks='rte,sst': there is no 'sst'"),
        ({"what": "zeroshot"}, "name their directory with checkpoints"),
        ({"what": "full", "checkpoints": "save"}, "checkpoints: is for what zeroshot"),
        ({"what": "full", "layers_of": "rte"}, "layers_of: is for what layers"),
        ({"layers_of": "sst2"}, "--layers_of sst2: this data set is not among"),
        ({"checkpoints": "tiny"}, "tiny: has no complete model-NNNNNNNN"),
        ({"checkpoints": "nowhere"}, "nowhere: the directory of kept models cannot be read"),
        ({"tasks": "sst2,qqp"}, "sets/ has no 'train.tsv' and 'dev.tsv' and 'test.tsv': get SST-2"),
        ({"data_dir": "sets/rte"}, "sets/rte/ has no folder of a data set such as RTE"),
        ({"data_dir": "nowhere"}, "nowhere/ has no folder of a data set such as RTE"),
        ({"model_dir": "nowhere"}, "nowhere/ has no pretrained model"),
        ({"seeds": 0}, "seeds=0: must be at least 1"),
        ({"seed": 1}, "seed: there is no such argument; did you mean seeds?"),
        ({"seeds": 2, "first_seed": 2**32 - 1}, "the last seed must be less than 2**32"),
        ({"what": "layers", "tasks": "cola"}, "there is nothing to run"),
    ],
)
def test_mistakes(place: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        plan(**settings)
    assert message in str(error.value)


def test_without_pretraining_no_weights_are_needed(place: Path) -> None:
    for path in (place / "tiny/model").glob("params_*"):
        path.unlink()
    assert len(plan(what="no_pretraining", tasks="rte", seeds=2)) == 2


def test_a_single_data_set_needs_no_folder(place: Path) -> None:
    runs = plan(data_dir="tiny/data", what="full", seeds=1)
    assert [run.dataset for run in runs] == ["rocstories"]
    assert TEST_CSV in TASKS["rocstories"].files[0]


def test_the_preset_asks_for_the_released_weights(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is given counts more than the preset, and the demo never takes its place."""
    settings = ReproductionSettings.of(REPRODUCE.values({"preset": "rocstories", "seeds": 2}))
    assert (settings.tasks, settings.what, settings.seeds) == ("rocstories", "full", 2)
    assert PRESETS["rocstories"]["seeds"] == 10
    assert settings.passed_on() == {"data_dir": "data", "model_dir": "model"}
    assert reproduce.main(["--preset", "rocstories"]) == 2
    message = capsys.readouterr().err
    assert "ask for ROCStories at https" in message
    assert "gpt1 download" in message
    assert reproduce.main(["--preset", "rocstories", "--checkpoints", "save"]) == 2
    assert "--preset rocstories: --checkpoints: is for" in capsys.readouterr().err


def test_torchrun_is_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert reproduce.main(["--data_dir", "sets", "--model_dir", "tiny/model"]) == 2
    assert "--jobs" in capsys.readouterr().err


def test_a_dry_run_lists_and_writes_nothing(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--data_dir", "sets", "--model_dir", "tiny/model", "--tasks", "rte", "--seeds", "1"]
    before = sorted(place.rglob("*"))
    assert reproduce.main([*flags, "--what", "full,no_lm", "--dry_run"]) == 0
    out, err = capsys.readouterr()
    names = [run.name for run in plan(tasks="rte", seeds=1, what="full,no_lm")]
    assert out.splitlines() == [f"left  {name}" for name in names]
    assert err == "gpt1 reproduce: 2 of 2 runs are left\n"
    assert reproduce.main([*flags, "--what", "full", "--dry_run", "--verbose"]) == 0
    assert "left  gpt1 train --dataset rte --data_dir sets" in capsys.readouterr().out
    assert sorted(place.rglob("*")) == before
